// Faults that no accessor sees and the sanitizers must find. Fault 1: past the end of a local array. Fault 2: past the end of the
// input. Fault 3: past the end of a shared array. Fault 4: an integer overflows.
#include "common/platform.cuh"

#ifndef FAULT
#define FAULT 0
#endif

KERNEL(64) undeclared(const float* input, float* out, int size) {
    SHARED_ARRAY(float, part, 64);
    const int i = blockIdx.x * 64 + threadIdx.x, thread = threadIdx.x;
    const float values[2] = {input[FAULT == 2 ? i + 1 : i], 0};
    float* const mine = &part[0] + thread + (FAULT == 3);
    *mine = values[FAULT == 1 ? size : 0];
    const int far = FAULT == 4 ? i + 2147483647 : i;
    store_global(out + i, far < 0 ? 0.f : *mine);
}
