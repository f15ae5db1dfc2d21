// The gradient of coords from one level of the lookup, each query on its own:
//
//     G[e, k, 0, i, j] = scale factor_x sum over m, n of  g[e, k, m, n, i, j] * sum over a of  wy(a) (D(a, 1) - D(a, 0))
//     G[e, k, 1, i, j] = scale factor_y sum over m, n of  g[e, k, m, n, i, j] * sum over b of  wx(b) (D(1, b) - D(0, b))
//
// with the dots D(a, b) of the four corners of a displacement, 0 outside input2 (lookup_direct.cu). NaN where a coordinate is not
// finite, 0 where an index is out of range. `gradient` is the gradient, or a sum for each level that sum_parts.cu adds.
//
// Tile: a task of SPLITS neighbouring lanes is a query. It goes down the rows of taps of each run of displacements and keeps one
// row of dots (dots.cuh). Lanes share the channels of the dots, then the displacements.
//
// Macros: INPUT, COTANGENT, COORDINATE, GRADIENT, INDEX, SPLITS, CHANNELS_LAST.
#include "lookup/dots.cuh"

constexpr int THREADS = 256;

// The slopes along x and y of the displacement that begins at a tap, from the two rows of dots that it reads.
struct Slopes {
    Sum along_x, along_y;
};

DEVICE Slopes slopes(const Query& query, bool one_row, Sum upper_left, Sum upper_right, Sum left, Sum right) {
    const Sum lower_along_x = right - left;
    if (one_row) return {lower_along_x, 0};
    const Sum weight_x = query.x.weights[1], weight_y = query.y.weights[1];
    return {multiply_add(weight_y, lower_along_x, query.y.weights[0] * (upper_right - upper_left)),
            multiply_add(weight_x, right - upper_right, query.x.weights[0] * (left - upper_left))};
}

KERNEL(THREADS)
lookup_gradient_coords(const COTANGENT* cotangent, const INPUT* input1, const INPUT* input2, const COORDINATE* coords,
                       const void* index1, const void* index2, GRADIENT* gradient, Index tasks, Index lookups, Index height,
                       Index width, Index channels, VOLUME_PARAMETERS(cotangent), IMAGE_PARAMETERS(input1),
                       IMAGE_PARAMETERS(input2), COORDS_PARAMETERS, ENTRIES_PARAMETERS(1), ENTRIES_PARAMETERS(2),
                       AXIS_PARAMETERS(y), AXIS_PARAMETERS(x), Index entry_stride_gradient, Index lookup_stride_gradient,
                       Index channel_stride_gradient, Index row_stride_gradient, Index column_stride_gradient, Sum scale) {
    const Volume<const COTANGENT> volume = VOLUME_OF_PARAMETERS(cotangent);
    const Image<INPUT> image1 = IMAGE_OF_PARAMETERS(input1), image2 = IMAGE_OF_PARAMETERS(input2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
    const int split = threadIdx.x % SPLITS;
    const Index run_length = displacements_of_run(horizontal);
    const Index tasks_of_grid = gridDim.x * static_cast<Index>(THREADS / SPLITS);
    for (Index task = blockIdx.x * static_cast<Index>(THREADS / SPLITS) + threadIdx.x / SPLITS; task < tasks;
         task += tasks_of_grid) {
        const Index j = task % width, i = task / width % height, k = task / width / height % lookups;
        const Index e = task / width / height / lookups;
        const Query query = coordinates.query(vertical, horizontal, e, k, i, j);
        const Index s = entries1.image(e), t = entries2.image(e);

        Sums<Sum, 2> sums;
        sums.clear();
        const Index end = query.finite && s >= 0 && t >= 0 ? horizontal.patch : 0;
        for (Index first_n = 0; first_n < end; first_n += run_length) {
            const COTANGENT* const patch = volume.patch(e, k, i, j) + first_n * volume.n_stride;
            const Columns columns = columns_from(horizontal, image2, query.x, horizontal.pitch() * first_n);
            Sum previous[TAPS] = {};
            bool previous_inside = false;
            for (Index row = 0; row < vertical.taps(); row++) {
                const Index y = query.y.begin + vertical.offset(row);
                const bool inside = vertical.is_inside(y);
                Sum dots[TAPS];
                dots_of_row(image1, image1.at(s, 0, i, j), image2, image2.at(t, 0, 0, 0), vertical, y, columns, channels, split,
                            dots);
                Index m;
                if (ends_displacement(vertical, row, m) && (inside || (previous_inside && vertical.corners == 2))) {
#pragma unroll
                    for (int tap = 0; tap < TAPS - 1; tap++) {
                        Index n;
                        if (!begins_displacement(horizontal, tap, n) || first_n + n >= horizontal.patch) continue;
                        // A cotangent that is not finite has no effect where its displacement reads nothing.
                        if (tap % SPLITS != split || !(columns.inside[tap] || columns.inside[tap + 1])) continue;
                        const Sum g = static_cast<Sum>(load(patch + (m * volume.m_stride + n * volume.n_stride)));
                        const Slopes slope = slopes(query, vertical.corners == 1, previous[tap], previous[tap + 1], dots[tap],
                                                    dots[tap + 1]);
                        sums.partial[0] = multiply_add(g, slope.along_x, sums.partial[0]);
                        sums.partial[1] = multiply_add(g, slope.along_y, sums.partial[1]);
                        sums.added(1);
                    }
                }
                previous_inside = inside;
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) previous[tap] = dots[tap];
            }
        }
        sums.fold();
        const Sum along_x = factor_x * total_of_splits(sums.total[0]), along_y = factor_y * total_of_splits(sums.total[1]);
        if (split != 0) continue;
        GRADIENT* const to = gradient + (e * entry_stride_gradient + k * lookup_stride_gradient + i * row_stride_gradient +
                                         j * column_stride_gradient);
        store(to, query.finite ? scale * along_x : not_a_number());
        if (channels_coords == 2) store(to + channel_stride_gradient, query.finite ? scale * along_y : not_a_number());
    }
}
