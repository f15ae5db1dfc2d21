// The gradients of windows of one pixel on tensor cores: the sum at the top of gradient_phases.cuh as banded matrix products. For
// a row of X and a row of the gradient at displacement m,
//
//     G[c, t] += sum over k of  X[c, k] * E[k, t],      E[t + n, t] = g[m, n, output of t and m],  0 off this band
//
// A matrix product takes 16 channels, SIDE columns t and BAND rows k of the band, from the first one of these columns: BAND -
// SIDE + 1 displacements fit; more are taken in several steps.
//
//     thread block tile   TILE_CHANNELS channels x TILE_ROWS rows x TILE_COLUMNS columns. Rows of X stream past, once a step
//     warp tile           CHANNEL_TILES x 16 channels, ROWS rows, COLUMN_TILES x SIDE columns of one phase
//     pipeline stage      one row of X and its band E, double buffered
//
// Where step is 2 and stride 1, PHASES is 2: a block takes both phases of the columns, so that it reads and writes whole rows;
// they are deinterleaved in shared memory. E is stored there with SIDE columns to a row; its zeros off the band are stored once
// for a tile. The band may begin a few rows into E, so that loads of X are aligned to 16 bytes; that depends on positions only,
// not on addresses, so the bits of the sums do not depend on addresses either.
//
// Padding is 0 in both operands; Inf * 0 off the band gives NaN, so NaN sums are recomputed exactly, from the products of the
// definition in order, with factors rounded as the tensor cores round them.
//
// Macros: INPUT, COTANGENT (the same), INDEX, PHASES, CHANNELS_LAST (1: channels of X are contiguous), DEPTHS (BAND / 16), WIDTH
// (the most displacements of a row taken in one step), CHANNEL_TILES, ROWS, COLUMN_TILES, CHANNEL_WARPS, ROW_WARPS, and THREADS
// and SHARED, which the host computes too.
#include "correlation/gradient_phases.cuh"
#include "common/mma.cuh"

typedef Multiplier<INPUT> Multiply;

constexpr int SIDE = 8;
constexpr int BAND = 2 * SIDE * DEPTHS;
constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr bool PAIRED = sizeof(INPUT) == 2;  // two elements to a register
constexpr bool DEINTERLEAVED = PHASES > 1 && !CHANNELS_LAST;  // neighbours in global memory are of different phases

constexpr int TILE_CHANNELS = 2 * SIDE * CHANNEL_TILES * CHANNEL_WARPS;
constexpr int TILE_ROWS = ROWS * ROW_WARPS;
constexpr int TILE_COLUMNS = PHASES * SIDE * COLUMN_TILES;

// Columns of X that are multiplied for a tile's columns, in groups of SIDE of each phase.
constexpr int GROUPS = COLUMN_TILES + BAND / SIDE - 1;
constexpr int IMAGE_COLUMNS = PHASES * SIDE * GROUPS;

// A buffer: X[phase][channel][column], or [phase][column][channel], then E[phase][row][column tile][BAND + 1][SIDE]. The pitch
// puts eight rows of X that are read at once into different banks; where columns are the rows, four rows of eight elements of 32
// bits.
constexpr int LINE = CHANNELS_LAST ? TILE_CHANNELS : SIDE * GROUPS;
constexpr int PITCH = PAIRED || !CHANNELS_LAST ? pitch(LINE, VECTOR, SIDE) : LINE + SIDE;
constexpr int PLANE = (CHANNELS_LAST ? SIDE * GROUPS : TILE_CHANNELS) * PITCH;
constexpr int IMAGE = PHASES * PLANE;
constexpr int BAND_TILE = (BAND + 1) * SIDE;
constexpr int BANDS = PHASES * TILE_ROWS * COLUMN_TILES * BAND_TILE;
constexpr int BUFFER = IMAGE + BANDS;

// In the epilogue, sums of one row of each warp: [row warp][channel][phase][column].
constexpr int SUMS_PITCH = TILE_COLUMNS + SIDE;
constexpr int SUMS = ROW_WARPS * TILE_CHANNELS * SUMS_PITCH;

static_assert(THREADS == WARP * PHASES * CHANNEL_WARPS * ROW_WARPS, "the host and the kernel agree on the threads");
static_assert(SHARED >= 2 * BUFFER * sizeof(INPUT) && SHARED >= SUMS * sizeof(float), "and on shared memory");

DEVICE int plane_offset(int channel, int u) {
    const int column = u / PHASES;
    return u % PHASES * PLANE + (CHANNELS_LAST ? column * PITCH + channel : channel * PITCH + column);
}

DEVICE int band(int phase, int row, int column_tile) {
    return ((phase * TILE_ROWS + row) * COLUMN_TILES + column_tile) * BAND_TILE;
}

// The stream of rows -----------------------------------------------------------------------------------------------------------

// Indices are counted from the tile's first row and column: own rows t, rows k = t + m of X, columns u of all phases,
// displacements m and n.
struct Rows {
    Range own_range, m;  // rows t with products, displacements

    DEVICE bool multiplies(int t, int k) const { return own_range.contains(t) && m.contains(k - t); }
};

