// The correlation on tensor cores, for windows of one pixel: a banded matrix product for each row y of input1 and each of its
// displaced rows y' of input2,
//
//     D[r', r] = sum over c of  X2[c, y', r'] * X1[c, y, r]
//     out[m, n, y, r] = scale * D[r + n, r]                      at the displacement m from y to y'
//
// of which the band 0 <= r' - r < patch is kept. Positions r, r' are those of a phase (forward_phases.cuh). An element of D has
// only the channels of its own two positions as terms, so Inf and NaN do not spread to other outputs. Positions outside an image
// are 0 in shared memory, and their outputs are set to 0 whatever the sums are.
//
// X2 takes the longer side of the matrix instruction: 8 positions r are multiplied with 16 MATRICES positions r', and 8 patch of
// these products are in the band: 9 / 16 with a patch of 9, 21 / 32 with a patch of 21.
//
//     thread block tile   TILE_ROWS rows x PHASES x WIDTH1 columns of input1; ROWS2 rows of input2, in each of `passes` passes
//     warp tile           WARP_ROWS1 rows of input1, WARP_ROWS2 rows of input2: those of the block, or, SKEWED, those at the
//                         block's displacements
//     pipeline stage      CHANNELS channels, STAGES stages; WARP_SPLITS groups of warps take turns at them
//
// Many rows of either image for one load of the other: that is what keeps loads few. input1 stays in shared memory from pass to
// pass: if there are several passes, `stages1` stages hold all its channels.
//
// Macros: INPUT, OUTPUT (the input's type or float), STAGING, PHASES, MATRICES, WARP_ROWS1, WARP_ROWS2, ROW_WARPS1, ROW_WARPS2,
// SKEWED, WARP_SPLITS, CHANNELS, STAGES, and THREADS, BYTES1 and BYTES2 (of a stage of either image), which the host computes
// too.
#include "common/mma.cuh"
#include "correlation/forward_phases.cuh"

typedef Multiplier<INPUT> Multiply;

constexpr int GROUP = 8;  // columns of a matrix
constexpr int GROUPS1 = 4, GROUPS2 = GROUPS1 + 2 * MATRICES - 1;  // of a row and a phase
constexpr int WIDTH1 = GROUP * GROUPS1, WIDTH2 = GROUP * GROUPS2;
constexpr int DISPLACEMENTS = 2 * GROUP * MATRICES - GROUP + 1;  // the most along x that the band holds
constexpr int TILE_ROWS = WARP_ROWS1 * ROW_WARPS1, PASS_ROWS = WARP_ROWS2 * ROW_WARPS2;
constexpr int ROWS1 = TILE_ROWS, ROWS2 = SKEWED ? TILE_ROWS + PASS_ROWS - 1 : PASS_ROWS;
constexpr int PAIRS = WARP_ROWS1 * WARP_ROWS2;  // of rows, of a warp
constexpr int BLOCK_WARPS = PHASES * ROW_WARPS1 * ROW_WARPS2 * WARP_SPLITS;

constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr int STEP_CHANNELS = Multiply::depth * WARP_SPLITS;  // channels taken at once
constexpr bool CHANNELS_LAST = STAGING == CHANNELWISE, ASYNCHRONOUS = STAGING != COLUMNWISE;

// A stage of an image: columns of rows of channels, or, if channels are contiguous, channels of pixels. The distance from one
// lane's address to the next is an odd multiple of 16 bytes, or a number of words that puts four channels into different banks,
// so that loads of fragments have no bank conflicts.
DEVICE constexpr int channel_pitch(int plane) {
    return sizeof(INPUT) == 2 ? (plane / VECTOR | 1) * VECTOR : round_up(plane, WARP) + GROUP;
}
constexpr int PIXEL = CHANNELS_LAST ? CHANNELS + VECTOR : 1;
constexpr int PLANE1 = ROWS1 * PHASES * WIDTH1 * PIXEL, PLANE2 = ROWS2 * PHASES * WIDTH2 * PIXEL;
constexpr int PITCH1 = CHANNELS_LAST ? 1 : channel_pitch(PLANE1), PITCH2 = CHANNELS_LAST ? 1 : channel_pitch(PLANE2);
constexpr int STAGE1 = CHANNELS_LAST ? PLANE1 : CHANNELS * PITCH1, STAGE2 = CHANNELS_LAST ? PLANE2 : CHANNELS * PITCH2;

