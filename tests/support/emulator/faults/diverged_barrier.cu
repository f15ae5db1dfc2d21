// Sums of neighbours within a block. Fault 1: only some threads wait. Fault 2: some have left. Fault 3: they wait in two places.
#include "common/platform.cuh"

#ifndef FAULT
#define FAULT 0
#endif

KERNEL(64) diverged_barrier(const float* input, float* out) {
    SHARED_ARRAY(float, part, 64);
    const int first = blockIdx.x * 64, thread = threadIdx.x;
    store_shared(&part[thread], load_global(input + first + thread));
    if (FAULT == 2 && thread >= 40) return;
    if (FAULT == 3 && thread < 40)
        __syncthreads();  // caught here
    else if (FAULT != 1 || thread < 40)
        __syncthreads();  // caught here
    store_global(out + first + thread, FAULT ? 0.f : load_shared(&part[thread]) + load_shared(&part[thread ^ 1]));
}