struct Stream {
    Rows rows;
    const INPUT* image;  // X at k = u = 0, the tile's first channel
    const COTANGENT* cotangent;  // at t = k = u = n = 0
    long long channel_stride, column_stride, row_stride;  // of X
    long long stride_k, stride_t, stride_n, stride_u;  // strides of cotangents
    Range own_columns, other_columns;  // those with products: of the gradient, and of X at n = 0
    int channels;  // of the tile, inside the image
    int leading_rows;  // rows of the band before the first displacement's
    long long second;  // whether it is operand 2
};

// It is kept in shared memory, as registers are full of sums.
constexpr int STREAM_WORDS = ceil_div(sizeof(Stream), sizeof(Words16));

DEVICE void store_stream(Words16* to, const Stream& stream) {
    Words16 words[STREAM_WORDS] = {};
    memcpy(words, &stream, sizeof stream);
#pragma unroll
    for (int i = 0; i < STREAM_WORDS; i++) store_shared_16(to + i, words[i]);
}

// Loads all of it, or the struct that it begins with.
template <class Begin>
DEVICE Begin load_stream(const Words16* from) {
    constexpr int count = ceil_div(sizeof(Begin), sizeof(Words16));
    Words16 words[count];
#pragma unroll
    for (int i = 0; i < count; i++) words[i] = load_shared_16(from + i);
    Begin begin;
    memcpy(&begin, words, sizeof begin);
    return begin;
}

// The rows of the band before the first displacement's, so that columns of X begin at a multiple of 16 bytes, or of as many as
// fit.
DEVICE int leading_rows_of(const Tile& tile, int width) {
    const int column = tile.x.other_origin + (tile.column + PHASES * tile.n.begin) * tile.x.step;
#pragma unroll
    for (int multiple = VECTOR; multiple > 1; multiple /= 2) {
        const int before = column & (multiple - 1);
        if (before % PHASES == 0 && before / PHASES <= BAND - SIDE + 1 - width) return before / PHASES;
    }
    return 0;
}

DEVICE Range from(int origin, Range range) { return Range{range.begin - origin, range.end - origin}; }

DEVICE Stream stream_of(const Tile& tile, const Image& image, const Cotangent& cotangent, int width, int channels) {
    const auto along_y = [&](int t, int k) {
        return tile.y.offset(tile.row + t, tile.row + k, k - t, cotangent.m_stride, cotangent.row_stride);
    };
    const auto along_x = [&](int u, int n) {
        const int own = tile.column + u;
        return tile.x.offset(own, own + PHASES * n, n, cotangent.n_stride, cotangent.column_stride);
    };
    Stream stream;
    stream.rows = Rows{from(tile.row, tile.y.own_range), tile.m};
    stream.image = image.data + (tile.sample * image.batch_stride + tile.channel * image.channel_stride +
                                 static_cast<long long>(tile.y.other_origin + tile.row * tile.y.step) * image.row_stride +
                                 static_cast<long long>(tile.x.other_origin + tile.column * tile.x.step) * image.column_stride);
    stream.cotangent = cotangent.data + (tile.sample * cotangent.batch_stride + along_y(0, 0) + along_x(0, 0));
    stream.channel_stride = image.channel_stride;
    stream.column_stride = static_cast<long long>(tile.x.step) * image.column_stride;
    stream.stride_k = along_y(0, 1) - along_y(0, 0);
    stream.stride_t = along_y(1, 0) - along_y(0, 0);
    stream.stride_n = along_x(0, 1) - along_x(0, 0);
    stream.stride_u = along_x(1, 0) - along_x(0, 0);
    stream.own_columns = from(tile.column, tile.x.own_range);
    stream.other_columns = from(tile.column, tile.x.other_range);
    stream.row_stride = static_cast<long long>(tile.y.step) * image.row_stride;
    stream.channels = min(channels - tile.channel, TILE_CHANNELS);
    stream.leading_rows = leading_rows_of(tile, width);
    stream.second = tile.x.second;
    return stream;
}

// Loading X --------------------------------------------------------------------------------------------------------------------

// Elements that are moved together.
template <class Element, int count>
struct __attribute__((aligned(count * sizeof(Element)))) Packed {
    Element of[count];
};

// The axis along which elements of X are contiguous, and the other one.
constexpr int INNER = CHANNELS_LAST ? TILE_CHANNELS : IMAGE_COLUMNS;
constexpr int OUTER = CHANNELS_LAST ? IMAGE_COLUMNS : TILE_CHANNELS;

struct Segment {
    const INPUT* data;
    long long inner_stride, outer_stride;
    Range inner, outer;  // with products

    DEVICE bool valid(int i, int o) const { return inner.contains(i) && outer.contains(o); }
    DEVICE const INPUT* at(int i, int o) const { return data + (i * inner_stride + o * outer_stride); }

    // The contiguous elements that one access can move at every index, wholly inside or outside: a power of two.
    DEVICE int packed() const {
        if (inner_stride != 1) return 1;
        const unsigned long long at = reinterpret_cast<unsigned long long>(data) / sizeof(INPUT);
        const unsigned long long all = at | outer_stride | inner.begin | inner.end | VECTOR;
        return static_cast<int>(all & (~all + 1));
    }
};

