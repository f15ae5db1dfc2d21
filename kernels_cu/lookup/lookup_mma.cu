// Up to LEVELS levels of the lookup on tensor cores. The dots of a tile of queries with the pixels that their windows read are
// products of matrices, from which each query takes those of its own window:
//
//     D[q, p] = sum over c of  input1[s, c, q] * input2[t, c, p]
//     out[e, k, m, n, q] = scale * sum over corners a, b of  wy(a) wx(b) D[q, p(m, a, n, b)],   0 for p outside input2
//
// with the windows of query.cuh; NaN where a coordinate is not finite or an index is out of range. An element of D has only the
// channels of its own query and pixel as terms, so Inf and NaN do not spread to other queries. No result depends on which other
// elements are computed.
//
// The box of a tile is the smallest rectangle of the map that the windows of its queries are in. Its pixels are numbered row by
// row. GROUP consecutive ones are a group, the columns of a matrix; PAIR queries, two rows of the tile, are a pair, the rows of a
// matrix. A group is multiplied with the pairs of which a query reads one of its pixels. A block goes through the groups in
// ascending order, in passes: at most GROUPS groups that some pair needs, of which each pair needs at most MOST_OF_PAIR. Wherever
// the queries look, each has all its dots in the end.
//
//     thread block tile   QUERIES queries of a level, part_y x part_x displacements; the pixels of a pass
//     warp tile           a pair, and every WARPS_OF_PAIR-th of the groups that it needs
//     pipeline stage      CHANNELS channels, STAGES stages: a line of shared memory for each query and pixel
//     epilogue            the dots of each window go from the registers to shared memory, where they are blended
//
// Macros: INPUT, OUTPUT, COORDINATE, INDEX, CHANNELS_LAST, CHANNELS, STAGES, GROUPS, SLOTS, and BYTES (of the tables) and LINES
// (of all stages), which the host computes too.
#include "common/mma.cuh"
#include "lookup/levels.cuh"
#include "lookup/union.cuh"

typedef Multiplier<INPUT> Multiply;

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int GROUP = 8, PAIR = 16;
constexpr int PAIRS = QUERIES / PAIR, WARPS_OF_PAIR = WARPS / PAIRS;
constexpr int MOST_OF_PAIR = WARPS_OF_PAIR * SLOTS;     // groups of a pass
constexpr int PIXELS = GROUPS * GROUP;
constexpr int VOTED = THREADS / PAIRS;                  // groups that are looked at together
constexpr int LONGEST_CHAIN = 256;                      // products of matrices that are added to one accumulator
constexpr int CHAIN = LONGEST_CHAIN * Multiply::depth;  // their channels

// Each line is an odd multiple of 16 bytes after the one before, so that loads of fragments have no bank conflicts.
constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr int VECTORS = CHANNELS / VECTOR;  // of a line
constexpr int PITCH = CHANNELS + VECTOR;
constexpr int STAGE_LINES = QUERIES + PIXELS;
constexpr int LINES_AT_ONCE = THREADS / VECTORS;
constexpr int UNROLLED = CHANNELS_LAST ? 1 : ceil_div(STAGE_LINES, LINES_AT_ONCE);  // loads that are started together

constexpr Index NOWHERE = FARTHEST;  // an offset that no pixel has
constexpr Index OUTSIDE = FARTHEST;  // a column that is in no window

// Votes on groups: four bits of each, which pairs need it. A warp votes on eight groups.
constexpr int WARP_VOTED = WARP / PAIRS;
constexpr uint32 LOWEST_BITS = 0x11111111u;

// Numbers of groups: those that any pair needs, and those of each pair, in four bytes.
struct Count {
    int groups;
    uint32 of_pairs;

    DEVICE static Count of(uint32 votes) {
        Count count = {__popc((votes | votes >> 1 | votes >> 2 | votes >> 3) & LOWEST_BITS), 0};
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) count.of_pairs += __popc(votes >> pair & LOWEST_BITS) << 8 * pair;
        return count;
    }
    DEVICE void add(const Count& other) { groups += other.groups, of_pairs += other.of_pairs; }
    DEVICE int of_pair(int pair) const { return of_pairs >> 8 * pair & 0xff; }
    DEVICE bool fits() const {
        int most = 0;
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) most = max(most, of_pair(pair));
        return groups <= GROUPS && most <= MOST_OF_PAIR;
    }
};

