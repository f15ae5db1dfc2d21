// The correlation on tensor cores, for windows of one pixel: a banded product of matrices for each row y of input1 and each row y'
// of input2 that it meets,
//
//     D[r', r] = sum over c of  X2[c, y', r'] * X1[c, y, r]
//     out[m, n, y, r] = scale * D[r + n, r]                      at the displacement m that takes y to y'
//
// of which the band 0 <= r' - r < patch is kept. Positions r, r' are those of a phase (phases.cuh). An element of D sums the channels
// of its own two positions alone, so that nothing infinite gets where the definition does not put it; what is outside is 0 there,
// and its outputs are 0 whatever they sum.
//
// X2 is on the longer side of the instruction's product: 8 positions r meet 16 MATRICES positions r', of which the band has
// 8 patch products; 9 / 16 of them with a patch of 9, 21 / 32 with one of 21.
//
//     a block     TILE_ROWS rows x PHASES x WIDTH1 columns of input1, ROWS2 rows of input2, on which it slides `passes` times
//     a warp      ROWS rows of input1 and MET_ROWS rows of input2: of the block's, or, SKEWED, at the block's displacements
//     channels    CHANNELS in a stage of shared memory, while others are on their way; SHARES groups of warps take turns at them
//
// input1 stays in shared memory from pass to pass: where there are several, the `kept` stages of it are all there are.
//
// Macros: INPUT, OUTPUT (the input's type or float), STAGING, PHASES, MATRICES, ROWS, MET_ROWS, ROW_WARPS, MET_WARPS, SKEWED, SHARES,
// CHANNELS, STAGES, and THREADS, BYTES1 and BYTES2 (of a stage of either image), which the host launches with.
#include "common/mma.cuh"
#include "correlation/forward_phases.cuh"

typedef Multiplier<INPUT> Multiply;

constexpr int GROUP = 8;                                           // columns of a matrix
constexpr int GROUPS1 = 4, GROUPS2 = GROUPS1 + 2 * MATRICES - 1;   // of a row and phase
constexpr int WIDTH1 = GROUP * GROUPS1, WIDTH2 = GROUP * GROUPS2;
constexpr int DISPLACEMENTS = 2 * GROUP * MATRICES - GROUP + 1;    // along x, that the band has at most
constexpr int TILE_ROWS = ROWS * ROW_WARPS, MET = MET_ROWS * MET_WARPS;
constexpr int ROWS1 = TILE_ROWS, ROWS2 = SKEWED ? TILE_ROWS + MET - 1 : MET;
constexpr int PAIRS = ROWS * MET_ROWS;                             // of rows, of a warp
constexpr int BLOCK_WARPS = PHASES * ROW_WARPS * MET_WARPS * SHARES;

constexpr int RUN = RunOf<INPUT>::length;
constexpr int UNIT = Multiply::depth * SHARES;  // channels taken at once
constexpr bool CHANNELS_LAST = STAGING == CHANNELWISE, ASYNCHRONOUS = STAGING != COLUMNWISE;

// A stage of an image: columns of rows of channels, or, as it comes, channels of pixels. From what a lane reads to what the next one
// does is an odd number of 16 bytes, or a number of words that takes four channels to different banks.
DEVICE constexpr int channel_pitch(int plane) {
    return sizeof(INPUT) == 2 ? (plane / RUN | 1) * RUN : round_up(plane, WARP) + GROUP;
}
constexpr int PIXEL = CHANNELS_LAST ? CHANNELS + RUN : 1;
constexpr int PLANE1 = ROWS1 * PHASES * WIDTH1 * PIXEL, PLANE2 = ROWS2 * PHASES * WIDTH2 * PIXEL;
constexpr int PITCH1 = CHANNELS_LAST ? 1 : channel_pitch(PLANE1), PITCH2 = CHANNELS_LAST ? 1 : channel_pitch(PLANE2);
constexpr int STAGE1 = CHANNELS_LAST ? PLANE1 : CHANNELS * PITCH1, STAGE2 = CHANNELS_LAST ? PLANE2 : CHANNELS * PITCH2;

