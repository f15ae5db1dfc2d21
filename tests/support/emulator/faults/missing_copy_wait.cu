// Each block reverses its part of the input, which it copies asynchronously. Fault 1: it does not wait for the copy. Fault 2:
// each thread waits for its own copies, but not for those of the others.
#include "common/platform.cuh"

#ifndef FAULT
#define FAULT 0
#endif

KERNEL(64) missing_copy_wait(const float* input, float* out) {
    SHARED_ARRAY(float, part, 64);
    const int first = blockIdx.x * 64, thread = threadIdx.x;
    emulator::copy_async(&part[thread], input + first + thread, 4);  // caught here
    emulator::copy_async_commit();
#if FAULT != 1
    emulator::copy_async_wait(0);
#endif
#if FAULT != 2
    __syncthreads();
#endif
    store_global(out + first + thread, load_shared(&part[63 - thread]));  // caught here
}
