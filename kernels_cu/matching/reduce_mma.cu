// The correlation on tensor cores (forward_mma.cuh), with an epilogue that reduces the scores of each position to a partial result
// instead of storing them:
//
//     partial[part, b, i, j] = reduction of the scores[b, m, n, i, j] over the displacements (m, n) of a pass of a block, its part
//
// The band goes through shared memory. Several threads may share the displacements of a position; then their states are merged in
// a fixed order.
//
// Macros: those of forward_mma.cuh, and those of matching/block.cuh.
#include "correlation/forward_mma.cuh"
#include "matching/block.cuh"

constexpr int POSITIONS = TILE_ROWS * PLANES * WIDTH1;
constexpr int SHARES = THREADS / POSITIONS;  // threads that have the same position; they take turns at the columns of the patch
static_assert(SHARES > 0, "a thread has at most one position");
static_assert(SHARES == 1 || SHARES * POSITIONS * sizeof(State) <= STAGES * BYTES2, "all states fit into shared memory");
static_assert(sizeof(State) % sizeof(OUTPUT) == 0, "a state is whole words");

// The place of a thread: its row and column in the tile of input1, the plane of that column, and which share of the displacements
// it adds there.
struct Place {
    int number, share, row, column, plane;

    DEVICE static Place of(int thread) {
        const int number = thread % POSITIONS;
        return Place{number, thread / POSITIONS, number / (PLANES * WIDTH1), number % WIDTH1, number / WIDTH1 % PLANES};
    }
    DEVICE int output() const { return column * PLANES + plane; }  // of the block, along x
    DEVICE bool has_output(const BlockTile& block) const {
        return share < SHARES && row < block.rows.outputs && output() < block.columns.outputs;
    }
    DEVICE int output_row(const BlockTile& block, const Axis& vertical) const {
        return block.rows.first_output + row * vertical.output_phase_stride;
    }
    DEVICE int output_column(const BlockTile& block, const Axis& horizontal) const {
        return block.columns.first_output + output() * horizontal.output_phase_stride;
    }
};

// Adds the scores of the row pairs in shared memory, those of this thread's share; `first` is the index of the first row pair of
// each warp there. Sums of which a position is outside are 0.
DEVICE void add_row_pairs(State& state, const float* shared, int first, const Place& place, const Position& position,
                          const VolumeChannels& volume, const BlockTile& block, Sum scale, const Axis& vertical,
                          const Axis& horizontal,
                          const State::Settings& settings) {
    const AxisTile &rows = block.rows, &columns = block.columns;
    const InsideColumns inside1 = InsideColumns::of(columns.start1, horizontal.spacing, horizontal.size1).from(place.output());
    const InsideColumns inside2 = InsideColumns::of(columns.start2, horizontal.spacing, horizontal.size2).from(place.output());
    const bool column_inside = inside1.begin <= 0 && inside1.end > 0;
    const int in_plane = place.row / WARP_ROWS1 * COLUMN_WARPS + place.column / WARP_COLUMNS;
    for (int row_warp = 0; row_warp < ROW_WARPS2; row_warp++) {
        const int warp = (row_warp * ROW_WARPS1 * COLUMN_WARPS + in_plane) * PLANES + place.plane;
#pragma unroll 1
        for (int p = 0; p < STORED_PAIRS; p++) {
            const RowPair pair = row_pair(WarpTile::of(warp), first + p);
            const int row = pair.row2 - pair.row1;  // of the patch, counted from the first one of the pass; may be negative
            if (first + p >= ROW_PAIRS || pair.row1 != place.row || !position.has_row(row)) continue;
            const bool row_inside = column_inside && rows_inside(pair, vertical, rows);
            const float* const sums_at = shared + (warp * STORED_PAIRS + p) * BAND_FLOATS + place.column % WARP_COLUMNS;
            for (int n = place.share; n < columns.patches; n += SHARES) {
                if (!position.has_column(n)) continue;
                Sum sum[1];
                load_sums(sums_at + n * LINE_PITCH, sum);
                const int column2 = n * PHASES;
                if (!row_inside || column2 < inside2.begin || column2 >= inside2.end) sum[0] = 0;
                state.add(scale * sum[0], position.displacement(row, n, volume), settings);
            }
        }
    }
}

// The arguments are those of `for_each_pass`. `parts`: the blocks that have the same outputs, which are consecutive; each has as
// many parts as passes. The strides of the partial results are those of an output whose splits are the parts and whose patch rows
// are the words.
KERNEL_OF_BLOCKS(THREADS, BLOCKS)
reduce_mma(const INPUT* input1, const INPUT* input2, OUTPUT* partial, int tiles, int channels, int split_channels,
           int vector_width, GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y),
           AXIS_PARAMETERS(x), int passes, int stages1, int leading_displacements, int patch_columns, CANDIDATE_PARAMETERS(y),
           CANDIDATE_PARAMETERS(x), VOLUME_CHANNEL_PARAMETERS, int parts, Sum scale, Sum factor, Sum sharpness) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Candidates candidates_y = CANDIDATES_OF_PARAMETERS(y), candidates_x = CANDIDATES_OF_PARAMETERS(x);
    const VolumeChannels volume = VOLUME_CHANNELS_OF_PARAMETERS;
    const Grid grid = GRID_OF_PARAMETERS;
    const State::Settings settings = State::Settings::of(factor, sharpness);
    const auto finish_pass = [&](const WarpSums& sums, float* lines, const BlockTile& block, int tile, int pass) {
        State state;
        state.clear();
        share_sums(sums, lines, leading_displacements, block.columns.patches, [&](int first) {
            const Place place = Place::of(this_thread());
            if (!place.has_output(block)) return;
            const Position position = Position::of(place.output_row(block, vertical), place.output_column(block, horizontal),
                                                   candidates_y, candidates_x, vertical, horizontal, block);
            add_row_pairs(state, lines, first, place, position, volume, block, scale, vertical, horizontal, settings);
        });
        const Place place = Place::of(this_thread());
        merge_shares<SHARES, POSITIONS>(state, reinterpret_cast<OUTPUT*>(lines), place.share, place.number, settings);
        if (!place.has_output(block) || place.share > 0) return;
        const int part = tile % parts * passes + pass;
        const Output result = {partial + (part * split_stride_out + block.b * batch_stride_out),
                               m_stride_out,
                               n_stride_out,
                               row_stride_out,
                               column_stride_out,
                               scale};
        store_partial(result.at(0, 0, place.output_row(block, vertical), place.output_column(block, horizontal)), m_stride_out,
                      state);
    };
    for_each_pass<true>(shared, input1, input2, tiles, channels, split_channels, vector_width, grid, image1, image2, vertical,
                        horizontal, passes, stages1, leading_displacements, patch_columns, finish_pass);
}