// Items of a channel: runs of columns, or pixels; and threads that share one, of which each has other channels.
constexpr int ROW1 = PHASES * WIDTH1 / (CHANNELS_LAST ? 1 : RUN), ROW2 = PHASES * WIDTH2 / (CHANNELS_LAST ? 1 : RUN);
constexpr int ITEMS1 = ROWS1 * ROW1, ITEMS = ITEMS1 + ROWS2 * ROW2;
DEVICE constexpr int power_of_two_within(int number) { return number < 2 ? 1 : 2 * power_of_two_within(number / 2); }
DEVICE constexpr int lesser(int a, int b) { return a < b ? a : b; }
constexpr int SHARERS = CHANNELS_LAST ? CHANNELS / RUN : power_of_two_within(lesser(THREADS / ITEMS, Multiply::depth));
constexpr int SLOTS = ceil_div(ITEMS * SHARERS, THREADS);

static_assert(THREADS == WARP * BLOCK_WARPS, "the host counts threads as the kernel does");
static_assert(BYTES1 == STAGE1 * sizeof(INPUT) && BYTES2 == STAGE2 * sizeof(INPUT), "the host counts shared memory as the kernel does");
static_assert(!SKEWED || ROWS == 1, "a warp's pairs of rows have displacements of their own");
static_assert(CHANNELS % UNIT == 0 && CHANNELS / RUN % 2 == 0, "units come out even, and pixels end between 16 bytes of each other");
static_assert(!CHANNELS_LAST || THREADS % SHARERS == 0, "a thread has the same channels of every pixel");
static_assert(STAGES == 2 || ASYNCHRONOUS, "registers bring one stage at a time");
static_assert(PLANE1 < 0x10000 && PLANE2 < 0x10000, "a place in a plane fits into half a register");

// Loading ---------------------------------------------------------------------------------------------------------------------

// An item of a block's tiles: where it begins in a channel of its image, in global and in shared memory; and a bit for each column
// of a run that is inside the image. Where `piece` of them move together, pieces stand a row's items apart, so that neighbouring
// threads move neighbouring pieces.
struct Slot {
    int from;
    int packed;  // `to`, above it `inside`, above that whether it is of input2; negative: no item for this thread

    DEVICE bool none() const { return packed < 0; }
    DEVICE int to() const { return packed & 0xffff; }
    DEVICE uint32 inside() const { return static_cast<uint32>(packed) >> 16 & 0xff; }
    DEVICE bool second() const { return (packed >> 24 & 1) != 0; }
    DEVICE int pitch() const { return second() ? PITCH2 : PITCH1; }
    DEVICE int apart() const { return second() ? ROW2 : ROW1; }
};

// The number of this thread's slot s among the items, and which of those who share it the thread is.
DEVICE int item_of(int s) {
    const int number = threadIdx.x + s * THREADS;
    if (CHANNELS_LAST) return number / SHARERS;
    if (SHARERS == 1) return number;
    return number / ITEMS < SHARERS ? number % ITEMS : ITEMS;
}
DEVICE int sharer() { return CHANNELS_LAST ? threadIdx.x % SHARERS : SHARERS == 1 ? 0 : threadIdx.x / ITEMS; }

