// The correlation on tensor cores, for windows of one pixel: a banded matrix product for each row y of input1 and each of its
// displaced rows y' of input2,
//
//     D[r', r] = sum over c of  X2[c, y', r'] * X1[c, y, r]
//     out[m, n, y, r] = scale * D[r + DIAGONALS n, r]            at the displacement m from y to y'
//
// of which the band of those diagonals r' - r is kept. Positions r, r' are those of a phase (forward_phases.cuh), or, with
// DIAGONALS 2, of both phases in turn. An element of D has only the channels of its own two positions as terms, so Inf and NaN do
// not spread to other outputs. For positions outside an image shared memory holds anything; their outputs are set to 0 whatever
// the sums are.
//
// X2 takes the longer side of the matrix instruction: 8 positions r are multiplied with 16 MATRICES positions r' by MATRICES
// instructions, k = 0, 1, ... With MATRICES 1, for up to 9 displacements (each cell is 8 x 8 positions; an instruction computes
// two neighbours):
//
//               r'   g=0    1     2     3     4           groups of input2: g = j + 2 k, j + 2 k + 1
//              +-----+-----+-----+-----+-----+
//       r  j=0 |  \  |\    |     |     |     |            the band of 9 diagonals crosses the two cells from its corner on:
//              +-----+-----+-----+-----+-----+            9 / 16 of their products are kept
//            1 |     |  \  |\    |     |     |
//              +-----+-----+-----+-----+-----+
//            2 |     |     |  \  |\    |     |            WARP_COLUMNS = 8 GROUPS1 columns of input1 of a warp,
//              +-----+-----+-----+-----+-----+            8 GROUPS2 columns of input2
//            3 |     |     |     |  \  |\    |
//              +-----+-----+-----+-----+-----+
//
// If displacements are two pixels apart, a block takes both phases of x, so that it reads whole sectors. Either shared memory has
// a plane of columns for each phase (PLANES 2: single elements are copied, to the plane of their phase), or columns stay as they
// are (PLANES 1: whole vectors are copied) and every second diagonal of a band twice as wide is kept: 21 / 48 of the products of
// 21 displacements instead of 21 / 32. That costs less than sending elements of 16 bits, which are too small for asynchronous
// copies, to two planes. Where channels are contiguous, pixels of either phase are copied whole, to two planes for all types.
//
//     thread block tile   TILE_ROWS rows x PLANES * WIDTH1 columns of input1; ROWS2 rows of input2, in each of `passes` passes
//     warp tile           WARP_ROWS1 rows of input1, WARP_ROWS2 rows of input2, 8 GROUPS1 columns of a plane. Every row of a pass
//                         is multiplied with every row of input1, so that pairs at m = row2 - row are a parallelogram; or,
//                         SKEWED, each row with the PASS_ROWS rows that are displaced from it, a rectangle
//     pipeline stage      CHANNELS channels, STAGES stages; WARP_SPLITS groups of warps take turns at the depths of a matrix
//                         instruction within a stage, and the epilogue adds their sums
//     split-K             blocks of their own sum a range of the channels to partial sums of float32, with `scale` 1, so that
//                         chains of sums stay short and small problems fill the device; sum_parts.cu adds up and scales
//     epilogue            the band, through shared memory, as runs of neighbouring outputs
//
// Many rows of either image for one load of the other: that is what keeps loads few. input1 stays in shared memory from pass to
// pass: if there are several passes, `stages1` stages hold all its channels. Shared memory, with stages1 = STAGES = 3:
//
//     input1  | stage 0 | stage 1 | stage 2 |         a stage: CHANNELS x [row][plane][column], PITCH1 or PITCH2 apart;
//     input2  | stage 0    | stage 1    | stage 2    |         of channels last: [row][plane][column] x CHANNELS, PIXEL apart
//             | lines of the epilogue: [warp][pair of rows][displacement][column]         over input2's stages, once read
//     passes  | a Pass for each |                               after input2's stages
//
// Macros: INPUT, OUTPUT (the input's type or float), STAGING (COPIED or CHANNELWISE), PHASES, PLANES, MATRICES, WARP_ROWS1,
// WARP_ROWS2, ROW_WARPS1, ROW_WARPS2, COLUMN_WARPS, SKEWED, WARP_SPLITS, CHANNELS, STAGES, and THREADS, BYTES1 and BYTES2 (of a
// stage of either image), PASS_BYTES and BLOCKS (that registers leave room for on a multiprocessor), which the host computes too.
#include "common/mma.cuh"
#include "correlation/tile_loader.cuh"

