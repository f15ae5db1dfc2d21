// The sum of parts that several blocks have of the same sums, always in the same order:
//
//     to[a, b, c, d, x] = scale * sum over k < parts of  from[k, a, b, c, d, x]
//
// A thread answers RUN neighbours of a row, by 16-byte accesses where they are aligned.
//
// Macros: FROM, TO, INDEX.
#include "common/numeric.cuh"

constexpr int THREADS = 256;
constexpr int RUN = RunOf<FROM>::length;

KERNEL(THREADS)
sum_parts(const FROM* from, TO* to, Index threads, Index parts, Index size_b, Index size_c, Index size_d, Index width, Index part_stride,
          Index stride_from_a, Index stride_from_b, Index stride_from_c, Index stride_from_d, Index column_stride_from,
          Index stride_to_a, Index stride_to_b, Index stride_to_c, Index stride_to_d, Index column_stride_to, FROM scale) {
    const Index runs = (width + RUN - 1) / RUN;
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < threads; at += all) {
        const Index x = at % runs * RUN, row = at / runs, d = row % size_d, c = row / size_d % size_c;
        const Index b = row / size_d / size_c % size_b, a = row / size_d / size_c / size_b;
        const FROM* source = from + (a * stride_from_a + b * stride_from_b + c * stride_from_c + d * stride_from_d +
                                     x * column_stride_from);
        Sums<FROM, RUN> sums;
        sums.clear();
        for (Index k = 0; k < parts; k++, source += part_stride) {
            FROM run[RUN];
            load_run(source, column_stride_from, width - x, run);
#pragma unroll
            for (int r = 0; r < RUN; r++) sums.part[r] += run[r];
            sums.added(1);
        }
        sums.fold();
#pragma unroll
        for (int r = 0; r < RUN; r++) sums.total[r] *= scale;
        store_run(to + (a * stride_to_a + b * stride_to_b + c * stride_to_c + d * stride_to_d + x * column_stride_to),
                  column_stride_to, width - x, sums.total);
    }
}
