// Sums over tiles in shared memory, for windows of one pixel, or of several that are close together:
//
//     V[m, n, p, r] = sum over c of  X1[c, y1(p), x1(r)] * X2[c, y2(p, m), x2(r, n)]            0 where a position is outside
//     out[m, n, i, j] = scale * sum over u < kH, v < kW of  V[m, n, p(i, u), r(j, v)]
//
// A block computes outputs of one phase of each axis (forward_phases.cuh). Where displacements are two pixels apart and rows are
// contiguous, it takes both phases of x, so that it reads whole sectors; they are deinterleaved in shared memory.
//
//     thread block tile   TILE_ROWS x (PHASES * TILE_COLUMNS) positions, PATCH_ROWS x (GROUPS * DISPLACEMENTS) displacements
//     thread              ROWS x COLUMNS positions, DISPLACEMENTS along x. One row of input2 serves all its ROWS: for row r it is
//                         at displacement m - r. A window of COLUMNS + DISPLACEMENTS - 1 values of it slides along in
//                         registers, so that a value loaded is used ROWS * DISPLACEMENTS times
//     warp                LANES_X threads along x; the other lanes, fastest, are neighbours in m, whose rows are in other banks
//     pipeline stage      CHANNELS channels, in a ring of STAGES; WARP_SPLITS groups of warps take turns at them
//     epilogue            a function of the kernel that includes this file: it stores the outputs or reduces them
//
// Macros: INPUT, OUTPUT (the input's type or that of its sums), STAGING, PHASES, ROWS, TILE_ROWS, PATCH_ROWS, DISPLACEMENTS,
// GROUPS, LANES_X, WARP_SPLITS, CHANNELS, STAGES (2, or more of asynchronous copies), LEADING_COLUMNS (columns of input2's tile
// before the first displacement's, for alignment), SHARED_EPILOGUE (outputs go through shared memory), and THREADS and SHARED,
// which the host computes too.
#pragma once
#include "correlation/forward_phases.cuh"

constexpr int COLUMNS = sizeof(Words16) / sizeof(Sum);
constexpr int TILE_COLUMNS = LANES_X * COLUMNS;  // of each phase
constexpr int LANES_M = WARP / LANES_X;
constexpr int THREAD_ROWS2 = PATCH_ROWS + ROWS - 1;  // rows of input2 for the rows of a thread
constexpr int PAIRS = TILE_ROWS / ROWS * THREAD_ROWS2;
constexpr int PAIR_WARPS = ceil_div(PAIRS, LANES_M);
constexpr int WINDOW_VECTORS = ceil_div(LEADING_COLUMNS + COLUMNS + DISPLACEMENTS - 1, COLUMNS);  // of a thread's window

constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr int ROWS1 = TILE_ROWS, ROWS2 = TILE_ROWS - ROWS + THREAD_ROWS2;
constexpr int WIDTH1 = TILE_COLUMNS;
constexpr int WIDTH2 = round_up(TILE_COLUMNS - COLUMNS + (GROUPS - 1) * DISPLACEMENTS + WINDOW_VECTORS * COLUMNS, VECTOR);
constexpr int PITCH1 = pitch(WIDTH1, COLUMNS, LANES_M), PITCH2 = pitch(WIDTH2, COLUMNS, LANES_M);
// Where there are two phases, their planes are half of the banks apart, as neighbouring lanes store to both.
constexpr int HALF_BANKS = 64 / sizeof(Sum);
DEVICE constexpr int plane_size(int size) { return PHASES > 1 ? round_up(size - HALF_BANKS, 2 * HALF_BANKS) + HALF_BANKS : size; }
constexpr int PHASE1 = plane_size(ROWS1 * PITCH1), PHASE2 = plane_size(ROWS2 * PITCH2);
constexpr int CHANNEL = PHASES * (PHASE1 + PHASE2);  // elements of both images, first those of input1
constexpr int STAGE = CHANNELS * CHANNEL;

// Asynchronous copies part the phases, element by element.
#define PARTS_PHASES (STAGING == COPIED && PHASES > 1)

