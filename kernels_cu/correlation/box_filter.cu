// The window along one axis, or its transpose, over a volume (b, m, n, y, x). A pass along each axis sums a whole window:
//
//     TRANSPOSED 0:  to[b, m, n, i, x] = scale * sum over u < k of  from[b, m, n, i s + u d, x]
//     TRANSPOSED 1:  to[b, m, n, y, x] = scale * sum of  from[b, m, n, i, x]  over the outputs i that read y (window.cuh)
//
// and likewise along x. Tile: a thread computes one element; along y, a vector of a row (VECTOR elements), so that loads and
// stores of aligned rows move 16 bytes.
//
// Macros: FROM, TO, INDEX, ALONG_Y, TRANSPOSED.
#include "correlation/window.cuh"

// Either the source or the target has the type of the sums.
#if TRANSPOSED
typedef SumOf<TO>::type Sum;
#else
typedef SumOf<FROM>::type Sum;
#endif

constexpr int THREADS = 256;
constexpr int VECTOR = ALONG_Y ? VectorOf<FROM>::width : 1;

KERNEL(THREADS)
box_filter(const FROM* from, TO* to, Index threads, Index patch_y, Index patch_x, Index height, Index width,
           Index batch_stride_from, Index m_stride_from, Index n_stride_from, Index row_stride_from, Index column_stride_from,
           Index batch_stride_to, Index m_stride_to, Index n_stride_to, Index row_stride_to, Index column_stride_to, Index kernel,
           Index out, Index common, Index inverse, Index tap_step, Index output_step, Sum scale) {
    const Window window = {kernel, out, common, inverse, tap_step, output_step};
    const Index vectors = (width + VECTOR - 1) / VECTOR;
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < threads; at += all) {
        const Index x = at % vectors * VECTOR, y = at / vectors % height;
        const Index plane = at / vectors / height, n = plane % patch_x, m = plane / patch_x % patch_y,
                    b = plane / patch_x / patch_y;
        const Index along = ALONG_Y ? y : x, along_stride = ALONG_Y ? row_stride_from : column_stride_from;
        const Progression terms = TRANSPOSED ? outputs_at_position(window, along) : positions_of_output(window, along);
        const FROM* source = from + (b * batch_stride_from + m * m_stride_from + n * n_stride_from +
                                     (ALONG_Y ? x * column_stride_from : y * row_stride_from) + terms.first * along_stride);

        Sums<Sum, VECTOR> sums;
        sums.clear();
        for (Index u = 0; u < terms.count; u++, source += terms.step * along_stride) {
            Sum values[VECTOR];
            load_vector(source, column_stride_from, width - x, values);
#pragma unroll
            for (int r = 0; r < VECTOR; r++) sums.partial[r] += values[r];
            sums.added(1);
        }
        sums.fold();
#pragma unroll
        for (int r = 0; r < VECTOR; r++) sums.total[r] *= scale;
        store_vector(to + (b * batch_stride_to + m * m_stride_to + n * n_stride_to + y * row_stride_to + x * column_stride_to),
                  column_stride_to, width - x, sums.total);
    }
}
