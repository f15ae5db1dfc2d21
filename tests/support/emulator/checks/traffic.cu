// One access of each kind, a few elements apart.
#include "common/platform.cuh"

DEVICE float at(const float* input, int i) { return load_global(input + i); }

KERNEL(32) traffic(const float* input, float* out, int apart) {
    SHARED_ARRAY(float, values, 1024);
    SHARED_ARRAY(Words16, wide, 32);
    const int lane = threadIdx.x, far = lane * apart;
    store_shared(&values[far], at(input, far));
    store_shared(&wide[lane], Words16{{0, 0, 0, 0}});
    __syncwarp();
    const float first = load_shared(&values[0]);
    store_global(out + lane, load_shared(&values[far]) + first);
}
