// The correlation on tensor cores, for windows of one pixel: a banded matrix product for each row y of input1 and each of its
// displaced rows y' of input2,
//
//     D[r', r] = sum over c of  X2[c, y', r'] * X1[c, y, r]
//     out[m, n, y, r] = scale * D[r + DIAGONAL_STEP (n + leading), r]            at the displacement m from y to y'
//
//     r, r'          positions along x: those of one phase (forward_phases.cuh), or, with DIAGONAL_STEP 2, of both phases in turn
//     n              displacements along x, counted from the block's first one
//     leading        `leading_displacements`: input2's tile starts this many displacements before the block's first one, so that
//                    its copies are aligned. The epilogue skips those diagonals
//     DIAGONAL_STEP  positions from one kept diagonal r' - r to the next: 1, or 2 if positions of two phases are interleaved
//     band           the diagonals from the first to the last that is kept
//     group          GROUP (8) neighbouring positions of a row of either image
//
// An element of D has only the channels of its own two positions as terms, so Inf and NaN do not spread to other outputs. For
// positions outside an image shared memory holds anything; their outputs are set to 0 whatever the sums are.
//
// X2 takes the longer side of the MMA instruction, which multiplies one group of input1 with two neighbouring groups of input2.
// BAND_MMAS instructions, k = 0, 1, ..., cover the band of a group j of input1. With BAND_MMAS 1, for up to 9 displacements:
//
//               r'   g=0    1     2     3     4           groups of input2: g = j + 2 k, j + 2 k + 1
//              +-----+-----+-----+-----+-----+
//       r  j=0 |  \  |\    |     |     |     |            the band of 9 diagonals crosses the two cells from its corner on:
//              +-----+-----+-----+-----+-----+            9 / 16 of their products are kept
//            1 |     |  \  |\    |     |     |
//              +-----+-----+-----+-----+-----+
//            2 |     |     |  \  |\    |     |            a warp's row has GROUPS1 groups of input1 and GROUPS2 of input2
//              +-----+-----+-----+-----+-----+
//            3 |     |     |     |  \  |\    |            r goes down and r' across, although D is indexed [r', r];
//              +-----+-----+-----+-----+-----+            the kept diagonals lie between the two strokes
//
// If displacements are two positions apart, each a pixel, a block takes both phases of x (PHASES 2), so that it reads whole
// sectors. Either its columns are deinterleaved into phase planes, one after the other in each row of shared memory (PLANES 2:
// single elements are copied, each to the plane of its phase), or they stay as they are (PLANES 1: whole vectors are copied) and
// every second diagonal of a band twice as wide is kept: 21 / 48 of the products of 21 displacements instead of 21 / 32. That
// costs less than deinterleaving elements of 16 bits, which are too small for asynchronous copies. Where channels are contiguous,
// pixels of either phase are copied whole, to two planes for all types.
//
//     thread block tile   TILE_ROWS rows x PLANES * WIDTH1 columns of input1; ROWS2 rows of input2, in each of `passes` passes,
//                         which begin PASS_ROWS rows apart
//     warp tile           WARP_ROWS1 rows of input1, WARP_ROWS2 rows of input2, WARP_COLUMNS columns of a plane. A row pair
//                         (row1, row2) of the tiles is at m = first_patch + row2 - row1, in patch indices of the phase.
//                         SKEWED: each row of input1 is multiplied with the PASS_ROWS rows displaced from it by the pass's
//                         displacements, a rectangle of (row1, m). Not SKEWED: every row of input1 is multiplied with every row
//                         of the pass, a parallelogram
//     ownership           a block that is SKEWED owns displacements, `rows.patches` from `rows.first_patch` on. One that is not
//                         owns rows of input2: its output row row1 begins row1 displacements before `rows.first_patch`, and the
//                         host adds tiles until the last output row has all its displacements. So `rows.patches` is not used
//                         here; in_patch tests each row pair
//     pipeline stage      CHANNELS channels, STAGES stages
//     warp splits         WARP_SPLITS groups of warps with the same tile (sliced-K): split s multiplies the slices s,
//                         s + WARP_SPLITS, ... of each stage's channels, each as many channels as an MMA instruction takes, and
//                         the epilogue adds their sums
//     splits (split-K)    blocks of their own sum a range of the channels to partial sums of float32, with `scale` 1, so that
//                         fewer terms are added in float32 in sequence, and small problems fill the device; sum_parts.cu adds
//                         up and scales
//     epilogue            the band, through shared memory: a function of the kernel that includes this file
//
// Many rows of either image for one load of the other: that keeps loads few. input1 stays in shared memory from pass to pass: if
// there are several passes, `stages1` stages hold all its channels. Shared memory, with stages1 = STAGES = 3:
//
//     input1  | stage 0 | stage 1 | stage 2 |         a stage: CHANNELS x [row][plane][column], CHANNEL_PITCH1 or 2 apart; of
//     input2  | stage 0    | stage 1    | stage 2    |         channels last: [row][plane][column] x CHANNELS, PIXEL_PITCH apart
//             | lines of the epilogue: [warp][row pair][displacement][column]            overlays input2's stages, once read
//     passes  | a PassTile for each |                           after input2's stages
//
// Macros: INDEX (int: no index here needs more bits), INPUT, OUTPUT (what the including kernel stores), STAGING (COPIED or
// CHANNELWISE), PHASES, PLANES, BAND_MMAS, WARP_ROWS1, WARP_ROWS2, ROW_WARPS1, ROW_WARPS2, COLUMN_WARPS, SKEWED, WARP_SPLITS,
// CHANNELS, STAGES, and THREADS, BYTES1 and BYTES2 (of a stage of either image), PASS_BYTES (of a PassTile) and BLOCKS (of a
// multiprocessor, which registers are limited for), which the host computes too. For example FlowNetC in bfloat16: PHASES=2
// PLANES=1 BAND_MMAS=3 WARP_ROWS1=1 WARP_ROWS2=2 ROW_WARPS1=4 ROW_WARPS2=1 COLUMN_WARPS=2 SKEWED=0 WARP_SPLITS=1 CHANNELS=64
// STAGES=2 BLOCKS=1 THREADS=256. A tile is 4 rows x 64 columns, and a pass takes 2 rows of input2, of 104 columns.
#pragma once
#include "common/mma.cuh"
#include "correlation/tile_loader.cuh"

