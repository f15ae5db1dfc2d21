// The correlation over tiles in shared memory (forward_tiled.cuh), with an epilogue that reduces the scores of each position to a
// partial result instead of storing them:
//
//     partial[part, b, i, j] = reduction of the scores[b, m, n, i, j] over the displacements (m, n) of a block, its part
//
// The sums go through shared memory. A thread has a position, or several threads share its displacements; then their states are
// merged in a fixed order.
//
// Macros: those of forward_tiled.cuh with SHARED_EPILOGUE 1, and those of matching/block.cuh.
#include "correlation/forward_tiled.cuh"
#include "matching/block.cuh"

constexpr int POSITIONS = TILE_ROWS * PHASES * TILE_COLUMNS;
constexpr int SHARES = THREADS < POSITIONS ? 1 : THREADS / POSITIONS;  // threads that have the same position
constexpr int PLACES = ceil_div(POSITIONS * SHARES, THREADS);  // positions of a thread
constexpr bool SHARES_ROWS = PATCH_ROWS >= SHARES;  // they take turns at the rows of displacements, or else at the columns
static_assert(SHARES == 1 || SHARES * POSITIONS * sizeof(State) <= SHARED, "the states of all threads fit into shared memory");
static_assert(sizeof(State) % sizeof(OUTPUT) == 0, "a state is whole words");

DEVICE int this_thread() { return opaque(static_cast<int>(threadIdx.x)); }

// A place of a thread: its output in the block, along both axes, and which share of the displacements it adds there.
struct Place {
    int number, share, i, j;

    // Thread `thread` has its second place as thread `thread + THREADS` would have its first, and so on.
    DEVICE static Place of(int thread) {
        const int number = thread % POSITIONS;
        return Place{number, thread / POSITIONS, number / (PHASES * TILE_COLUMNS),
                     number % TILE_COLUMNS * PHASES + number / TILE_COLUMNS % PHASES};
    }
    DEVICE bool has_output(const BlockTile& block) const {
        return share < SHARES && i < block.rows.outputs && j < block.columns.outputs;
    }
    DEVICE int output_row(const BlockTile& block, const Axis& vertical) const {
        return block.rows.first_output + i * vertical.output_phase_stride;
    }
    DEVICE int output_column(const BlockTile& block, const Axis& horizontal) const {
        return block.columns.first_output + j * horizontal.output_phase_stride;
    }
};
static_assert(SHARES == 1 || PLACES == 1, "threads that share displacements have one place");

// Adds the scores of displacements [first, first + STORED_DISPLACEMENTS) of every group, those of this thread's share.
DEVICE void add_displacements(State& state, Sum* shared, int first, const Place& place, const Position& position,
                              const VolumeChannels& volume, bool pixels, Sum scale, const Axis& vertical, const Axis& horizontal,
                              const State::Settings& settings) {
    constexpr int row_step = SHARES_ROWS ? SHARES : 1, column_step = SHARES_ROWS ? 1 : SHARES;
#pragma unroll 1
    for (int plane = SHARES_ROWS ? 0 : place.share; plane < GROUPS * STORED_DISPLACEMENTS; plane += column_step) {
        const int n = plane % STORED_DISPLACEMENTS, group = plane / STORED_DISPLACEMENTS;
        const int column = group * DISPLACEMENTS + first + n;
        if (first + n >= DISPLACEMENTS || !position.has_column(column)) continue;
#pragma unroll
        for (int u = 0; u < PATCH_ROWS; u += row_step) {
            const int row = SHARES_ROWS ? u + place.share : u;
            if (row >= PATCH_ROWS || !position.has_row(row)) continue;
            Sum sum = 0;
            if (pixels) {
#pragma unroll
                for (int warp_split = 0; warp_split < WARP_SPLITS; warp_split++) {
                    const Sum* const from = shared_row(shared, warp_split, group, n, row, place.i, place.j % PHASES);
                    const Sum part = load_shared(from + place.j / PHASES);
                    sum = warp_split ? sum + part : part;
                }
            } else {
                sum = sum_of_taps(shared, group, n, row, place.i, place.j, vertical, horizontal);
            }
            state.add(scale * sum, position.displacement(row, column, volume), settings);
        }
    }
}

// `parts`: the blocks that have the same outputs, which are consecutive. The strides of the partial results are those of an output
// whose splits are the parts and whose patch rows are the words.
KERNEL(THREADS)
reduce_tiled(const INPUT* input1, const INPUT* input2, OUTPUT* partial, int tiles, int channels, int split_channels,
             int vector_width, GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y),
             AXIS_PARAMETERS(x), CANDIDATE_PARAMETERS(y), CANDIDATE_PARAMETERS(x), VOLUME_CHANNEL_PARAMETERS, int parts,
             Sum scale, Sum factor, Sum sharpness) {
    DYNAMIC_SHARED_ARRAY(Sum, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Candidates candidates_y = CANDIDATES_OF_PARAMETERS(y), candidates_x = CANDIDATES_OF_PARAMETERS(x);
    const VolumeChannels volume = VOLUME_CHANNELS_OF_PARAMETERS;
    const Grid grid = GRID_OF_PARAMETERS;
    const State::Settings settings = State::Settings::of(factor, sharpness);
    const bool pixels = has_pixels(vertical, horizontal);
    // The block and its place follow from a tile's number, and are computed where they are used: products leave no registers.
    const auto block_at = [&](int tile) {
        return block_tile_of(opaque(tile), grid, vertical, horizontal, PATCH_ROWS, GROUPS * DISPLACEMENTS, PHASES);
    };
    const auto finish = [&](const Products& products, const Thread& thread, const BlockTile& block, int tile) {
        State states[PLACES];
#pragma unroll
        for (int k = 0; k < PLACES; k++) states[k].clear();
        const Inside inside = inside_of(thread, vertical, horizontal, block.rows, block.columns);
        share_products(products, shared, thread, inside, [&](int first) {
            const BlockTile now = block_at(tile);
#pragma unroll
            for (int k = 0; k < PLACES; k++) {
                const Place place = Place::of(this_thread() + k * THREADS);
                if (!place.has_output(now)) continue;
                const Position position = Position::of(place.output_row(now, vertical), place.output_column(now, horizontal),
                                                       candidates_y, candidates_x, vertical, horizontal, now);
                add_displacements(states[k], shared, first, place, position, volume, pixels, scale, vertical, horizontal,
                                  settings);
            }
        });
        const BlockTile now = block_at(tile);
#pragma unroll
        for (int k = 0; k < PLACES; k++) {
            const Place place = Place::of(this_thread() + k * THREADS);
            merge_shares<SHARES, POSITIONS>(states[k], reinterpret_cast<OUTPUT*>(shared), place.share, place.number, settings);
            if (!place.has_output(now) || place.share > 0) continue;
            const Output result = {partial + (tile % parts * split_stride_out + now.b * batch_stride_out),
                                   m_stride_out,
                                   n_stride_out,
                                   row_stride_out,
                                   column_stride_out,
                                   scale};
            store_partial(result.at(0, 0, place.output_row(now, vertical), place.output_column(now, horizontal)), m_stride_out,
                          states[k]);
        }
    };
    for_each_tile<true>(shared, tiles, channels, split_channels, vector_width, grid, image1, image2, vertical, horizontal,
                        finish);
}
