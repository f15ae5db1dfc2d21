// The gradient of coords:
//
//     G[e, 0, i, j] = scale * sum over m, n of  g[e, m, n, i, j] * sum over a of  wy(a) (D(a, 1) - D(a, 0))
//     G[e, 1, i, j] = scale * sum over m, n of  g[e, m, n, i, j] * sum over b of  wx(b) (D(1, b) - D(0, b))
//
// with the taps D(a, b) of the four corners of a displacement, 0 outside the slice (volume_lookup.cu). NaN where a coordinate is
// not finite.
//
// Tile: a block has QUERIES neighbouring queries and goes through the chunks of displacements (windows.cuh). A lane has a query,
// and warps share the displacements; their sums are added in the order of the warps.
//
// Macros: INPUT, COTANGENT, COORDINATE, GRADIENT, INDEX.
#include "volume_lookup/windows.cuh"

// Adds the slopes of the lane's query at the warp's displacements of a chunk.
DEVICE void add_slopes(Sums<Sum, 2>& sums, const Sum* taps, const Query& query, const Volume<const COTANGENT>& output,
                       const COTANGENT* patch, const Axis& vertical, const Axis& horizontal, const Chunk& chunk) {
    for (int number = threadIdx.x / WARP; number < chunk.rows * chunk.columns; number += WARPS) {
        const int m = number / chunk.columns, n = number % chunk.columns;
        const Sum g = static_cast<Sum>(load(patch + ((chunk.m + m) * output.m_stride + (chunk.n + n) * output.n_stride)));
        const Corners corners = corners_of(taps, vertical, horizontal, chunk, m, n);
        const Sum upper = corners.upper_right - corners.upper_left, lower = corners.lower_right - corners.lower_left;
        const Sum left = corners.lower_left - corners.upper_left, right = corners.lower_right - corners.upper_right;
        const Sum along_x = multiply_add(query.y.weights[1], lower, query.y.weights[0] * upper);
        const Sum along_y = multiply_add(query.x.weights[1], right, query.x.weights[0] * left);
        sums.partial[0] = multiply_add(g, vertical.corners == 1 ? upper : along_x, sums.partial[0]);
        sums.partial[1] = multiply_add(g, along_y, sums.partial[1]);
        sums.added(1);
    }
}

KERNEL(THREADS)
volume_gradient_coords(const COTANGENT* cotangent, const INPUT* volume, const COORDINATE* coords, GRADIENT* gradient, Index tasks,
                       Index queries, Index chunks, int rows, int columns, Index height, Index width,
                       VOLUME_PARAMETERS(cotangent), SLICES_PARAMETERS(volume), COORDS_PARAMETERS, AXIS_PARAMETERS(y),
                       AXIS_PARAMETERS(x), IMAGE_PARAMETERS(gradient), Sum scale) {
    SHARED_ARRAY(TileQuery, shared_queries, QUERIES);
    SHARED_ARRAY(Sum, taps, TAPS * PITCH);
    SHARED_ARRAY(Sum, sums_of_warps, 2 * WARPS * QUERIES);
    const Volume<const COTANGENT> output = VOLUME_OF_PARAMETERS(cotangent);
    const Slices<const INPUT> slices = SLICES_OF_PARAMETERS(volume);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (Index task = blockIdx.x; task < tasks; task += gridDim.x) {
        const Index first = task * QUERIES;
        const Place at = place(first + lane, height, width);
        const int size =
            store_queries(shared_queries, slices, coordinates, vertical, horizontal, first, queries, height, width);
        __syncthreads();
        Sums<Sum, 2> sums;
        sums.clear();
        for (Index number = 0; number < chunks; number++) {
            const Chunk chunk = chunk_of(vertical, horizontal, number, rows, columns);
            store_taps(taps, shared_queries, size, slices, vertical, horizontal, chunk);
            __syncthreads();
            if (lane < size)
                add_slopes(sums, taps, load_shared(&shared_queries[lane]).query, output, output.patch(at.e, 0, at.i, at.j),
                           vertical, horizontal, chunk);
            __syncthreads();
        }
        sums.fold();
#pragma unroll
        for (int channel = 0; channel < 2; channel++)
            store_shared(&sums_of_warps[(channel * WARPS + warp) * QUERIES + lane], sums.total[channel]);
        __syncthreads();
        // The first warps add the sums, one channel each.
        if (lane < size && warp < coordinates.channels) {
            Sum sum = 0;
            for (int each = 0; each < WARPS; each++) sum += load_shared(&sums_of_warps[(warp * WARPS + each) * QUERIES + lane]);
            store(gradient + (at.e * batch_stride_gradient + warp * channel_stride_gradient + at.i * row_stride_gradient +
                              at.j * column_stride_gradient),
                  load_shared(&shared_queries[lane]).query.finite ? scale * sum : not_a_number());
        }
        __syncthreads();
    }
}