// Items of a channel: vectors of columns, or pixels; and threads that share an item, each with other channels.
constexpr int ROW1 = PHASES * WIDTH1 / (CHANNELS_LAST ? 1 : VECTOR), ROW2 = PHASES * WIDTH2 / (CHANNELS_LAST ? 1 : VECTOR);
constexpr int ITEMS1 = ROWS1 * ROW1, ITEMS = ITEMS1 + ROWS2 * ROW2;
DEVICE constexpr int power_of_two_within(int number) { return number < 2 ? 1 : 2 * power_of_two_within(number / 2); }
DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int ITEM_THREADS = CHANNELS_LAST ? CHANNELS / VECTOR : power_of_two_within(smaller(THREADS / ITEMS, Multiply::depth));
constexpr int SLOTS = ceil_div(ITEMS * ITEM_THREADS, THREADS);

static_assert(THREADS == WARP * BLOCK_WARPS, "the host and the kernel agree on the threads");
static_assert(BYTES1 == STAGE1 * sizeof(INPUT) && BYTES2 == STAGE2 * sizeof(INPUT),
              "the host and the kernel agree on shared memory");
static_assert(!SKEWED || WARP_ROWS1 == 1, "each pair of rows of a warp has its own displacement");
static_assert(CHANNELS % STEP_CHANNELS == 0 && CHANNELS / VECTOR % 2 == 0,
              "a stage is whole steps, and pixels are an odd multiple of 16 bytes apart");
static_assert(!CHANNELS_LAST || THREADS % ITEM_THREADS == 0, "a thread loads the same channels of every pixel");
static_assert(STAGES == 2 || ASYNCHRONOUS, "staging through registers is double buffered");
static_assert(PLANE1 < 0x10000 && PLANE2 < 0x10000, "an offset in a plane fits into half a register");

// Loading ----------------------------------------------------------------------------------------------------------------------

// One item of a block's tiles: its offset in a channel in global memory and in shared memory, and a bit for each column of a
// vector that is inside the image. If one access moves `vector_width` columns, these vectors are a row's items apart, so that
// neighbouring threads move neighbouring vectors.
struct Slot {
    int from;
    int packed;  // `to`, above it `inside`, above that whether it is of input2; negative: no item for this thread

    DEVICE bool none() const { return packed < 0; }
    DEVICE int to() const { return packed & 0xffff; }
    DEVICE uint32 inside() const { return static_cast<uint32>(packed) >> 16 & 0xff; }
    DEVICE bool second() const { return (packed >> 24 & 1) != 0; }
    DEVICE int pitch() const { return second() ? PITCH2 : PITCH1; }
    DEVICE int distance() const { return second() ? ROW2 : ROW1; }
};

// The item of this thread's slot s, and the number of this thread among those that share it.
DEVICE int item_of(int s) {
    const int number = threadIdx.x + s * THREADS;
    if (CHANNELS_LAST) return number / ITEM_THREADS;
    if (ITEM_THREADS == 1) return number;
    return number / ITEMS < ITEM_THREADS ? number % ITEMS : ITEMS;
}
DEVICE int item_thread() { return CHANNELS_LAST ? threadIdx.x % ITEM_THREADS : ITEM_THREADS == 1 ? 0 : threadIdx.x / ITEMS; }