// The tables of a block: its queries, and the groups of pixels of a pass.
struct Tables {
    Position rows[QUERIES], columns[QUERIES];
    Box runs[RUNS], quarters[QUARTERS];
    Index numbers[GROUPS];                // of the groups in the box
    Index y[PIXELS], x[PIXELS];           // of their pixels; x is OUTSIDE after the last pixel of the box
    Index offsets[STAGE_LINES];           // of queries and pixels in memory, NOWHERE if they are not there
    int of_pair[PAIRS][MOST_OF_PAIR];     // the groups that a pair needs, by their places in `numbers`
    uint32 votes[WARPS];                  // on the groups that are looked at
    Count counts[WARPS];                  // of the votes
};

static_assert(BYTES >= sizeof(Tables) && BYTES % sizeof(Words16) == 0 && LINES == STAGES * STAGE_LINES * PITCH * sizeof(INPUT),
              "the host and the kernel agree on shared memory");
static_assert(PAIRS == 4, "a vote has four bits");
static_assert(VECTORS <= 8 && 8 % VECTORS == 0, "eight lanes move whole lines");
static_assert(CHANNELS % Multiply::depth == 0 && VECTORS % 2 == 0,
              "a stage is whole depths, and lines are an odd multiple of 16 bytes apart");
static_assert(SLOTS % 2 == 0 && MOST_OF_PAIR + VOTED < 256, "groups are loaded two by two, and their number fits into a byte");

// Windows ----------------------------------------------------------------------------------------------------------------------

// The number of the query that is a row of the matrix of a pair.
DEVICE int query_of_pair(int pair, int row) { return pair / 2 * 32 + row / 8 * 16 + pair % 2 * 8 + row % 8; }

// The pixels of the box of a tile, numbered row by row.
struct Pixels {
    Index top, left, width, count;

    DEVICE static Pixels of_tile(const Windows& windows) {
        Box box = load_shared(&windows.quarters[0]);
#pragma unroll
        for (int k = 1; k < QUARTERS; k++) box.add(load_shared(&windows.quarters[k]));
        if (box.top >= box.bottom) return Pixels{0, 0, 1, 0};
        const Index width = box.right - box.left;
        return Pixels{box.top, box.left, width, (box.bottom - box.top) * width};
    }
    DEVICE Index groups() const { return (count + GROUP - 1) / GROUP; }
};

// Returns whether a window along an axis has a tap from one offset to another.
DEVICE bool has_tap_between(const Axis& axis, Index from, Index to) {
    from = max(from, static_cast<Index>(0)), to = min(to, axis.reach());
    if (from > to) return false;
    return axis.step == 1 || from % axis.step < axis.corners || from / axis.step != to / axis.step;
}

// Returns whether a query of a pair reads a pixel of a group.
DEVICE bool pair_needs(const Windows& windows, const Axis& vertical, const Axis& horizontal, const Pixels& pixels, Index group,
                       int pair) {
    const Index first = group * GROUP, last = min(first + GROUP, pixels.count) - 1;
    for (Index begin = first; begin <= last;) {  // row by row
        const Index row = begin / pixels.width, end = min(last, (row + 1) * pixels.width - 1);
        const Index y = pixels.top + row, from = pixels.left + begin - row * pixels.width, to = from + end - begin;
        for (int r = 0; r < PAIR; r++) {
            const int q = query_of_pair(pair, r);
            const Index x = load_shared(&windows.columns[q].begin);
            if (vertical.has_tap(y - load_shared(&windows.rows[q].begin)) && has_tap_between(horizontal, from - x, to - x))
                return true;
        }
        begin = end + 1;
    }
    return false;
}

// Passes -----------------------------------------------------------------------------------------------------------------------

// Adds the first `number` of the groups that were voted on.
DEVICE Count with_votes(Count count, const Tables& tables, int number) {
    const int warps = number / WARP_VOTED;
#pragma unroll 1
    for (int w = 0; w < warps; w++) count.add(load_shared(&tables.counts[w]));
    if (number % WARP_VOTED)
        count.add(Count::of(load_shared(&tables.votes[warps]) & ((1u << number % WARP_VOTED * PAIRS) - 1)));
    return count;
}