DEVICE Slot slot_of(int item, int piece, int early, const Image& image1, const Image& image2, const Axis& vertical,
                    const Axis& horizontal, const Part& rows, const Part& columns) {
    if (item >= ITEMS) return Slot{0, -1};
    const bool second = item >= ITEMS1;
    const int within = second ? item - ITEMS1 : item, items = second ? ROW2 : ROW1;
    const int row = within / items, column = within % items * (CHANNELS_LAST ? 1 : piece);
    const int to = ((row * PHASES + column % PHASES) * (second ? WIDTH2 : WIDTH1) + column / PHASES) * PIXEL | second << 24;

    const int y = (second ? rows.at2 : rows.at1) + row * vertical.spacing;
    const int x = (second ? columns.at2 - early * PHASES * horizontal.spacing : columns.at1) + column * horizontal.spacing;
    if (y < 0 || y >= (second ? vertical.size2 : vertical.size1)) return Slot{0, to};
    int inside = 0;
#pragma unroll
    for (int k = 0; k < (CHANNELS_LAST ? 1 : RUN); k++) {
        const int at = x + (k / piece * piece * items + k % piece) * horizontal.spacing;
        if (at >= 0 && at < (second ? horizontal.size2 : horizontal.size1)) inside |= 1 << k;
    }
    if (!inside) return Slot{0, to};
    const int from = y * (second ? image2.row_stride : image1.row_stride) + x * (second ? image2.column_stride : image1.column_stride);
    return Slot{from, to | inside << 16};
}

// What one thread brings of the images, channel after channel.
struct Loader {
    Slot slots[SLOTS];
    const INPUT* next1;  // the channels to fetch next
    const INPUT* next2;
    long long channel_stride1, channel_stride2;
    int column_stride1, column_stride2;
    int left;     // channels
    int piece;    // neighbours that one access moves
    bool second;  // only input2: input1 is there already

    // Taken apart where it is used: products leave no registers to keep the parts in.
    DEVICE Slot slot(int s) const { return Slot{unknown(slots[s].from), unknown(slots[s].packed)}; }
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
    DEVICE void bring(INPUT* to, const INPUT* from, uint32 inside, int apart, int stride) const {
        if (piece == 1) copy_elements<RUN>(to, from, inside, apart, stride);
        else copy_columns<RUN>(to, from, inside, piece, apart);
    }

    // Asks for all of a stage; it lands when it is waited for.
    DEVICE void ask_for_stage(INPUT* stage1, INPUT* stage2) {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (skips(slot)) continue;
            INPUT* const to = (slot.second() ? stage2 : stage1) + slot.to();
            if constexpr (CHANNELS_LAST) {
                const int first = sharer() * RUN, wanted = min(max(left - first, 0), RUN);
                bring(to + first, source(slot, first), slot.inside() ? (1u << wanted) - 1 : 0, 1, 1);
            } else {
#pragma unroll
                for (int k = 0; k < CHANNELS; k += SHARERS) {
                    const int channel = sharer() + k;
                    bring(to + channel * slot.pitch(), source(slot, channel), channel < left ? slot.inside() : 0, slot.apart(),
                          slot.second() ? column_stride2 : column_stride1);
                }
            }
        }
        advance(CHANNELS);
    }

    DEVICE void ask_for_unit() {}
    DEVICE void put_unit(INPUT*, INPUT*) const {}
#else
    Words16 staged[SLOTS][UNIT / SHARERS];

    // Asks for a unit of channels, into registers.
    DEVICE void ask_for_unit() {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (skips(slot)) continue;
            const int apart = (slot.second() ? column_stride2 : column_stride1) * (piece == RUN ? 1 : slot.apart());
#pragma unroll
            for (int k = 0; k < UNIT / SHARERS; k++) {
                const int channel = sharer() + k * SHARERS;
                INPUT run[RUN];
                load_run(source(slot, channel), channel < left ? slot.inside() : 0, apart, run);
                memcpy(&staged[s][k], run, sizeof run);
            }
        }
        advance(UNIT);
    }

    // What was asked for, to shared memory.
    DEVICE void put_unit(INPUT* unit1, INPUT* unit2) const {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (skips(slot)) continue;
            INPUT* const to = (slot.second() ? unit2 : unit1) + slot.to();
#pragma unroll
            for (int k = 0; k < UNIT / SHARERS; k++) {
                INPUT run[RUN];
                memcpy(run, &staged[s][k], sizeof run);
                put_run(to + (sharer() + k * SHARERS) * slot.pitch(), run, slot);
            }
        }
    }

    // A run to the rows of its phases.
    DEVICE void put_run(INPUT* to, const INPUT (&run)[RUN], const Slot& slot) const {
        struct __attribute__((aligned(sizeof(Words16) / PHASES))) Neighbours {
            INPUT of[RUN / PHASES];
        };
        if (piece == RUN) {
#pragma unroll
            for (int phase = 0; phase < PHASES; phase++) {
                Neighbours part;
#pragma unroll
                for (int k = 0; k < RUN / PHASES; k++) part.of[k] = run[k * PHASES + phase];
                store_shared(reinterpret_cast<Neighbours*>(to + phase * (slot.second() ? WIDTH2 : WIDTH1)), part);
            }
        } else {
#pragma unroll
            for (int k = 0; k < RUN; k++) store_shared(to + k * (slot.apart() / PHASES), run[k]);
        }
    }