typedef Multiplier<INPUT> Multiply;

constexpr int GROUP = 8;
constexpr int GROUPS1 = 4;  // groups in a warp's row of input1
constexpr int HALO_GROUPS = 2 * BAND_MMAS - 1;  // groups of input2 beyond those of input1
constexpr int GROUPS2 = GROUPS1 + HALO_GROUPS;
constexpr int WARP_COLUMNS = GROUP * GROUPS1;
constexpr int WIDTH1 = COLUMN_WARPS * WARP_COLUMNS, WIDTH2 = WIDTH1 + GROUP * HALO_GROUPS;  // columns in a plane's row
constexpr int DIAGONAL_STEP = PHASES / PLANES;  // from one kept diagonal r' - r to the next
constexpr int DISPLACEMENTS = GROUP * HALO_GROUPS / DIAGONAL_STEP + 1;  // the most along x that the band holds
constexpr int TILE_ROWS = WARP_ROWS1 * ROW_WARPS1, PASS_ROWS = WARP_ROWS2 * ROW_WARPS2;
constexpr int ROW_PAIRS = WARP_ROWS1 * WARP_ROWS2;  // pairs of rows that a warp multiplies
constexpr int TILE_WARPS = COLUMN_WARPS * ROW_WARPS1 * ROW_WARPS2;  // warps of a plane and a warp split
constexpr int BLOCK_WARPS = PLANES * TILE_WARPS * WARP_SPLITS;

constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr int STEP_CHANNELS = Multiply::depth * WARP_SPLITS;  // channels of one slice of each warp split

// A stage of an image: for each channel its pixels, or, if channels are contiguous, for each pixel its channels. The distance
// from one lane's address to the next is an odd multiple of 16 bytes, or a number of words that puts four channels into different
// banks, so that loads of fragments have no bank conflicts.
DEVICE constexpr int channel_pitch(int pixels) {
    return sizeof(INPUT) == 2 ? (pixels / VectorOf<INPUT>::width | 1) * VectorOf<INPUT>::width : round_up(pixels, WARP) + GROUP;
}