// Neighbouring threads take the vectors of channels that fill a sector of 32 bytes, if a stage has as many.
constexpr int SECTOR_VECTORS = STAGING != CHANNELWISE || CHANNELS < 2 * VECTOR ? 1 : 2;
// Channels in flight in registers at a time; many sums leave few registers.
constexpr int STEP_CHANNELS = STAGING == CHANNELWISE      ? SECTOR_VECTORS * VECTOR
                              : WARP_SPLITS > 1           ? WARP_SPLITS
                              : ROWS * DISPLACEMENTS > 40 ? 1
                                                          : 2;
constexpr int ITEM_COLUMNS = STAGING == CHANNELWISE ? 1 : VECTOR;  // columns of an item
constexpr int ROW1 = PHASES * WIDTH1 / ITEM_COLUMNS, ROW2 = PHASES * WIDTH2 / ITEM_COLUMNS;  // items of a row
constexpr int ITEMS1 = ROWS1 * ROW1, ITEMS2 = ROWS2 * ROW2;
constexpr int SLOTS = ceil_div((ITEMS1 + ITEMS2) * SECTOR_VECTORS, THREADS);

static_assert(THREADS == WARP * PAIR_WARPS * PHASES * GROUPS * WARP_SPLITS, "the host and the kernel agree on the threads");
static_assert(SHARED == STAGES * STAGE * sizeof(Sum), "the host and the kernel agree on shared memory");
static_assert(CHANNELS % STEP_CHANNELS == 0 && STEP_CHANNELS % WARP_SPLITS == 0,
              "a stage is whole steps, a step has a channel for each warp split");
static_assert(STAGING == CHANNELWISE || (ROW1 % PHASES == 0 && ROW2 % PHASES == 0), "the vectors of an item are of one phase");
static_assert(LEADING_COLUMNS == 0 || !PARTS_PHASES, "single elements need no alignment");
static_assert(GROUPS == 1 || DISPLACEMENTS % COLUMNS == 0, "every group's window begins at a vector");
static_assert(SHARED_EPILOGUE || (PHASES == 1 && WARP_SPLITS == 1), "phases and warp splits are combined in shared memory");

#if !PARTS_PHASES

// One item of a block's tiles, first those of input1: its offset in a channel in global memory and in shared memory, and a bit
// for each of its columns that is inside the image. If one access moves the whole item, its columns are contiguous. If it moves
// `vector_width` columns, these vectors are a row's items apart, so that neighbouring threads move neighbouring vectors.
struct Slot {
    int from;
    int packed;  // `to`, above it `inside`, in one register, as sums leave few; negative: no item for this thread

    DEVICE bool none() const { return packed < 0; }
    DEVICE int to() const { return packed & 0xffff; }
    DEVICE uint32 inside() const { return packed < 0 ? 0 : static_cast<uint32>(packed) >> 16; }
    DEVICE bool second() const { return to() >= PHASES * PHASE1; }  // of input2
};

static_assert(CHANNEL < 0x10000, "an offset in shared memory fits into half a register");

// The distance of an item's column k from its first, in columns.
DEVICE int column_of(int k, int vector_width, bool second) {
    return k / vector_width * vector_width * (second ? ROW2 : ROW1) + k % vector_width;
}