typedef Multiplier<INPUT> Multiply;

constexpr int GROUP = 8;  // columns of a matrix
constexpr int GROUPS1 = 4, GROUPS2 = GROUPS1 + 2 * MATRICES - 1;  // of a row of a warp
constexpr int WARP_COLUMNS = GROUP * GROUPS1;
constexpr int WIDTH1 = COLUMN_WARPS * WARP_COLUMNS, WIDTH2 = WIDTH1 + GROUP * (2 * MATRICES - 1);  // of a row of a plane
constexpr int DIAGONALS = PHASES / PLANES;  // from one displacement to the next
constexpr int DISPLACEMENTS = GROUP * (2 * MATRICES - 1) / DIAGONALS + 1;  // the most along x that the band holds
constexpr int TILE_ROWS = WARP_ROWS1 * ROW_WARPS1, PASS_ROWS = WARP_ROWS2 * ROW_WARPS2;
constexpr int PAIRS = WARP_ROWS1 * WARP_ROWS2;  // of rows, of a warp
constexpr int TILE_WARPS = COLUMN_WARPS * ROW_WARPS1 * ROW_WARPS2;  // of a plane and a warp split
constexpr int BLOCK_WARPS = PLANES * TILE_WARPS * WARP_SPLITS;

constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr int STEP_CHANNELS = Multiply::depth * WARP_SPLITS;  // channels taken at once

// A stage of an image: columns of rows of channels, or, if channels are contiguous, channels of pixels. The distance from one
// lane's address to the next is an odd multiple of 16 bytes, or a number of words that puts four channels into different banks,
// so that loads of fragments have no bank conflicts.
DEVICE constexpr int channel_pitch(int plane) {
    return sizeof(INPUT) == 2 ? (plane / VectorOf<INPUT>::width | 1) * VectorOf<INPUT>::width : round_up(plane, WARP) + GROUP;
}

constexpr int ROWS1 = TILE_ROWS, ROWS2 = SKEWED ? TILE_ROWS + PASS_ROWS - 1 : PASS_ROWS;
constexpr bool CHANNELS_LAST = STAGING == CHANNELWISE;
constexpr int PIXEL = CHANNELS_LAST ? CHANNELS + VECTOR : 1;  // elements from one pixel to the next
constexpr int PLANE1 = ROWS1 * PLANES * WIDTH1 * PIXEL, PLANE2 = ROWS2 * PLANES * WIDTH2 * PIXEL;
constexpr int PITCH1 = CHANNELS_LAST ? 1 : channel_pitch(PLANE1), PITCH2 = CHANNELS_LAST ? 1 : channel_pitch(PLANE2);
constexpr int STAGE1 = CHANNELS_LAST ? PLANE1 : CHANNELS * PITCH1, STAGE2 = CHANNELS_LAST ? PLANE2 : CHANNELS * PITCH2;

// The tiles as the loader takes them (tile_loader.cuh).
struct Tiles {
    static constexpr int threads = THREADS, channels = CHANNELS;
    static constexpr bool channels_last = CHANNELS_LAST, parted = PLANES > 1;
    static constexpr int rows1 = ROWS1, rows2 = ROWS2, columns1 = PLANES * WIDTH1, columns2 = PLANES * WIDTH2;
    static constexpr int pitch1 = PITCH1, pitch2 = PITCH2;

    DEVICE static constexpr int place(bool second, int row, int column) {
        return ((row * PLANES + column % PLANES) * (second ? WIDTH2 : WIDTH1) + column / PLANES) * PIXEL;
    }
};
typedef TileLoader<Tiles> Loader;

DEVICE constexpr int power_of_two_within(int number) { return number < 2 ? 1 : 2 * power_of_two_within(number / 2); }
DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

static_assert(THREADS == WARP * BLOCK_WARPS, "the host and the kernel agree on the threads");
static_assert(BYTES1 == STAGE1 * sizeof(INPUT) && BYTES2 == STAGE2 * sizeof(INPUT),
              "the host and the kernel agree on shared memory");
