// The lookup in a volume:
//
//     out[e, m, n, i, j] = scale * sum over corners a, b of  wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
//     D(y', x') = volume[e, i, j, y', x'],   0 outside the slice
//     X = coords[e, 0, i, j],   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1);   y likewise
//     dx(n) = first + n step
//
// NaN where a coordinate is not finite.
//
// Tile: a block computes a chunk of displacements for QUERIES neighbouring queries. It reads their taps into shared memory
// (windows.cuh); then a lane has a query, and warps share the displacements.
//
// Macros: INPUT, OUTPUT, COORDINATE, INDEX.
#include "volume_lookup/windows.cuh"

DEVICE Sum blended(const Query& query, const Corners& corners, bool one_row) {
    const Sum left = query.x.weights[0], right = query.x.weights[1];
    const Sum upper = multiply_add(right, corners.upper_right, left * corners.upper_left);
    if (one_row) return upper;
    const Sum lower = multiply_add(right, corners.lower_right, left * corners.lower_left);
    return multiply_add(query.y.weights[1], lower, query.y.weights[0] * upper);
}

KERNEL(THREADS)
volume_lookup(const INPUT* volume, const COORDINATE* coords, OUTPUT* out, Index tasks, Index queries, Index chunks, int rows,
              int columns, Index height, Index width, SLICES_PARAMETERS(volume), COORDS_PARAMETERS, VOLUME_PARAMETERS(out),
              AXIS_PARAMETERS(y), AXIS_PARAMETERS(x), Sum scale) {
    SHARED_ARRAY(TileQuery, shared_queries, QUERIES);
    SHARED_ARRAY(Sum, taps, TAPS * PITCH);
    const Slices<const INPUT> slices = SLICES_OF_PARAMETERS(volume);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const Volume<OUTPUT> output = VOLUME_OF_PARAMETERS(out);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (Index task = blockIdx.x; task < tasks; task += gridDim.x) {
        const Index first = task / chunks * QUERIES;
        const Chunk chunk = chunk_of(vertical, horizontal, task % chunks, rows, columns);
        const int size =
            store_queries(shared_queries, slices, coordinates, vertical, horizontal, first, queries, height, width);
        __syncthreads();
        store_taps(taps, shared_queries, size, slices, vertical, horizontal, chunk);
        __syncthreads();
        if (lane < size) {
            const Query query = load_shared(&shared_queries[lane]).query;
            const Place at = place(first + lane, height, width);
            OUTPUT* const patch = output.patch(at.e, 0, at.i, at.j) + (chunk.m * output.m_stride + chunk.n * output.n_stride);
            for (int number = warp; number < chunk.rows * chunk.columns; number += WARPS) {
                const int m = number / chunk.columns, n = number % chunk.columns;
                const Sum sum = blended(query, corners_of(taps, vertical, horizontal, chunk, m, n), vertical.corners == 1);
                store(patch + (m * output.m_stride + n * output.n_stride), query.finite ? scale * sum : not_a_number());
            }
        }
        __syncthreads();
    }
}