constexpr int ROWS1 = TILE_ROWS, ROWS2 = SKEWED ? TILE_ROWS + PASS_ROWS - 1 : PASS_ROWS;
constexpr int PIXELS1 = ROWS1 * PLANES * WIDTH1, PIXELS2 = ROWS2 * PLANES * WIDTH2;  // pixels in a stage
constexpr bool CHANNELS_LAST = STAGING == CHANNELWISE;
constexpr int PIXEL_PITCH = CHANNELS_LAST ? CHANNELS + VECTOR : 1;  // elements from one pixel to the next
constexpr int CHANNEL_PITCH1 = CHANNELS_LAST ? 1 : channel_pitch(PIXELS1);  // elements from one channel to the next
constexpr int CHANNEL_PITCH2 = CHANNELS_LAST ? 1 : channel_pitch(PIXELS2);
constexpr int STAGE1 = CHANNELS_LAST ? PIXELS1 * PIXEL_PITCH : CHANNELS * CHANNEL_PITCH1;  // elements in a stage
constexpr int STAGE2 = CHANNELS_LAST ? PIXELS2 * PIXEL_PITCH : CHANNELS * CHANNEL_PITCH2;

// The tiles of both images, as the loader takes them (tile_loader.cuh).
struct Tiles {
    static constexpr int threads = THREADS, channels = CHANNELS;
    static constexpr bool channels_last = CHANNELS_LAST, parted = PLANES > 1;
    static constexpr int rows1 = ROWS1, rows2 = ROWS2, columns1 = PLANES * WIDTH1, columns2 = PLANES * WIDTH2;
    static constexpr int pitch1 = CHANNEL_PITCH1, pitch2 = CHANNEL_PITCH2;

    DEVICE static constexpr int pixel_offset(bool second, int row, int column) {
        return ((row * PLANES + column % PLANES) * (second ? WIDTH2 : WIDTH1) + column / PLANES) * PIXEL_PITCH;
    }
};
typedef TileLoader<Tiles> Loader;

// Returns the largest power of two that is at most the number, or 1.
DEVICE constexpr int largest_power_of_two_within(int number) {
    return number < 2 ? 1 : 2 * largest_power_of_two_within(number / 2);
}
DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

static_assert(THREADS == WARP * BLOCK_WARPS, "the host and the kernel agree on the threads");
static_assert(BYTES1 == STAGE1 * sizeof(INPUT) && BYTES2 == STAGE2 * sizeof(INPUT),
              "the host and the kernel agree on shared memory");
static_assert(PHASES == 1 || PHASES == 2, "a block takes one phase of x or both of two");
static_assert(PLANES == 1 || PLANES == PHASES, "columns are deinterleaved into planes of one phase each, or not at all");
static_assert(STAGES >= 2, "a stage is loaded while another one is read");
static_assert(!SKEWED || WARP_ROWS1 == 1, "each row pair of a skewed warp tile has its own displacement");
static_assert(CHANNELS % STEP_CHANNELS == 0, "the slices of a stage are divided evenly among the warp splits");
static_assert(!CHANNELS_LAST || (PIXEL_PITCH % VECTOR == 0 && PIXEL_PITCH / VECTOR % 2 == 1),
              "pixels are an odd multiple of 16 bytes apart");
static_assert(WIDTH1 % VECTOR == 0 && WIDTH2 % VECTOR == 0, "rows of shared memory begin with a vector");
static_assert(STAGE1 % VECTOR == 0 && STAGE2 % VECTOR == 0, "stages are whole vectors");

// Returns the index of this thread. What is computed from it is computed where it is used, as the sums leave no registers to keep
// it.
DEVICE int this_thread() { return opaque(static_cast<int>(threadIdx.x)); }

// Multiplying ------------------------------------------------------------------------------------------------------------------

// The tile of a warp: its plane and warp split, and its first column and rows in the tiles of the block.
struct WarpTile {
    int plane, column, row1, row2, warp_split;