static_assert(!SKEWED || WARP_ROWS1 == 1, "each pair of rows of a warp has its own displacement");
static_assert(PLANES == 1 || PLANES == PHASES, "columns are parted into planes of one phase each, or not at all");
static_assert(CHANNELS % STEP_CHANNELS == 0 && CHANNELS / VECTOR % 2 == 0,
              "a stage is whole steps, and pixels are an odd multiple of 16 bytes apart");

// The number of this thread. What is computed from it is computed where it is used, as the products leave no registers to keep it.
DEVICE int this_thread() { return opaque(static_cast<int>(threadIdx.x)); }

// Multiplying ------------------------------------------------------------------------------------------------------------------

// The tile of a warp within that of its block.
struct Warp {
    int plane, column, row, row2, warp_split;  // column, row, row2: the first column, and the first row of either image

    DEVICE static Warp number(int warp) {
        const int tile = warp / PLANES, rows = tile / COLUMN_WARPS, rows2 = rows / ROW_WARPS1;
        const int row = rows % ROW_WARPS1 * WARP_ROWS1;
        return Warp{warp % PLANES, tile % COLUMN_WARPS * WARP_COLUMNS, row,
                    rows2 % ROW_WARPS2 * WARP_ROWS2 + (SKEWED ? row : 0), rows2 / ROW_WARPS2};
    }
};

// A pair of rows of a warp, by their numbers in the block's tiles of either image.
struct Pair {
    int row, row2;
};
DEVICE Pair pair_of(const Warp& warp, int pair) { return Pair{warp.row + pair % WARP_ROWS1, warp.row2 + pair / WARP_ROWS1}; }

// The patch index that displaces one row of a pair to the other; it may be outside the patch.
DEVICE int patch_row(Pair pair, const Axis& vertical, const AxisTile& rows) {
    return rows.first_patch + (pair.row2 - pair.row) * vertical.patch_phase_stride;
}
DEVICE bool in_patch(Pair pair, const Axis& vertical, const AxisTile& rows) {
    const int m = patch_row(pair, vertical, rows);
    return pair.row < rows.outputs && m >= 0 && m < vertical.patch;
}
DEVICE bool inside(Pair pair, const Axis& vertical, const AxisTile& rows) {
    const int y1 = rows.start1 + pair.row * vertical.spacing, y2 = rows.start2 + pair.row2 * vertical.spacing;
    return y1 >= 0 && y1 < vertical.size1 && y2 >= 0 && y2 < vertical.size2;
}

// Returns whether any pair of a warp has products. If so it multiplies all: a branch for each would cost more than it saves.
DEVICE bool has_products(const Warp& warp, const Axis& vertical, const AxisTile& rows) {
    bool any = false;
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
        any = any || (in_patch(pair_of(warp, p), vertical, rows) && inside(pair_of(warp, p), vertical, rows));
    return any;
}

typedef float Products[PAIRS][GROUPS1][MATRICES][4];

DEVICE void clear(Products& products) {
#pragma unroll
    for (int i = 0; i < PAIRS * GROUPS1 * MATRICES * 4; i++) (&products[0][0][0][0])[i] = 0;
}

// Fragments of input1 (B: 8 columns) and of input2 (A: 16 columns) for one matrix depth of channels. Four matrices of 8 columns
// and half of the channels are loaded at a time, in the order of the registers that the product takes:
//
//     B   group j, first half    group j, second half    group j + 1, first half    group j + 1, second half
//     A   group g, first half    group g + 1, first half    group g, second half    group g + 1, second half
//
// TF32 elements of rows are loaded one by one, as matrices of 16-bit elements cannot be transposed into them.
constexpr bool BY_MATRICES = CHANNELS_LAST || sizeof(INPUT) == 2;

// The offset of the address that a lane passes to these loads: its matrix is `groups` groups and `halves` halves of the channels
// from the first.
DEVICE int lane_offset(int pitch, int groups, int halves) {
    const int row = this_thread() % 8;
    return CHANNELS_LAST ? (row + GROUP * groups) * PIXEL + halves * VECTOR : (row + 8 * halves) * pitch + groups * GROUP;
}
DEVICE int lane_offset1() {
    const int lane = this_thread() % WARP, matrix = lane / 8;
    return BY_MATRICES ? lane_offset(PITCH1, matrix / 2, matrix % 2) : lane % 4 * PITCH1 + lane / 4;
}
DEVICE int lane_offset2() {
    const int lane = this_thread() % WARP, matrix = lane / 8;
    return BY_MATRICES ? lane_offset(PITCH2, matrix % 2, matrix / 2) : lane % 4 * PITCH2 + lane / 4;
}

