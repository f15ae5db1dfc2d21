// Every thread takes the block's first value, then the last thread clears it. Fault: it does not wait until all have taken it.
#include "common/platform.cuh"

KERNEL(64) write_after_read(const float* input, float* out) {
    SHARED_ARRAY(float, first, 1);
    const int begin = blockIdx.x * 64, thread = threadIdx.x;
    if (thread == 0) store_shared(&first[0], load_global(input + begin));
    __syncthreads();
    store_global(out + begin + thread, load_shared(&first[0]));  // caught here
#ifndef FAULT
    __syncthreads();
#endif
    if (thread == 63) store_shared(&first[0], 0.f);  // caught here
}