#endif
};

// Multiplying -----------------------------------------------------------------------------------------------------------------

// Where a warp stands in its block.
struct Warp {
    int phase, row, met, share;  // row, met: the first of the warp's rows of either image

    DEVICE static Warp number(int warp) {
        const int rows = warp / PHASES, mets = rows / ROW_WARPS;
        const int row = rows % ROW_WARPS * ROWS;
        return Warp{warp % PHASES, row, mets % MET_WARPS * MET_ROWS + (SKEWED ? row : 0), mets / MET_WARPS};
    }
};

// The pairs of a warp: their rows in the block's tiles of either image.
struct Pair {
    int row, met;
};
DEVICE Pair pair_of(const Warp& warp, int pair) { return Pair{warp.row + pair % ROWS, warp.met + pair / ROWS}; }

// The patch index that takes a pair's one row to the other; it need not be one of the patch's.
DEVICE int patch_row(Pair pair, const Axis& vertical, const Part& rows) {
    return rows.patch + (pair.met - pair.row) * vertical.patches_apart;
}
DEVICE bool asked_for(Pair pair, const Axis& vertical, const Part& rows) {
    const int m = patch_row(pair, vertical, rows);
    return pair.row < rows.outputs && m >= 0 && m < vertical.patch;
}
DEVICE bool inside(Pair pair, const Axis& vertical, const Part& rows) {
    const int y1 = rows.at1 + pair.row * vertical.spacing, y2 = rows.at2 + pair.met * vertical.spacing;
    return y1 >= 0 && y1 < vertical.size1 && y2 >= 0 && y2 < vertical.size2;
}

// A bit for each pair of a warp that has products.
DEVICE uint32 pairs_with_products(const Warp& warp, const Axis& vertical, const Part& rows) {
    uint32 pairs = 0;
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
        if (asked_for(pair_of(warp, p), vertical, rows) && inside(pair_of(warp, p), vertical, rows)) pairs |= 1u << p;
    return pairs;
}

// Whether the block's rows of both images may meet, the same for all its threads.
DEVICE bool rows_meet(const Axis& vertical, const Part& rows) {
    const bool any1 = first_inside(rows.at1, vertical.spacing) < min(ROWS1, end_inside(rows.at1, vertical.spacing, vertical.size1));
    const bool any2 = first_inside(rows.at2, vertical.spacing) < min(ROWS2, end_inside(rows.at2, vertical.spacing, vertical.size2));
    return any1 && any2 && patch_row(Pair{SKEWED ? 0 : TILE_ROWS - 1, 0}, vertical, rows) < vertical.patch;
}

typedef float Products[PAIRS][GROUPS1][MATRICES][4];

DEVICE void clear(Products& products) {
#pragma unroll
    for (int i = 0; i < PAIRS * GROUPS1 * MATRICES * 4; i++) (&products[0][0][0][0])[i] = 0;
}

