// Sums of neighbours within a warp. Fault 1: some lanes have left. Fault 2: some lanes only. Fault 3: the mask leaves some out.
#include "common/platform.cuh"

#ifndef FAULT
#define FAULT 0
#endif

KERNEL(64) diverged_shuffle(const float* input, float* out) {
    const int i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32;
    float value = load_global(input + i);
    if (FAULT == 1 && lane >= 20) return;
    if (FAULT != 2 || lane < 20)
        value += __shfl_xor_sync(FAULT == 3 ? 0xfffffu : 0xffffffffu, value, 1);  // caught here
    __syncwarp();
    store_global(out + i, value);
}