DEVICE Slot slot_of(int item, int vector_width, int leading_columns, const Image& image1, const Image& image2,
                    const Axis& vertical, const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
    if (item >= ITEMS) return Slot{0, -1};
    const bool second = item >= ITEMS1;
    const int within = second ? item - ITEMS1 : item, items = second ? ROW2 : ROW1;
    const int row = within / items, column = within % items * (CHANNELS_LAST ? 1 : vector_width);
    const int to = ((row * PHASES + column % PHASES) * (second ? WIDTH2 : WIDTH1) + column / PHASES) * PIXEL | second << 24;

    const int y = (second ? rows.start2 : rows.start1) + row * vertical.spacing;
    const int x =
        (second ? columns.start2 - leading_columns * PHASES * horizontal.spacing : columns.start1) + column * horizontal.spacing;
    if (y < 0 || y >= (second ? vertical.size2 : vertical.size1)) return Slot{0, to};
    int inside = 0;
#pragma unroll
    for (int k = 0; k < (CHANNELS_LAST ? 1 : VECTOR); k++) {
        const int at = x + (k / vector_width * vector_width * items + k % vector_width) * horizontal.spacing;
        if (at >= 0 && at < (second ? horizontal.size2 : horizontal.size1)) inside |= 1 << k;
    }
    if (!inside) return Slot{0, to};
    const int from =
        y * (second ? image2.row_stride : image1.row_stride) + x * (second ? image2.column_stride : image1.column_stride);
    return Slot{from, to | inside << 16};
}

// Moves one thread's items of the images to shared memory, stage after stage.
struct Loader {
    Slot slots[SLOTS];
    const INPUT* next1;  // the next channels to load
    const INPUT* next2;
    long long channel_stride1, channel_stride2;
    int column_stride1, column_stride2;
    int left;  // channels to load
    int vector_width;  // contiguous elements that one access moves
    bool second;  // only input2, as input1 is in shared memory

    // Unpacked where it is used, as the products leave no registers to keep its fields.
    DEVICE Slot slot(int s) const { return Slot{opaque(slots[s].from), opaque(slots[s].packed)}; }
    DEVICE bool skips(const Slot& slot) const { return slot.none() || (second && !slot.second()); }

    DEVICE const INPUT* source(const Slot& slot, int channel) const {
        return (slot.second() ? next2 + channel * channel_stride2 : next1 + channel * channel_stride1) + slot.from;
    }

    DEVICE void advance(int channels) {
        next1 += channels * channel_stride1;
        next2 += channels * channel_stride2;
        left -= channels;
    }

#if STAGING != COLUMNWISE
    DEVICE void copy_item(INPUT* to, const INPUT* from, uint32 inside, int distance, int stride) const {
        if (vector_width == 1) copy_elements<VECTOR>(to, from, inside, distance, stride);
        else copy_columns<VECTOR>(to, from, inside, vector_width, distance);
    }

    // Starts asynchronous copies of a stage.
    DEVICE void load_stage(INPUT* stage1, INPUT* stage2) {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (skips(slot)) continue;
            INPUT* const to = (slot.second() ? stage2 : stage1) + slot.to();
            if constexpr (CHANNELS_LAST) {
                const int first = item_thread() * VECTOR, wanted = min(max(left - first, 0), VECTOR);
                copy_item(to + first, source(slot, first), slot.inside() ? (1u << wanted) - 1 : 0, 1, 1);
            } else {
#pragma unroll
                for (int k = 0; k < CHANNELS; k += ITEM_THREADS) {
                    const int channel = item_thread() + k;
                    copy_item(to + channel * slot.pitch(), source(slot, channel), channel < left ? slot.inside() : 0,
                              slot.distance(), slot.second() ? column_stride2 : column_stride1);
                }
            }
        }
        advance(CHANNELS);
    }

    DEVICE void load_step() {}
    DEVICE void store_step(INPUT*, INPUT*) const {}
