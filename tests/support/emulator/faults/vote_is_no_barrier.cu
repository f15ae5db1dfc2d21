// Two lanes take a value, then the last clears it. Fault: between the two is a vote, for which lanes wait too, but which says
// nothing of what they do to memory.
#include "common/platform.cuh"

KERNEL(32) vote_is_no_barrier(const float* input, float* out) {
    SHARED_ARRAY(float, first, 1);
    const int begin = blockIdx.x * 32, lane = threadIdx.x;
    if (lane == 0) store_shared(&first[0], load_global(input + begin));
    __syncwarp();
    store_global(out + begin + lane, lane < 30 ? 0.f : load_shared(&first[0]));
#ifdef FAULT
    __any_sync(0xffffffffu, 1);
#else
    __syncwarp();
#endif
    if (lane == 31) store_shared(&first[0], 0.f);  // caught here
}
