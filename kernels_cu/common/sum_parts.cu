// Adds up partial sums (split-K), always in the same order:
//
//     to[a, b, c, d, x] = scale * sum over k < splits of  from[k, a, b, c, d, x]
//
// Tile: a thread computes a vector of a row (VECTOR elements), so that loads and stores of aligned rows move 16 bytes.
//
// Macros: FROM, TO, INDEX.
#include "common/numeric.cuh"

typedef FROM Sum;

constexpr int THREADS = 256;
constexpr int VECTOR = VectorOf<FROM>::width;
constexpr int IN_FLIGHT = 8;  // splits that are loaded before they are added

KERNEL(THREADS)
sum_parts(const FROM* from, TO* to, Index threads, Index splits, Index size_b, Index size_c, Index size_d, Index size_x,
          Index split_stride_from, Index a_stride_from, Index b_stride_from, Index c_stride_from, Index d_stride_from,
          Index x_stride_from, Index a_stride_to, Index b_stride_to, Index c_stride_to, Index d_stride_to, Index x_stride_to,
          Sum scale) {
    const Index vectors = (size_x + VECTOR - 1) / VECTOR;
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < threads; at += all) {
        const Index x = at % vectors * VECTOR, row = at / vectors, d = row % size_d, c = row / size_d % size_c;
        const Index b = row / size_d / size_c % size_b, a = row / size_d / size_c / size_b;
        const FROM* source = from + (a * a_stride_from + b * b_stride_from + c * c_stride_from + d * d_stride_from +
                                     x * x_stride_from);
        Sums<Sum, VECTOR> sums;
        sums.clear();
        for (Index k = 0; k < splits; k += IN_FLIGHT, source += IN_FLIGHT * split_stride_from) {
            FROM values[IN_FLIGHT][VECTOR];
#pragma unroll
            for (int s = 0; s < IN_FLIGHT; s++)
                load_vector(source + s * split_stride_from, x_stride_from, k + s < splits ? size_x - x : 0, values[s]);
#pragma unroll
            for (int s = 0; s < IN_FLIGHT; s++)
#pragma unroll
                for (int r = 0; r < VECTOR; r++) sums.partial[r] += values[s][r];
            sums.added(IN_FLIGHT);
        }
        sums.fold();
#pragma unroll
        for (int r = 0; r < VECTOR; r++) sums.total[r] *= scale;
        store_vector(to + (a * a_stride_to + b * b_stride_to + c * c_stride_to + d * d_stride_to + x * x_stride_to),
                  x_stride_to, size_x - x, sums.total);
    }
}
