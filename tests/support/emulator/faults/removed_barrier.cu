// Each block reverses its part of the input in shared memory. Fault: nobody waits until all of it is there.
#include "common/platform.cuh"

KERNEL(64) removed_barrier(const float* input, float* out) {
    SHARED_ARRAY(float, part, 64);
    const int first = blockIdx.x * 64, thread = threadIdx.x;
    store_shared(&part[thread], load_global(input + first + thread));  // caught here
#ifndef FAULT
    __syncthreads();
#endif
    store_global(out + first + thread, load_shared(&part[63 - thread]));  // caught here
}
