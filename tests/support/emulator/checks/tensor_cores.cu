// The wrappers of tensor-core instructions, with every lane's registers as they are.
#include "common/mma.cuh"

// ldmatrix of COUNT matrices of 8 x 8 that lie one after another.
#ifdef COUNT
#ifndef SHIFT
#define SHIFT 0  // in elements, of the rows' addresses
#endif

KERNEL(32) fragments_of_matrices(const uint16* matrices, uint32* out) {
    SHARED_ARRAY(Words16, rows, 8 * COUNT);
    const int lane = threadIdx.x;
    if (lane < 8 * COUNT) store_shared(&rows[lane], load_global_16(matrices + 8 * lane));
    __syncwarp();
    uint32 registers[COUNT];
    load_matrices<COUNT, TRANSPOSED>(registers, reinterpret_cast<const uint16*>(&rows[lane % (8 * COUNT)]) + SHIFT);
    for (int i = 0; i < COUNT; ++i) store_global(out + COUNT * lane + i, registers[i]);
}
#endif

// mma.sync by the function MMA.
#ifdef MMA
KERNEL(32) product(const uint32* a, const uint32* b, const float* c, float* d) {
    const int lane = threadIdx.x;
    const Words16 of_a = load_global_16(a + 4 * lane), of_b = load_global_16(b + 4 * lane);
    const uint32 second[2] = {of_b.word[0], of_b.word[1]};
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = load_global(c + 4 * lane + i);
    MMA(sums, of_a.word, second);
    for (int i = 0; i < 4; ++i) store_global(d + 4 * lane + i, sums[i]);
}
#endif

#ifndef PENDING
#define PENDING 1
#endif

// The nearest TF32 number.
KERNEL(32) rounded(const float* from, float* to) {
    store_global(to + threadIdx.x, float_of_bits(nearest_tf32(bits_of_float(load_global(from + threadIdx.x)))));
}

// Three stages through two shared arrays: while one is summed, the next is on its way, and the third is past the end.
KERNEL(32) pipeline(const float* input, float* out, int size) {
    SHARED_ARRAY(Words16, stage, 2 * 32);
    const int lane = threadIdx.x;
    float sum = 0;
    const auto fetch = [&](int number) {
        const int first = 128 * number + 4 * lane;
        emulator::copy_async(&stage[32 * (number % 2) + lane], input + first, 16, first < size);
        emulator::copy_async_commit();
    };
    fetch(0);
    for (int number = 0; number < 3; ++number) {
        fetch(number + 1);
        emulator::copy_async_wait(PENDING);
        __syncwarp();
        const Words16 words = load_shared(&stage[32 * (number % 2) + 31 - lane]);
        for (uint32 word : words.word) sum += float_of_bits(word);
        __syncwarp();
    }
    store_global(out + lane, sum);
}
