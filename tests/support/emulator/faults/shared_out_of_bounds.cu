// Turns each block's part around by one. Fault: past the end of one array into the next instead.
#include "common/platform.cuh"

KERNEL(64) shared_out_of_bounds(const float* input, float* out) {
    SHARED_ARRAY(float, part, 64);
    SHARED_ARRAY(float, next, 64);
    const int first = blockIdx.x * 64, thread = threadIdx.x;
    store_shared(&part[thread], load_global(input + first + thread));
    store_shared(&next[thread], 0.f);
    __syncthreads();
#ifdef FAULT
    const int from = thread + 1;
#else
    const int from = (thread + 1) % 64;
#endif
    store_global(out + first + thread, load_shared(part + from) + load_shared(&next[thread]));  // caught here
}
