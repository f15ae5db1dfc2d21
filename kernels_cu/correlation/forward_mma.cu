// The correlation on tensor cores (forward_mma.cuh), with an epilogue that stores the outputs.
//
// Macros: those of forward_mma.cuh; OUTPUT is the input's type or float.
#include "correlation/forward_mma.cuh"

// The division of all lines in shared memory among teams of threads. The neighbouring threads of a team finish a line, `count`
// neighbouring columns each; other teams finish other lines at the same time. A thread has the same columns of all its lines. A
// slot has the lines of one row pair of a warp tile, those of all planes and warp splits.
template <int count>
struct LineTeams {
    static constexpr int planes = count < PLANES ? 1 : PLANES;  // planes that the columns of a thread are in
    static constexpr int team_threads = PLANES * WARP_COLUMNS / count;
    static constexpr int teams = THREADS / team_threads;
    static constexpr int slots = TILE_WARPS * STORED_PAIRS;
    static constexpr int slot_teams = largest_power_of_two_within(teams / slots);  // teams that share the lines of a slot
    static constexpr int slots_at_once = teams / slot_teams;
    static_assert(PLANES * WARP_COLUMNS % count == 0 && count % planes == 0, "a line is whole runs, of all planes alike");
    static_assert(THREADS % team_threads == 0 && teams % slot_teams == 0, "teams share lines evenly");
};

// Sets sums to 0 whose index is outside [begin, end).
template <int count>
DEVICE void clear_outside(int begin, int end, Sum (&sums)[count]) {
    if (begin > 0 || end < count) {
#pragma unroll
        for (int k = 0; k < count; k++)
            if (k < begin || k >= end) sums[k] = 0;
    }
}

// Hands the sums of the row pairs in shared memory to the epilogue, `count` neighbouring columns of a row at a time,
//
//     auto outputs = epilogue.template outputs<count>(m, i, j, wanted);     the first `wanted` columns from output (i, j) on are
//     outputs.add(n, sums);                                                 outputs, those at displacement row m; for some n
//
// `first` is the index of the first row pair of each warp there. Sums of which a position is outside are 0.
template <int count, class Epilogue>
DEVICE void finish_lines(const float* shared, int first, const Epilogue& epilogue, const Axis& vertical, const Axis& horizontal,
                         const AxisTile& rows, const AxisTile& columns) {
    typedef LineTeams<count> Teams;
    const int thread = this_thread(), run = thread % Teams::team_threads * count, team = thread / Teams::team_threads;
    const InsideColumns inside1 = InsideColumns::of(columns.start1, horizontal.spacing, horizontal.size1);
    const InsideColumns inside2 = InsideColumns::of(columns.start2, horizontal.spacing, horizontal.size2);
    for (int slot = team / Teams::slot_teams; slot < Teams::slots; slot += Teams::slots_at_once) {
        const int p = slot % STORED_PAIRS, first_warp = slot / STORED_PAIRS * PLANES;
        const WarpTile warp = WarpTile::of(first_warp);
        const RowPair pair = row_pair(warp, first + p);
        const int column = warp.column * PLANES + run;
        if (first + p >= ROW_PAIRS || !in_patch(pair, vertical, rows) || column >= columns.outputs) continue;
        const bool row_inside = rows_inside(pair, vertical, rows);
        const int m = patch_row(pair, vertical, rows), i = rows.first_output + pair.row1 * vertical.output_phase_stride;
        const int j = columns.first_output + column * horizontal.output_phase_stride;
        auto outputs = epilogue.template outputs<count>(m, i, j, columns.outputs - column);
        const int line_warp = first_warp + (Teams::planes < PLANES ? run % PLANES : 0);
        const float* const sums_at = shared + ((line_warp * STORED_PAIRS + p) * BAND_FLOATS + run / PLANES);
        for (int n = team % Teams::slot_teams; n < columns.patches; n += Teams::slot_teams) {
            Sum sums[count];
            load_sums(sums_at + n * LINE_PITCH, sums);
            const InsideColumns both_inside = inside1.from(column).intersect(inside2.from(column + n * PHASES));
            clear_outside(both_inside.begin, row_inside ? both_inside.end : 0, sums);
            outputs.add(columns.first_patch + n * horizontal.patch_phase_stride, sums);
        }
    }
}

// Hands the sums of the block to the epilogue. With `by_vectors`, all row segments of outputs are aligned.
template <class Epilogue>
DEVICE void finish(const WarpSums& sums, float* shared, int leading_displacements, bool by_vectors, const Epilogue& epilogue,
                   const Axis& vertical, const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
    share_sums(sums, shared, leading_displacements, columns.patches, [&](int first) {
        if (by_vectors)
            finish_lines<VectorOf<OUTPUT>::width>(shared, first, epilogue, vertical, horizontal, rows, columns);
        else finish_lines<1>(shared, first, epilogue, vertical, horizontal, rows, columns);
    });
}

// The epilogue that stores the outputs.
struct StoreOutputs {
    Output out;
    int column_stride;  // elements from one output of a row segment to the next

    template <int count>
    struct Outputs {
        OUTPUT* to;  // the address of the first output at displacement column 0
        long long n_stride;
        int column_stride, wanted;
        Sum scale;

        DEVICE void add(int n, Sum (&sums)[count]) {
#pragma unroll
            for (int k = 0; k < count; k++) sums[k] *= scale;
            OUTPUT* const at = to + n * n_stride;
            if (count > 1 && wanted >= count) {
                if constexpr (count > 1) store_whole_vector(at, sums);  // all vectors are aligned
            } else {
#pragma unroll
                for (int k = 0; k < count; k++)
                    if (k < wanted) store(at + k * column_stride, sums[k]);
            }
        }
    };

    template <int count>
    DEVICE Outputs<count> outputs(int m, int i, int j, int wanted) const {
        return Outputs<count>{out.at(m, 0, i, j), out.n_stride, column_stride, wanted, out.scale};
    }
};

// The arguments are those of `for_each_pass`. `vector_stores`: the outputs of a row are contiguous, and all row segments are
// aligned if the first one is.
KERNEL_OF_BLOCKS(THREADS, BLOCKS)
forward_mma(const INPUT* input1, const INPUT* input2, OUTPUT* out, int tiles, int channels, int split_channels, int vector_width,
            GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y), AXIS_PARAMETERS(x),
            int passes, int stages1, int leading_displacements, int patch_columns, int vector_stores, Sum scale) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Grid grid = GRID_OF_PARAMETERS;
    const auto finish_pass = [&](const WarpSums& sums, float* lines, const BlockTile& block, int, int) {
        const Output result = {out + (block.split * split_stride_out + block.b * batch_stride_out),
                               m_stride_out,
                               n_stride_out,
                               row_stride_out,
                               column_stride_out,
                               scale};
        const StoreOutputs epilogue = {result, horizontal.output_phase_stride * column_stride_out};
        const bool by_vectors = vector_stores && is_aligned(result.data);
        finish(sums, lines, leading_displacements, by_vectors, epilogue, vertical, horizontal, block.rows, block.columns);
    };
    for_each_pass<false>(shared, input1, input2, tiles, channels, split_channels, vector_width, grid, image1, image2, vertical,
                         horizontal, passes, stages1, leading_displacements, patch_columns, finish_pass);
}
