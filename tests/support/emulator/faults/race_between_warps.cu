// Threads swap values in pairs. A pair within a warp needs a barrier of the warp only. Fault: the pairs are across warps.
#include "common/platform.cuh"

#ifdef FAULT
#define DISTANCE 32
#else
#define DISTANCE 1
#endif

KERNEL(64) race_between_warps(const float* input, float* out) {
    SHARED_ARRAY(float, values, 64);
    const int first = blockIdx.x * 64, thread = threadIdx.x;
    store_shared(&values[thread], load_global(input + first + thread));  // caught here
    __syncwarp();
    store_global(out + first + (thread ^ 1), load_shared(&values[thread ^ DISTANCE]));  // caught here
}