#else
    Words16 staged[SLOTS][STEP_CHANNELS / ITEM_THREADS];

    // Loads some channels into registers.
    DEVICE void load_step() {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (skips(slot)) continue;
            const int distance =
                (slot.second() ? column_stride2 : column_stride1) * (vector_width == VECTOR ? 1 : slot.distance());
#pragma unroll
            for (int k = 0; k < STEP_CHANNELS / ITEM_THREADS; k++) {
                const int channel = item_thread() + k * ITEM_THREADS;
                INPUT values[VECTOR];
                load_vector(source(slot, channel), channel < left ? slot.inside() : 0, distance, values);
                memcpy(&staged[s][k], values, sizeof values);
            }
        }
        advance(STEP_CHANNELS);
    }

    // Stores the loaded channels to shared memory.
    DEVICE void store_step(INPUT* step1, INPUT* step2) const {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (skips(slot)) continue;
            INPUT* const to = (slot.second() ? step2 : step1) + slot.to();
#pragma unroll
            for (int k = 0; k < STEP_CHANNELS / ITEM_THREADS; k++) {
                INPUT values[VECTOR];
                memcpy(values, &staged[s][k], sizeof values);
                store_item(to + (item_thread() + k * ITEM_THREADS) * slot.pitch(), values, slot);
            }
        }
    }

    // Stores a vector, deinterleaved into the rows of its phases.
    DEVICE void store_item(INPUT* to, const INPUT (&values)[VECTOR], const Slot& slot) const {
        struct __attribute__((aligned(sizeof(Words16) / PHASES))) Packed {
            INPUT of[VECTOR / PHASES];
        };
        if (vector_width == VECTOR) {
#pragma unroll
            for (int phase = 0; phase < PHASES; phase++) {
                Packed packed_phase;
#pragma unroll
                for (int k = 0; k < VECTOR / PHASES; k++) packed_phase.of[k] = values[k * PHASES + phase];
                store_shared(reinterpret_cast<Packed*>(to + phase * (slot.second() ? WIDTH2 : WIDTH1)), packed_phase);
            }
        } else {
#pragma unroll
            for (int k = 0; k < VECTOR; k++) store_shared(to + k * (slot.distance() / PHASES), values[k]);
        }
    }
#endif
};

// Multiplying ------------------------------------------------------------------------------------------------------------------

// The tile of a warp within that of its block.
struct Warp {
    int phase, row, row2, warp_split;  // row, row2: the first row of either image

