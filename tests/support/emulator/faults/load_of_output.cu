// Adds one. Fault: to what the launch itself has stored, which a load need not see.
#include "common/platform.cuh"

KERNEL(64) load_of_output(const float* input, float* out) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    float value = load_global(input + i);
#ifdef FAULT
    store_global(out + i, value);
    value = load_global(out + i);  // caught here
#endif
    store_global(out + i, value + 1);
}
