// Sums of neighbours. Fault: the last has no right neighbour, which is read all the same.
#include "common/platform.cuh"

DEVICE float at(const float* input, int i) {
    return load_global(input + i);
}

KERNEL(64) out_of_bounds_read(const float* input, float* out, int size) {
    const int i = blockIdx.x * 64 + threadIdx.x;
#ifdef FAULT
    const bool has_neighbour = i < size;
#else
    const bool has_neighbour = i < size - 1;
#endif
    float sum = at(input, i);
    if (has_neighbour) sum += at(input, i + 1);  // caught here
    store_global(out + i, sum);
}