DEVICE Slot slot_of(int item, int vector_width, const Image& image1, const Image& image2, const Axis& vertical,
                    const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
    if (item >= ITEMS1 + ITEMS2) return Slot{0, -1};
    const bool second = item >= ITEMS1;
    const int within = second ? item - ITEMS1 : item, items = second ? ROW2 : ROW1;
    const int row = within / items, column = within % items * vector_width;
    const int row_to = second ? PHASES * PHASE1 + row * PITCH2 : row * PITCH1;
    const int to = row_to + column / PHASES + column % PHASES * (second ? PHASE2 : PHASE1);

    const int y = (second ? rows.start2 : rows.start1) + row * vertical.spacing;
    const int x =
        (second ? columns.start2 - LEADING_COLUMNS * PHASES * horizontal.spacing : columns.start1) + column * horizontal.spacing;
    if (y < 0 || y >= (second ? vertical.size2 : vertical.size1)) return Slot{0, to};
    int inside = 0;
#pragma unroll
    for (int k = 0; k < ITEM_COLUMNS; k++) {
        const int at = x + column_of(k, vector_width, second) * horizontal.spacing;
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
    int vector_width;  // columns that one access moves

    DEVICE void start(Sum*, const Image& image1, const Image& image2, const Axis& vertical, const Axis& horizontal,
                      const BlockTile& block, int first_channel, int channels, int most_columns) {
        next1 = image1.data + (block.b * image1.batch_stride + first_channel * image1.channel_stride);
        next2 = image2.data + (block.b * image2.batch_stride + first_channel * image2.channel_stride);
        channel_stride1 = image1.channel_stride, channel_stride2 = image2.channel_stride;
        column_stride1 = horizontal.spacing * image1.column_stride, column_stride2 = horizontal.spacing * image2.column_stride;
        left = channels;
        vector_width = STAGING == CHANNELWISE ? 1 : min(aligned(image1.data, most_columns), aligned(image2.data, most_columns));
        if (STAGING == COLUMNWISE && vector_width < VECTOR) vector_width = 1;
#pragma unroll
        for (int s = 0; s < SLOTS; s++)
            slots[s] = slot_of((threadIdx.x + s * THREADS) / SECTOR_VECTORS, vector_width, image1, image2, vertical, horizontal,
                               block.rows, block.columns);
    }

    DEVICE const INPUT* source(const Slot& slot, int channel) const {
        return (slot.second() ? next2 + channel * channel_stride2 : next1 + channel * channel_stride1) + slot.from;
    }

    DEVICE void advance(int channels) {
        next1 += channels * channel_stride1;
        next2 += channels * channel_stride2;
        left -= channels;
    }

#if STAGING == COPIED
    // Starts asynchronous copies of a stage.
    DEVICE void begin_stage(Sum* stage) {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            if (slots[s].none()) continue;
#pragma unroll
            for (int channel = 0; channel < CHANNELS; channel++)
                copy_columns<COLUMNS>(stage + channel * CHANNEL + slots[s].to(), source(slots[s], channel),
                                      channel < left ? slots[s].inside() : 0, vector_width, slots[s].second() ? ROW2 : ROW1);
        }
    }

    DEVICE void end_stage() {
        copy_async_commit();
        advance(CHANNELS);
    }

    DEVICE void fill_stages(Sum* shared) {
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; s++) {
            if (left > 0) begin_stage(shared + s * STAGE);
            end_stage();
        }
    }

    DEVICE void wait() const { copy_async_wait<STAGES - 2>(); }
    DEVICE void load_step(Sum*, int) {}
    DEVICE void store_step(Sum*) const {}
#else
    INPUT staged[SLOTS][STAGING == CHANNELWISE ? 1 : STEP_CHANNELS][VECTOR];

    // The elements in global memory from one column of an item to the next.
    DEVICE int distance(const Slot& slot) const {
        return slot.second() ? column_stride2 * (vector_width == VECTOR ? 1 : ROW2)
                             : column_stride1 * (vector_width == VECTOR ? 1 : ROW1);
    }

    // Loads some channels into registers.
    DEVICE void load_step(Sum* = nullptr, int = 0) {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            if (STAGING == CHANNELWISE) {
                const int first = threadIdx.x % SECTOR_VECTORS * VECTOR, wanted = min(max(left - first, 0), VECTOR);
                load_vector(source(slots[s], 0) + first, slots[s].inside() ? (1u << wanted) - 1 : 0, 1, staged[s][0]);
            } else {
#pragma unroll
                for (int channel = 0; channel < STEP_CHANNELS; channel++)
                    load_vector(source(slots[s], channel), channel < left ? slots[s].inside() : 0, distance(slots[s]),
                                staged[s][channel]);
            }
        }
        advance(STEP_CHANNELS);
    }

    // Stores the loaded channels to shared memory.
    DEVICE void store_step(Sum* step) const {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            if (slots[s].none()) continue;
            Sum* const to = step + slots[s].to();
            if (STAGING == CHANNELWISE) {
#pragma unroll
                for (int channel = 0; channel < VECTOR; channel++)
                    store_shared(to + (threadIdx.x % SECTOR_VECTORS * VECTOR + channel) * CHANNEL,
                                 Sum(widen(staged[s][0][channel])));
            } else {
#pragma unroll
                for (int channel = 0; channel < STEP_CHANNELS; channel++) {
                    if (vector_width == VECTOR)
                        store_deinterleaved<PHASES>(to + channel * CHANNEL, slots[s].second() ? PHASE2 : PHASE1,
                                                    staged[s][channel]);
                    else
                        store_strided(to + channel * CHANNEL, (slots[s].second() ? ROW2 : ROW1) / PHASES, staged[s][channel]);
                }
            }
        }
    }

    DEVICE void fill_stages(Sum* stage) {
        static_assert(STAGES == 2, "registers hold a step of the next stage");
#pragma unroll 1
        for (int step = 0; step < CHANNELS; step += STEP_CHANNELS) {
            load_step();
            store_step(stage + step * CHANNEL);
        }
    }

    DEVICE void wait() const {}
    DEVICE void begin_stage(Sum*) {}
    DEVICE void end_stage() {}
