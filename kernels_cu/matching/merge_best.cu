// Merges the partial results of the best displacements, part after part:
//
//     score[b, k, i, j], channel[b, k, i, j] = the k-th best of all partial[part, b, i, j];       NaN and -1 where there is none
//
// A thread has a position.
//
// Macros: SUM, WORD (of a partial result), REDUCTION (BEST), KEPT (the scores of a partial result, at least as many as are
// wanted), INDEX.
#include "matching/reduction.cuh"

typedef SUM Sum;
typedef Reduction<Sum> State;

constexpr int THREADS = 256;

KERNEL(THREADS)
merge_best(const WORD* partial, SUM* score, long long* channel, Index positions, Index plane, Index parts, Index wanted,
           Index part_stride, Index batch_stride, Index word_stride) {
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < positions; at += all) {
        const Index b = at / plane, pixel = at % plane;
        const WORD* const from = partial + (b * batch_stride + pixel);
        const State state = merged<Sum>(from, part_stride, word_stride, parts, State::Settings{});
        const Index to = b * wanted * plane + pixel;
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            if (k >= wanted) break;
            const bool none = state.channels[k] == NO_CHANNEL;
            store_global(score + (to + k * plane), none ? Sum(not_a_number()) : state.scores[k]);
            store_global(channel + (to + k * plane), none ? -1ll : static_cast<long long>(state.channels[k]));
        }
    }
}