DEVICE constexpr int power_of_two(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

DEVICE INPUT* image_place(INPUT* image, int i, int o) {
    return image + (CHANNELS_LAST ? plane_offset(i, o) : plane_offset(o, i));
}

// Loads two elements of 16 bits at a multiple of 4 bytes, or one of any size.
DEVICE void load_packed(const INPUT* from, INPUT (&to)[1]) { to[0] = load_element(from); }
DEVICE void load_packed(const INPUT* from, INPUT (&to)[2]) {
    const float both = load_global(reinterpret_cast<const float*>(from));
    memcpy(to, &both, sizeof both);
}

// Copies asynchronously; a thread has the same elements of every `distance`-th row.
template <int packed>
DEVICE void copy_image(const Segment& segment, INPUT* to) {
    constexpr int lanes = power_of_two(ceil_div(INNER, packed)), distance = THREADS / lanes;
    static_assert(lanes <= THREADS, "a block has a thread for each access of a row");
    const int i = threadIdx.x % lanes * packed;
    if (i >= INNER) return;
#pragma unroll 4
    for (int o = threadIdx.x / lanes; o < OUTER; o += distance) {
        const bool valid = segment.valid(i, o);
        copy_async<packed * sizeof(INPUT)>(image_place(to, i, o), valid ? segment.at(i, o) : segment.data, valid);
    }
}

// Loads elements that are too small for asynchronous copies, or are deinterleaved.
template <int packed>
DEVICE void load_image(const Segment& segment, INPUT* to) {
    constexpr int lanes = power_of_two(INNER / packed), distance = THREADS / lanes, count = 8;
    const int i = threadIdx.x % lanes * packed;
    if (i >= INNER) return;
#pragma unroll 1
    for (int o = threadIdx.x / lanes; o < OUTER; o += count * distance) {
        Packed<INPUT, packed> values[count] = {};
#pragma unroll
        for (int k = 0; k < count; k++)
            if (segment.valid(i, o + k * distance)) load_packed(segment.at(i, o + k * distance), values[k].of);
#pragma unroll
        for (int k = 0; k < count; k++)
#pragma unroll
            for (int j = 0; j < packed; j++)
                if (o + k * distance < OUTER) store_shared(image_place(to, i + j, o + k * distance), values[k].of[j]);
    }
}

// Vectors that are deinterleaved wait in registers while a row is multiplied.
constexpr int LINE_VECTORS = IMAGE_COLUMNS / VECTOR;
constexpr int IMAGE_VECTORS = DEINTERLEAVED ? ceil_div(TILE_CHANNELS * LINE_VECTORS, THREADS) : 0;

struct ImageVectors {
    Words16 of[DEINTERLEAVED ? IMAGE_VECTORS : 1];
};

DEVICE void load_image_vectors(const Segment& segment, ImageVectors& vectors) {
#pragma unroll
    for (int k = 0; k < IMAGE_VECTORS; k++) {
        const int number = opaque(threadIdx.x) + k * THREADS, u = number % LINE_VECTORS * VECTOR, channel = number / LINE_VECTORS;
        vectors.of[k] = segment.valid(u, channel) ? load_global_16(segment.at(u, channel)) : Words16{};
    }
}

DEVICE void store_image_vectors(const ImageVectors& vectors, INPUT* to) {
    typedef Packed<INPUT, VECTOR / PHASES> PhaseVector;
#pragma unroll
    for (int k = 0; k < IMAGE_VECTORS; k++) {
        const int number = opaque(threadIdx.x) + k * THREADS, u = number % LINE_VECTORS * VECTOR, channel = number / LINE_VECTORS;
        if (channel >= TILE_CHANNELS) continue;
        INPUT vector[VECTOR];
        memcpy(vector, &vectors.of[k], sizeof vector);
#pragma unroll
        for (int p = 0; p < PHASES; p++) {
            PhaseVector values;
#pragma unroll
            for (int i = 0; i < VECTOR / PHASES; i++) values.of[i] = vector[i * PHASES + p];
            store_shared(reinterpret_cast<PhaseVector*>(to + plane_offset(channel, u + p)), values);
        }
    }
}

// Loads row k of X for all channels of the tile: to shared memory, or, if it returns true, to registers.
DEVICE bool stage_image(const Stream& stream, Step at, int width, INPUT* to, ImageVectors& vectors) {
    const int first = PHASES * (at.n - stream.leading_rows),
              needed = round_up(TILE_COLUMNS + PHASES * (stream.leading_rows + width - 1), VECTOR);
    const INPUT* const data = stream.image + (at.k * stream.row_stride + first * stream.column_stride);
    Range columns = from(first, stream.other_columns).intersect(Range{0, min(needed, IMAGE_COLUMNS)});
    if (columns.begin >= columns.end) columns = Range{0, 0};
    const Range channels = {0, stream.channels};
    const Segment segment = CHANNELS_LAST ? Segment{data, stream.channel_stride, stream.column_stride, channels, columns}
                                      : Segment{data, stream.column_stride, stream.channel_stride, columns, channels};
    const int bytes = segment.packed() * sizeof(INPUT);
    if constexpr (DEINTERLEAVED) {
        if (bytes == 16) load_image_vectors(segment, vectors);
        else if (PAIRED && bytes >= 4) load_image<PAIRED ? 2 : 1>(segment, to);
        else load_image<1>(segment, to);
        return bytes == 16;
    } else {
        if (bytes == 16) copy_image<VECTOR>(segment, to);
        else if (bytes == 8) copy_image<VECTOR / 2>(segment, to);
        else if (bytes == 4) copy_image<VECTOR / 4>(segment, to);
        else load_image<1>(segment, to);
        return false;
    }
}

// Loading cotangents -----------------------------------------------------------------------------------------------------------

// Vectors of VECTOR columns of one row and one displacement, each aligned to 16 bytes if cotangents are contiguous.
constexpr int ROW_VECTORS = TILE_COLUMNS / VECTOR + 1;  // of a row, at any alignment
constexpr int THREAD_VECTORS = ceil_div(ROW_VECTORS * TILE_ROWS * WIDTH, THREADS);

// The place of a vector in the band.
struct BandPlace {
    int vector, row, n;

    // The last vectors, which only some rows have, come after all others.
    DEVICE explicit BandPlace(int number) {
        constexpr int others = (ROW_VECTORS - 1) * TILE_ROWS * WIDTH;
        const bool last = number >= others;
        if (last) number -= others;
        vector = last ? ROW_VECTORS - 1 : digit(number, ROW_VECTORS - 1);
        row = digit(number, TILE_ROWS);
        n = number;
    }
};

// The first column of a vector, and the tile's columns with products.
struct Columns {
    int first;
    Range valid;

    // Packed into one register, with a bit that is set if there is such a row and displacement.
    DEVICE uint32 packed() const { return 1u << 24 | valid.end << 16 | valid.begin << 8 | (first + SIDE); }
    DEVICE explicit Columns(uint32 packed)
        : first(int(packed & 0xff) - SIDE), valid{int(packed >> 8 & 0xff), int(packed >> 16 & 0xff)} {}
    DEVICE Columns(int first, Range valid) : first(first), valid(valid) {}
};

struct CotangentVector {
    Words16 values;
    uint32 columns;
};

// Loads a vector. A band holds `width` displacements from at.n on; those from `end` on are padding.
DEVICE CotangentVector load_cotangent(const BandPlace& place, const Stream& stream, Step at, int width, int end) {
    CotangentVector vector = {};
    if (place.n >= width || !stream.rows.multiplies(place.row, at.k)) return vector;
    const int n = at.n + place.n;
    const COTANGENT* data = stream.cotangent + (at.k * stream.stride_k + place.row * stream.stride_t + n * stream.stride_n);
    int u = place.vector * VECTOR;
    if (stream.stride_u == 1) u -= static_cast<int>(reinterpret_cast<unsigned long long>(data) / sizeof(COTANGENT) % VECTOR);
    data += u * stream.stride_u;
    const Range other_range = from(PHASES * n, stream.other_columns), readable = stream.second ? other_range : stream.own_columns;
    Range valid = stream.own_columns.intersect(other_range).intersect(Range{0, TILE_COLUMNS});
    if (n >= end || valid.begin >= valid.end) valid = Range{0, 0};
    vector.columns = Columns(u, valid).packed();
    valid = valid.intersect(Range{u, u + VECTOR});
    if (valid.begin >= valid.end) return vector;
    if (stream.stride_u == 1 && readable.begin <= u && u + VECTOR <= readable.end) {
        vector.values = load_global_16(data);
    } else {
        COTANGENT values[VECTOR] = {};
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (valid.contains(u + i)) values[i] = load_element(data + i * stream.stride_u);
        memcpy(&vector.values, values, sizeof values);
    }
    return vector;
}

DEVICE half rounded(half element) { return element; }
DEVICE bfloat16 rounded(bfloat16 element) { return element; }
DEVICE float rounded(float element) { return float_of_bits(Multiply::rounded(bits_of_float(element))); }

// Stores a vector to the band, column by column; lanes that would have bank conflicts begin at other words of their vectors
// (swizzle).
DEVICE void store_cotangent(const BandPlace& place, const CotangentVector& vector, int leading_rows, INPUT* bands) {
    if (vector.columns == 0) return;
    constexpr int per_word = sizeof(uint32) / sizeof(INPUT);
    const int rotation = threadIdx.x / SIDE % 4;
    Words16 words = vector.values;
#pragma unroll
    for (int by = 1; by < 4; by *= 2) {
        const Words16 before = words;
#pragma unroll
        for (int i = 0; i < 4; i++) words.word[i] = rotation & by ? before.word[(i + by) % 4] : before.word[i];
    }
    INPUT values[VECTOR];
    memcpy(values, &words, sizeof words);
    const Columns columns(vector.columns);
    bands += band(0, place.row, 0) + (place.n + leading_rows) * SIDE;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const int u = columns.first + (i / per_word + rotation) % 4 * per_word + i % per_word, t = u / PHASES;
        if (u < 0 || u >= TILE_COLUMNS) continue;
        INPUT* const to = bands + band(u % PHASES, 0, t / SIDE) + t % SIDE * (SIDE + 1);
        store_shared(to, columns.valid.contains(u) ? rounded(values[i]) : INPUT{});
    }
}