#endif
};

#else

// Copies single elements to shared memory, to the planes of their phases. Lanes are along the columns, beginning at a sector; each
// warp has its rows, of all channels. Columns and rows outside are never copied: they are set to 0 before the first stage.
constexpr int WARPS = THREADS / WARP;
constexpr int SECTOR_COLUMNS = SECTOR / sizeof(INPUT);
constexpr int ROUNDS = ceil_div(PHASES * WIDTH2 + SECTOR_COLUMNS - 1, WARP);  // columns of a lane

struct CopiedRow {
    const INPUT* next;  // the next channel, at the lane's first column
    int to;  // its place in a channel in shared memory
    uint32 inside;  // a bit for each of the lane's columns
    bool second;  // of input2

    DEVICE static CopiedRow of(int row, const Image& image1, const Image& image2, const Axis& vertical, const Axis& horizontal,
                               const BlockTile& block, int first_channel) {
        CopiedRow copied;
        copied.second = row >= ROWS1;
        if (copied.second) row -= ROWS1;
        const Image image = copied.second ? image2 : image1;
        const int y = (copied.second ? block.rows.start2 : block.rows.start1) + row * vertical.spacing;
        const int x = copied.second ? block.columns.start2 : block.columns.start1;
        const int width = PHASES * (copied.second ? WIDTH2 : WIDTH1), size = copied.second ? horizontal.size2 : horizontal.size1;
        const int begin = max(-x, 0), end = min(width, size - x);
        const INPUT* const data = image.data + (block.b * image.batch_stride + first_channel * image.channel_stride +
                                                static_cast<long long>(y) * image.row_stride + x);
        const int before = reinterpret_cast<unsigned long long>(data + begin) / sizeof(INPUT) % SECTOR_COLUMNS;
        const int column = begin - before + static_cast<int>(threadIdx.x % WARP);
        copied.next = data + column;
        copied.to = (copied.second ? PHASES * PHASE1 + row * PITCH2 : row * PITCH1) + (column + WARP) / PHASES - WARP / PHASES +
                    (column + WARP) % PHASES * (copied.second ? PHASE2 : PHASE1);  // column may be negative
        copied.inside = 0;
        if (y < 0 || y >= (copied.second ? vertical.size2 : vertical.size1) || row >= (copied.second ? ROWS2 : ROWS1))
            return copied;
#pragma unroll
        for (int round = 0; round < ROUNDS; round++)
            if (column + round * WARP >= begin && column + round * WARP < end) copied.inside |= 1 << round;
        return copied;
    }
};

struct Loader {
    static constexpr int EACH = ceil_div(ROWS1 + ROWS2, WARPS);  // rows of a warp
    CopiedRow rows[EACH];
    long long channel_stride1, channel_stride2;
    int left;  // channels to load

    DEVICE void start(Sum* shared, const Image& image1, const Image& image2, const Axis& vertical, const Axis& horizontal,
                      const BlockTile& block, int first_channel, int channels, int) {
        for (int at = threadIdx.x * COLUMNS; at < STAGES * STAGE; at += THREADS * COLUMNS) store_shared_16(shared + at, Words16{});
        channel_stride1 = image1.channel_stride, channel_stride2 = image2.channel_stride;
        left = channels;
#pragma unroll
        for (int k = 0; k < EACH; k++)
            rows[k] = CopiedRow::of(threadIdx.x / WARP + k * WARPS, image1, image2, vertical, horizontal, block, first_channel);
        __syncthreads();  // copies land where other threads have set 0
    }

