// The exchanges between the lanes of a warp: one call of each, every lane's result stored.
#include "common/platform.cuh"

#ifndef WIDTH
#define WIDTH 32
#endif

#define EACH(name, type, answer)                                     \
    KERNEL(64) name(const float* input, type* out, int argument) {    \
        const float value = load_global(input + threadIdx.x);          \
        store_global(out + threadIdx.x, static_cast<type>(answer));     \
    }

EACH(from_lane, float, __shfl_sync(0xffffffffu, value, argument, WIDTH))
EACH(from_below, float, __shfl_up_sync(0xffffffffu, value, argument, WIDTH))
EACH(from_above, float, __shfl_down_sync(0xffffffffu, value, argument, WIDTH))
EACH(from_flipped, float, __shfl_xor_sync(0xffffffffu, value, argument, WIDTH))
EACH(ballot, unsigned, __ballot_sync(0xffffffffu, static_cast<int>(value) > argument))
EACH(any, int, __any_sync(0xffffffffu, static_cast<int>(value) > argument))
EACH(all, int, __all_sync(0xffffffffu, static_cast<int>(value) > argument))
EACH(block_count, int, __syncthreads_count(static_cast<int>(value) > argument))
EACH(block_or, int, __syncthreads_or(static_cast<int>(value) > argument))
EACH(block_and, int, __syncthreads_and(static_cast<int>(value) > argument))

// Half a warp at a time, each half with a mask of its own.
KERNEL(64) halves_of_warps(const float* input, float* out) {
    const int thread = threadIdx.x;
    float value = load_global(input + thread);
    if (thread % 32 < 16)
        value = __shfl_sync(0x0000ffffu, value, 3);
    else
        value = __shfl_sync(0xffff0000u, value, 20);
    store_global(out + thread, value);
}