struct CotangentVectors {
    CotangentVector of[THREAD_VECTORS];
};

DEVICE void load_cotangents(const Stream& stream, Step at, int width, int end, CotangentVectors& vectors) {
#pragma unroll
    for (int k = 0; k < THREAD_VECTORS; k++)
        vectors.of[k] = load_cotangent(BandPlace(opaque(threadIdx.x) + k * THREADS), stream, at, width, end);
}

DEVICE void store_cotangents(const CotangentVectors& vectors, int leading_rows, INPUT* bands) {
#pragma unroll
    for (int k = 0; k < THREAD_VECTORS; k++)
        store_cotangent(BandPlace(opaque(threadIdx.x) + k * THREADS), vectors.of[k], leading_rows, bands);
}

DEVICE void clear(INPUT* bands) {
    for (int i = threadIdx.x * VECTOR; i < BANDS; i += THREADS * VECTOR) store_shared_16(bands + i, Words16{});
}

// Products ---------------------------------------------------------------------------------------------------------------------

// The first element of the warp's tile within that of its block.
struct WarpOrigin {
    int phase, channel, row;

    DEVICE WarpOrigin() {
        int warp = threadIdx.x / WARP;
        phase = digit(warp, PHASES);
        channel = digit(warp, CHANNEL_WARPS) * (2 * SIDE * CHANNEL_TILES);
        row = warp * ROWS;
    }
};