// What a lane brings to the loads of fragments: an offset in a stage.
DEVICE int lanes_place(int pitch) {
    const int lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
    if (CHANNELS_LAST) return (row + 8 * (matrix / 2)) * PIXEL + matrix % 2 * RUN;
    if (sizeof(INPUT) == 2) return (row + 8 * (matrix % 2)) * pitch + matrix / 2 * 8;
    return lane % 4 * pitch + lane / 4;
}

// The fragments of neighbouring groups of columns, for one depth of channels.
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
    for (int g = 0; g < count; g++) groups[g][0] = Multiply::rounded(groups[g][0]), groups[g][1] = Multiply::rounded(groups[g][1]);
}

// Adds the products of one depth of channels.
DEVICE void add_products(Products& products, const INPUT* from1, const INPUT* from2, uint32 pairs) {
    uint32 groups1[ROWS][GROUPS1][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) load_groups<PITCH1>(from1 + r * PHASES * WIDTH1 * PIXEL, groups1[r]);
#pragma unroll
    for (int u = 0; u < MET_ROWS; u++) {
        uint32 groups2[GROUPS2][2];
        load_groups<PITCH2>(from2 + u * PHASES * WIDTH2 * PIXEL, groups2);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (!(pairs >> (u * ROWS + r) & 1)) continue;
#pragma unroll
            for (int j = 0; j < GROUPS1; j++)
#pragma unroll
                for (int k = 0; k < MATRICES; k++) {
                    const int g = j + 2 * k;
                    const uint32 a[4] = {groups2[g][0], groups2[g + 1][0], groups2[g][1], groups2[g + 1][1]};
                    Multiply::add(products[u * ROWS + r][j][k], a, groups1[r][j]);
                }
        }
    }
}

// Makes the products of all the channels. Every thread of the block must call it; nobody may read the stages any more.
DEVICE void add_channels(Products& products, Loader& loader, INPUT* shared1, INPUT* shared2, int kept, const Warp& warp, uint32 pairs) {
    constexpr int AHEAD = STAGES - 1;  // stages under way
    constexpr int DEPTH1 = CHANNELS_LAST ? 1 : PITCH1, DEPTH2 = CHANNELS_LAST ? 1 : PITCH2;  // from channel to channel
    const int lanes1 = (warp.row * PHASES + warp.phase) * WIDTH1 * PIXEL + lanes_place(PITCH1) + warp.share * Multiply::depth * DEPTH1;
    const int lanes2 = (warp.met * PHASES + warp.phase) * WIDTH2 * PIXEL + lanes_place(PITCH2) + warp.share * Multiply::depth * DEPTH2;
    const int stages = ceil_div(loader.left, CHANNELS);
    const auto place1 = [&](int stage) { return shared1 + (kept > STAGES ? stage : stage % STAGES) * STAGE1; };
    const auto place2 = [&](int stage) { return shared2 + stage % STAGES * STAGE2; };
#if STAGING != COLUMNWISE
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; stage++) {
        if (stage < stages) loader.ask_for_stage(place1(stage), place2(stage));
        copy_async_commit();
    }
#else
#pragma unroll 1
    for (int unit = 0; unit < CHANNELS; unit += UNIT) {
        loader.ask_for_unit();
        loader.put_unit(shared1 + unit * PITCH1, shared2 + unit * PITCH2);
    }
#endif
    clear(products);
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        const bool more = stage + AHEAD < stages;
        if (ASYNCHRONOUS) copy_async_wait<AHEAD - 1>();
        __syncthreads();  // the stage is there, and nobody reads the one before any more
#if STAGING != COLUMNWISE
        if (more) loader.ask_for_stage(place1(stage + AHEAD), place2(stage + AHEAD));
        copy_async_commit();