DEVICE uint32 load_element_bits(const INPUT* from) { return load_shared(reinterpret_cast<const uint32*>(from)); }

template <int count>
DEVICE void round_elements(uint32 (&registers)[count]) {
#pragma unroll
    for (int k = 0; k < count; k++) registers[k] = Multiply::rounded(registers[k]);
}

DEVICE void load_fragments1(const INPUT* from, uint32 (&groups)[GROUPS1][2]) {
    static_assert(GROUPS1 % 2 == 0, "two groups at a time");
#pragma unroll
    for (int j = 0; j < GROUPS1; j += 2) {
        uint32 two[4];
        if constexpr (BY_MATRICES) {
            load_matrices<4, !CHANNELS_LAST>(two, from + j * GROUP * PIXEL);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) two[k] = load_element_bits(from + (j + k / 2) * GROUP + k % 2 * 4 * PITCH1);
        }
        round_elements(two);
        groups[j][0] = two[0], groups[j][1] = two[1], groups[j + 1][0] = two[2], groups[j + 1][1] = two[3];
    }
}

// The fragment of groups g and g + 1.
DEVICE void load_fragment2(const INPUT* from, int g, uint32 (&columns)[4]) {
    if constexpr (BY_MATRICES) {
        load_matrices<4, !CHANNELS_LAST>(columns, from + g * GROUP * PIXEL);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) columns[k] = load_element_bits(from + (g + k % 2) * GROUP + k / 2 * 4 * PITCH2);
    }
    round_elements(columns);
}

// Adds the products of one matrix depth of channels. Fragments of input2 that begin at an even group and the last one are loaded,
// those between are put together from their neighbours, which saves loads.
DEVICE void add_products(Products& products, const INPUT* from1, const INPUT* from2) {
    static_assert(GROUPS2 % 2 == 1, "the last fragment begins at an odd group");
    uint32 groups1[WARP_ROWS1][GROUPS1][2];
#pragma unroll
    for (int r = 0; r < WARP_ROWS1; r++) load_fragments1(from1 + r * PLANES * WIDTH1 * PIXEL, groups1[r]);
#pragma unroll
    for (int u = 0; u < WARP_ROWS2; u++) {
        const INPUT* const row2 = from2 + u * PLANES * WIDTH2 * PIXEL;
        uint32 next[4];
        load_fragment2(row2, 0, next);
#pragma unroll
        for (int g = 0; g < GROUPS2 - 1; g++) {
            uint32 columns2[4] = {next[0], next[1], next[2], next[3]};
            if (g == GROUPS2 - 2) {
                load_fragment2(row2, g, columns2);
            } else if (g % 2) {
                columns2[0] = columns2[1], columns2[2] = columns2[3];
                load_fragment2(row2, g + 1, next);
                columns2[1] = next[0], columns2[3] = next[2];
            }
#pragma unroll
            for (int r = 0; r < WARP_ROWS1; r++)
#pragma unroll
                for (int k = 0; k < MATRICES; k++) {
                    const int j = g - 2 * k;
                    if (j >= 0 && j < GROUPS1) Multiply::add(products[u * WARP_ROWS1 + r][j][k], columns2, groups1[r][j]);
                }
        }
    }
}