    DEVICE static WarpTile of(int warp) {
        const int in_plane = warp / PLANES, rows = in_plane / COLUMN_WARPS, rows2 = rows / ROW_WARPS1;
        const int row1 = rows % ROW_WARPS1 * WARP_ROWS1;
        return WarpTile{warp % PLANES, in_plane % COLUMN_WARPS * WARP_COLUMNS, row1,
                        rows2 % ROW_WARPS2 * WARP_ROWS2 + (SKEWED ? row1 : 0), rows2 / ROW_WARPS2};
    }
};

// A row of input1's tile and a row of input2's tile that are multiplied.
struct RowPair {
    int row1, row2;
};

// Returns the row pair of a warp with an index below ROW_PAIRS.
DEVICE RowPair row_pair(const WarpTile& warp, int index) {
    return RowPair{warp.row1 + index % WARP_ROWS1, warp.row2 + index / WARP_ROWS1};
}

// Returns the patch index m that displaces one row of a pair to the other; it may be outside the patch.
DEVICE int patch_row(RowPair pair, const Axis& vertical, const AxisTile& rows) {
    return rows.first_patch + (pair.row2 - pair.row1) * vertical.patch_phase_stride;
}
DEVICE bool in_patch(RowPair pair, const Axis& vertical, const AxisTile& rows) {
    const int m = patch_row(pair, vertical, rows);
    return pair.row1 < rows.outputs && m >= 0 && m < vertical.patch;
}
// Returns whether both rows of a pair are inside their images.
DEVICE bool rows_inside(RowPair pair, const Axis& vertical, const AxisTile& rows) {
    const int y1 = rows.start1 + pair.row1 * vertical.spacing, y2 = rows.start2 + pair.row2 * vertical.spacing;
    return y1 >= 0 && y1 < vertical.size1 && y2 >= 0 && y2 < vertical.size2;
}

// Returns whether any row pair of a warp has products that outputs need. If so the warp multiplies all: a branch for each would
// cost more than it saves.
DEVICE bool warp_multiplies(const WarpTile& warp, const Axis& vertical, const AxisTile& rows) {
    bool any = false;
#pragma unroll
    for (int p = 0; p < ROW_PAIRS; p++)
        any = any || (in_patch(row_pair(warp, p), vertical, rows) && rows_inside(row_pair(warp, p), vertical, rows));
    return any;
}

// The sums of a warp, as the MMA instructions take them: for each row pair, group j of input1 and instruction k of the band.
typedef float WarpSums[ROW_PAIRS][GROUPS1][BAND_MMAS][4];

DEVICE void clear(WarpSums& sums) {
#pragma unroll
    for (int i = 0; i < ROW_PAIRS * GROUPS1 * BAND_MMAS * 4; i++) (&sums[0][0][0][0])[i] = 0;
}

// Fragments of input1 (B: one group) and of input2 (A: two groups) have as many channels as an MMA instruction is deep. Four
// matrices, each a group and half of the instruction's depth, are loaded at a time, in the order of the registers that it takes.
// They are 8 x 8 elements of 16 bits; of TF32, 8 x 4 floats, each as two elements of 16 bits:
//
//     B   group j, first half    group j, second half    group j + 1, first half    group j + 1, second half
//     A   group g, first half    group g + 1, first half    group g, second half    group g + 1, second half
//
// TF32 elements of rows are loaded one by one, as load_matrices cannot transpose elements of 32 bits. With lane l, they are those
// of column l / 4 of a group and channel l % 4 of a half.
constexpr int MATRIX_ROWS = 8;
constexpr int HALF_DEPTH = Multiply::depth / 2;  // channels
static_assert(!CHANNELS_LAST || HALF_DEPTH == VECTOR, "a matrix row of contiguous channels is 16 bytes");
constexpr bool BY_MATRICES = CHANNELS_LAST || sizeof(INPUT) == 2;

// Returns the offset of the row of a matrix that a lane passes to load_matrices. The lane's matrix is `groups` groups and
// `halves` halves of the channels from the first one.
DEVICE int matrix_row_offset(int channel_pitch, int groups, int halves) {
    const int row = this_thread() % MATRIX_ROWS;
    return CHANNELS_LAST ? (groups * GROUP + row) * PIXEL_PITCH + halves * HALF_DEPTH
                         : (halves * HALF_DEPTH + row) * channel_pitch + groups * GROUP;
}