#endif
#pragma unroll
        for (int unit = 0; unit < CHANNELS; unit += UNIT) {
            if (more) loader.ask_for_unit();
            if (pairs) add_products(products, place1(stage) + unit * DEPTH1 + lanes1, place2(stage) + unit * DEPTH2 + lanes2, pairs);
            if (more) loader.put_unit(place1(stage + AHEAD) + unit * PITCH1, place2(stage + AHEAD) + unit * PITCH2);
        }
    }
}

// Storing ---------------------------------------------------------------------------------------------------------------------

// The band goes through shared memory, some of each warp's pairs at a time: a line for each displacement. With this length the
// elements that a warp stores meet different banks, and so do those it reads back.
constexpr int LINE = WIDTH1 + 5;
constexpr int BAND = DISPLACEMENTS * LINE;
constexpr int FITTING = STAGES * BYTES2 / static_cast<int>(sizeof(float)) / (BLOCK_WARPS * BAND);
constexpr int AT_ONCE = lesser(FITTING, PAIRS);
static_assert(AT_ONCE > 0, "a pair of each warp fits into shared memory");

// The columns of a block for which both images have pixels.
struct Columns {
    int begin1, end1, begin2, end2;

    DEVICE static Columns of(const Axis& horizontal, const Part& columns) {
        return Columns{first_inside(columns.at1, horizontal.spacing), end_inside(columns.at1, horizontal.spacing, horizontal.size1),
                       first_inside(columns.at2, horizontal.spacing), end_inside(columns.at2, horizontal.spacing, horizontal.size2)};
    }
    DEVICE bool hold(int column, int n) const {
        const int met = column + n * PHASES;
        return column >= begin1 && column < end1 && met >= begin2 && met < end2;
    }
};

DEVICE void gather_band(const float (&products)[GROUPS1][MATRICES][4], float* lines, int early, int patches) {
    const int lane = threadIdx.x % WARP, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
    for (int k = 0; k < MATRICES; k++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int n = GROUP * (2 * k + half) + row - column - early;  // of the first of two columns
#pragma unroll
            for (int j = 0; j < GROUPS1; j++) {
                float* const to = lines + n * LINE + j * GROUP + column;
                if (n >= 0 && n < patches) store_shared(to, products[j][k][2 * half]);
                if (n >= 1 && n <= patches) store_shared(to - LINE + 1, products[j][k][2 * half + 1]);
            }
        }
}

// Stores the lines of pairs `first` and on: `count` columns at a time, so that neighbouring threads store neighbours.
template <int count>
DEVICE void store_lines(const float* shared, int first, const Output& out, const Axis& vertical, const Axis& horizontal,
                        const Part& rows, const Part& columns) {
    const Columns inside_columns = Columns::of(horizontal, columns);
    const int runs = ceil_div(columns.outputs, count);
    for (int item = threadIdx.x; item < runs * columns.patches * AT_ONCE * ROW_WARPS * MET_WARPS; item += THREADS) {
        int rest = item;
        const int column = digit(rest, runs) * count, n = digit(rest, columns.patches), p = digit(rest, AT_ONCE);
        const Pair pair = pair_of(Warp::number(rest * PHASES), first + p);
        if (first + p >= PAIRS || !asked_for(pair, vertical, rows)) continue;
        const bool row_inside = inside(pair, vertical, rows);
        Sum run[count];
#pragma unroll
        for (int k = 0; k < count; k++) {
            run[k] = 0;
            if (!row_inside || column + k >= columns.outputs || !inside_columns.hold(column + k, n)) continue;
            const int warp = rest * PHASES + (column + k) % PHASES;
#pragma unroll
            for (int share = 0; share < SHARES; share++) {
                const int band = (share * (BLOCK_WARPS / SHARES) + warp) * AT_ONCE + p;
                run[k] += load_shared(shared + band * BAND + n * LINE + (column + k) / PHASES);
            }
            run[k] *= out.scale;
        }
        store_run(out.at(patch_row(pair, vertical, rows), columns.patch + n * horizontal.patches_apart,
                         rows.output + pair.row * vertical.outputs_apart, columns.output + column * horizontal.outputs_apart),
                  horizontal.outputs_apart * out.column_stride, columns.outputs - column, run);
    }
}