// Computes the products of all channels. Every thread of the block must call it, and all must have read the stages of before.
DEVICE void add_channels(Products& products, Loader& loader, INPUT* shared1, INPUT* shared2, int stages1, const Warp& warp,
                         bool multiplies) {
    constexpr int AHEAD = STAGES - 1;  // stages in flight
    const int first_channel = warp.warp_split * Multiply::depth;
    const int offset1 = Tiles::place(false, warp.row, warp.column * PLANES + warp.plane) + lane_offset1() + first_channel * PITCH1;
    const int offset2 = Tiles::place(true, warp.row2, warp.column * PLANES + warp.plane) + lane_offset2() + first_channel * PITCH2;
    const int stages = ceil_div(loader.left, CHANNELS);
    const auto stage_of_input1 = [&](int stage) { return shared1 + (stages1 > STAGES ? stage : stage % STAGES) * STAGE1; };
    const auto stage_of_input2 = [&](int stage) { return shared2 + stage % STAGES * STAGE2; };
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; stage++) {
        if (stage < stages) loader.load_stage(stage_of_input1(stage), stage_of_input2(stage));
        copy_async_commit();
    }
    clear(products);
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        copy_async_wait<AHEAD - 1>();
        __syncthreads();  // the stage is complete, and the one before has been read
        const int next = stage + AHEAD;
        if (next < stages) loader.load_stage(stage_of_input1(next), stage_of_input2(next));
        copy_async_commit();
        const INPUT* from1 = stage_of_input1(stage) + offset1;
        const INPUT* from2 = stage_of_input2(stage) + offset2;
        if (!multiplies) continue;
#pragma unroll
        for (int step = 0; step < CHANNELS; step += STEP_CHANNELS)
            add_products(products, from1 + step * PITCH1, from2 + step * PITCH2);
    }
}

// Epilogue ---------------------------------------------------------------------------------------------------------------------

// The band goes through shared memory, some of each warp's pairs at a time: a line of columns for each displacement. Vectors of
// a line are aligned; with this pitch, loads of them have no bank conflicts.
constexpr int LINE_PITCH = WARP_COLUMNS + 4;  // floats: 4 keep vectors aligned and move each line to other banks
constexpr int BAND = DISPLACEMENTS * LINE_PITCH;
constexpr int FITTING_PAIRS = STAGES * BYTES2 / static_cast<int>(sizeof(float)) / (BLOCK_WARPS * BAND);
constexpr int STORED_PAIRS = smaller(FITTING_PAIRS, PAIRS);
static_assert(STORED_PAIRS > 0, "a pair of each warp fits into shared memory");

DEVICE void store_band(const float (&products)[GROUPS1][MATRICES][4], float* lines, int leading_columns, int patches) {
    const int lane = this_thread() % WARP, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
    for (int k = 0; k < MATRICES; k++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int diagonal = GROUP * (2 * k + half) + row - column - leading_columns * DIAGONALS;  // of the first of two columns
            if constexpr (DIAGONALS == 1) {
                float* const to = lines + diagonal * LINE_PITCH + column;
#pragma unroll
                for (int j = 0; j < GROUPS1; j++) {
                    if (diagonal >= 0 && diagonal < patches) store_shared(to + j * GROUP, products[j][k][2 * half]);
                    if (diagonal >= 1 && diagonal <= patches)
                        store_shared(to + j * GROUP - LINE_PITCH + 1, products[j][k][2 * half + 1]);
                }
            } else {  // one of the two columns is on a displacement
                const int odd = row % 2, n = (diagonal - odd) / 2;
                float* const to = lines + n * LINE_PITCH + column + odd;
                if (diagonal - odd < 0 || n >= patches) continue;
#pragma unroll
                for (int j = 0; j < GROUPS1; j++)
                    store_shared(to + j * GROUP, odd ? products[j][k][2 * half + 1] : products[j][k][2 * half]);
            }
        }
}

// The columns of a block at which an image has pixels.
struct Columns {
    int begin, end;

    DEVICE static Columns of(int start, int spacing, int size) {
        return Columns{first_inside(start, spacing), end_inside(start, spacing, size)};
    }
};

