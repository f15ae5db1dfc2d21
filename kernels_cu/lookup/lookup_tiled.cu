// The lookup over tiles of queries, whose windows overlap, so that a pixel of the map is loaded once for all of a tile:
//
//     out[e, l, k, m, n, i, j] = scale * sum over corners a, b of  wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
//     D(y', x') = sum over c of  input1[s, c, i, j] * input2_l[t, c, y', x'],   0 outside input2_l            (lookup_direct.cu)
//
//     thread block    8 x 8 queries of one entry, lookup and level. The rectangle that the windows of a part of them are in goes
//                     through shared memory if it has UNION x UNION pixels at most. The whole tile is tried first, then its
//                     halves and its quarters (union.cuh); the dots of quarters that do not fit are computed from global memory
//     thread          a strip: a run of RUN neighbouring queries and STRIP pixels of a row of the map, so that a value loaded is
//                     used RUN or STRIP times. Strips cover the box of the run's windows. A part with more strips than threads
//                     goes through the channels again
//     pipeline stage  CHANNELS channels, double buffered
//     epilogue        the dots of all windows are in shared memory, by their offset from the first tap. They are blended, and
//                     planes are stored by rows of 8 neighbouring queries
//
// Everything is decided by the block from its coordinates. NaN where a coordinate is not finite or an index is out of range.
//
// Macros: INPUT, OUTPUT, COORDINATE, INDEX, SPLITS and CHANNELS_LAST (dots.cuh).
#include "common/tile.cuh"
#include "lookup/dots.cuh"
#include "lookup/levels.cuh"
#include "lookup/union.cuh"

constexpr int THREADS = 256;
// A multiprocessor is to have room for two blocks, where its shared memory has, and float32 and 32-bit integers take few enough
// registers.
constexpr int BLOCKS = sizeof(INPUT) == 4 && sizeof(Index) == 4 && MULTIPROCESSOR_SHARED >= 2 * 64 * 1024 ? 2 : 1;
constexpr int UNION = 22;
constexpr int STRIP = 13;  // nine displacements have ten taps, which four queries a pixel apart have in 13 pixels
constexpr int PLANES = 2;  // of a stage

// The number of the thread. What depends on it is computed where it is needed: products leave no registers to keep it.
DEVICE int here() { return opaque(static_cast<int>(threadIdx.x)); }

// Vectors of 16 bytes hold neighbouring channels of a pixel; those of the same channels are a plane. Eight lanes access them at a
// time: they store four pixels of two planes, or load pixels of eight residues of row * PITCH + column (see Strip). Neither has
// bank conflicts.
constexpr int WIDTH = sizeof(Words16) / sizeof(Sum);  // channels of a vector
constexpr int PITCH = UNION | 1;                      // vectors of a row
constexpr int PLANE = UNION * PITCH + 2;
static_assert(PLANE % 8 == 4, "two planes are half of the banks apart");
constexpr int CHAIN = 512;  // channels whose products are added in registers, before they are added to the dots

constexpr int CHANNELS = PLANES * WIDTH;
constexpr int STAGE1 = PLANES * QUERIES * WIDTH, STAGE2 = PLANES * PLANE * WIDTH;
constexpr int STAGE = STAGE1 + STAGE2;  // numbers; those of the queries come first
constexpr int STAGES = 2;

// An item is what a thread moves to shared memory at once: channels of a pixel that one access can load.
constexpr bool COPIED = sizeof(INPUT) == sizeof(Sum);  // by asynchronous copies, which do not widen
constexpr int ITEM_CHANNELS = VectorOf<INPUT>::width;
constexpr int ITEM_PLANES = ITEM_CHANNELS / WIDTH;
constexpr int PIXEL_ITEMS = PLANES / ITEM_PLANES;

// Neighbouring threads take the items of a pixel where channels are contiguous, else those of neighbouring pixels. A thread keeps
// to a column of the map, so that it has few offsets.
constexpr int LANE_ITEMS = CHANNELS_LAST ? PIXEL_ITEMS : 1;
constexpr int THREAD_ITEMS = PIXEL_ITEMS / LANE_ITEMS;
constexpr int ROWS_AT_ONCE = THREADS / (UNION * LANE_ITEMS);
constexpr int THREAD_ROWS = ceil_div(UNION, ROWS_AT_ONCE);