struct WarpSums {
    float of[ROWS][CHANNEL_TILES][COLUMN_TILES][4];
};

// X of 16 channels and SIDE columns: half of a fragment of 16-bit elements, a whole one of TF32.
constexpr int GROUP_REGISTERS = PAIRED ? 2 : 4;

struct Groups {
    uint32 of[GROUPS][GROUP_REGISTERS];
};

constexpr int GROUPS_AT_ONCE = 4 / GROUP_REGISTERS;

// 16-bit elements: group g and the next one.
DEVICE void load_groups(uint32 (&groups)[GROUPS][2], int g, const INPUT* image) {
    const int lane = threadIdx.x % WARP, row = lane % SIDE, lower = lane / SIDE % 2 * SIDE;
    const int column = (g + lane / (2 * SIDE)) * SIDE;
    image += CHANNELS_LAST ? (column + row) * PITCH + lower : (row + lower) * PITCH + column;
    if (g + 1 < GROUPS) {
        uint32 both[4];
        load_matrices<4, CHANNELS_LAST>(both, image);
#pragma unroll
        for (int r = 0; r < 4; r++) groups[g + r / 2][r % 2] = both[r];
    } else {
        load_matrices<2, CHANNELS_LAST>(groups[g], image);
    }
}

// TF32 elements.
DEVICE void load_groups(uint32 (&groups)[GROUPS][4], int g, const INPUT* image) {
    const int lane = threadIdx.x % WARP;
    if constexpr (CHANNELS_LAST) {
        image += (g * SIDE + lane % 4) * PITCH + lane / 4;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const INPUT* const from = image + r / 2 * (SIDE / 2) * PITCH + r % 2 * SIDE;
            groups[g][r] = load_shared(reinterpret_cast<const uint32*>(from));
        }
    } else {
        const int row = lane % (2 * SIDE), column = g * SIDE + lane / (2 * SIDE) * (SIDE / 2);
        load_matrices<4, false>(groups[g], image + row * PITCH + column);
    }
#pragma unroll
    for (int r = 0; r < 4; r++) groups[g][r] = Multiply::rounded(groups[g][r]);
}

// Loads the band of a column tile: fragments for BAND rows, or for two tiles if BAND is 16 rows of 16-bit elements.
constexpr int TILES_AT_ONCE = PAIRED && DEPTHS == 1 ? 2 : 1;
constexpr int BAND_REGISTERS = TILES_AT_ONCE * GROUP_REGISTERS * BAND / (2 * SIDE);

static_assert(COLUMN_TILES % TILES_AT_ONCE == 0, "column tiles are taken in pairs");

template <bool paired, int count>
DEVICE void load_band(uint32 (&registers)[count], const INPUT* tile) {
    const int lane = threadIdx.x % WARP;
    if constexpr (paired) {
        static_assert(count == WARP / SIDE, "each lane brings a row");
        load_matrices<count, true>(registers, tile + lane / BAND * BAND_TILE + lane % BAND * SIDE);
    } else {
        const uint32* const from = reinterpret_cast<const uint32*>(tile) + lane % 4 * SIDE + lane / 4;
#pragma unroll
        for (int r = 0; r < count; r++) registers[r] = load_shared(from + r * (SIDE / 2) * SIDE);
    }
}