DEVICE void store_products(const Products& products, float* shared, int early, bool whole_runs, const Output& out, const Axis& vertical,
                           const Axis& horizontal, const Part& rows, const Part& columns) {
#pragma unroll 1
    for (int first = 0; first < PAIRS; first += AT_ONCE) {
        __syncthreads();  // the last stage, or the pairs before, have been read
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
            if (p >= first && p < first + AT_ONCE)
                gather_band(products[p], shared + (threadIdx.x / WARP * AT_ONCE + p - first) * BAND, early, columns.patches);
        __syncthreads();
        if (whole_runs) store_lines<RunOf<OUTPUT>::length>(shared, first, out, vertical, horizontal, rows, columns);
        else store_lines<1>(shared, first, out, vertical, horizontal, rows, columns);
    }
}

// `early`: columns by which the tile of input2 begins before the first displacement's; `patch_columns`: displacements of a block along
// x; `whole_runs`: rows of outputs begin where 16 bytes do, if the first one does.
KERNEL(THREADS)
forward_mma(const INPUT* input1, const INPUT* input2, OUTPUT* output, int tiles, int channels, int split_channels, int piece,
            GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y), AXIS_PARAMETERS(x),
            int passes, int kept, int early, int patch_columns, int whole_runs, Sum scale) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Warp warp = Warp::number(threadIdx.x / WARP);
    INPUT* const shared2 = shared + kept * STAGE1;
    const Grid grid = GRID_OF_PARAMETERS;
    const auto block_at = [&](int tile, int pass) {
        Block block = block_of(tile, grid, vertical, horizontal, passes * MET, patch_columns, PHASES);
        block.rows.patch += pass * MET * vertical.patches_apart;
        block.rows.at2 += pass * MET * vertical.spacing;
        return block;
    };
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        bool there = false;  // input1 is in shared memory: where there are several passes, all its stages have room
#pragma unroll 1
        for (int pass = 0; pass < passes; pass++) {
            Block block = block_at(tile, pass);
            if (block.rows.outputs <= 0 || block.columns.outputs <= 0 || block.columns.patches <= 0) break;
            Products products;
            if (rows_meet(vertical, block.rows)) {
                const int begin = block.split * split_channels;
                Loader loader;
                loader.next1 = input1 + (block.b * batch_stride1 + begin * channel_stride1);
                loader.next2 = input2 + (block.b * batch_stride2 + begin * channel_stride2);
                loader.channel_stride1 = channel_stride1, loader.channel_stride2 = channel_stride2;
                loader.column_stride1 = horizontal.spacing * column_stride1;
                loader.column_stride2 = horizontal.spacing * column_stride2;
                loader.left = min(split_channels, channels - begin);
                loader.piece = min(aligned(input1, piece), aligned(input2, piece));
                if (STAGING == COLUMNWISE && loader.piece < RUN) loader.piece = 1;
                loader.second = there;
#pragma unroll
                for (int s = 0; s < SLOTS; s++)
                    loader.slots[s] =
                        slot_of(item_of(s), loader.piece, early, image1, image2, vertical, horizontal, block.rows, block.columns);
                there = true;
                __syncthreads();  // nobody reads what a pass or a tile before has left
                add_channels(products, loader, shared, shared2, kept, warp, pairs_with_products(warp, vertical, block.rows));
            } else {
                clear(products);
            }
            // Worked out again: the products leave no registers to keep it in.
            block = block_at(unknown(tile), pass);
            const Output out = {output + (block.split * split_stride_out + block.b * batch_stride_out), m_stride_out, n_stride_out,
                                row_stride_out, column_stride_out, scale};
            store_products(products, reinterpret_cast<float*>(shared2), early, whole_runs != 0, out, vertical, horizontal, block.rows,
                           block.columns);
        }
    }
}