// Moves items to shared memory: a copy is complete at the wait for it, other items are in registers until they are stored.
struct Item {
    INPUT channels[COPIED ? 1 : ITEM_CHANNELS];

    // Starts to move an item, of whose channels `left` are there, `stride` apart; the others become 0.
    DEVICE void load(Sum* to, const INPUT* from, Index stride, Index left) {
        const Index none = 0, most = ITEM_CHANNELS;
        const int wanted = static_cast<int>(min(max(left, none), most));
        if constexpr (!COPIED) {
            load_vector(from, (1u << wanted) - 1, stride, channels);
        } else if (CHANNELS_LAST && is_vector<ITEM_CHANNELS>(from, stride, wanted)) {
            copy_async<sizeof(Words16)>(to, from, true);
        } else {
#pragma unroll
            for (int r = 0; r < ITEM_CHANNELS; r++) copy_async<sizeof(Sum)>(to + r, from + r * stride, r < wanted);
        }
    }

    // Stores an item that was not copied to planes of `plane` vectors.
    template <int plane>
    DEVICE void store(Sum* to) const {
        if constexpr (!COPIED) {
#pragma unroll
            for (int p = 0; p < ITEM_PLANES; p++) {
                Sum values[WIDTH];
#pragma unroll
                for (int r = 0; r < WIDTH; r++) values[r] = widen(channels[p * WIDTH + r]);
                store_shared_vector(to + p * plane * WIDTH, values);
            }
        }
    }
};

// The place of a query in a plane: the same queries of neighbouring runs are in neighbouring vectors, so in other banks.
DEVICE int vector_of_query(int number) { return number % RUN * RUNS + number / RUN; }

// The state that the threads of a block share for a tile. It is in shared memory, because products leave few registers.
struct Block {
    QueryTile tile;
    Index s, t;  // images of input1 and input2, -1 if an index is out of range
    Level level;
    unsigned left;  // quarters whose dots are to be computed
    unsigned part;  // the part that is computed
    Box box;        // of that part
};

// Chooses the next part of a tile whose windows are in a box. Returns false if none fits. Every thread of the block must call it.
DEVICE bool choose_part(const Windows& windows, Block* block) {
    Box box = {};
    const unsigned left = load_shared(&block->left), part = next_part(windows, left, UNION, UNION, box);
    __syncthreads();  // all threads have read what is stored here
    if (here() == 0) {
        store_shared(&block->left, left & ~part);
        store_shared(&block->part, part);
        store_shared(&block->box, box);
    }
    __syncthreads();
    return part != 0;
}

// Moves the queries of a part and the box of their windows to shared memory, stage after stage.
struct Loader {
    const INPUT* next1;  // the next channel of the thread's query
    int to1;             // where it goes in a stage, -1 if the thread has none
    const INPUT* next2;  // the next channel of the thread's first pixel of the map
    int to2;
    int rows;            // of the box, from the thread's first one on; none if its column is beyond the box
    Item query, pixels[THREAD_ITEMS][THREAD_ROWS];

    DEVICE bool has(int row) const { return row * ROWS_AT_ONCE < rows; }
    DEVICE static int query_item() { return CHANNELS_LAST ? here() % PIXEL_ITEMS : here() / QUERIES; }
    DEVICE static int pixel_item() { return CHANNELS_LAST ? here() % PIXEL_ITEMS : 0; }
    DEVICE static int offset2(int item, int row) { return (item * ITEM_PLANES * PLANE + row * ROWS_AT_ONCE * PITCH) * WIDTH; }

    // Starts to load the next channels, of which `left` are there, from images with these strides.
    DEVICE void load(Sum* stage, Index left, Index channel_stride1, Index channel_stride2, Index row_stride2) {
        if (to1 >= 0) query.load(stage + to1, next1, channel_stride1, left - query_item() * ITEM_CHANNELS);
#pragma unroll
        for (int item = 0; item < THREAD_ITEMS; item++)
#pragma unroll
            for (int row = 0; row < THREAD_ROWS; row++) {
                if (!has(row)) continue;
                const INPUT* const from = next2 + (row * ROWS_AT_ONCE * row_stride2 + item * ITEM_CHANNELS * channel_stride2);
                const int begin = (pixel_item() + item) * ITEM_CHANNELS;
                pixels[item][row].load(stage + to2 + offset2(item, row), from, channel_stride2, left - begin);
            }
        if (COPIED) copy_async_commit();
        next1 += CHANNELS * channel_stride1;
        next2 += CHANNELS * channel_stride2;
    }

