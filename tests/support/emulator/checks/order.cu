// When each thread has its turn, and sums without an order.
#include "common/platform.cuh"

KERNEL(64) turns(int* turn, int* counter) {
    store_global(turn + blockIdx.x * 64 + threadIdx.x, atomicAdd(counter, 1));
}

KERNEL(64) totals(const float* input, float* total) {
    SHARED_ARRAY(float, sum, 1);
    if (threadIdx.x == 0) store_shared(&sum[0], 0.f);
    __syncthreads();
    atomicAdd(&sum[0], load_global(input + blockIdx.x * 64 + threadIdx.x));
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(total, load_shared(&sum[0]));
}

// Stores what shared memory holds before a thread writes to it.
KERNEL(64) unwritten_shared(float* from_fixed, uint16* from_dynamic) {
    SHARED_ARRAY(float, fixed, 64);
    DYNAMIC_SHARED_ARRAY(uint16, dynamic);
    const int thread = threadIdx.x;
    store_global(from_fixed + blockIdx.x * 64 + thread, load_shared(&fixed[thread]));
    store_global(from_dynamic + blockIdx.x * 64 + thread, load_shared(&dynamic[thread]));
    store_shared(&fixed[thread], 1.f);
    store_shared(&dynamic[thread], static_cast<uint16>(1));
}