// Multiplies one column tile with the whole depth of its band.
DEVICE void multiply(float (&sums)[4], const uint32 (&groups)[GROUPS][GROUP_REGISTERS], int column_tile, const uint32* band) {
#pragma unroll
    for (int d = 0; d < BAND / Multiply::depth; d++) {
        const uint32 b[2] = {band[2 * d], band[2 * d + 1]};
        uint32 a[4];
#pragma unroll
        for (int r = 0; r < 4; r++)
            a[r] = groups[column_tile + d * Multiply::depth / SIDE + r / GROUP_REGISTERS][r % GROUP_REGISTERS];
        Multiply::add(sums, a, b);
    }
}

// The first column tile, of those that are taken at once, that uses a group.
DEVICE constexpr int first_tile(int group) {
    const int after = group - (TILES_AT_ONCE + BAND / SIDE - 2);
    return after > 0 ? round_up(after, TILES_AT_ONCE) : 0;
}

// Adds the products of a row of X; `row_mask` has a bit for each of the warp's rows that it is multiplied for. Groups are loaded
// when they are needed, as all of them would take too many registers.
DEVICE void add_row(WarpSums& sums, const WarpOrigin& warp_origin, uint32 row_mask, const INPUT* buffer) {
    if (!row_mask) return;
    const INPUT* const image =
        buffer + (CHANNELS_LAST ? warp_origin.channel : warp_origin.channel * PITCH) + warp_origin.phase * PLANE;
    Groups groups[CHANNEL_TILES];
#pragma unroll
    for (int j = 0; j < COLUMN_TILES; j += TILES_AT_ONCE) {
#pragma unroll
        for (int g = 0; g < GROUPS; g += GROUPS_AT_ONCE)
#pragma unroll
            for (int c = 0; c < CHANNEL_TILES; c++)
                if (first_tile(g) == j) load_groups(groups[c].of, g, image + c * 2 * SIDE * (CHANNELS_LAST ? 1 : PITCH));
#pragma unroll
        for (int q = 0; q < ROWS; q++) {
            if (!(row_mask >> q & 1)) continue;
            uint32 factors[BAND_REGISTERS];
            load_band<PAIRED>(factors, buffer + IMAGE + band(warp_origin.phase, warp_origin.row + q, j));
#pragma unroll
            for (int k = 0; k < TILES_AT_ONCE; k++)
#pragma unroll
                for (int c = 0; c < CHANNEL_TILES; c++)
                    multiply(sums.of[q][c][j + k], groups[c].of, j + k, factors + k * (BAND / SIDE));
        }
    }
}

DEVICE uint32 row_mask_of(const Rows& rows, int first, int k) {
    uint32 row_mask = 0;
#pragma unroll
    for (int q = 0; q < ROWS; q++) row_mask |= uint32(rows.multiplies(first + q, k)) << q;
    return row_mask;
}

// Sums that are NaN ------------------------------------------------------------------------------------------------------------

// One element of the gradient, from the products of the definition, row by row.
DEVICE float recomputed_sum(const Image& image, const Cotangent& cotangent, const Tile& tile, int channel, int row, int u) {
    const int t = tile.row + row, first = tile.column + u;
    const INPUT* const plane =
        image.data + (tile.sample * image.batch_stride + (tile.channel + channel) * image.channel_stride);
    const COTANGENT* const sample = cotangent.data + tile.sample * cotangent.batch_stride;
    float sum = 0;
#pragma unroll 1
    for (int m = tile.m.begin; m < tile.m.end; m++) {
        float row_sum = 0;
        if (!tile.y.own_range.contains(t) || !tile.y.other_range.contains(t + m)) continue;
        const INPUT* const pixels = plane + (tile.y.other_origin + (t + m) * tile.y.step) * image.row_stride;
        const COTANGENT* const factors = sample + tile.y.offset(t, t + m, m, cotangent.m_stride, cotangent.row_stride);
#pragma unroll 1
        for (int n = tile.n.begin; n < tile.n.end; n++) {
            const int k = first + PHASES * n;
            if (!tile.x.own_range.contains(first) || !tile.x.other_range.contains(k)) continue;
            const INPUT x = load_element(pixels + (tile.x.other_origin + k * tile.x.step) * image.column_stride);
            const COTANGENT g = load_element(factors + tile.x.offset(first, k, n, cotangent.n_stride, cotangent.column_stride));
            row_sum = multiply_add(widen(rounded(x)), widen(rounded(g)), row_sum);
        }
        sum += row_sum;
    }
    return sum;
}

DEVICE float* sum_offset(float* sums, int row_warp, int channel, int u) {
    return sums + (row_warp * TILE_CHANNELS + channel) * SUMS_PITCH + u % PHASES * (SIDE * COLUMN_TILES) + u / PHASES;
}

// Recomputes NaN among the sums in shared memory, of row q of each warp.
DEVICE void recompute_nans(const Image& image, const Cotangent& cotangent, const Tile& tile, int q, int channels, float* sums) {
#pragma unroll 1
    for (int number = threadIdx.x; number < ROW_WARPS * TILE_CHANNELS * TILE_COLUMNS; number += THREADS) {
        int index = number;
        const int u = digit(index, TILE_COLUMNS), channel = digit(index, TILE_CHANNELS);
        float* const at = sum_offset(sums, index, channel, u);
        const float sum = load_shared(at);
        if (sum == sum || tile.channel + channel >= channels) continue;
        store_shared(at, recomputed_sum(image, cotangent, tile, channel, index * ROWS + q, u));
    }
}