    // Stores what has been loaded and is not copied.
    DEVICE void store(Sum* stage) const {
        if (COPIED) return;
        if (to1 >= 0) query.store<QUERIES>(stage + to1);
#pragma unroll
        for (int item = 0; item < THREAD_ITEMS; item++)
#pragma unroll
            for (int row = 0; row < THREAD_ROWS; row++)
                if (has(row)) pixels[item][row].store<PLANE>(stage + to2 + offset2(item, row));
    }

    DEVICE void wait() const {
        if (COPIED) copy_async_wait<0>();
    }
};

DEVICE Loader loader_of(const Block& block, const Image<INPUT>& image1, Index height, Index width) {
    Loader loader;
    const int query = (CHANNELS_LAST ? here() / PIXEL_ITEMS : here() % QUERIES), item1 = loader.query_item();
    const Index i = block.tile.i + row_of_query(query), j = block.tile.j + column_of_query(query);
    const bool mine = here() < QUERIES * PIXEL_ITEMS && has_query(block.part, query) && i < height && j < width;
    loader.to1 = mine ? (item1 * ITEM_PLANES * QUERIES + vector_of_query(query)) * WIDTH : -1;
    loader.next1 = mine ? image1.at(block.s, item1 * ITEM_CHANNELS, i, j) : image1.data;

    const Image<INPUT>& map = block.level.map;
    const int row = here() / (UNION * LANE_ITEMS), column = here() / LANE_ITEMS % UNION, item2 = loader.pixel_item();
    const bool inside = row < ROWS_AT_ONCE && column < block.box.right - block.box.left;
    loader.rows = inside ? static_cast<int>(block.box.bottom - block.box.top) - row : 0;
    loader.to2 = STAGE1 + (item2 * ITEM_PLANES * PLANE + row * PITCH + column) * WIDTH;
    loader.next2 =
        loader.rows > 0 ? map.at(block.t, item2 * ITEM_CHANNELS, block.box.top + row, block.box.left + column) : map.data;
    return loader;
}

// A run of queries and STRIP pixels of a row of the map, of which it owns those in [begin, end). In one register, five bits each.
// Eight neighbouring threads take strips of eight residues, so that they load from different banks.
struct Strip {
    int packed;

    DEVICE static Strip of(int run, int row, int column, int begin, int end) {
        return Strip{run | row << 5 | column << 10 | begin << 15 | end << 20};
    }

    DEVICE int run() const { return packed & 0x1f; }
    DEVICE int row() const { return packed >> 5 & 0x1f; }      // in the box of the part
    DEVICE int column() const { return packed >> 10 & 0x1f; }  // the first one, in the box of the part
    DEVICE int begin() const { return packed >> 15 & 0x1f; }
    DEVICE int end() const { return packed >> 20; }
};

static_assert(UNION < 32 && RUNS < 32, "numbers of a strip have five bits");

constexpr int RESIDUES = 8;
static_assert(PITCH % RESIDUES == RESIDUES - 1 && THREADS % RESIDUES == 0, "the residue of row * PITCH + column is column - row");

// Returns the number of strips of a part whose pixels have a residue. `strip` becomes the n-th of them, if there are as many.
DEVICE int strips_of_part(const Windows& windows, unsigned part, const Box& box, int residue, int n, Strip& strip) {
    int count = 0;
#pragma unroll 1
    for (int run = 0; run < RUNS; run++) {
        if (!has_run(part, run)) continue;
        const Box of_run = load_shared(&windows.runs[run]);
        if (of_run.bottom <= of_run.top) continue;
        const int top = static_cast<int>(of_run.top - box.top), bottom = static_cast<int>(of_run.bottom - box.top);
        const int left = static_cast<int>(of_run.left - box.left), right = static_cast<int>(of_run.right - box.left);
        for (int owned = left; owned < right; owned += STRIP) {
            const int column = min(owned, UNION - STRIP), first = top + ((column - residue - top) & (RESIDUES - 1));
            const int row = first + (n - count) * RESIDUES, begin = owned - column;
            if (n >= count && row < bottom) strip = Strip::of(run, row, column, begin, min(right - column, begin + STRIP));
            if (first < bottom) count += (bottom - 1 - first) / RESIDUES + 1;
        }
    }
    return count;
}

