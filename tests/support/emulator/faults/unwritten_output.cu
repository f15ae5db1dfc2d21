// A copy. Fault: the last element is left out.
#include "common/platform.cuh"

KERNEL(64) unwritten_output(const float* input, float* out, int size) {
    const int i = blockIdx.x * 64 + threadIdx.x;
#ifdef FAULT
    if (i == size - 1) return;
#endif
    if (i < size) store_global(out + i, load_global(input + i));
}