// Chooses the groups of a pass, from `next` on, which becomes the first one that is left to the passes after.
DEVICE Count choose_groups(Tables& tables, const Windows& windows, const Axis& vertical, const Axis& horizontal,
                           const Pixels& pixels, Index& next) {
    const int voted = threadIdx.x / PAIRS, pair = threadIdx.x % PAIRS, warp = threadIdx.x / WARP;
    Count count = {0, 0};
    for (int accepted = VOTED; accepted == VOTED && next < pixels.groups(); next += accepted) {
        const bool needs = pair_needs(windows, vertical, horizontal, pixels, next + voted, pair);
        const uint32 votes = __ballot_sync(0xffffffffu, needs);
        if (threadIdx.x % WARP == 0) {
            store_shared(&tables.votes[warp], votes);
            store_shared(&tables.counts[warp], Count::of(votes));
        }
        __syncthreads();
        const Count before = with_votes(count, tables, voted);
        const bool fits = with_votes(count, tables, voted + 1).fits();
        if (fits && needs) store_shared(&tables.of_pair[pair][before.of_pair(pair)], before.groups);
        if (fits && pair == 0 && (votes >> threadIdx.x % WARP & 0xf)) store_shared(&tables.numbers[before.groups], next + voted);
        accepted = __syncthreads_count(fits) / PAIRS;
        count = with_votes(count, tables, accepted);
        __syncthreads();  // all have read the votes
    }
    for (int at = threadIdx.x; at < count.groups * GROUP; at += THREADS) {
        const Index pixel = load_shared(&tables.numbers[at / GROUP]) * GROUP + at % GROUP;
        store_shared(&tables.y[at], pixels.top + pixel / pixels.width);
        store_shared(&tables.x[at], pixel < pixels.count ? pixels.left + pixel % pixels.width : OUTSIDE);
    }
    __syncthreads();
    return count;
}

// Loading ----------------------------------------------------------------------------------------------------------------------

// Moves vectors of channels of the queries and of the pixels of a pass to shared memory, stage after stage. A thread moves the
// same vector of every LINES_AT_ONCE-th line; neighbouring threads move neighbouring vectors, or those of neighbouring lines.
struct Loader {
    const Index* offsets;  // of lines
    int lines;
    const INPUT* data1;
    const INPUT* data2;
    Index channel_stride1, channel_stride2;
    bool vectors;          // whether each vector of channels is contiguous and aligned
    Index next, end;       // the channels to load

    // Eight lanes store at a time: lines that are VECTORS apart begin in banks that the vectors of the others leave free.
    DEVICE static int first_line() {
        if (!CHANNELS_LAST) return threadIdx.x % LINES_AT_ONCE;
        const int line = opaque(static_cast<int>(threadIdx.x)) / VECTORS;  // not to be kept in registers
        return line / 8 * 8 + line % 8 / (8 / VECTORS) + line % (8 / VECTORS) * VECTORS;
    }
    DEVICE static int channel() { return (CHANNELS_LAST ? threadIdx.x % VECTORS : threadIdx.x / LINES_AT_ONCE) * VECTOR; }

    DEVICE Index channel_stride(int line) const {
        return CHANNELS_LAST ? 1 : line < QUERIES ? channel_stride1 : channel_stride2;
    }
    DEVICE const INPUT* from(int line, Index offset) const {
        return (line < QUERIES ? data1 : data2) + (offset + (next + channel()) * channel_stride(line));
    }
    DEVICE static INPUT* to(INPUT* stage, int line) { return stage + line * PITCH + channel(); }

    // Starts copies of a stage, which are asynchronous if vectors of channels are contiguous.
    DEVICE void load_stage(INPUT* stage) {
        if (CHANNELS_LAST && vectors) {
            const bool wanted = next + channel() < end;
#pragma unroll 2
            for (int line = first_line(); line < STAGE_LINES; line += LINES_AT_ONCE) {
                if (line >= lines) continue;
                const Index offset = load_shared(&offsets[line]);
                const bool inside = wanted && offset != NOWHERE;
                copy_async<sizeof(Words16)>(to(stage, line), inside ? from(line, offset) : data1, inside);
            }
        } else {
            const Index zero = 0, all = VECTOR, left = min(max(end - next - channel(), zero), all);
            const uint32 wanted = (1u << left) - 1;
#pragma unroll UNROLLED
            for (int line = first_line(); line < STAGE_LINES; line += LINES_AT_ONCE) {
                if (line >= lines) continue;
                const Index offset = load_shared(&offsets[line]);
                const uint32 inside = offset == NOWHERE ? 0 : wanted;
                INPUT values[VECTOR];
                load_vector(inside ? from(line, offset) : data1, inside, channel_stride(line), values);
                Words16 words;
                memcpy(&words, values, sizeof words);
                store_shared_16(to(stage, line), words);
            }
        }
        next += CHANNELS;
    }
};