    DEVICE static Warp number(int warp) {
        const int rows = warp / PHASES, rows2 = rows / ROW_WARPS1;
        const int row = rows % ROW_WARPS1 * WARP_ROWS1;
        return Warp{warp % PHASES, row, rows2 % ROW_WARPS2 * WARP_ROWS2 + (SKEWED ? row : 0), rows2 / ROW_WARPS2};
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

// A bit for each pair of a warp that has products.
DEVICE uint32 pairs_with_products(const Warp& warp, const Axis& vertical, const AxisTile& rows) {
    uint32 pairs = 0;
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
        if (in_patch(pair_of(warp, p), vertical, rows) && inside(pair_of(warp, p), vertical, rows)) pairs |= 1u << p;
    return pairs;
}

// Returns whether any of the block's rows have products; the same for all its threads.
DEVICE bool rows_overlap(const Axis& vertical, const AxisTile& rows) {
    const bool any1 =
        first_inside(rows.start1, vertical.spacing) < min(ROWS1, end_inside(rows.start1, vertical.spacing, vertical.size1));
    const bool any2 =
        first_inside(rows.start2, vertical.spacing) < min(ROWS2, end_inside(rows.start2, vertical.spacing, vertical.size2));
    return any1 && any2 && patch_row(Pair{SKEWED ? 0 : TILE_ROWS - 1, 0}, vertical, rows) < vertical.patch;
}

typedef float Products[PAIRS][GROUPS1][MATRICES][4];

DEVICE void clear(Products& products) {
#pragma unroll
    for (int i = 0; i < PAIRS * GROUPS1 * MATRICES * 4; i++) (&products[0][0][0][0])[i] = 0;
}

// The offset in a stage of the address that a lane passes to the loads of fragments.
DEVICE int lane_offset(int pitch) {
    const int lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
    if (CHANNELS_LAST) return (row + 8 * (matrix / 2)) * PIXEL + matrix % 2 * VECTOR;
    if (sizeof(INPUT) == 2) return (row + 8 * (matrix % 2)) * pitch + matrix / 2 * 8;
    return lane % 4 * pitch + lane / 4;
}

// Loads the fragments of neighbouring groups of columns, for one matrix depth of channels.
template <int pitch, int count>
DEVICE void load_groups(const INPUT* from, uint32 (&groups)[count][2]) {
    if constexpr (CHANNELS_LAST || sizeof(INPUT) == 2) {
#pragma unroll
        for (int g = 0; g + 1 < count; g += 2) {
            uint32 matrices[4];
            load_matrices<4, !CHANNELS_LAST>(matrices, from + g * GROUP * PIXEL);
            groups[g][0] = matrices[0], groups[g][1] = matrices[1];
            groups[g + 1][0] = matrices[2], groups[g + 1][1] = matrices[3];
        }
        if constexpr (count % 2) load_matrices<2, !CHANNELS_LAST>(groups[count - 1], from + (count - 1) * GROUP * PIXEL);
    } else {
#pragma unroll
        for (int g = 0; g < count; g++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                groups[g][half] = load_shared(reinterpret_cast<const uint32*>(from + g * GROUP + half * 4 * pitch));
    }
#pragma unroll
    for (int g = 0; g < count; g++)
        groups[g][0] = Multiply::rounded(groups[g][0]), groups[g][1] = Multiply::rounded(groups[g][1]);
}

// Adds the products of one matrix depth of channels.
DEVICE void add_products(Products& products, const INPUT* from1, const INPUT* from2, uint32 pairs) {
    uint32 groups1[WARP_ROWS1][GROUPS1][2];
#pragma unroll
    for (int r = 0; r < WARP_ROWS1; r++) load_groups<PITCH1>(from1 + r * PHASES * WIDTH1 * PIXEL, groups1[r]);
#pragma unroll
    for (int u = 0; u < WARP_ROWS2; u++) {
        uint32 groups2[GROUPS2][2];
        load_groups<PITCH2>(from2 + u * PHASES * WIDTH2 * PIXEL, groups2);
#pragma unroll
        for (int r = 0; r < WARP_ROWS1; r++) {
            if (!(pairs >> (u * WARP_ROWS1 + r) & 1)) continue;
#pragma unroll
            for (int j = 0; j < GROUPS1; j++)
#pragma unroll
                for (int k = 0; k < MATRICES; k++) {
                    const int g = j + 2 * k;
                    const uint32 a[4] = {groups2[g][0], groups2[g + 1][0], groups2[g][1], groups2[g + 1][1]};
                    Multiply::add(products[u * WARP_ROWS1 + r][j][k], a, groups1[r][j]);
                }
        }
    }
}

// Computes the products of all channels. Every thread of the block must call it, and all must have read the stages of before.
DEVICE void add_channels(Products& products, Loader& loader, INPUT* shared1, INPUT* shared2, int stages1, const Warp& warp,
                         uint32 pairs) {
    constexpr int AHEAD = STAGES - 1;  // stages in flight
    constexpr int DEPTH1 = CHANNELS_LAST ? 1 : PITCH1, DEPTH2 = CHANNELS_LAST ? 1 : PITCH2;  // from channel to channel
    const int offset1 =
        (warp.row * PHASES + warp.phase) * WIDTH1 * PIXEL + lane_offset(PITCH1) + warp.warp_split * Multiply::depth * DEPTH1;
    const int offset2 =
        (warp.row2 * PHASES + warp.phase) * WIDTH2 * PIXEL + lane_offset(PITCH2) + warp.warp_split * Multiply::depth * DEPTH2;
    const int stages = ceil_div(loader.left, CHANNELS);
    const auto stage_of_input1 = [&](int stage) { return shared1 + (stages1 > STAGES ? stage : stage % STAGES) * STAGE1; };
    const auto stage_of_input2 = [&](int stage) { return shared2 + stage % STAGES * STAGE2; };
#if STAGING != COLUMNWISE
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; stage++) {
        if (stage < stages) loader.load_stage(stage_of_input1(stage), stage_of_input2(stage));
        copy_async_commit();
    }
#else
#pragma unroll 1
    for (int step = 0; step < CHANNELS; step += STEP_CHANNELS) {
        loader.load_step();
        loader.store_step(shared1 + step * PITCH1, shared2 + step * PITCH2);
    }
#endif
    clear(products);
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        const bool more = stage + AHEAD < stages;
        if (ASYNCHRONOUS) copy_async_wait<AHEAD - 1>();
        __syncthreads();  // the stage is complete, and the one before has been read
#if STAGING != COLUMNWISE
        if (more) loader.load_stage(stage_of_input1(stage + AHEAD), stage_of_input2(stage + AHEAD));
        copy_async_commit();
#endif
#pragma unroll
        for (int step = 0; step < CHANNELS; step += STEP_CHANNELS) {
            if (more) loader.load_step();
            if (pairs)
                add_products(products, stage_of_input1(stage) + step * DEPTH1 + offset1,
                             stage_of_input2(stage) + step * DEPTH2 + offset2, pairs);
            if (more)
                loader.store_step(stage_of_input1(stage + AHEAD) + step * PITCH1, stage_of_input2(stage + AHEAD) + step * PITCH2);
        }
    }
}

// Epilogue ---------------------------------------------------------------------------------------------------------------------

// The band goes through shared memory, some of each warp's pairs at a time: a line for each displacement. This pitch avoids bank
// conflicts of the stores, and nearly all of the loads.
constexpr int LINE_PITCH = WIDTH1 + 5;
constexpr int BAND = DISPLACEMENTS * LINE_PITCH;
constexpr int FITTING_PAIRS = STAGES * BYTES2 / static_cast<int>(sizeof(float)) / (BLOCK_WARPS * BAND);
constexpr int STORED_PAIRS = smaller(FITTING_PAIRS, PAIRS);
static_assert(STORED_PAIRS > 0, "a pair of each warp fits into shared memory");

// The columns of a block at which both images have pixels.
struct Columns {
    int begin1, end1, begin2, end2;