// Epilogue ---------------------------------------------------------------------------------------------------------------------

// Stores the sums of one row of each warp to shared memory, where the phases are interleaved again. Returns whether one is NaN.
DEVICE bool store_shared_sums(const float (&sums)[CHANNEL_TILES][COLUMN_TILES][4], const WarpOrigin& warp_origin, float* shared) {
    const int lane = threadIdx.x % WARP;
    float* const target =
        sum_offset(shared, warp_origin.row / ROWS, warp_origin.channel + lane / 4, warp_origin.phase) + lane % 4 * 2;
    bool any = false;
#pragma unroll
    for (int c = 0; c < CHANNEL_TILES; c++)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                const Packed<float, 2> two = {{sums[c][j][2 * lower], sums[c][j][2 * lower + 1]}};
                any = any || two.of[0] != two.of[0] || two.of[1] != two.of[1];
                float* const to = target + (c * 2 + lower) * SIDE * SUMS_PITCH + j * SIDE;
                store_shared(reinterpret_cast<Packed<float, 2>*>(to), two);
            }
    return any;
}

// The address of a tile's result, and its strides.
template <class Result>
struct Target {
    Result* data;  // of the tile's first row, channel and column
    long long channel_stride, row_stride, column_stride;
    int rows, channels, columns;  // inside the image

    DEVICE Target(const Gradient<Result>& to, const Tile& tile, int every) {
        data = to.data + (tile.split * to.split_stride + tile.sample * to.batch_stride + tile.channel * to.channel_stride +
                          static_cast<long long>(tile.y.origin + tile.row * tile.y.step) * to.row_stride +
                          static_cast<long long>(tile.x.origin + tile.column * tile.x.step) * to.column_stride);
        channel_stride = to.channel_stride;
        row_stride = static_cast<long long>(tile.y.step) * to.row_stride;
        column_stride = static_cast<long long>(tile.x.step) * to.column_stride;
        rows = tile.y.size - tile.row;
        channels = min(every - tile.channel, TILE_CHANNELS);
        columns = min(tile.x.size - tile.column, TILE_COLUMNS);
    }

    DEVICE bool contains(int row, int channel, int u) const { return row < rows && channel < channels && u < columns; }
    DEVICE Result* at(int row, int channel, int u) const {
        return data + (channel * channel_stride + row * row_stride + u * column_stride);
    }
    // Returns whether all vectors are aligned, `distance` elements apart.
    DEVICE bool aligned(long long distance) const {
        return (reinterpret_cast<unsigned long long>(data) / sizeof(Result) | distance | row_stride) % VectorOf<Result>::width ==
               0;
    }
};

template <bool of_channels, class Result>
DEVICE void store_row_vectors(const Target<Result>& to, int q, float scale, float* sums) {
    constexpr int width = VectorOf<Result>::width, vectors = (of_channels ? TILE_CHANNELS : TILE_COLUMNS) / width;
    constexpr int outers = of_channels ? TILE_COLUMNS : TILE_CHANNELS;
    // Lanes take all of a row, or a sector of each column.
    constexpr int lanes = of_channels ? SECTOR / sizeof(Words16) : vectors;
#pragma unroll 1
    for (int number = threadIdx.x; number < ROW_WARPS * outers * vectors; number += THREADS) {
        int index = number;
        const int half = digit(index, lanes), outer = digit(index, outers);
        const int first = (digit(index, vectors / lanes) * lanes + half) * width, row = index * ROWS + q;
        const int channel = of_channels ? first : outer, u = of_channels ? outer : first;
        if (!to.contains(row, channel, u)) continue;
        float values[width];
        if constexpr (of_channels) {
#pragma unroll
            for (int i = 0; i < width; i++) values[i] = load_shared(sum_offset(sums, index, channel + i, u)) * scale;
        } else {
            constexpr int packed = width / PHASES < 4 ? width / PHASES : 4;
#pragma unroll
            for (int i = 0; i < width; i += packed * PHASES)
#pragma unroll
                for (int p = 0; p < PHASES; p++) {
                    typedef Packed<float, packed> Vector;
                    const float* const from = sum_offset(sums, index, channel, u + i + p);
                    const Vector of_phase = load_shared(reinterpret_cast<const Vector*>(from));
#pragma unroll
                    for (int v = 0; v < packed; v++) values[i + v * PHASES + p] = of_phase.of[v] * scale;
                }
        }
        store_vector(to.at(row, channel, u), Index(1), (of_channels ? to.channels : to.columns) - first, values);
    }
}