// Stores the offsets of the lines of a pass from the first elements of their arrays.
DEVICE void store_offsets(Tables& tables, const Image<INPUT>& image1, Index s, const Image<INPUT>& image2, Index t,
                          const QueryTile& tile, Index height, Index width, int lines) {
    for (int line = threadIdx.x; line < lines; line += THREADS) {
        Index offset = NOWHERE;
        if (line < QUERIES) {
            const Index i = tile.i + row_of_query(line), j = tile.j + column_of_query(line);
            if (i < height && j < width) offset = image1.at(s, 0, i, j) - image1.data;
        } else {
            const Index y = load_shared(&tables.y[line - QUERIES]), x = load_shared(&tables.x[line - QUERIES]);
            if (x != OUTSIDE) offset = image2.at(t, 0, y, x) - image2.data;
        }
        store_shared(&tables.offsets[line], offset);
    }
}

// Multiplying ------------------------------------------------------------------------------------------------------------------

typedef float Products[SLOTS][4];

// The pair of this warp, its number among the warps of the pair, and the groups that it multiplies.
struct WarpTile {
    int pair, split, groups;

    DEVICE static WarpTile of(const Count& count) {
        const int warp = threadIdx.x / WARP, pair = warp % PAIRS, split = warp / PAIRS;
        return WarpTile{pair, split, (count.of_pair(pair) + WARPS_OF_PAIR - 1 - split) / WARPS_OF_PAIR};
    }
    // The place of the group in a slot, among those of the pass.
    DEVICE int place(const Tables& tables, int slot) const {
        return load_shared(&tables.of_pair[pair][slot * WARPS_OF_PAIR + split]);
    }
};

// Adds the products of a stage.
DEVICE void add_products(Products& products, const INPUT* stage, const Tables& tables, const WarpTile& tile) {
    constexpr int STEPS = CHANNELS / Multiply::depth;
    const int lane = threadIdx.x % WARP;
    const INPUT* const queries = stage + query_of_pair(tile.pair, lane % PAIR) * PITCH + lane / PAIR * VECTOR;
    const INPUT* const pixels = stage + (QUERIES + lane % 8) * PITCH + lane / 8 % 2 * VECTOR;
    uint32 a[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        load_matrices<4, false>(a[step], queries + step * Multiply::depth);
#pragma unroll
        for (int r = 0; r < 4; r++) a[step][r] = Multiply::rounded(a[step][r]);
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot += 2) {
        if (slot >= tile.groups) break;
        const int place = tile.place(tables, min(slot + lane / 16, tile.groups - 1));  // an odd last group is loaded twice
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32 loaded[4];
            load_matrices<4, false>(loaded, pixels + place * (GROUP * PITCH) + step * Multiply::depth);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                if (slot + k >= tile.groups) break;
                const uint32 b[2] = {Multiply::rounded(loaded[2 * k]), Multiply::rounded(loaded[2 * k + 1])};
                Multiply::add(products[slot + k], a[step], b);
            }
        }
    }
}

// Computes the products of the loader's channels. All threads of the block must call it.
DEVICE void add_channels(Products& products, Loader& loader, INPUT* shared, const Tables& tables, const WarpTile& tile) {
    constexpr int AHEAD = STAGES - 1;  // stages in flight
    const int stages = static_cast<int>((loader.end - loader.next + CHANNELS - 1) / CHANNELS);
    const auto stage_at = [&](int stage) { return shared + stage % STAGES * (STAGE_LINES * PITCH); };
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; stage++) {
        if (stage < stages) loader.load_stage(stage_at(stage));
        copy_async_commit();
    }
#pragma unroll
    for (int r = 0; r < 4 * SLOTS; r++) (&products[0][0])[r] = 0;
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        copy_async_wait<AHEAD - 1>();
        __syncthreads();  // the stage is complete, and the one before has been read
        if (stage + AHEAD < stages) loader.load_stage(stage_at(stage + AHEAD));
        copy_async_commit();
        add_products(products, stage_at(stage), tables, tile);
    }
}

// Epilogue ---------------------------------------------------------------------------------------------------------------------

