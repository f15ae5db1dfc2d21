// Merges the partial results of means, part after part, and makes the mean displacements of them:
//
//     dy[b, i, j] = rows / total * step_y + first_y,   dx likewise       of the sums total, rows and columns of all parts
//     log_sum[b, i, j] = highest / temperature + log(total)              the logarithm of the sum of exp(score / temperature)
//
// A thread has a position. Without a `log_sum` none is stored.
//
// Macros: SUM, WORD (of a partial result), REDUCTION (MEAN), KEPT (1), INDEX.
#include "matching/reduction.cuh"

typedef SUM Sum;
typedef Reduction<Sum> State;

constexpr int THREADS = 256;

KERNEL(THREADS)
merge_mean(const WORD* partial, SUM* dy, SUM* dx, double* log_sum, Index positions, Index plane, Index parts, Index part_stride,
           Index batch_stride, Index word_stride, Sum factor, Sum sharpness, Sum step_y, Sum step_x, Sum first_y, Sum first_x,
           double temperature) {
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < positions; at += all) {
        const WORD* const from = partial + (at / plane * batch_stride + at % plane);
        const State state = merged<Sum>(from, part_stride, word_stride, parts, State::Settings::of(factor, sharpness));
        // The first displacement is added last: a large one would cost digits of the fraction.
        store_global(dy + at, state.rows / state.total * step_y + first_y);
        store_global(dx + at, state.columns / state.total * step_x + first_x);
        if (log_sum) store_global(log_sum + at, state.highest / temperature + logarithm(static_cast<double>(state.total)));
    }
}