// Return the offset of a lane's first element, or of its row of a matrix, in the fragments of either image.
DEVICE int lane_offset1() {
    const int lane = this_thread() % WARP, matrix = lane / MATRIX_ROWS;
    return BY_MATRICES ? matrix_row_offset(CHANNEL_PITCH1, matrix / 2, matrix % 2) : lane % 4 * CHANNEL_PITCH1 + lane / 4;
}
DEVICE int lane_offset2() {
    const int lane = this_thread() % WARP, matrix = lane / MATRIX_ROWS;
    return BY_MATRICES ? matrix_row_offset(CHANNEL_PITCH2, matrix % 2, matrix / 2) : lane % 4 * CHANNEL_PITCH2 + lane / 4;
}

DEVICE uint32 load_element_bits(const INPUT* from) { return load_shared(reinterpret_cast<const uint32*>(from)); }

template <int count>
DEVICE void round_elements(uint32 (&registers)[count]) {
#pragma unroll
    for (int k = 0; k < count; k++) registers[k] = Multiply::rounded(registers[k]);
}

// Loads the fragments of all groups of a warp's row of input1.
DEVICE void load_fragments1(const INPUT* from, uint32 (&groups)[GROUPS1][2]) {
    static_assert(GROUPS1 % 2 == 0, "two groups at a time");
#pragma unroll
    for (int j = 0; j < GROUPS1; j += 2) {
        uint32 two[4];
        if constexpr (BY_MATRICES) {
            load_matrices<4, !CHANNELS_LAST>(two, from + j * GROUP * PIXEL_PITCH);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                two[k] = load_element_bits(from + (j + k / 2) * GROUP + k % 2 * HALF_DEPTH * CHANNEL_PITCH1);
        }
        round_elements(two);
        groups[j][0] = two[0], groups[j][1] = two[1], groups[j + 1][0] = two[2], groups[j + 1][1] = two[3];
    }
}

// Loads the fragment of groups g and g + 1 of a row of input2.
DEVICE void load_fragment2(const INPUT* from, int g, uint32 (&columns2)[4]) {
    if constexpr (BY_MATRICES) {
        load_matrices<4, !CHANNELS_LAST>(columns2, from + g * GROUP * PIXEL_PITCH);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++)
            columns2[k] = load_element_bits(from + (g + k % 2) * GROUP + k / 2 * HALF_DEPTH * CHANNEL_PITCH2);
    }
    round_elements(columns2);
}

// Adds the products of the channels of one MMA instruction, for all row pairs of a warp. Fragments of input2 that begin at an
// even group and the last one are loaded, those between are put together from their neighbours, which saves loads.
DEVICE void add_products(WarpSums& sums, const INPUT* from1, const INPUT* from2) {
    static_assert(GROUPS2 % 2 == 1, "the last fragment begins at an odd group");
    uint32 groups1[WARP_ROWS1][GROUPS1][2];
#pragma unroll
    for (int r = 0; r < WARP_ROWS1; r++) load_fragments1(from1 + r * PLANES * WIDTH1 * PIXEL_PITCH, groups1[r]);
#pragma unroll
    for (int u = 0; u < WARP_ROWS2; u++) {
        const INPUT* const row2 = from2 + u * PLANES * WIDTH2 * PIXEL_PITCH;
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
                for (int k = 0; k < BAND_MMAS; k++) {
                    const int j = g - 2 * k;
                    if (j >= 0 && j < GROUPS1) Multiply::add(sums[u * WARP_ROWS1 + r][j][k], columns2, groups1[r][j]);
                }
        }
    }
}