    // Starts asynchronous copies of a stage.
    DEVICE void copy_stage(Sum* stage) {
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            CopiedRow& row = rows[k];
            const long long channel_stride = row.second ? channel_stride2 : channel_stride1;
            if (!row.inside) continue;
            Sum* const to = stage + opaque(row.to);
#pragma unroll
            for (int channel = 0; channel < CHANNELS; channel++, row.next = opaque(row.next + channel_stride)) {
#pragma unroll
                for (int round = 0; round < ROUNDS; round++)
                    if (row.inside >> round & 1)
                        copy_async<sizeof(INPUT)>(to + (channel * CHANNEL + round * (WARP / PHASES)), row.next + round * WARP,
                                                  channel < left);
            }
        }
    }

    DEVICE void fill_stages(Sum* shared) {
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; s++) {
            if (left > 0) copy_stage(shared + s * STAGE);
            end_stage();
        }
    }

    DEVICE void begin_stage(Sum*) {}

    // Two warps share a scheduler: one copies at the beginning of a stage, and the other one in its middle, while the first adds.
    DEVICE void load_step(Sum* stage, int step) {
        const int half = threadIdx.x / WARP / SCHEDULERS % 2 * (CHANNELS / 2);
        if ((step == 0 || step == CHANNELS / 2) && step == half) copy_stage(stage);
    }

    DEVICE void store_step(Sum*) const {}

    DEVICE void end_stage() {
        copy_async_commit();
        left -= CHANNELS;
    }

    DEVICE void wait() const { copy_async_wait<STAGES - 2>(); }
};

#endif

// The tile of a thread within that of its block.
struct Thread {
    int warp_split, group, phase;
    int column;  // first column, in its phase
    int rows;  // first row
    int row2;  // row of input2, counted from that of the thread's first row at the block's first displacement
    bool idle;  // there are more threads than tiles

    DEVICE static Thread here() {
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        const int pair = warp % PAIR_WARPS * LANES_M + lane % LANES_M, last = min(pair, PAIRS - 1);
        const int group_index = warp / PAIR_WARPS;
        return Thread{
            group_index / PHASES / GROUPS, group_index / PHASES % GROUPS, group_index % PHASES, lane / LANES_M * COLUMNS,
            last / THREAD_ROWS2 * ROWS,    last % THREAD_ROWS2,           pair >= PAIRS};
    }

    // The patch row of one of the thread's rows; if it is outside [0, PATCH_ROWS), another thread has the product, or none.
    DEVICE int patch_row(int row) const { return row2 - row; }
};

typedef Sum Products[ROWS][DISPLACEMENTS][COLUMNS];

// Adds the products of some channels of a stage, those of one warp split.
DEVICE void add_products(Products& products, const Sum* rows1, const Sum* window2) {
#pragma unroll
    for (int channel = 0; channel < STEP_CHANNELS;
         channel += WARP_SPLITS, rows1 += WARP_SPLITS * CHANNEL, window2 += WARP_SPLITS * CHANNEL) {
        Sum row[ROWS][COLUMNS], window[WINDOW_VECTORS * COLUMNS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) load_shared_vectors(rows1 + r * PITCH1, row[r]);
        load_shared_vectors(window2, window);
#pragma unroll
        for (int n = 0; n < DISPLACEMENTS; n++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int k = 0; k < COLUMNS; k++)
                    products[r][n][k] = multiply_add(row[r][k], window[LEADING_COLUMNS + n + k], products[r][n][k]);
    }
}

// Steps that load nothing are unrolled: their addresses in shared memory are constants. Sums of float64 leave no registers for it.
constexpr int UNROLLED_STEPS = STAGING == COPIED && sizeof(Sum) == 4 ? CHANNELS / STEP_CHANNELS : 1;

// Adds the products of all channels, stage by stage. Every thread of the block must call it.
DEVICE void add_channels(Products& products, Loader& loader, Sum* shared, const Thread& thread, bool overlaps) {
    const int warp_split = thread.warp_split * CHANNEL;
    const int rows1 = warp_split + thread.phase * PHASE1 + thread.rows * PITCH1 + thread.column;
    const int window2 = warp_split + PHASES * PHASE1 + thread.phase * PHASE2 + (thread.rows + thread.row2) * PITCH2 +
                        thread.column + thread.group * DISPLACEMENTS;
    int stages = ceil_div(loader.left, CHANNELS), read = 0, filled = (STAGES - 1) * STAGE;
    loader.fill_stages(shared);
#pragma unroll 1
    for (; stages > 0; stages--) {
        loader.wait();
        __syncthreads();  // the stage is complete, and the one before has been read
        const bool more = stages >= STAGES;
        Sum *const now = shared + read, *const next = shared + filled;
        if (more) loader.begin_stage(next);
#pragma unroll UNROLLED_STEPS
        for (int step = 0; step < CHANNELS; step += STEP_CHANNELS) {
            if (more) loader.load_step(next, step);
            if (overlaps) add_products(products, now + step * CHANNEL + rows1, now + step * CHANNEL + window2);
            if (more) loader.store_step(next + step * CHANNEL);
        }
        loader.end_stage();
        filled = read;
        read = read == (STAGES - 1) * STAGE ? 0 : read + STAGE;
    }
}