// The dots of every window: a line for each query, with the dots of its pixels row by row, by their offsets from the first tap.
// An odd pitch avoids bank conflicts, as neighbouring lanes have neighbouring queries.
struct Dots {
    float* data;
    int rows, columns;

    DEVICE int pitch() const { return rows * columns | 1; }
    DEVICE float* window(int q) const { return data + q * pitch(); }
};

// Stores the products that are in the windows of their queries, or adds them to those of the channels before. No other thread
// has these dots.
DEVICE void store_dots(const Dots& dots, const Products& products, const Tables& tables, const WarpTile& tile, bool first_chain) {
    const int lane = threadIdx.x % WARP;
    Index rows[2], columns[2];
    float* windows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int q = query_of_pair(tile.pair, half * 8 + lane / 4);
        rows[half] = load_shared(&tables.rows[q].begin), columns[half] = load_shared(&tables.columns[q].begin);
        windows[half] = dots.window(q);
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot++) {
        if (slot >= tile.groups) break;
        const int first = tile.place(tables, slot) * GROUP + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const Index y = load_shared(&tables.y[first + k]), x = load_shared(&tables.x[first + k]);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Index row = y - rows[half], column = x - columns[half];
                if (row < 0 || row >= dots.rows || column < 0 || column >= dots.columns) continue;
                float* const dot = windows[half] + static_cast<int>(row) * dots.columns + static_cast<int>(column);
                const float product = products[slot][2 * half + k];
                store_shared(dot, first_chain ? product : load_shared(dot) + product);
            }
        }
    }
}

// Blends the dots and stores the outputs of some displacements: a thread has those of a query and a column of the patch.
DEVICE void store_outputs(const Dots& dots, const Windows& windows, const Volume<OUTPUT>& volume, const Axis& vertical,
                          const Axis& horizontal, const QueryTile& tile, Index first_m, Index first_n, Index height, Index width,
                          Sum scale) {
    const int row = threadIdx.x % QUERIES / QUERY_TILE, column = threadIdx.x % QUERY_TILE;
    const Index i = tile.i + row, j = tile.j + column;
    if (i >= height || j >= width) return;
    const Query query = windows.query(number_of_query(row, column));
    const float* const window = dots.window(number_of_query(row, column));
    const int step_y = static_cast<int>(vertical.step), step_x = static_cast<int>(horizontal.step);
    for (int n = threadIdx.x / QUERIES; n < horizontal.patch; n += THREADS / QUERIES) {
        const auto blended = [&](int offset) {
            const float* const at = window + offset * dots.columns + n * step_x;
            return multiply_add(query.x.weights[1], load_shared(at + 1), query.x.weights[0] * load_shared(at));
        };
        OUTPUT* to = volume.patch(tile.e, tile.k, i, j) + (first_m * volume.m_stride + (first_n + n) * volume.n_stride);
        Sum upper = blended(0);
        for (int m = 0; m < vertical.patch; m++, to += volume.m_stride) {
            Sum sum;
            if (vertical.corners == 1) {
                sum = blended(m * step_y);
            } else {
                if (step_y > 1) upper = blended(m * step_y);
                const Sum lower = blended(m * step_y + 1);
                sum = multiply_add(query.y.weights[1], lower, query.y.weights[0] * upper);
                upper = lower;
            }
            store(to, scale * sum);
        }
    }
}

// A part of the displacements along an axis.
DEVICE Axis part_of(const Axis& axis, Index first, Index patch) {
    return Axis{axis.size, min(patch, axis.patch - first), axis.first + first * axis.step, axis.step, axis.corners};
}

// A block: its tile of queries, its level and its part of the displacements.
struct Block {
    QueryTile tile;
    int number;  // of the level
    Level level;
    Index first_m, first_n;
    Axis vertical, horizontal;

    DEVICE Dots dots(float* data) const {
        return Dots{data, static_cast<int>(vertical.reach() + 1), static_cast<int>(horizontal.reach() + 1)};
    }
};

