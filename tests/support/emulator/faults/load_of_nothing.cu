// Adds one. Fault: to an output that nobody has written.
#include "common/platform.cuh"

KERNEL(64) load_of_nothing(const float* input, float* out) {
    const int i = blockIdx.x * 64 + threadIdx.x;
#ifdef FAULT
    const float value = load_global(out + i) + load_global(input + i);  // caught here
#else
    const float value = load_global(input + i);
#endif
    store_global(out + i, value + 1);
}
