// A sum over a block's part. Fault 1: without an end. Fault 2: barriers without an end. Fault 3: votes without an end.
// Fault 4: without an end, and without a call.
#include "common/platform.cuh"

#ifndef FAULT
#define FAULT 0
#endif

KERNEL(64) never_ends(const float* input, float* out) {
    const int first = blockIdx.x * 64;
    float sum = 0;
    for (int i = 0; i < 64 || FAULT == 1; ++i) sum += load_global(input + first + i % 64);
    while (FAULT == 2) __syncthreads();
    for (volatile int always = 1; FAULT == 4 && always;) {
    }
    while (FAULT == 3) sum += static_cast<float>(__any_sync(0xffffffffu, 1));
    store_global(out + first + threadIdx.x, sum);
}