// `tiles` of queries and `part_y` x `part_x` displacements of a block; `vector_width`: the channels that one access moves if the
// first of each map are aligned.
KERNEL_OF_BLOCKS(THREADS, CHANNELS_LAST && sizeof(Index) == 4 ? 2 : 1)
lookup_mma(const INPUT* input1, const INPUT* input2_0, const INPUT* input2_1, const INPUT* input2_2, const INPUT* input2_3,
           const COORDINATE* coords, const void* index1, const void* index2, OUTPUT* out, Index blocks, Index tiles,
           Index lookups, Index height, Index width, Index channels, int vector_width, Index part_y, Index part_x,
           IMAGE_PARAMETERS(input1), LEVEL_PARAMETERS(0), LEVEL_PARAMETERS(1), LEVEL_PARAMETERS(2), LEVEL_PARAMETERS(3),
           COORDS_OF_LEVELS_PARAMETERS, ENTRIES_PARAMETERS(1), ENTRIES_PARAMETERS(2), VOLUME_PARAMETERS(out),
           Index level_stride_out, AXIS_OF_LEVELS_PARAMETERS(y), AXIS_OF_LEVELS_PARAMETERS(x), Sum scale) {
    DYNAMIC_SHARED_ARRAY(unsigned char, shared);
    Tables& tables = *reinterpret_cast<Tables*>(shared);
    const Windows windows = {tables.rows, tables.columns, tables.runs, tables.quarters};
    INPUT* const stages = reinterpret_cast<INPUT*>(shared + BYTES);
    float* const dots = reinterpret_cast<float*>(shared + BYTES + LINES);
    const Image<INPUT> image1 = IMAGE_OF_PARAMETERS(input1);
    const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
    const auto block_at = [&](Index at) {
        const Index parts_y = (patch_y + part_y - 1) / part_y, parts_x = (patch_x + part_x - 1) / part_x;
        const Index first_n = at % parts_x * part_x, first_m = at / parts_x % parts_y * part_y;
        const int number = static_cast<int>(at / parts_x / parts_y / tiles);
        const Level level = level_of_number(number, LEVEL_OF_PARAMETERS(0), LEVEL_OF_PARAMETERS(1), LEVEL_OF_PARAMETERS(2),
                                            LEVEL_OF_PARAMETERS(3));
        return Block{query_tile(at / parts_x / parts_y % tiles, lookups, height, width),
                     number,
                     level,
                     first_m,
                     first_n,
                     part_of(AXIS_OF_LEVEL(y), first_m, part_y),
                     part_of(AXIS_OF_LEVEL(x), first_n, part_x)};
    };
    for (Index at = blockIdx.x; at < blocks; at += gridDim.x) {
        Block block = block_at(at);
        Level& level = block.level;
        const Coordinates coordinates = COORDS_OF_LEVEL;
        store_windows(windows, coordinates, block.vertical, block.horizontal, block.tile, height, width);
        for (int k = threadIdx.x; k < QUERIES * block.dots(dots).pitch(); k += THREADS) store_shared(dots + k, 0.0f);
        __syncthreads();
        const Index s = entries1.image(block.tile.e), t = entries2.image(block.tile.e);
        const bool known = s >= 0 && t >= 0;
        // The block is worked out again after each pass, as the products leave no registers to keep it.
        for (Index next = 0; known && next < Pixels::of_tile(windows).groups(); block = block_at(opaque(at))) {
            const Count count =
                choose_groups(tables, windows, block.vertical, block.horizontal, Pixels::of_tile(windows), next);
            if (!count.groups) continue;
            const WarpTile warp = WarpTile::of(count);
            const int lines = QUERIES + count.groups * GROUP;
            store_offsets(tables, image1, s, level.map, t, block.tile, height, width, lines);
            Loader loader = {tables.offsets, lines, input1, level.map.data, channel_stride_input1, level.map.channel_stride,
                             aligned(input1, vector_width) == VECTOR && aligned(level.map.data, vector_width) == VECTOR, 0, 0};
            while (loader.end < channels) {
                Products products;
                loader.next = loader.end, loader.end = min(loader.end + CHAIN, channels);
                __syncthreads();  // the offsets are complete, and all have read the last stage of before
                add_channels(products, loader, stages, tables, warp);
                block = block_at(opaque(at));
                store_dots(block.dots(dots), products, tables, warp, loader.end <= CHAIN);
            }
        }
        __syncthreads();  // the dots are complete
        const Volume<OUTPUT> volume = {out + block.number * level_stride_out, entry_stride_out, lookup_stride_out, m_stride_out,
                                       n_stride_out, row_stride_out, column_stride_out};
        store_outputs(block.dots(dots), windows, volume, block.vertical, block.horizontal, block.tile, block.first_m,
                      block.first_n, height, width, known ? scale : not_a_number());
        __syncthreads();  // all have read the windows and the dots
    }
}