// The outputs of a thread at positions inside both images: a bit for each column, and for each column of its window of input2.
struct Inside {
    bool row[ROWS];
    uint32 columns1, columns2;

    // Returns a bit for each column, at displacement n.
    DEVICE uint32 columns(int r, int n) const { return row[r] ? columns1 & columns2 >> n : 0; }
};

// The bits of [begin, end).
DEVICE uint32 bits(int begin, int end, int most) {
    const int first = min(max(begin, 0), most), last = min(max(end, first), most);
    return ((1u << last) - 1) & ~((1u << first) - 1);
}

static_assert(DISPLACEMENTS + COLUMNS - 1 < 32, "the columns of a window fit into 32 bits");

DEVICE Inside inside_of(const Thread& thread, const Axis& vertical, const Axis& horizontal, const AxisTile& rows,
                        const AxisTile& columns) {
    Inside inside;
    const int y2 = rows.start2 + (thread.rows + thread.row2) * vertical.spacing;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int y1 = rows.start1 + (thread.rows + r) * vertical.spacing;
        inside.row[r] = y1 >= 0 && y1 < vertical.size1 && y2 >= 0 && y2 < vertical.size2;
    }
    const int spacing = PHASES * horizontal.spacing;
    const int x1 = columns.start1 + thread.phase * horizontal.spacing + thread.column * spacing;
    const int x2 = columns.start2 + thread.phase * horizontal.spacing + (thread.column + thread.group * DISPLACEMENTS) * spacing;
    constexpr int window = DISPLACEMENTS + COLUMNS - 1;
    inside.columns1 = bits(first_inside(x1, spacing), end_inside(x1, spacing, horizontal.size1), COLUMNS);
    inside.columns2 = bits(first_inside(x2, spacing), end_inside(x2, spacing, horizontal.size2), window);
    return inside;
}

#if SHARED_EPILOGUE

// Epilogue through shared memory, which holds all positions of some displacements at a time. From there the warp splits and the
// taps of the windows are added in a fixed order, and the phases of a row are interleaved again.
constexpr int ROW_PITCH = TILE_COLUMNS + COLUMNS;  // of a phase's row
// From one patch row to the next, the banks advance by what the lanes along m share them into.
constexpr int BANKS = 128 / sizeof(Sum);
constexpr int PATCH_ROW_SIZE = round_up(TILE_ROWS * PHASES * ROW_PITCH, BANKS) + BANKS / LANES_M;
constexpr int DISPLACEMENT_SIZE = PATCH_ROWS * PATCH_ROW_SIZE;
constexpr int FITTING_DISPLACEMENTS = SHARED / static_cast<int>(sizeof(Sum)) / (WARP_SPLITS * GROUPS * DISPLACEMENT_SIZE);
constexpr int STORED_DISPLACEMENTS =
    FITTING_DISPLACEMENTS < DISPLACEMENTS ? FITTING_DISPLACEMENTS : DISPLACEMENTS;  // displacements of a group
static_assert(STORED_DISPLACEMENTS > 0, "one displacement of each group fits into shared memory");

template <class Number>
DEVICE Number* shared_row(Number* shared, int warp_split, int group, int n, int patch_row, int row, int phase) {
    const int displacement = (warp_split * GROUPS + group) * STORED_DISPLACEMENTS + n;
    return shared + (displacement * PATCH_ROWS + patch_row) * PATCH_ROW_SIZE + (row * PHASES + phase) * ROW_PITCH;
}