typedef Sum Products[RUN][STRIP];

DEVICE void clear(Products& products) {
#pragma unroll
    for (int q = 0; q < RUN; q++)
#pragma unroll
        for (int k = 0; k < STRIP; k++) products[q][k] = Sum(0);
}

// Adds the products of a stage.
DEVICE void add_products(Products& products, const Sum* stage, const Strip& strip) {
    const Sum* const run = stage + strip.run() * WIDTH;
    const Sum* const pixels = stage + STAGE1 + (strip.row() * PITCH + strip.column()) * WIDTH;
#pragma unroll 1
    for (int p = 0; p < PLANES; p++) {
        Sum queries[RUN][WIDTH];
#pragma unroll
        for (int q = 0; q < RUN; q++) load_shared_vectors(run + (p * QUERIES + q * RUNS) * WIDTH, queries[q]);
#pragma unroll
        for (int k = 0; k < STRIP; k++) {
            Sum pixel[WIDTH];
            load_shared_vectors(pixels + (p * PLANE + k) * WIDTH, pixel);
#pragma unroll
            for (int r = 0; r < WIDTH; r++)
#pragma unroll
                for (int q = 0; q < RUN; q++)
                    products[q][k] = multiply_add(queries[q][r], pixel[r], products[q][k]);
        }
    }
}

// The dots of a tile: for each query, those of the pixels from the first tap of its window to the last one.
struct Dots {
    Sum* data;
    int rows, columns;

    DEVICE int pitch() const { return (rows * columns) | 1; }  // odd: neighbouring queries are in other banks
    DEVICE Sum* of_query(int number) const { return data + number * pitch(); }
};

// Adds the products of a strip to the dots that it owns.
DEVICE void add_to_dots(const Dots& dots, const Products& products, const Strip& strip, const Windows& windows, const Box& box) {
#pragma unroll
    for (int q = 0; q < RUN; q++) {
        const int number = strip.run() * RUN + q;
        const Index row = box.top + strip.row() - load_shared(&windows.rows[number].begin);
        if (row < 0 || row >= dots.rows) continue;
        const Index column = box.left + strip.column() - load_shared(&windows.columns[number].begin);
        if (column <= -STRIP || column >= dots.columns) continue;  // a window outside may be too far for an int
        const int first = static_cast<int>(column);
        Sum* const to = dots.of_query(number) + (static_cast<int>(row) * dots.columns + first);
#pragma unroll
        for (int k = 0; k < STRIP; k++)
            if (k >= strip.begin() && k < strip.end() && first + k >= 0 && first + k < dots.columns)
                store_shared(to + k, load_shared(to + k) + products[q][k]);
    }
}

// Computes the dots of a part whose windows are in the block's box. Every thread of the block must call it.
DEVICE void add_part(const Dots& dots, Sum* stages, const Windows& windows, const Block* block, const Image<INPUT>& image1,
                     Index height, Index width, Index channels) {
    const Image<INPUT>* const map = &block->level.map;
#pragma unroll 1
    for (int begin = 0;; begin += THREADS / RESIDUES) {
        Strip strip = {};
        const int n = begin + here() / RESIDUES, residue = here() % RESIDUES;
        const bool mine = n < strips_of_part(windows, load_shared(&block->part), load_shared(&block->box), residue, n, strip);
        if (!__syncthreads_or(mine && channels > 0)) return;  // and the last stages have been read
        Loader loader = loader_of(load_shared(block), image1, height, width);
        Products products;
        clear(products);
        int offset = 0;
        loader.load(stages, channels, image1.channel_stride, load_shared(&map->channel_stride), load_shared(&map->row_stride));
        loader.store(stages);
#pragma unroll 1
        for (Index left = channels; left > 0; left -= CHANNELS, offset = STAGE - offset) {
            loader.wait();
            __syncthreads();  // the stage is complete, and the other one has been read
            const bool more = left > CHANNELS;
            if (more)
                loader.load(stages + (STAGE - offset), left - CHANNELS, image1.channel_stride, load_shared(&map->channel_stride),
                            load_shared(&map->row_stride));
            if (mine) {
                add_products(products, stages + offset, strip);
                if ((channels - left + CHANNELS) % CHAIN == 0 || !more) {
                    add_to_dots(dots, products, strip, windows, load_shared(&block->box));
                    clear(products);
                }
            }
            if (more) loader.store(stages + (STAGE - offset));
        }
    }
}