// Hands the sums of the block to the epilogue, `count` neighbouring columns of a row at a time,
//
//     auto outputs = epilogue.template outputs<count>(m, i, j, wanted);     the first `wanted` columns from output (i, j) on are
//     outputs.add(n, sums);                                                 outputs, those at displacement row m; for some n
//
// A thread has the same columns of every line. Sums of which a position is outside are 0.
template <int count, class Epilogue>
DEVICE void finish_lines(const float* shared, int first, const Epilogue& epilogue, const Axis& vertical, const Axis& horizontal,
                         const AxisTile& rows, const AxisTile& columns) {
    constexpr int planes = count < PLANES ? 1 : PLANES;  // that a run has columns of
    constexpr int runs = PLANES * WARP_COLUMNS / count, together = THREADS / runs, bands = TILE_WARPS * STORED_PAIRS;
    constexpr int line_threads = power_of_two_within(together / bands);  // that take turns at the lines of a band
    static_assert(THREADS % runs == 0 && together % line_threads == 0, "threads share lines evenly");
    struct __attribute__((aligned(smaller(sizeof(Words16), count / planes * sizeof(float))))) Neighbours {
        float sums[count / planes];
    };

    const int thread = this_thread(), run = thread % runs * count, line_thread = thread / runs;
    const Columns inside1 = Columns::of(columns.start1, horizontal.spacing, horizontal.size1);
    const Columns inside2 = Columns::of(columns.start2, horizontal.spacing, horizontal.size2);
    for (int band = line_thread / line_threads; band < bands; band += together / line_threads) {
        const int p = band % STORED_PAIRS, warp_number = band / STORED_PAIRS * PLANES;
        const Warp warp = Warp::number(warp_number);
        const Pair pair = pair_of(warp, first + p);
        const int column = warp.column * PLANES + run;
        if (first + p >= PAIRS || !in_patch(pair, vertical, rows) || column >= columns.outputs) continue;
        const bool row_inside = inside(pair, vertical, rows);
        const int m = patch_row(pair, vertical, rows), i = rows.first_output + pair.row * vertical.output_phase_stride;
        const int j = columns.first_output + column * horizontal.output_phase_stride;
        auto outputs = epilogue.template outputs<count>(m, i, j, columns.outputs - column);
        const int first_warp = warp_number + (planes < PLANES ? run % PLANES : 0);
        const float* const lines = shared + ((first_warp * STORED_PAIRS + p) * BAND + run / PLANES);
        for (int n = line_thread % line_threads; n < columns.patches; n += line_threads) {
            Sum sums[count];
#pragma unroll
            for (int split = 0; split < WARP_SPLITS; split++)
#pragma unroll
                for (int plane = 0; plane < planes; plane++) {
                    const int offset = (split * TILE_WARPS * PLANES + plane) * STORED_PAIRS * BAND + n * LINE_PITCH;
                    const Neighbours some = load_shared(reinterpret_cast<const Neighbours*>(lines + offset));
#pragma unroll
                    for (int k = 0; k < count / planes; k++) {
                        Sum& sum = sums[k * planes + plane];
                        sum = split ? sum + some.sums[k] : some.sums[k];
                    }
                }
            const int begin = max(inside1.begin - column, inside2.begin - column - n * PHASES);
            const int end = row_inside ? min(inside1.end - column, inside2.end - column - n * PHASES) : 0;
            if (begin > 0 || end < count) {
#pragma unroll
                for (int k = 0; k < count; k++)
                    if (k < begin || k >= end) sums[k] = 0;
            }
            outputs.add(columns.first_patch + n * horizontal.patch_phase_stride, sums);
        }
    }
}

template <class Epilogue>
DEVICE void finish(const Products& products, float* shared, int leading_columns, bool by_vectors, const Epilogue& epilogue,
                   const Axis& vertical, const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
#pragma unroll 1
    for (int first = 0; first < PAIRS; first += STORED_PAIRS) {
        if (first > 0) __syncthreads();  // the pairs before have been read
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
            if (p >= first && p < first + STORED_PAIRS)
                store_band(products[p], shared + (this_thread() / WARP * STORED_PAIRS + p - first) * BAND, leading_columns,
                           columns.patches);
        __syncthreads();
        if (by_vectors)
            finish_lines<VectorOf<OUTPUT>::width>(shared, first, epilogue, vertical, horizontal, rows, columns);
        else finish_lines<1>(shared, first, epilogue, vertical, horizontal, rows, columns);
    }
}

// The epilogue that stores the outputs. A reduction over the displacements would take its place.
struct StoreOutputs {
    Output out;
    int column_stride;  // from one output of a line to the next

    template <int count>
    struct Outputs {
        OUTPUT* to;  // at displacement column 0
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

// Kernel -----------------------------------------------------------------------------------------------------------------------

// A pass of a block: its tile, and what of either image's tile is inside. Threads compute one each and share them, because the
// products leave no registers to keep one, and divisions take long.
struct Pass {
    Block block;
    InsideTile inside1, inside2;
    int access_width;  // elements that an access to the images moves