// Stores one by one, for any strides.
template <class Result>
DEVICE void store_elements(const Target<Result>& to, int q, float scale, float* sums) {
    const Lanes lanes(to.channel_stride == 1 && to.column_stride != 1, sizeof(Result));
    const int first = lanes.channel + threadIdx.x / WARP * lanes.channels, stride = lanes.channels * (THREADS / WARP);
#pragma unroll 1
    for (int group = 0; group < ROW_WARPS; group++)
#pragma unroll 1
        for (int u = lanes.column; u < TILE_COLUMNS; u += lanes.columns)
#pragma unroll 4
            for (int channel = first; channel < TILE_CHANNELS; channel += stride)
                if (to.contains(group * ROWS + q, channel, u))
                    store(to.at(group * ROWS + q, channel, u), load_shared(sum_offset(sums, group, channel, u)) * scale);
}

template <class Result>
DEVICE void store_row(const Target<Result>& to, int q, float scale, float* sums) {
    if (to.column_stride == 1 && to.aligned(to.channel_stride)) store_row_vectors<false>(to, q, scale, sums);
    else if (to.channel_stride == 1 && to.aligned(to.column_stride)) store_row_vectors<true>(to, q, scale, sums);
    else store_elements(to, q, scale, sums);
}

// Kernel -----------------------------------------------------------------------------------------------------------------------

// Partial sums have another type than the gradient.
template <class Result>
DEVICE Gradient<Result> of_type(const Gradient<INPUT>& to) {
    Result* const data = reinterpret_cast<Result*>(to.data);
    return Gradient<Result>{data, to.split_stride, to.batch_stride, to.channel_stride, to.row_stride, to.column_stride};
}

KERNEL(THREADS)
gradient_mma(GRADIENT_PARAMETERS(INPUT), int width, Sum scale) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    SHARED_ARRAY(Words16, stream, STREAM_WORDS);
    float* const shared_sums = reinterpret_cast<float*>(shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Cotangent g = COTANGENT_OF_PARAMETERS;
    const Gradient<INPUT> result1 = GRADIENT_OF_PARAMETERS(1), result2 = GRADIENT_OF_PARAMETERS(2);
    const Splits splits = SPLITS_OF_PARAMETERS;
    const auto tile_number = [&](int number) {
        const bool second = number >= tiles1;
        return tile_of(second ? number - tiles1 : number, Extent{TILE_CHANNELS, TILE_ROWS, TILE_COLUMNS}, channels,
                       VERTICAL_OF_PARAMETERS(second), HORIZONTAL_OF_PARAMETERS(second), splits);
    };
    const auto image_of = [&](const Tile& tile) {
        Image image = image2;
        if (tile.x.second) image = image1;
        return image;
    };
    const WarpOrigin warp_origin;
#pragma unroll 1
    for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
        WarpSums sums = {};
        {
            const Tile tile = tile_number(number);
            if (threadIdx.x == 0) store_stream(stream, stream_of(tile, image_of(tile), g, width, channels));
            clear(shared + IMAGE);
            clear(shared + BUFFER + IMAGE);
            __syncthreads();

            const Range rows = from(tile.row, tile.streamed_rows());
            const int leading_rows = leading_rows_of(tile, width);
            const Step none = {0, tile.n.end};
            Step now = none, next = rows.begin < rows.end ? Step{rows.begin, tile.n.begin} : none;
            int buffer = 0;  // the one that is multiplied; the other one is filled
#pragma unroll 1
            while (now.n < none.n || next.n < none.n) {
                const bool loads = next.n < none.n;
                INPUT *const work = shared + buffer * BUFFER, *const load = shared + (1 - buffer) * BUFFER;
                CotangentVectors vectors;
                ImageVectors image_vectors;
                bool image_in_registers = false;
                if (loads) {
                    const Stream all = load_stream<Stream>(stream);
                    load_cotangents(all, next, width, none.n, vectors);
                    image_in_registers = stage_image(all, next, width, load, image_vectors);
                    copy_async_commit();
                }
                if (now.n < none.n)
                    add_row(sums, warp_origin, row_mask_of(load_stream<Rows>(stream), warp_origin.row, now.k), work);
                if (loads) store_cotangents(vectors, leading_rows, load + IMAGE);
                if (image_in_registers) store_image_vectors(image_vectors, load);
                copy_async_wait<0>();
                __syncthreads();
                now = next;
                if (++next.k >= rows.end) next = Step{rows.begin, next.n + width};
                buffer = 1 - buffer;
            }
        }
        // The tile is computed again where it is needed, as registers are full of sums.
#pragma unroll 1
        for (int q = 0; q < ROWS; q++) {
            bool any = false;
#pragma unroll
            for (int row = 0; row < ROWS; row++)
                if (row == q) any = store_shared_sums(sums.of[row], warp_origin, shared_sums);
            if (__syncthreads_or(any)) {
                const Tile tile = tile_number(opaque(number));
                recompute_nans(image_of(tile), g, tile, q, channels, shared_sums);
                __syncthreads();
            }
            const Tile tile = tile_number(opaque(number));
            Gradient<INPUT> result = result1;
            if (tile.x.second) result = result2;
            if (splits.row_splits * splits.column_splits > 1)
                store_row(Target<float>(of_type<float>(result), tile, channels), q, scale, shared_sums);
            else store_row(Target<INPUT>(result, tile, channels), q, scale, shared_sums);
            __syncthreads();
        }
    }
}