// Computes the sums over all channels of the block's split. Every thread of the block must call it, and all must have read the
// stages of the pass before.
DEVICE void add_channels(WarpSums& sums, Loader& loader, INPUT* shared1, INPUT* shared2, int stages1, const WarpTile& warp,
                         bool multiplies) {
    constexpr int AHEAD = STAGES - 1;  // stages in flight
    const int first_channel = warp.warp_split * Multiply::depth, first_column = warp.column * PLANES + warp.plane;
    const int offset1 = Tiles::pixel_offset(false, warp.row1, first_column) + lane_offset1() + first_channel * CHANNEL_PITCH1;
    const int offset2 = Tiles::pixel_offset(true, warp.row2, first_column) + lane_offset2() + first_channel * CHANNEL_PITCH2;
    const int stages = ceil_div(loader.left, CHANNELS);
    // If all stages fit in STAGES, the remainder is the stage.
    const auto stage_of_input1 = [&](int stage) { return shared1 + (stages1 > STAGES ? stage : stage % STAGES) * STAGE1; };
    const auto stage_of_input2 = [&](int stage) { return shared2 + stage % STAGES * STAGE2; };
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; stage++) {
        if (stage < stages) loader.load_stage(stage_of_input1(stage), stage_of_input2(stage));
        copy_async_commit();
    }
    clear(sums);
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
        for (int channel = 0; channel < CHANNELS; channel += STEP_CHANNELS)
            add_products(sums, from1 + channel * CHANNEL_PITCH1, from2 + channel * CHANNEL_PITCH2);
    }
}

// Epilogue ---------------------------------------------------------------------------------------------------------------------

// The band goes through shared memory, some row pairs of each warp at a time: for each displacement a line of WARP_COLUMNS sums.
// Vectors of a line are aligned; with this pitch, loads of them have no bank conflicts.
constexpr int LINE_PITCH = WARP_COLUMNS + 4;  // floats: 4 keep vectors aligned and move each line to other banks
constexpr int BAND_FLOATS = DISPLACEMENTS * LINE_PITCH;  // the lines of a row pair of a warp
constexpr int FITTING_PAIRS = STAGES * BYTES2 / static_cast<int>(sizeof(float)) / (BLOCK_WARPS * BAND_FLOATS);
constexpr int STORED_PAIRS = smaller(FITTING_PAIRS, ROW_PAIRS);  // row pairs of each warp at a time
static_assert(STORED_PAIRS > 0, "a row pair of each warp fits into shared memory");
static_assert(LINE_PITCH * sizeof(float) % sizeof(Words16) == 0, "lines begin with a vector");

// Stores the sums of a row pair that are on kept diagonals to their lines. A lane has sums of two neighbouring columns of input1
// and one column of each group of input2.
DEVICE void store_band(const float (&sums)[GROUPS1][BAND_MMAS][4], float* lines, int leading_displacements, int patches) {
    const int lane = this_thread() % WARP, column2 = lane / 4, column1 = 2 * (lane % 4);
#pragma unroll
    for (int k = 0; k < BAND_MMAS; k++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // The diagonal of the first of the two columns, counted from that of the block's first displacement.
            const int diagonal = GROUP * (2 * k + half) + column2 - column1 - leading_displacements * DIAGONAL_STEP;
            if constexpr (DIAGONAL_STEP == 1) {
                float* const to = lines + diagonal * LINE_PITCH + column1;
#pragma unroll
                for (int j = 0; j < GROUPS1; j++) {
                    if (diagonal >= 0 && diagonal < patches) store_shared(to + j * GROUP, sums[j][k][2 * half]);
                    if (diagonal >= 1 && diagonal <= patches)
                        store_shared(to + j * GROUP - LINE_PITCH + 1, sums[j][k][2 * half + 1]);
                }
            } else {  // one of the two columns is on a displacement
                static_assert(DIAGONAL_STEP == 2 || DIAGONAL_STEP == 1, "every diagonal is kept, or every second one");
                const int odd = column2 % 2, n = (diagonal - odd) / 2;
                float* const to = lines + n * LINE_PITCH + column1 + odd;
                if (diagonal - odd < 0 || n >= patches) continue;
#pragma unroll
                for (int j = 0; j < GROUPS1; j++)
                    store_shared(to + j * GROUP, odd ? sums[j][k][2 * half + 1] : sums[j][k][2 * half]);
            }
        }
}

// The columns of a tile whose positions are inside an image: [begin, end).
struct InsideColumns {
    int begin, end;

