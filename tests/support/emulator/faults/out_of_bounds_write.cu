// A copy. Fault: one element further.
#include "common/platform.cuh"

#ifndef FAULT
#define FAULT 0
#endif

KERNEL(64) out_of_bounds_write(const float* input, float* out) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    store_global(out + i + FAULT, load_global(input + i));  // caught here
}
