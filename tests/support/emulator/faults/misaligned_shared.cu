// A copy by way of shared memory, four elements at a time. Fault: through an array of floats, aligned to no more than one.
#include "common/platform.cuh"

KERNEL(16) misaligned_shared(const float* input, float* out) {
    const int i = blockIdx.x * 64 + 4 * threadIdx.x;
#ifdef FAULT
    SHARED_ARRAY(float, values, 64);
    Words16* const words = reinterpret_cast<Words16*>(values);
#else
    SHARED_ARRAY(Words16, words, 16);
#endif
    store_shared(&words[threadIdx.x], load_global_16(input + i));  // caught here
    store_global_16(out + i, load_shared(&words[threadIdx.x]));
}