    DEVICE static InsideColumns of(int start, int spacing, int size) {
        return InsideColumns{first_inside(start, spacing), end_inside(start, spacing, size)};
    }
    // Returns the same columns, counted from this one on.
    DEVICE InsideColumns from(int column) const { return InsideColumns{begin - column, end - column}; }
    DEVICE InsideColumns intersect(const InsideColumns& other) const {
        return InsideColumns{max(begin, other.begin), min(end, other.end)};
    }
};

// Loads the sums of `count` neighbouring columns of a line, which begin at `sums_at` for the first warp split and plane: adds
// those of the warp splits, takes columns of the planes in turn.
template <int count>
DEVICE void load_sums(const float* sums_at, Sum (&sums)[count]) {
    constexpr int planes = count < PLANES ? 1 : PLANES;  // planes that the columns are in
    struct __attribute__((aligned(smaller(sizeof(Words16), count / planes * sizeof(float))))) Neighbours {
        float sums[count / planes];
    };
#pragma unroll
    for (int warp_split = 0; warp_split < WARP_SPLITS; warp_split++)
#pragma unroll
        for (int plane = 0; plane < planes; plane++) {
            const int warp_distance = warp_split * TILE_WARPS * PLANES + plane;  // to the warp with these sums
            const float* const from = sums_at + warp_distance * STORED_PAIRS * BAND_FLOATS;
            const Neighbours some = load_shared(reinterpret_cast<const Neighbours*>(from));
#pragma unroll
            for (int k = 0; k < count / planes; k++) {
                Sum& sum = sums[k * planes + plane];
                sum = warp_split ? sum + some.sums[k] : some.sums[k];
            }
        }
}

// Stores the sums of the block to shared memory, some row pairs of each warp at a time, and calls `take(first)` for each time:
// `first` is the index of the first row pair of each warp there.
template <class Take>
DEVICE void share_sums(const WarpSums& sums, float* shared, int leading_displacements, int patches, const Take& take) {
#pragma unroll 1
    for (int first = 0; first < ROW_PAIRS; first += STORED_PAIRS) {
        if (first > 0) __syncthreads();  // the row pairs before have been read
#pragma unroll
        for (int p = 0; p < ROW_PAIRS; p++)
            if (p >= first && p < first + STORED_PAIRS)
                store_band(sums[p], shared + (this_thread() / WARP * STORED_PAIRS + p - first) * BAND_FLOATS,
                           leading_displacements, patches);
        __syncthreads();
        take(first);
    }
}

// Tiles -----------------------------------------------------------------------------------------------------------------------

// The tile of a pass over input2: the tile of the block, whose rows of input2 are those of the pass, and the rows and columns of
// either image's tile that are inside. One thread computes each, and all load it from shared memory, because the sums leave no
// registers to keep it, and divisions take long.
struct PassTile {
    BlockTile block;
    InsideTile inside1, inside2;
    int access_width;  // elements that an access to the images moves

    // `first_column2`: the position of the first column of input2's tile.
    DEVICE static PassTile of(BlockTile block, int pass, int first_column2, int access_width, const Axis& vertical,
                              const Axis& horizontal) {
        block.rows.first_patch += pass * PASS_ROWS * vertical.patch_phase_stride;
        block.rows.start2 += pass * PASS_ROWS * vertical.spacing;
        return PassTile{block, Loader::inside1(vertical, horizontal, block),
                        Loader::inside2(vertical, horizontal, block, first_column2), access_width};
    }
    // Returns whether there are no outputs; it is the same for all passes of a block. `rows.patches` is not tested: earlier
    // displacements may still be owned (see ownership at the top).
    DEVICE bool empty() const { return block.rows.outputs <= 0 || block.columns.outputs <= 0 || block.columns.patches <= 0; }
    // Returns whether any row pair of the pass may have products: its least patch index is in the patch.
    DEVICE bool pass_multiplies(const Axis& vertical) const {
        const int first_m = patch_row(RowPair{SKEWED ? 0 : TILE_ROWS - 1, 0}, vertical, block.rows);
        return inside1.has_rows() && inside2.has_rows() && first_m < vertical.patch;
    }
};
static_assert(sizeof(PassTile) == PASS_BYTES, "the host and the kernel agree on shared memory");

