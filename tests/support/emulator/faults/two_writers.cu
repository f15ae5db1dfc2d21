// Sums of pairs. Fault: both threads of a pair store it.
#include "common/platform.cuh"

KERNEL(64) two_writers(const float* input, float* out) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    const float sum = load_global(input + i) + load_global(input + (i ^ 1));
#ifndef FAULT
    if (i % 2 == 0)
#endif
        store_global(out + i / 2, sum);  // caught here
}
