// A copy, four elements at a time. Fault: from a place that is not a multiple of 16 bytes.
#include "common/platform.cuh"

KERNEL(16) misaligned(const float* input, float* out) {
    const int i = blockIdx.x * 64 + 4 * threadIdx.x;
#ifdef FAULT
    const int from = i + 1;
#else
    const int from = i;
#endif
    store_global_16(out + i, load_global_16(input + from));  // caught here
}