// Computes the sums of each tile of the grid, pass by pass, and calls `finish(sums, lines, block, tile, pass)`: `lines` is the
// shared memory for the epilogue, and the rows of the block's input2 are those of the pass. Every thread of the block must call
// it. A block without displacements is left out, unless all outputs are finished.
//
// `tiles`: the thread block tiles; a block has several only where a grid cannot hold them all. `channels`: those of the images.
// `split_channels`: those of a split, whole stages; the last split may have fewer. `vertical` and `horizontal` have one tap,
// `output_step` 1 and TILE_ROWS or PLANES * WIDTH1 `tile_outputs`. `passes`: at most THREADS, and as many as shared memory has
// PASS_BYTES for. `stages1`: STAGES, or with several passes the stages of all channels of a split. `leading_displacements`: see
// the top. `patch_columns`: the displacements of a block along x, at most DISPLACEMENTS - `leading_displacements`.
//
// `vector_width`: the most elements of a copy, a power of two up to VECTOR. The host ensures that copies of this width are
// aligned if both images are, and wholly inside or outside:
//
//     rows            if it is above 1, columns are contiguous, and it divides the batch, channel and row strides and the width
//                     of both images, the first column of either tile (`origin1`, and `origin2` less the leading displacements)
//                     and the distance of the tiles of displacements, if there are several
//     channels last   it divides `channels`, and the batch, row and column strides of both images
template <bool finishes_all, class Finish>
DEVICE void for_each_pass(INPUT* shared, const INPUT* input1, const INPUT* input2, int tiles, int channels, int split_channels,
                          int vector_width, const Grid& grid, const Image& image1, const Image& image2, const Axis& vertical,
                          const Axis& horizontal, int passes, int stages1, int leading_displacements, int patch_columns,
                          const Finish& finish) {
    INPUT* const shared2 = shared + stages1 * STAGE1;
    PassTile* const pass_tiles = reinterpret_cast<PassTile*>(shared2 + STAGES * STAGE2);
    const auto first_column2 = [&](const BlockTile& block) {
        return block.columns.start2 - leading_displacements * PHASES * horizontal.spacing;
    };
    // Positions outside may be anything, but what was never stored must not be read, by the rules of the language.
#pragma unroll 1
    for (int at = this_thread() * VECTOR; at < opaque(stages1) * STAGE1 + STAGES * STAGE2; at += THREADS * VECTOR)
        store_shared_16(shared + at, Words16{});
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int thread = threadIdx.x;
        if (thread < passes) {
            const BlockTile block =
                block_tile_of<true>(tile, grid, vertical, horizontal, passes * PASS_ROWS, patch_columns, PHASES);
            const int access_width = Loader::access_width(input1, input2, vector_width);
            store_shared(pass_tiles + thread,
                         PassTile::of(block, thread, first_column2(block), access_width, vertical, horizontal));
        }
        __syncthreads();
        bool has_input1 = false;  // input1 is in shared memory, with all its stages if there are several passes
#pragma unroll 1
        for (int pass = 0; pass < passes; pass++) {
            WarpSums sums;
            PassTile pass_tile = load_shared(pass_tiles + pass);
            if (finishes_all ? pass_tile.block.has_no_outputs() : pass_tile.empty()) {
                __syncthreads();  // all have read the tile, before the next one is stored
                break;
            }
            if (pass_tile.pass_multiplies(vertical)) {  // the same for all threads
                const int begin = pass_tile.block.split * split_channels;
                Loader loader;
                loader.start(image1, image2, pass_tile.inside1, pass_tile.inside2, vertical, horizontal, pass_tile.block,
                             first_column2(pass_tile.block), begin, min(split_channels, channels - begin), pass_tile.access_width,
                             has_input1);
                __syncthreads();  // all have read what the pass or tile before left
                has_input1 = true;
                const WarpTile warp = WarpTile::of(this_thread() / WARP);
                add_channels(sums, loader, shared, shared2, stages1, warp, warp_multiplies(warp, vertical, pass_tile.block.rows));
            } else {
                clear(sums);
            }
            __syncthreads();  // the last stage has been read
            finish(sums, reinterpret_cast<float*>(shared2), load_shared(&pass_tiles[pass].block), tile, pass);
        }
    }
}
