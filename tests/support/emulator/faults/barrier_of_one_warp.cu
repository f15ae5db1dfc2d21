// The second warp takes what the first has stored. Fault: each warp waits for its own lanes only.
#include "common/platform.cuh"

KERNEL(64) barrier_of_one_warp(const float* input, float* out) {
    SHARED_ARRAY(float, values, 32);
    const int begin = blockIdx.x * 64, thread = threadIdx.x;
    const bool gives = thread < 32;
    const float value = load_global(input + begin + thread);
    if (gives) store_shared(&values[thread], value);  // caught here
#ifdef FAULT
    __syncwarp();
#else
    __syncthreads();
#endif
    store_global(out + begin + thread, gives ? value : load_shared(&values[thread - 32]));  // caught here
}