    // `start2`: the first column of input2's tile.
    DEVICE static Pass of(Block block, int pass, int start2, int access_width, const Axis& vertical, const Axis& horizontal) {
        block.rows.first_patch += pass * PASS_ROWS * vertical.patch_phase_stride;
        block.rows.start2 += pass * PASS_ROWS * vertical.spacing;
        return Pass{block, Loader::inside1(vertical, horizontal, block),
                    Loader::inside2(vertical, horizontal, block, start2), access_width};
    }
    DEVICE bool empty() const { return block.rows.outputs <= 0 || block.columns.outputs <= 0 || block.columns.patches <= 0; }
    // Returns whether any rows have products.
    DEVICE bool has_products(const Axis& vertical) const {
        const int first_m = patch_row(Pair{SKEWED ? 0 : TILE_ROWS - 1, 0}, vertical, block.rows);
        return inside1.has_rows() && inside2.has_rows() && first_m < vertical.patch;
    }
};
static_assert(sizeof(Pass) == PASS_BYTES, "the host and the kernel agree on shared memory");

// `passes`: at most as many as PASS_BYTES has room for. `stages1`: STAGES, or with several passes the stages of all channels.
// `leading_columns`: by how many displacements input2's tile begins early, so that its rows are aligned. `patch_columns`: the
// displacements of a block along x, at most DISPLACEMENTS - `leading_columns`. `vector_stores`: whether all rows of outputs are
// aligned if the first one is. A block has several tiles only where a grid cannot hold them all.
KERNEL_OF_BLOCKS(THREADS, BLOCKS)
forward_mma(const INPUT* input1, const INPUT* input2, OUTPUT* out, int tiles, int channels, int split_channels, int vector_width,
            GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y), AXIS_PARAMETERS(x),
            int passes, int stages1, int leading_columns, int patch_columns, int vector_stores, Sum scale) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Grid grid = GRID_OF_PARAMETERS;
    INPUT* const shared2 = shared + stages1 * STAGE1;
    Pass* const kept = reinterpret_cast<Pass*>(shared2 + STAGES * STAGE2);
    const auto start2 = [&](const Block& block) {
        return block.columns.start2 - leading_columns * PHASES * horizontal.spacing;
    };
    // Positions outside may be anything, but what was never stored must not be read, by the rules of the language.
#pragma unroll 1
    for (int at = this_thread() * VECTOR; at < opaque(stages1) * STAGE1 + STAGES * STAGE2; at += THREADS * VECTOR)
        store_shared_16(shared + at, Words16{});
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int thread = threadIdx.x;
        if (thread < passes) {
            const Block block = block_of<true>(tile, grid, vertical, horizontal, passes * PASS_ROWS, patch_columns, PHASES);
            const int access_width = Loader::access_width(input1, input2, vector_width);
            store_shared(kept + thread, Pass::of(block, thread, start2(block), access_width, vertical, horizontal));
        }
        __syncthreads();
        bool has_input1 = false;  // input1 is in shared memory, with all its stages if there are several passes
#pragma unroll 1
        for (int number = 0; number < passes; number++) {
            Products products;
            Pass pass = load_shared(kept + number);
            if (pass.empty()) break;
            if (pass.has_products(vertical)) {  // the same for all threads
                const int begin = pass.block.split * split_channels;
                Loader loader;
                loader.start(image1, image2, pass.inside1, pass.inside2, vertical, horizontal, pass.block, start2(pass.block), begin,
                             min(split_channels, channels - begin), pass.access_width, has_input1);
                __syncthreads();  // all have read what the pass or tile before left
                has_input1 = true;
                const Warp warp = Warp::number(this_thread() / WARP);
                add_channels(products, loader, shared, shared2, stages1, warp, has_products(warp, vertical, pass.block.rows));
            } else {
                clear(products);
            }
            __syncthreads();  // the last stage has been read
            const Block block = load_shared(&kept[number].block);
            const Output result = {out + (block.split * split_stride_out + block.b * batch_stride_out),
                                   m_stride_out,
                                   n_stride_out,
                                   row_stride_out,
                                   column_stride_out,
                                   scale};
            const StoreOutputs epilogue = {result, horizontal.output_phase_stride * column_stride_out};
            const bool by_vectors = vector_stores && is_aligned(result.data);
            finish(products, reinterpret_cast<float*>(shared2), leading_columns, by_vectors, epilogue, vertical, horizontal,
                   block.rows, block.columns);
        }
    }
}