// The number of the n-th quarter of a part.
DEVICE int quarter_of_part(unsigned part, int n) {
    int quarter = 0;
#pragma unroll
    for (int k = QUARTERS - 1; k >= 0; k--) {
        int before = 0;
#pragma unroll
        for (int other = 0; other < k; other++) before += part >> other & 1;
        if ((part >> k & 1) && before == n) quarter = k;
    }
    return quarter;
}

// Computes the dots of the quarters whose windows fit no box: each row of TAPS taps by itself.
DEVICE void store_direct_dots(const Dots& dots, const Windows& windows, const Block& block, const Axis& vertical,
                              const Axis& horizontal, const Image<INPUT>& image1, Index height, Index width, Index channels) {
    const int split = here() % SPLITS;
    int quarters = 0;
#pragma unroll
    for (int k = 0; k < QUARTERS; k++) quarters += block.left >> k & 1;
    const int queries = quarters * QUARTER, rows = static_cast<int>(vertical.taps());
    const int tasks = queries * rows * ceil_div(static_cast<int>(horizontal.taps()), TAPS);
    for (int task = here() / SPLITS; task < tasks; task += THREADS / SPLITS) {
        const int n = task % queries, tap_y = task / queries % rows, first_tap = task / queries / rows * TAPS;
        const int number = quarter_of_part(block.left, n / QUARTER) * QUARTER + n % QUARTER;
        const Index i = block.tile.i + row_of_query(number), j = block.tile.j + column_of_query(number);
        if (i >= height || j >= width) continue;
        const Query query = windows.query(number);
        const Image<INPUT>& map = block.level.map;
        const Columns columns = columns_from(horizontal, map, query.x, first_tap);
        Sum row[TAPS];
        dots_of_row(image1, image1.at(block.s, 0, i, j), map, map.at(block.t, 0, 0, 0), vertical,
                    query.y.begin + vertical.offset(tap_y), columns, channels, split, row);
        Sum* const to = dots.of_query(number) + static_cast<int>(vertical.offset(tap_y)) * dots.columns;
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++)
            if (columns.inside[tap] && tap % SPLITS == split) store_shared(to + horizontal.offset(first_tap + tap), row[tap]);
    }
}

// Blends two neighbouring dots of a row.
DEVICE Sum blended_row(const Query& query, const Sum* row) {
    return multiply_add(query.x.weights[1], load_shared(row + 1), query.x.weights[0] * load_shared(row));
}

// Stores the outputs of a tile. A warp has four rows of queries, so that it stores whole sectors of a plane.
DEVICE void store_outputs(const Dots& dots, const Windows& windows, const Axis& vertical, const Axis& horizontal, bool known,
                          const Volume<OUTPUT>& volume, OUTPUT* tile, Index height, Index width, Sum scale) {
    const int pixel = here() % QUERIES, i = pixel / QUERY_TILE, j = pixel % QUERY_TILE;
    if (i >= height || j >= width) return;
    const int number = number_of_query(i, j), planes = static_cast<int>(vertical.patch * horizontal.patch);
    const Query query = windows.query(number);
    OUTPUT* const patch = tile + (i * volume.row_stride + j * volume.column_stride);
    for (int plane = here() / QUERIES; plane < planes; plane += THREADS / QUERIES) {
        const int m = plane / static_cast<int>(horizontal.patch), n = plane % static_cast<int>(horizontal.patch);
        const Sum* const corner =
            dots.of_query(number) + (m * static_cast<int>(vertical.step) * dots.columns + n * static_cast<int>(horizontal.step));
        Sum sum = blended_row(query, corner);
        if (vertical.corners == 2)
            sum = multiply_add(query.y.weights[1], blended_row(query, corner + dots.columns), query.y.weights[0] * sum);
        store(patch + (m * volume.m_stride + n * volume.n_stride), known ? scale * sum : not_a_number());
    }
}

