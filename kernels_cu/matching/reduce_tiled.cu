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

// The output of a thread in the block, along both axes.
struct Place {
    int i, j;

    DEVICE static Place of(int position) {
        return Place{position / (PHASES * TILE_COLUMNS), position % TILE_COLUMNS * PHASES + position / TILE_COLUMNS % PHASES};
    }
    DEVICE bool inside(const AxisTile& rows, const AxisTile& columns) const { return i < rows.outputs && j < columns.outputs; }
};

// Adds the scores of displacements [first, first + STORED_DISPLACEMENTS) of every group, those of this thread's share.
DEVICE void add_displacements(State& state, Sum* shared, int first, int share, const Place& place, const Position& position,
                              bool pixels, Sum scale, const Axis& vertical, const Axis& horizontal,
                              const State::Settings& settings) {
    constexpr int row_step = SHARES_ROWS ? SHARES : 1, column_step = SHARES_ROWS ? 1 : SHARES;
#pragma unroll 1
    for (int plane = SHARES_ROWS ? 0 : share; plane < GROUPS * STORED_DISPLACEMENTS; plane += column_step) {
        const int n = plane % STORED_DISPLACEMENTS, group = plane / STORED_DISPLACEMENTS;
        const int column = group * DISPLACEMENTS + first + n;
        if (first + n >= DISPLACEMENTS || !position.columns.has(column)) continue;
#pragma unroll
        for (int u = 0; u < PATCH_ROWS; u += row_step) {
            const int row = SHARES_ROWS ? u + share : u;
            if (row >= PATCH_ROWS || !position.rows.has(row)) continue;
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
            state.add(scale * sum, position.displacement(row, column), settings);
        }
    }
}

// `parts`: the blocks that have the same outputs, which are consecutive. The strides of the partial results are those of an output
// whose splits are the parts and whose patch rows are the words.
KERNEL(THREADS)
reduce_tiled(const INPUT* input1, const INPUT* input2, OUTPUT* partial, int tiles, int channels, int split_channels,
             int vector_width, GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y),
             AXIS_PARAMETERS(x), CANDIDATE_PARAMETERS(y), CANDIDATE_PARAMETERS(x), int parts, Sum scale, Sum factor,
             Sum sharpness) {
    DYNAMIC_SHARED_ARRAY(Sum, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Candidates candidates_y = CANDIDATES_OF_PARAMETERS(y), candidates_x = CANDIDATES_OF_PARAMETERS(x);
    const Grid grid = GRID_OF_PARAMETERS;
    const State::Settings settings = State::Settings::of(factor, sharpness);
    const auto finish = [&](const Products& products, const Thread& thread, const Block& block, int tile) {
        const AxisTile &rows = block.rows, &columns = block.columns;
        const int share = threadIdx.x / POSITIONS;
        const bool pixels = has_pixels(vertical, horizontal);
        State states[PLACES];
        Position positions[PLACES];
        bool wanted[PLACES];
#pragma unroll
        for (int k = 0; k < PLACES; k++) {
            const int number = threadIdx.x + k * THREADS;
            const Place place = Place::of(number % POSITIONS);
            states[k].clear();
            wanted[k] = number < SHARES * POSITIONS && place.inside(rows, columns);
            positions[k] = Position::of(rows.first_output + place.i * vertical.output_phase_stride,
                                        columns.first_output + place.j * horizontal.output_phase_stride, candidates_y,
                                        candidates_x, vertical, horizontal, rows, columns);
        }
        const Inside inside = inside_of(thread, vertical, horizontal, rows, columns);
        share_products(products, shared, thread, inside, [&](int first) {
#pragma unroll
            for (int k = 0; k < PLACES; k++) {
                if (!wanted[k]) continue;
                const Place place = Place::of((threadIdx.x + k * THREADS) % POSITIONS);
                add_displacements(states[k], shared, first, share, place, positions[k], pixels, scale, vertical, horizontal,
                                  settings);
            }
        });
#pragma unroll
        for (int k = 0; k < PLACES; k++) {
            const int number = threadIdx.x + k * THREADS;
            merge_shares<SHARES, POSITIONS>(states[k], reinterpret_cast<OUTPUT*>(shared), share, number % POSITIONS, settings);
            if (!wanted[k] || share > 0) continue;
            const Place place = Place::of(number % POSITIONS);
            const Output result = {partial + (tile % parts * split_stride_out + block.b * batch_stride_out),
                                   m_stride_out,
                                   n_stride_out,
                                   row_stride_out,
                                   column_stride_out,
                                   scale};
            store_partial(result.at(0, 0, rows.first_output + place.i * vertical.output_phase_stride,
                                    columns.first_output + place.j * horizontal.output_phase_stride),
                          m_stride_out, states[k]);
        }
    };
    for_each_tile<true>(shared, tiles, channels, split_channels, vector_width, grid, image1, image2, vertical, horizontal, finish);
}