    DEVICE static Columns of(const Axis& horizontal, const AxisTile& columns) {
        return Columns{
            first_inside(columns.start1, horizontal.spacing), end_inside(columns.start1, horizontal.spacing, horizontal.size1),
            first_inside(columns.start2, horizontal.spacing), end_inside(columns.start2, horizontal.spacing, horizontal.size2)};
    }
    DEVICE bool inside(int column, int n) const {
        const int row2 = column + n * PHASES;
        return column >= begin1 && column < end1 && row2 >= begin2 && row2 < end2;
    }
};

DEVICE void store_band(const float (&products)[GROUPS1][MATRICES][4], float* lines, int leading_columns, int patches) {
    const int lane = threadIdx.x % WARP, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
    for (int k = 0; k < MATRICES; k++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int n = GROUP * (2 * k + half) + row - column - leading_columns;  // of the first of two columns
#pragma unroll
            for (int j = 0; j < GROUPS1; j++) {
                float* const to = lines + n * LINE_PITCH + j * GROUP + column;
                if (n >= 0 && n < patches) store_shared(to, products[j][k][2 * half]);
                if (n >= 1 && n <= patches) store_shared(to - LINE_PITCH + 1, products[j][k][2 * half + 1]);
            }
        }
}

// Stores the lines of pairs from `first` on, `count` columns at a time; neighbouring threads store neighbouring columns.
template <int count>
DEVICE void store_lines(const float* shared, int first, const Output& result, const Axis& vertical, const Axis& horizontal,
                        const AxisTile& rows, const AxisTile& columns) {
    const Columns inside_columns = Columns::of(horizontal, columns);
    const int vectors = ceil_div(columns.outputs, count);
    for (int item = threadIdx.x; item < vectors * columns.patches * STORED_PAIRS * ROW_WARPS1 * ROW_WARPS2; item += THREADS) {
        int rest = item;
        const int column = digit(rest, vectors) * count, n = digit(rest, columns.patches), p = digit(rest, STORED_PAIRS);
        const Pair pair = pair_of(Warp::number(rest * PHASES), first + p);
        if (first + p >= PAIRS || !in_patch(pair, vertical, rows)) continue;
        const bool row_inside = inside(pair, vertical, rows);
        Sum values[count];
#pragma unroll
        for (int k = 0; k < count; k++) {
            values[k] = 0;
            if (!row_inside || column + k >= columns.outputs || !inside_columns.inside(column + k, n)) continue;
            const int warp = rest * PHASES + (column + k) % PHASES;
#pragma unroll
            for (int warp_split = 0; warp_split < WARP_SPLITS; warp_split++) {
                const int band = (warp_split * (BLOCK_WARPS / WARP_SPLITS) + warp) * STORED_PAIRS + p;
                values[k] += load_shared(shared + band * BAND + n * LINE_PITCH + (column + k) / PHASES);
            }
            values[k] *= result.scale;
        }
        store_vector(result.at(patch_row(pair, vertical, rows), columns.first_patch + n * horizontal.patch_phase_stride,
                               rows.first_output + pair.row * vertical.output_phase_stride,
                               columns.first_output + column * horizontal.output_phase_stride),
                     horizontal.output_phase_stride * result.column_stride, columns.outputs - column, values);
    }
}

DEVICE void store_products(const Products& products, float* shared, int leading_columns, bool vector_stores, const Output& result,
                           const Axis& vertical, const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
#pragma unroll 1
    for (int first = 0; first < PAIRS; first += STORED_PAIRS) {
        __syncthreads();  // the last stage, or the pairs before, have been read
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
            if (p >= first && p < first + STORED_PAIRS)
                store_band(products[p], shared + (threadIdx.x / WARP * STORED_PAIRS + p - first) * BAND, leading_columns,
                           columns.patches);
        __syncthreads();
        if (vector_stores) store_lines<VectorOf<OUTPUT>::width>(shared, first, result, vertical, horizontal, rows, columns);
        else store_lines<1>(shared, first, result, vertical, horizontal, rows, columns);
    }
}

// `leading_columns`: columns of input2's tile before the first displacement's; `patch_columns`: displacements of a block along x;
// `vector_stores`: whether all rows of outputs are aligned if the first one is.
KERNEL(THREADS)
forward_mma(const INPUT* input1, const INPUT* input2, OUTPUT* out, int tiles, int channels, int split_channels, int vector_width,
            GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y), AXIS_PARAMETERS(x),
            int passes, int stages1, int leading_columns, int patch_columns, int vector_stores, Sum scale) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Warp warp = Warp::number(threadIdx.x / WARP);
    INPUT* const shared2 = shared + stages1 * STAGE1;
    const Grid grid = GRID_OF_PARAMETERS;
    const auto block_at = [&](int tile, int pass) {
        Block block = block_of(tile, grid, vertical, horizontal, passes * PASS_ROWS, patch_columns, PHASES);
        block.rows.first_patch += pass * PASS_ROWS * vertical.patch_phase_stride;
        block.rows.start2 += pass * PASS_ROWS * vertical.spacing;
        return block;
    };
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        bool has_input1 = false;  // input1 is in shared memory, with all its stages if there are several passes
#pragma unroll 1
        for (int pass = 0; pass < passes; pass++) {
            Block block = block_at(tile, pass);
            if (block.rows.outputs <= 0 || block.columns.outputs <= 0 || block.columns.patches <= 0) break;
            Products products;
            if (rows_overlap(vertical, block.rows)) {
                const int begin = block.split * split_channels;
                Loader loader;
                loader.next1 = input1 + (block.b * batch_stride_input1 + begin * channel_stride_input1);
                loader.next2 = input2 + (block.b * batch_stride_input2 + begin * channel_stride_input2);
                loader.channel_stride1 = channel_stride_input1, loader.channel_stride2 = channel_stride_input2;
                loader.column_stride1 = horizontal.spacing * column_stride_input1;
                loader.column_stride2 = horizontal.spacing * column_stride_input2;
                loader.left = min(split_channels, channels - begin);
                loader.vector_width = min(aligned(input1, vector_width), aligned(input2, vector_width));
                if (STAGING == COLUMNWISE && loader.vector_width < VECTOR) loader.vector_width = 1;
                loader.second = has_input1;
#pragma unroll
                for (int s = 0; s < SLOTS; s++)
                    loader.slots[s] = slot_of(item_of(s), loader.vector_width, leading_columns, image1, image2, vertical,
                                              horizontal, block.rows, block.columns);
                has_input1 = true;
                __syncthreads();  // all have read what the pass or tile before left
                add_channels(products, loader, shared, shared2, stages1, warp, pairs_with_products(warp, vertical, block.rows));
            } else {
                clear(products);
            }
            // Computed again, as the products leave no registers to keep it.
            block = block_at(opaque(tile), pass);
            const Output result = {out + (block.split * split_stride_out + block.b * batch_stride_out),
                                   m_stride_out,
                                   n_stride_out,
                                   row_stride_out,
                                   column_stride_out,
                                   scale};
            store_products(products, reinterpret_cast<float*>(shared2), leading_columns, vector_stores != 0, result, vertical,
                           horizontal, block.rows, block.columns);
        }
    }
}