KERNEL_OF_BLOCKS(THREADS, BLOCKS)
lookup_tiled(const INPUT* input1, const INPUT* input2_0, const INPUT* input2_1, const INPUT* input2_2, const INPUT* input2_3,
             const COORDINATE* coords, const void* index1, const void* index2, OUTPUT* out, Index blocks, int levels,
             Index lookups, Index height, Index width, Index channels, IMAGE_PARAMETERS(input1), LEVEL_PARAMETERS(0),
             LEVEL_PARAMETERS(1), LEVEL_PARAMETERS(2), LEVEL_PARAMETERS(3), COORDS_OF_LEVELS_PARAMETERS, ENTRIES_PARAMETERS(1),
             ENTRIES_PARAMETERS(2), VOLUME_PARAMETERS(out), Index level_stride_out, AXIS_OF_LEVELS_PARAMETERS(y),
             AXIS_OF_LEVELS_PARAMETERS(x), Sum scale) {
    SHARED_ARRAY(Position, rows, QUERIES);
    SHARED_ARRAY(Position, columns, QUERIES);
    SHARED_ARRAY(Box, runs, RUNS);
    SHARED_ARRAY(Box, quarters, QUARTERS);
    SHARED_ARRAY(Block, block, 1);
    DYNAMIC_SHARED_ARRAY(Sum, shared);
    const Windows windows = {rows, columns, runs, quarters};
    const Image<INPUT> image1 = IMAGE_OF_PARAMETERS(input1);
    for (Index number = blockIdx.x; number < blocks; number += gridDim.x) {
        __syncthreads();  // the outputs of the last tile have been stored
        {
            const Level level = level_of_number(static_cast<int>(number % levels), LEVEL_OF_PARAMETERS(0), LEVEL_OF_PARAMETERS(1),
                                                LEVEL_OF_PARAMETERS(2), LEVEL_OF_PARAMETERS(3));
            const Axis vertical = AXIS_OF_LEVEL(y), horizontal = AXIS_OF_LEVEL(x);
            const Coordinates coordinates = COORDS_OF_LEVEL;
            const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
            const QueryTile tile = query_tile(number / levels, lookups, height, width);
            const Index s = entries1.image(tile.e), t = entries2.image(tile.e);
            const Block common = {tile, s, t, level, s < 0 || t < 0 ? 0u : WHOLE_TILE, 0, {0, 0, 0, 0}};
            if (here() == 0) store_shared(block, common);
            store_windows(windows, coordinates, vertical, horizontal, tile, height, width);
        }
        // Dots outside the map are 0. So are pixels beyond the box of a part, whose products are not used.
        // Computed for each tile, as products leave no registers to keep it.
        const Dots dots = {shared + STAGES * STAGE, opaque(static_cast<int>((patch_y - 1) * step_y) + corners_y),
                           static_cast<int>((patch_x - 1) * step_x) + corners_x};
        for (int at = here(); at < STAGES * STAGE + QUERIES * dots.pitch(); at += THREADS) store_shared(&shared[at], Sum(0));
        __syncthreads();

#pragma unroll 1
        while (choose_part(windows, block)) add_part(dots, shared, windows, block, image1, height, width, channels);
        {
            const Level level = load_shared(&block->level);
            const Axis vertical = AXIS_OF_LEVEL(y), horizontal = AXIS_OF_LEVEL(x);
            store_direct_dots(dots, windows, load_shared(block), vertical, horizontal, image1, height, width, channels);
            __syncthreads();
        }
        const QueryTile tile = load_shared(&block->tile);
        const bool known = load_shared(&block->s) >= 0 && load_shared(&block->t) >= 0;
        const Volume<OUTPUT> volume = VOLUME_OF_PARAMETERS(out);
        OUTPUT* const to = volume.patch(tile.e, tile.k, tile.i, tile.j) + number % levels * level_stride_out;
        const Level level = load_shared(&block->level);
        const Axis vertical = AXIS_OF_LEVEL(y), horizontal = AXIS_OF_LEVEL(x);
        store_outputs(dots, windows, vertical, horizontal, known, volume, to, height - tile.i, width - tile.j, scale);
    }
}
