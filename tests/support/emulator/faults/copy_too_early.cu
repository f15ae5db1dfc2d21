// The input in two stages through one shared array, copied asynchronously. Fault: the second copy is asked for before everybody
// has read what the first has brought.
#include "common/platform.cuh"

KERNEL(32) copy_too_early(const float* input, float* out) {
    SHARED_ARRAY(float, part, 32);
    const int thread = threadIdx.x;
    for (int first = blockIdx.x * 64; first < static_cast<int>(blockIdx.x) * 64 + 64; first += 32) {
        emulator::copy_async(&part[thread], input + first + thread, 4);  // caught here
        emulator::copy_async_commit();
        emulator::copy_async_wait(0);
        __syncthreads();
        store_global(out + first + thread, load_shared(&part[31 - thread]));
#ifndef FAULT
        __syncthreads();
#endif
    }
}
