// One level of the lookup, each window on its own:
//
//     out[e, k, m, n, i, j] = scale * sum over corners a, b of  wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
//     D(y', x') = sum over c of  input1[s, c, i, j] * input2[t, c, y', x'],   0 outside input2
//     X = coords[e, k, 0, i, j] * factor_x,   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1);   y likewise
//     dx(n) = first + n step;   s = index1[e],   t = index2[e]
//
// NaN where a coordinate is not finite or an index is out of range. It supports all parameters, strides and types, and reuses
// nothing but the rows of dots that neighbouring displacements share: the fallback, and a second implementation for tests.
//
// Tile: a task of SPLITS neighbouring lanes is a query and a run of displacements of every row of its patch (dots.cuh). It goes
// down the rows of taps and keeps one of them. Lanes share the channels of the dots, then the displacements to store.
//
// Macros: INPUT, OUTPUT, COORDINATE, INDEX, SPLITS, CHANNELS_LAST.
#include "lookup/dots.cuh"

constexpr int THREADS = 256;

// Blends neighbouring dots of a row, for a displacement from every tap but the last.
DEVICE void blend_columns(const Query& query, const Sum (&dots)[TAPS], Sum (&blended)[TAPS - 1]) {
#pragma unroll
    for (int tap = 0; tap < TAPS - 1; tap++)
        blended[tap] = multiply_add(query.x.weights[1], dots[tap + 1], query.x.weights[0] * dots[tap]);
}

KERNEL(THREADS)
lookup_direct(const INPUT* input1, const INPUT* input2, const COORDINATE* coords, const void* index1, const void* index2,
              OUTPUT* out, Index tasks, Index lookups, Index height, Index width, Index channels, IMAGE_PARAMETERS(input1),
              IMAGE_PARAMETERS(input2), COORDS_PARAMETERS, ENTRIES_PARAMETERS(1), ENTRIES_PARAMETERS(2), VOLUME_PARAMETERS(out),
              AXIS_PARAMETERS(y), AXIS_PARAMETERS(x), Sum scale) {
    const Image<INPUT> image1 = IMAGE_OF_PARAMETERS(input1), image2 = IMAGE_OF_PARAMETERS(input2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
    const Volume<OUTPUT> volume = VOLUME_OF_PARAMETERS(out);
    const int split = threadIdx.x % SPLITS;
    const Index run_length = displacements_of_run(horizontal), runs = (horizontal.patch + run_length - 1) / run_length;
    const Index tasks_of_grid = gridDim.x * static_cast<Index>(THREADS / SPLITS);
    for (Index task = blockIdx.x * static_cast<Index>(THREADS / SPLITS) + threadIdx.x / SPLITS; task < tasks;
         task += tasks_of_grid) {
        const Index j = task % width, i = task / width % height, run = task / width / height % runs;
        const Index k = task / width / height / runs % lookups, e = task / width / height / runs / lookups;
        const Index first_n = run * run_length;
        OUTPUT* const patch = volume.patch(e, k, i, j) + first_n * volume.n_stride;
        const Query query = coordinates.query(vertical, horizontal, e, k, i, j);
        const Index s = entries1.image(e), t = entries2.image(e);
        const bool known = query.finite && s >= 0 && t >= 0;
        const Columns columns = columns_from(horizontal, image2, query.x, horizontal.pitch() * first_n);

        Sum previous[TAPS - 1] = {};
        for (Index row = 0; row < vertical.taps(); row++) {
            Sum blended[TAPS - 1] = {};
            if (known) {
                Sum dots[TAPS];
                dots_of_row(image1, image1.at(s, 0, i, j), image2, image2.at(t, 0, 0, 0), vertical,
                            query.y.begin + vertical.offset(row), columns, channels, split, dots);
                blend_columns(query, dots, blended);
            }
            Index m;
            if (ends_displacement(vertical, row, m)) {
#pragma unroll
                for (int tap = 0; tap < TAPS - 1; tap++) {
                    Index n;
                    if (!begins_displacement(horizontal, tap, n) || first_n + n >= horizontal.patch || tap % SPLITS != split)
                        continue;
                    const Sum sum = vertical.corners == 1 ? blended[tap]
                                                          : multiply_add(query.y.weights[1], blended[tap],
                                                                         query.y.weights[0] * previous[tap]);
                    store(patch + (m * volume.m_stride + n * volume.n_stride), known ? scale * sum : not_a_number());
                }
            }
#pragma unroll
            for (int tap = 0; tap < TAPS - 1; tap++) previous[tap] = blended[tap];
        }
    }
}