// The sum of an output's taps, each the sum of its warp splits.
DEVICE Sum sum_of_taps(Sum* shared, int group, int n, int patch_row, int i, int j, const Axis& vertical, const Axis& horizontal) {
    Sum sum = 0;
    for (int u = 0, p = i * vertical.output_step; u < vertical.taps; u++, p += vertical.tap_step)
        for (int v = 0, q = j * horizontal.output_step; v < horizontal.taps; v++, q += horizontal.tap_step) {
            Sum tap = 0;
#pragma unroll
            for (int warp_split = 0; warp_split < WARP_SPLITS; warp_split++)
                tap += load_shared(shared_row(shared, warp_split, group, n, patch_row, p, q % PHASES) + q / PHASES);
            sum += tap;
        }
    return sum;
}

// Returns whether every position is an output of one tap.
DEVICE bool has_pixels(const Axis& vertical, const Axis& horizontal) {
    return vertical.taps == 1 && horizontal.taps == 1 && vertical.output_step == 1 && horizontal.output_step == 1;
}

// Stores the sums of the block to shared memory, some displacements of each group at a time, and calls `take(first)` for each
// time: shared memory then has displacements [first, first + STORED_DISPLACEMENTS) of every group, 0 where a position is outside.
template <class Take>
DEVICE void share_products(const Products& products, Sum* shared, const Thread& thread, const Inside& inside, const Take& take) {
#pragma unroll 1
    for (int first = 0; first < DISPLACEMENTS; first += STORED_DISPLACEMENTS) {
        __syncthreads();  // the last stage, or the displacements before, have been read
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int patch_row = thread.patch_row(r);
            if (thread.idle || patch_row < 0 || patch_row >= PATCH_ROWS) continue;
#pragma unroll
            for (int n = 0; n < DISPLACEMENTS; n++) {
                if (n < first || n >= first + STORED_DISPLACEMENTS) continue;
                const uint32 columns_inside = inside.columns(r, n);
                Sum values[COLUMNS];
#pragma unroll
                for (int k = 0; k < COLUMNS; k++) values[k] = columns_inside >> k & 1 ? products[r][n][k] : Sum(0);
                store_shared_vector(
                    shared_row(shared, thread.warp_split, thread.group, n - first, patch_row, thread.rows + r, thread.phase) +
                        thread.column,
                    values);
            }
        }
        __syncthreads();
        take(first);
    }
}

#endif

// Returns whether a row of the warp's threads and its displaced row are both inside.
DEVICE bool warp_overlaps(const Thread& thread, const Axis& vertical, const AxisTile& rows) {
    const int y2 = rows.start2 + (thread.rows + thread.row2) * vertical.spacing;
    bool overlaps = false;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int y1 = rows.start1 + (thread.rows + r) * vertical.spacing;
        overlaps = overlaps || (y1 >= 0 && y1 < vertical.size1);
    }
    return __any_sync(0xffffffffu, overlaps && y2 >= 0 && y2 < vertical.size2);
}

// Computes the sums of each tile of the grid and calls `finish(products, thread, block, tile)`. Every thread of the block
// must call it. A block without patch indices is left out, unless its outputs are finished too.
template <bool finishes_all, class Finish>
DEVICE void for_each_tile(Sum* shared, int tiles, int channels, int split_channels, int vector_width, const Grid& grid,
                          const Image& image1, const Image& image2, const Axis& vertical, const Axis& horizontal,
                          const Finish& finish) {
    const Thread thread = Thread::here();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        BlockTile block = block_tile_of(tile, grid, vertical, horizontal, PATCH_ROWS, GROUPS * DISPLACEMENTS, PHASES);
        if (finishes_all ? block.has_no_outputs() : block.empty()) continue;
        Products products;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < DISPLACEMENTS; n++)
#pragma unroll
                for (int k = 0; k < COLUMNS; k++) products[r][n][k] = Sum(0);
        const bool overlaps = warp_overlaps(thread, vertical, block.rows);
        if (__syncthreads_or(overlaps)) {  // and the tile before has been read
            const int begin = block.split * split_channels;
            Loader loader;
            loader.start(shared, image1, image2, vertical, horizontal, block, begin, min(split_channels, channels - begin),
                         vector_width);
            add_channels(products, loader, shared, thread, overlaps);
        }
        // Computed again, as the products leave no registers to keep it.
        block = block_tile_of(opaque(tile), grid, vertical, horizontal, PATCH_ROWS, GROUPS * DISPLACEMENTS, PHASES);
        finish(products, thread, block, tile);
    }
}
