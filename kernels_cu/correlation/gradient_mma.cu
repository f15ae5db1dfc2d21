// The gradients of windows of one pixel on tensor cores: the sum at the top of gradient_phases.cuh as banded matrix products. For
// a row k of X and a row t of the gradient at displacement m = k - t,
//
//     G[c, u] += sum over v of  X[c, v] * E[v, u],      E[leading + u + PHASES (n - first_n), u] = g[m, n, p],  0 off this band
//
//     u         the gradient's columns in a tile. The PHASES phases alternate, so neighbours in u are neighbours in memory
//     v         columns of X, which alternate in the same way. v = leading is the column that first_n takes to u = 0
//     n         displacements along a row. One pass over the rows of X takes a chunk of them, from first_n on
//     p         the position of the output: the gradient's own for operand 1, X's for operand 2
//     leading   columns of X that are read before the first needed one, so that vectors are aligned
//
// A banded product takes 16 channels and SIDE columns u, with BAND columns v from v = the first u on. For leading = 0:
//
//              u 0 . . . . . . 7             u 0 . . . . . . 7
//          v 0   0                       v 0   0
//            .   1 0                       .   . 0
//            .   2 1 0                     .   1 . 0
//            .     2 1 0                   .   . 1 . 0           n - first_n is shown where E is not 0: on the left for
//            .       2 1 0                 .   2 . 1 . 0         PHASES = 1 and 3 displacements of a row. On the right for
//            .         2 1 0               .     2 . 1 . 0       PHASES = 2: columns of the other phase (dots) are multiplied
//            .           2 1 0             .       2 . 1 . 0     by 0, which costs half of the multiplications and spares
//            .             2 1 0           .         2 . 1 . 0   deinterleaving every row of X.
//            .               2 1           .           2 . 1 .
//            .                 2           .             2 . 1   Rows beyond the last n are 0.
//            .                             .               2 .
//            .                             .                 2
//     BAND-1                            BAND-1
//
// It consists of BAND / Multiply::depth MMA instructions. E is never stored: a stage holds a row of X and rows of cotangents just
// as they are in global memory, and each thread reads the elements of E that its fragments need along diagonals of the rows of
// cotangents. With row b of the band (band_row), whose row leading / PHASES is of displacement first_n,
//
//     operand 1:  E[v, u] = cotangents[b][u]         operand 2:  E[v, u] = cotangents[b][v]         b = (v - u) / PHASES
//
// Shared memory is STAGES stages, and then what the block knows of its tile (Tile and Sources). A stage:
//
//     image        +----------------------------------+
//                  | X[channel][v]                    |  TILE_CHANNELS lines of IMAGE_COLUMNS, or X[v][channel] if CHANNELS_LAST
//                  +----------------------------------+
//     cotangents   | zeros                            |  ZERO_ROWS: b < 0 of row t = 0
//                  | t = 0: zeros                     |  } BAND_ROWS, of which leading / PHASES come before the first
//                  |        displacements of a chunk  |  } displacement. The last ZERO_ROWS of them, or more, are zeros,
//                  |        zeros                     |  } which are also b < 0 of row t = 1
//                  | t = 1: zeros                     |
//                  |        ...                       |  for TILE_ROWS rows
//                  +----------------------------------+
//
// Places that copies never write are 0 from the start of each pass over the rows. Padding is thus 0 in both operands, but 0 * Inf
// off the band gives NaN. So sums that are NaN are computed again, term by term, without the zeros; factors of 32 bits are
// rounded to TF32 as before.
//
//     thread block tile   TILE_CHANNELS channels x TILE_ROWS rows x TILE_COLUMNS columns. Rows of X stream past, once for every
//                         chunk. Blocks loop over tiles only where a grid cannot hold them all
//     warp tile           CHANNEL_TILES x 16 channels, ROWS rows, COLUMN_TILES x SIDE columns
//     pipeline stage      one row of X and the cotangents that it is multiplied with. Asynchronous copies run STAGES - 1 rows
//                         ahead; with one stage, a row is copied when the row before has been multiplied, and only other blocks
//                         of the multiprocessor work meanwhile
//     epilogue            results go through shared memory, one row of each warp at a time, and leave as whole vectors
//     split-K             each split sums a range of m and n to float32 partial sums, so that chains of sums stay short and small
//                         problems fill the device; the host passes scale = 1 and sum_parts.cu scales
//
// Parameters: those of gradient_phases.cuh, scale, and displacements_at_once, the displacements of a row in a chunk (fewer in the
// last one): the whole patch if it fits, else a multiple of SIDE / PHASES, so that each chunk keeps its alignment. They fit if
// PHASES (displacements_at_once - 1) + SIDE <= BAND.
//
// Macros: INPUT, COTANGENT (the same), INDEX, PHASES (2 if the step is 2 and the stride 1, else 1), CHANNELS_LAST (1: channels of
// both images are contiguous), DEPTHS (BAND / 16), STAGES, BLOCKS (of a multiprocessor, which registers are limited for),
// CHANNEL_TILES, ROWS, COLUMN_TILES, CHANNEL_WARPS, ROW_WARPS, COLUMN_WARPS, and THREADS and SHARED, which the host computes too.
// For example FlowNetC in half: PHASES=2 CHANNELS_LAST=0 DEPTHS=3 STAGES=3 BLOCKS=1 CHANNEL_TILES=4 ROWS=2 COLUMN_TILES=4
// CHANNEL_WARPS=2 ROW_WARPS=2 COLUMN_WARPS=2 THREADS=256 SHARED=142160, and displacements_at_once is 21, the whole patch. A tile
// is 128 channels x 4 rows x 64 columns.
#include "correlation/gradient_phases.cuh"
#include "common/mma.cuh"

typedef Multiplier<INPUT> Multiply;

template <class First, class Second>
constexpr bool same_type = false;
template <class Type>
constexpr bool same_type<Type, Type> = true;
static_assert(same_type<COTANGENT, INPUT>, "both operands of an MMA instruction have one type");
static_assert(PHASES == 1 || PHASES == 2, "a register of 16-bit elements has at most two phases");

constexpr int SIDE = 8;
constexpr int BAND = 2 * SIDE * DEPTHS;
constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr bool TWO_PER_REGISTER = sizeof(INPUT) == 2;

constexpr int TILE_CHANNELS = 2 * SIDE * CHANNEL_TILES * CHANNEL_WARPS;
constexpr int TILE_ROWS = ROWS * ROW_WARPS;
constexpr int TILE_COLUMNS = SIDE * COLUMN_TILES * COLUMN_WARPS;
constexpr int IMAGE_COLUMNS = TILE_COLUMNS + BAND - SIDE;

// A row of X in a stage: lines of columns, one for each channel, or of channels if they are contiguous. load_matrices reads eight
// lines at once, which the pitch puts into different banks. It cannot transpose elements of 32 bits: lanes then read eight
// channels from each of four lines, and the pitch puts these into different banks.
constexpr int IMAGE_LINES = CHANNELS_LAST ? IMAGE_COLUMNS : TILE_CHANNELS;
constexpr int IMAGE_LINE = CHANNELS_LAST ? TILE_CHANNELS : IMAGE_COLUMNS;
constexpr int IMAGE_PITCH = TWO_PER_REGISTER || !CHANNELS_LAST ? pitch(IMAGE_LINE, VECTOR, SIDE) : IMAGE_LINE + SIDE;
constexpr int IMAGE_ELEMENTS = IMAGE_LINES * IMAGE_PITCH;

// Rows of cotangents for a row t: at most BAND_ROWS - ZERO_ROWS are used.
constexpr int BAND_ROWS = BAND / PHASES;
// Rows of zeros between them: (v - u) / PHASES reaches -(SIDE / PHASES - 1).
constexpr int ZERO_ROWS = SIDE / PHASES - 1;
// The pitch puts the diagonals that a warp reads into different banks. For elements of 16 bits it is an odd number of vectors;
// for elements of 32 bits, and so banks, it is 8 more than a multiple of 16.
constexpr int BAND_PITCH =
    TWO_PER_REGISTER ? pitch(IMAGE_COLUMNS, VECTOR, SIDE) : round_up(IMAGE_COLUMNS + SIDE, 2 * SIDE) - SIDE;
constexpr int STAGE_ELEMENTS = IMAGE_ELEMENTS + (ZERO_ROWS + TILE_ROWS * BAND_ROWS) * BAND_PITCH;

// Results of one row of each warp in the epilogue: [row warp][channel][column].
template <class Result>
constexpr int result_pitch = pitch(TILE_COLUMNS, VectorOf<Result>::width, SIDE);
constexpr int RESULT_BYTES = ROW_WARPS * TILE_CHANNELS * result_pitch<float> * sizeof(float);

// The last bytes of shared memory hold a Tile and its Sources. The host reserves as many; an assertion before the kernel checks
// that they fit.
constexpr int KEPT_BYTES = 512;

static_assert(THREADS == WARP * CHANNEL_WARPS * ROW_WARPS * COLUMN_WARPS, "the host and the kernel agree on the threads");
static_assert(SHARED - KEPT_BYTES >= STAGES * STAGE_ELEMENTS * sizeof(INPUT), "the stages fit into shared memory");
static_assert(SHARED - KEPT_BYTES >= RESULT_BYTES, "the results of the epilogue fit into shared memory");
static_assert((TILE_ROWS & (TILE_ROWS - 1)) == 0 && (THREADS & (THREADS - 1)) == 0, "threads are dealt out by powers of two");

constexpr int WARP_BITS = 5;
static_assert(1 << WARP_BITS == WARP, "the threads of a warp are counted in WARP_BITS bits");

// Returns the greatest power of two that divides a number which is not 0.
DEVICE int lowest_bit(unsigned long long number) { return static_cast<int>(number & (~number + 1)); }

// Returns the offset in a stage of a band's row for row t of the tile.
DEVICE int cotangent_row(int t, int band_row) { return IMAGE_ELEMENTS + (ZERO_ROWS + t * BAND_ROWS + band_row) * BAND_PITCH; }

// Keeps a struct in shared memory, as registers are full of sums: one thread stores it and all load the members that they need.
template <class Struct>
struct Kept {
    static constexpr int count = ceil_div(sizeof(Struct), sizeof(Words16));

    DEVICE static void store(Words16* to, const Struct& value) {
        Words16 words[count] = {};
        memcpy(words, &value, sizeof value);
#pragma unroll
        for (int i = 0; i < count; i++) store_shared_16(to + i, words[i]);
    }

    DEVICE static Struct load(const Words16* from) {
        Words16 words[count];
#pragma unroll
        for (int i = 0; i < count; i++) words[i] = load_shared_16(from + i);
        Struct value;
        memcpy(&value, words, sizeof value);
        return value;
    }
};

// The stream of rows -----------------------------------------------------------------------------------------------------------

// The vectors of a line that are copied: all that are inside the images. The threads that share a line, a power of two, are as
// many as it has vectors, or a warp if it has more.
struct Vectors {
    Range inside;  // elements of the line
    int width;  // elements of a vector
    int thread_bits;  // 1 << thread_bits threads share a line

    DEVICE int first_element() const { return inside.begin + (threadIdx.x & ((1 << thread_bits) - 1)) * width; }
    // Returns how many elements are between the beginnings of a thread's vector and of its next one.
    DEVICE int elements_between() const { return width << thread_bits; }
    // Returns the number of the threads that share a line with this one, among all such groups of the block.
    DEVICE uint32 thread_group() const { return threadIdx.x >> thread_bits; }
    DEVICE int thread_groups() const { return THREADS >> thread_bits; }
};

// Returns the vectors of lines, as wide as all are aligned: `strides` has the bits of all that is added to `data`.
DEVICE Vectors vectors_of(Range inside, long long element_stride, const INPUT* data, long long strides) {
    Vectors vectors = {inside, 1, 0};
    if (inside.begin >= inside.end) vectors.inside = Range{0, 0};
    if (element_stride == 1) {
        const unsigned long long address = reinterpret_cast<unsigned long long>(data) / sizeof(INPUT);
        vectors.width = lowest_bit(address | strides | vectors.inside.begin | vectors.inside.end | VECTOR);
    }
    while (vectors.thread_bits < WARP_BITS && vectors.width << vectors.thread_bits < vectors.inside.end - vectors.inside.begin)
        vectors.thread_bits++;
    return vectors;
}

// The lines that are copied for a row k of X: its channels (or its columns, if channels are contiguous), or the cotangents of a
// chunk's displacements n. A thread copies vectors of every `lines_between`-th line.
struct Source {
    const INPUT* data;  // the address for k = 0 of line 0, element 0
    long long step_stride;  // elements from k to k + 1
    long long line_stride, element_stride;  // elements from a line to the next one, and within a line
    long long thread_stride;  // elements from a line of a thread to its next one
    Vectors vectors;
    Range lines;
    int first_line_bits;  // 1 << first_line_bits threads begin with the same line
    int lines_between;  // lines from one of a thread to its next one
    int leading_rows;  // for cotangents: rows of the band before the first displacement's
    int skewed;  // 1 for the cotangents of operand 2, whose elements are columns v: each line is needed from another v on

    DEVICE int first_line() const { return lines.begin + (threadIdx.x >> first_line_bits); }
};

// The rows t of the tile, each with cotangents of its own.
struct TileRows {
    long long stride;  // elements from the cotangents of t to those of t + 1
    int row;  // the index of t = 0
    Range own_range, m;  // rows of the gradient that have products, and displacements

    DEVICE bool multiplies(int t, int k) const { return own_range.contains(row + t) && m.contains(k - row - t); }
    // Returns whether row k of X is multiplied for one of the rows of a warp, from t on.
    DEVICE bool multiplies_any(int t, int k) const {
        const Range rows = Range{k - m.end + 1, k - m.begin + 1}.intersect(own_range).intersect(Range{row + t, row + t + ROWS});
        return rows.begin < rows.end;
    }
};

// Returns how many columns before the first displacement's v = 0 lies, so that copies of X are aligned. It is a multiple of
// PHASES, and at most what the band has left over. It depends on positions only, not on addresses, so the bits of the sums do not
// depend on addresses either.
DEVICE int leading_columns_of(const Tile& tile, int first_n, int displacements_at_once) {
    const int column = tile.x.other_origin + (tile.column + PHASES * first_n) * tile.x.step;
#pragma unroll
    for (int multiple = VECTOR; multiple > 1; multiple /= 2) {
        const int before = column & (multiple - 1);
        if (before % PHASES == 0 && before <= BAND - SIDE - PHASES * (displacements_at_once - 1)) return before;
    }
    return 0;
}

// The columns of X that a chunk is multiplied with.
struct ChunkColumns {
    int leading_columns;  // columns from v = 0 to the one that the first displacement takes to u = 0
    int first_column;  // the index of v = 0
    int displacements;  // the most of a chunk

    DEVICE ChunkColumns(const Tile& tile, int first_n, int displacements_at_once) {
        leading_columns = leading_columns_of(tile, first_n, displacements_at_once);
        first_column = tile.column + PHASES * first_n - leading_columns;
        displacements = displacements_at_once;
    }
    // Returns the columns v that are inside the image and needed.
    DEVICE Range inside(const Tile& tile) const {
        const int needed = round_up(TILE_COLUMNS + leading_columns + PHASES * (displacements - 1), VECTOR);
        return Range{tile.x.other_range.begin - first_column, tile.x.other_range.end - first_column}.intersect(
            Range{0, min(needed, IMAGE_COLUMNS)});
    }
};

// Deals the lines out to threads. There are `copies` of each line, for different rows of the tile, which are dealt out too.
DEVICE void deal_lines(Source& source, Range lines, int copies) {
    source.lines = lines;
    source.first_line_bits = source.vectors.thread_bits;
    for (int threads = 1; threads < copies; threads *= 2) source.first_line_bits++;
    source.lines_between = max(THREADS >> source.first_line_bits, 1);
    source.thread_stride = source.lines_between * source.line_stride;
}

DEVICE Source image_source(const Tile& tile, const Image& image, int first_n, int displacements_at_once, int channels) {
    const ChunkColumns chunk(tile, first_n, displacements_at_once);
    const long long column_stride = static_cast<long long>(tile.x.step) * image.column_stride;
    const Range columns = chunk.inside(tile), channels_inside = {0, min(channels - tile.channel, TILE_CHANNELS)};
    Source source;
    source.data = image.data + (tile.sample * image.batch_stride + tile.channel * image.channel_stride +
                                static_cast<long long>(tile.y.other_origin) * image.row_stride +
                                static_cast<long long>(tile.x.other_origin + chunk.first_column * tile.x.step) *
                                    image.column_stride);
    source.step_stride = static_cast<long long>(tile.y.step) * image.row_stride;
    source.line_stride = CHANNELS_LAST ? column_stride : image.channel_stride;
    source.element_stride = CHANNELS_LAST ? image.channel_stride : column_stride;
    source.vectors = vectors_of(CHANNELS_LAST ? channels_inside : columns, source.element_stride, source.data,
                                source.step_stride | source.line_stride);
    deal_lines(source, CHANNELS_LAST ? columns : channels_inside, 1);
    source.leading_rows = source.skewed = 0;
    return source;
}

DEVICE Source cotangent_source(const Tile& tile, const Cotangent& cotangent, int first_n, int displacements_at_once,
                               TileRows& tile_rows) {
    const auto along_y = [&](int t, int k) { return tile.y.offset(t, k, k - t, cotangent.m_stride, cotangent.row_stride); };
    const auto along_x = [&](int u, int v, int n) { return tile.x.offset(u, v, n, cotangent.n_stride, cotangent.column_stride); };
    const ChunkColumns chunk(tile, first_n, displacements_at_once);
    const Range own_columns = {tile.x.own_range.begin - tile.column, tile.x.own_range.end - tile.column};
    tile_rows = TileRows{along_y(1, 0) - along_y(0, 0), tile.row, tile.y.own_range, tile.m};
    Source source;
    source.data = cotangent.data +
                  (tile.sample * cotangent.batch_stride + along_y(tile.row, 0) +
                   along_x(tile.column, chunk.first_column, first_n));
    source.step_stride = along_y(0, 1) - along_y(0, 0);
    source.line_stride = along_x(0, 0, 1) - along_x(0, 0, 0);
    source.element_stride = along_x(1, 1, 0) - along_x(0, 0, 0);
    const Range columns = tile.x.operand2 ? chunk.inside(tile) : own_columns.intersect(Range{0, TILE_COLUMNS});
    source.vectors = vectors_of(columns, source.element_stride, source.data,
                                source.step_stride | source.line_stride | tile_rows.stride);
    deal_lines(source, Range{0, min(displacements_at_once, tile.n.end - first_n)}, TILE_ROWS);
    source.leading_rows = chunk.leading_columns / PHASES;
    source.skewed = tile.x.operand2;
    return source;
}

// Loading ----------------------------------------------------------------------------------------------------------------------

// The lines that a thread copies a vector of.
struct Copies {
    const INPUT* from;  // the vector of the first line
    int to, pitch;  // its offset in shared memory, and elements from a line to the next one there
    int first_line, end, lines_between;
    long long thread_stride;  // elements from a line of the thread to its next one in global memory
    bool valid;  // otherwise the vectors become 0
};

// Copies vectors asynchronously; the loop's branch and address arithmetic serve four copies.
template <int width>
DEVICE void copy_vectors(Copies copies, INPUT* shared) {
#pragma unroll 4
    for (int line = copies.first_line; line < copies.end; line += copies.lines_between) {
        copy_async<width * sizeof(INPUT)>(shared + copies.to, copies.from, copies.valid);
        copies.from += copies.thread_stride;
        copies.to += copies.lines_between * copies.pitch;
    }
}

// Copies single elements that are too small for asynchronous copies: some are loaded at once, so that a thread waits only once
// for all of them.
DEVICE void copy_small_elements(Copies copies, INPUT* shared) {
    constexpr int at_once = 8;
#pragma unroll 1
    for (int line = copies.first_line; line < copies.end; line += at_once * copies.lines_between) {
        INPUT values[at_once] = {};
#pragma unroll
        for (int i = 0; i < at_once; i++, copies.from += copies.thread_stride)
            if (line + i * copies.lines_between < copies.end && copies.valid) values[i] = load_element(copies.from);
#pragma unroll
        for (int i = 0; i < at_once; i++, copies.to += copies.lines_between * copies.pitch)
            if (line + i * copies.lines_between < copies.end) store_shared(shared + copies.to, values[i]);
    }
}

// Leaves out the lines in which a vector of columns v is off the band: the line of the displacement with number i in the chunk is
// needed from v = leading + PHASES i on, for TILE_COLUMNS columns.
DEVICE Copies needed_copies(const Source& source, Copies copies, int column) {
    // The columns by which u of the vector is beyond the tile's last one: in line 0, and in the thread's first line.
    const int beyond_in_line0 = column - source.leading_rows * PHASES - TILE_COLUMNS + 1;
    const int beyond = max(beyond_in_line0 - copies.first_line * PHASES, 0);
    const int skipped = ceil_div(ceil_div(beyond, PHASES), copies.lines_between);
    const int last = column + source.vectors.width - 1 - source.leading_rows * PHASES;
    copies.first_line += skipped * copies.lines_between;
    copies.end = min(copies.end, last < 0 ? 0 : last / PHASES + 1);
    copies.from += skipped * copies.thread_stride;
    copies.to += skipped * copies.lines_between * copies.pitch;
    return copies;
}

// Copies a thread's vectors of all its lines. Asynchronous copies move 16, 8 or 4 bytes: VECTOR elements, a half or a quarter.
DEVICE void copy_lines(const Source& source, Copies copies, INPUT* shared) {
    const Vectors& vectors = source.vectors;
    const int bytes = vectors.width * sizeof(INPUT);
#pragma unroll 1
    for (int column = vectors.first_element(); column < vectors.inside.end; column += vectors.elements_between()) {
        const Copies needed = source.skewed ? needed_copies(source, copies, column) : copies;
        if (bytes > 8) copy_vectors<VECTOR>(needed, shared);
        else if (bytes > 4) copy_vectors<VECTOR / 2>(needed, shared);
        else if (bytes > 2) copy_vectors<VECTOR / 4>(needed, shared);
        else copy_small_elements(needed, shared);
        copies.from += vectors.elements_between() * source.element_stride;
        copies.to += vectors.elements_between();
    }
}

// Returns the first vector that a thread copies at k.
DEVICE const INPUT* first_vector(const Source& source, int k) {
    return source.data + (k * source.step_stride + source.first_line() * source.line_stride +
                          source.vectors.first_element() * source.element_stride);
}

DEVICE void load_image(const Source& source, const INPUT* from, int stage, INPUT* shared) {
    const int first_line = source.first_line(), to = stage + first_line * IMAGE_PITCH + source.vectors.first_element();
    copy_lines(source,
               Copies{from, to, IMAGE_PITCH, first_line, source.lines.end, source.lines_between, source.thread_stride, true},
               shared);
}

// Loads the cotangents that row k of X is multiplied with. Rows t without products at k become 0 if other rows of their warp have
// some.
DEVICE void load_cotangents(const Source& source, const TileRows& tile_rows, int k, const INPUT* from, int stage, INPUT* shared) {
    const int first_line = source.first_line();
    const int to = stage + cotangent_row(0, first_line + source.leading_rows) + source.vectors.first_element();
#pragma unroll 1
    for (int t = source.vectors.thread_group() % TILE_ROWS; t < TILE_ROWS; t += source.vectors.thread_groups())
        if (tile_rows.multiplies_any(t - t % ROWS, k))
            copy_lines(source,
                       Copies{from + t * tile_rows.stride, to + t * BAND_ROWS * BAND_PITCH, BAND_PITCH, first_line,
                              source.lines.end, source.lines_between, source.thread_stride, tile_rows.multiplies(t, k)},
                       shared);
}

DEVICE void clear(INPUT* shared) {
    for (int i = threadIdx.x * VECTOR; i < STAGES * STAGE_ELEMENTS; i += THREADS * VECTOR) store_shared_16(shared + i, Words16{});
}

// Banded products --------------------------------------------------------------------------------------------------------------

// The first element of the warp's tile within that of its block.
struct WarpOrigin {
    int channel, row, column;

    DEVICE WarpOrigin() {
        int warp = threadIdx.x / WARP;
        channel = digit(warp, CHANNEL_WARPS) * (2 * SIDE * CHANNEL_TILES);
        column = digit(warp, COLUMN_WARPS) * (SIDE * COLUMN_TILES);
        row = warp * ROWS;
    }
};

struct WarpSums {
    float of[ROWS][CHANNEL_TILES][COLUMN_TILES][4];
};

// A fragment of X has 16 channels and Multiply::depth columns v: 2 SIDE of 16-bit elements, or SIDE of TF32. A column tile takes
// FRAGMENTS of them, FRAGMENT_SIDES * SIDE columns apart, and the next tile those that begin SIDE columns later. So the fragments
// of all column tiles begin at FRAGMENT_POSITIONS columns, SIDE apart.
constexpr int FRAGMENTS = BAND / Multiply::depth;
constexpr int FRAGMENT_SIDES = Multiply::depth / SIDE;
constexpr int FRAGMENT_POSITIONS = COLUMN_TILES + (FRAGMENTS - 1) * FRAGMENT_SIDES;

// Loads a fragment of X, in the order of registers that mma.cuh shows, from its first channel and column on.
DEVICE void load_image_fragment(uint32 (&a)[4], const INPUT* image) {
    const int lane = threadIdx.x % WARP;
    if constexpr (TWO_PER_REGISTER) {
        const int row = lane % SIDE, lower = lane / SIDE % 2 * SIDE, right = lane / (2 * SIDE) * SIDE;
        load_matrices<4, CHANNELS_LAST>(a, image + (CHANNELS_LAST ? (right + row) * IMAGE_PITCH + lower
                                                                  : (row + lower) * IMAGE_PITCH + right));
    } else if constexpr (CHANNELS_LAST) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const INPUT* const from = image + (lane % 4 + r / 2 * (SIDE / 2)) * IMAGE_PITCH + lane / 4 + r % 2 * SIDE;
            a[r] = load_shared(reinterpret_cast<const uint32*>(from));
        }
    } else {
        load_matrices<4, false>(a, image + lane % (2 * SIDE) * IMAGE_PITCH + lane / (2 * SIDE) * (SIDE / 2));
    }
#pragma unroll
    for (int r = 0; r < 4; r++) a[r] = Multiply::rounded(a[r]);
}

// Reads fragments of E along diagonals of the rows of cotangents. A fragment has two registers; in register r, lane l has column
// u = l / 4 of the column tile, and of the columns v of the fragment
//
//     16 bits:  r SIDE + 2 (l % 4) and the next one          TF32:  r SIDE / 2 + l % 4
struct Diagonals {
    int register0;  // the offset of the element for register 0
    int between_registers;  // elements from the one for a register to the one for the next
    int to_second_element;  // for 16 bits and one phase: elements from the first of a register to the second
    uint32 mask;  // for two phases: the bits of a register that are not 0 because of the lane's phase

    DEVICE explicit Diagonals(bool operand2) {
        const int lane = threadIdx.x % WARP, u = lane / 4, v = TWO_PER_REGISTER ? lane % 4 * 2 : lane % 4;
        constexpr int apart = TWO_PER_REGISTER ? SIDE : SIDE / 2;
        // Neighbouring phases share a register of 16-bit elements. Lanes without an element read one of a neighbour's.
        const int band_row = v / PHASES - u / PHASES;
        const int own_column = TWO_PER_REGISTER && PHASES == 2 ? u - u % 2 : u;
        register0 = band_row * BAND_PITCH + (operand2 ? v : own_column);
        between_registers = apart / PHASES * BAND_PITCH + (operand2 ? apart : 0);
        to_second_element = BAND_PITCH + operand2;
        mask = phase_mask(u, v);
    }

    // Returns the bits of a register for the columns of X, from v on, that are of the phase of column u.
    DEVICE static uint32 phase_mask(int u, int v) {
        if constexpr (PHASES == 1) return ~0u;
        else if constexpr (TWO_PER_REGISTER) return 0xffffu << u % 2 * 16;
        else return (u + v) % 2 == 0 ? ~0u : 0u;
    }

    // Loads a fragment of a column tile; `cotangents` points to row 0 of the band, at the first column of the tile.
    DEVICE void load(uint32 (&b)[2], const INPUT* cotangents, int fragment) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const INPUT* const from = cotangents + (register0 + (2 * fragment + r) * between_registers);
            if constexpr (TWO_PER_REGISTER && PHASES == 1) {
                const uint16* const bits = reinterpret_cast<const uint16*>(from);
                b[r] = load_shared(bits) | static_cast<uint32>(load_shared(bits + to_second_element)) << 16;
            } else {
                b[r] = Multiply::rounded(load_shared(reinterpret_cast<const uint32*>(from)) & mask);
            }
        }
    }
};

// Adds the banded products of a row of X: each of its fragments is loaded once and multiplied for all column tiles that take it.
DEVICE void add_row(WarpSums& sums, const WarpOrigin& origin, const Diagonals& diagonals, const INPUT* stage) {
    const INPUT* const image = stage + (CHANNELS_LAST ? origin.column * IMAGE_PITCH + origin.channel
                                                      : origin.channel * IMAGE_PITCH + origin.column);
    const INPUT* const cotangents = stage + cotangent_row(origin.row, 0) + origin.column;
#pragma unroll
    for (int position = 0; position < FRAGMENT_POSITIONS; position++) {
        uint32 a[CHANNEL_TILES][4];
#pragma unroll
        for (int c = 0; c < CHANNEL_TILES; c++)
            load_image_fragment(a[c], image + (CHANNELS_LAST ? position * SIDE * IMAGE_PITCH + c * 2 * SIDE
                                                             : c * 2 * SIDE * IMAGE_PITCH + position * SIDE));
#pragma unroll
        for (int fragment = 0; fragment < FRAGMENTS; fragment++) {
            const int j = position - fragment * FRAGMENT_SIDES;
            if (j < 0 || j >= COLUMN_TILES) continue;
#pragma unroll
            for (int q = 0; q < ROWS; q++) {
                uint32 b[2];
                diagonals.load(b, cotangents + q * BAND_ROWS * BAND_PITCH + j * SIDE, fragment);
#pragma unroll
                for (int c = 0; c < CHANNEL_TILES; c++) Multiply::add(sums.of[q][c][j], a[c], b);
            }
        }
    }
}

// Sums that are NaN ------------------------------------------------------------------------------------------------------------

// Returns a factor as an MMA instruction takes it.
DEVICE half as_factor(half element) { return element; }
DEVICE bfloat16 as_factor(bfloat16 element) { return element; }
DEVICE float as_factor(float element) { return float_of_bits(Multiply::rounded(bits_of_float(element))); }

// Returns an element of the gradient, summed term by term as in gradient_phases.cuh, row by row.
DEVICE float recomputed_sum(const Image& image, const Cotangent& cotangent, const Tile& tile, int channel, int row, int u) {
    const int own_row = tile.row + row, own_column = tile.column + u;
    const INPUT* const plane =
        image.data + (tile.sample * image.batch_stride + (tile.channel + channel) * image.channel_stride);
    const COTANGENT* const sample = cotangent.data + tile.sample * cotangent.batch_stride;
    float sum = 0;
#pragma unroll 1
    for (int m = tile.m.begin; m < tile.m.end; m++) {
        float row_sum = 0;
        if (!tile.y.own_range.contains(own_row) || !tile.y.other_range.contains(own_row + m)) continue;
        const INPUT* const pixels = plane + (tile.y.other_origin + (own_row + m) * tile.y.step) * image.row_stride;
        const COTANGENT* const factors =
            sample + tile.y.offset(own_row, own_row + m, m, cotangent.m_stride, cotangent.row_stride);
#pragma unroll 1
        for (int n = tile.n.begin; n < tile.n.end; n++) {
            const int other_column = own_column + PHASES * n;
            if (!tile.x.own_range.contains(own_column) || !tile.x.other_range.contains(other_column)) continue;
            const INPUT x = load_element(pixels + (tile.x.other_origin + other_column * tile.x.step) * image.column_stride);
            const COTANGENT g = load_element(
                factors + tile.x.offset(own_column, other_column, n, cotangent.n_stride, cotangent.column_stride));
            row_sum = multiply_add(widen(as_factor(x)), widen(as_factor(g)), row_sum);
        }
        sum += row_sum;
    }
    return sum;
}

// Returns the address of a result in shared memory. Result may be const.
template <class Result>
DEVICE Result* result_at(Result* results, int row_warp, int channel, int u) {
    return results + (row_warp * TILE_CHANNELS + channel) * result_pitch<Result> + u;
}

// Recomputes results that are NaN. Shared memory holds the results of row q of each warp.
template <class Result>
DEVICE void recompute_nans(const Image& image, const Cotangent& cotangent, const Tile& tile, int q, int channels, Sum scale,
                           Result* results) {
#pragma unroll 1
    for (int number = threadIdx.x; number < ROW_WARPS * TILE_CHANNELS * TILE_COLUMNS; number += THREADS) {
        int index = number;
        const int u = digit(index, TILE_COLUMNS), channel = digit(index, TILE_CHANNELS);
        Result* const at = result_at(results, index, channel, u);
        const float result = widen(load_shared(at));
        if (result == result || tile.channel + channel >= channels) continue;
        const float sum = recomputed_sum(image, cotangent, tile, channel, index * ROWS + q, u);
        store_shared(at, Narrow<Result>::from(sum * scale));
    }
}

// Results of neighbouring columns, which are stored together.
template <class Result>
struct __attribute__((aligned(2 * sizeof(Result)))) Neighbours {
    Result of[2];
};

// Epilogue ---------------------------------------------------------------------------------------------------------------------

DEVICE bool any_nan(const WarpSums& sums) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < ROWS * CHANNEL_TILES * COLUMN_TILES * 4; i++) {
        const float sum = sums.of[i / (CHANNEL_TILES * COLUMN_TILES * 4)][i / (COLUMN_TILES * 4) % CHANNEL_TILES]
                                 [i / 4 % COLUMN_TILES][i % 4];
        any = any || sum != sum;
    }
    return any;
}

// Stores the sums of one row of each warp to shared memory, scaled and rounded.
template <class Result>
DEVICE void store_shared_results(const float (&sums)[CHANNEL_TILES][COLUMN_TILES][4], const WarpOrigin& origin, Sum scale,
                                 Result* results) {
    const int lane = threadIdx.x % WARP;
    Result* const target = result_at(results, origin.row / ROWS, origin.channel + lane / 4, origin.column + lane % 4 * 2);
#pragma unroll
    for (int c = 0; c < CHANNEL_TILES; c++)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                const Neighbours<Result> two = {{Narrow<Result>::from(sums[c][j][2 * lower] * scale),
                                                 Narrow<Result>::from(sums[c][j][2 * lower + 1] * scale)}};
                Result* const to = target + (c * 2 + lower) * SIDE * result_pitch<Result> + j * SIDE;
                store_shared(reinterpret_cast<Neighbours<Result>*>(to), two);
            }
}

// The address of a tile's result, and its strides.
template <class Result>
struct Target {
    Result* data;  // the address of the tile's first row, channel and column
    long long channel_stride, row_stride, column_stride;
    int rows, channels, columns;  // of the tile, as many as are inside the image

    DEVICE Target(const Gradient<Result>& to, const Tile& tile, int all_channels) {
        data = to.data + (tile.split * to.split_stride + tile.sample * to.batch_stride + tile.channel * to.channel_stride +
                          static_cast<long long>(tile.y.origin + tile.row * tile.y.step) * to.row_stride +
                          static_cast<long long>(tile.x.origin + tile.column * tile.x.step) * to.column_stride);
        channel_stride = to.channel_stride;
        row_stride = static_cast<long long>(tile.y.step) * to.row_stride;
        column_stride = static_cast<long long>(tile.x.step) * to.column_stride;
        rows = tile.y.size - tile.row;
        channels = min(all_channels - tile.channel, TILE_CHANNELS);
        columns = min(tile.x.size - tile.column, TILE_COLUMNS);
    }

    DEVICE Result* at(int row, int channel, int u) const {
        return data + (channel * channel_stride + row * row_stride + u * column_stride);
    }
    // Returns whether all vectors are aligned if lines of them are `line_stride` elements apart.
    DEVICE bool aligned(long long line_stride) const {
        const unsigned long long all = reinterpret_cast<unsigned long long>(data) / sizeof(Result) | line_stride | row_stride;
        return all % VectorOf<Result>::width == 0;
    }
};

// Stores vectors of columns; the loop's branch serves four of them.
template <class Result>
DEVICE void store_rows(const Target<Result>& to, int q, const Result* results) {
    constexpr int vector = VectorOf<Result>::width, vectors = TILE_COLUMNS / vector;
#pragma unroll 4
    for (int number = threadIdx.x; number < ROW_WARPS * TILE_CHANNELS * vectors; number += THREADS) {
        const int u = number % vectors * vector, channel = number / vectors % TILE_CHANNELS;
        const int row_warp = number / vectors / TILE_CHANNELS, row = row_warp * ROWS + q;
        if (row >= to.rows || channel >= to.channels || u >= to.columns) continue;
        const Result* const from = result_at(results, row_warp, channel, u);
        Result* const target = to.at(row, channel, u);
        if (u + vector <= to.columns) store_global_16(target, load_shared_16(from));
        else
#pragma unroll 1
            for (int i = 0; i < to.columns - u; i++) store_global(target + i, load_shared(from + i));
    }
}

// Stores vectors of channels: neighbouring threads store the parts of a sector, and then other columns.
template <class Result>
DEVICE void store_pixels(const Target<Result>& to, int q, const Result* results) {
    constexpr int vector = VectorOf<Result>::width, vectors = TILE_CHANNELS / vector;
    constexpr int lanes = SECTOR / sizeof(Words16);
#pragma unroll 1
    for (int number = threadIdx.x; number < ROW_WARPS * TILE_COLUMNS * vectors; number += THREADS) {
        int index = number;
        const int part = digit(index, lanes), u = digit(index, TILE_COLUMNS);
        const int channel = (digit(index, vectors / lanes) * lanes + part) * vector, row = index * ROWS + q;
        if (row >= to.rows || channel >= to.channels || u >= to.columns) continue;
        Result values[vector];
#pragma unroll
        for (int i = 0; i < vector; i++) values[i] = load_shared(result_at(results, index, channel + i, u));
        Result* const target = to.at(row, channel, u);
        if (channel + vector <= to.channels) {
            Words16 words;
            memcpy(&words, values, sizeof words);
            store_global_16(target, words);
        } else {
#pragma unroll
            for (int i = 0; i < vector; i++)
                if (channel + i < to.channels) store_global(target + i, values[i]);
        }
    }
}

// Stores elements one by one, for any strides; the loop's branch serves four of them.
template <class Result>
DEVICE void store_elements(const Target<Result>& to, int q, const Result* results) {
    const Lanes lanes(to.channel_stride == 1 && to.column_stride != 1, sizeof(Result));
    const int first_channel = lanes.channel + threadIdx.x / WARP * lanes.channels, stride = lanes.channels * (THREADS / WARP);
#pragma unroll 1
    for (int row_warp = 0; row_warp < ROW_WARPS; row_warp++)
#pragma unroll 1
        for (int u = lanes.column; u < to.columns; u += lanes.columns)
#pragma unroll 4
            for (int channel = first_channel; channel < to.channels; channel += stride)
                if (row_warp * ROWS + q < to.rows)
                    store_global(to.at(row_warp * ROWS + q, channel, u), load_shared(result_at(results, row_warp, channel, u)));
}

template <class Result>
DEVICE void store_results(const Target<Result>& to, int q, const Result* results) {
    if (to.column_stride == 1 && to.aligned(to.channel_stride)) store_rows(to, q, results);
    else if (to.channel_stride == 1 && to.aligned(to.column_stride)) store_pixels(to, q, results);
    else store_elements(to, q, results);
}

// Kernel -----------------------------------------------------------------------------------------------------------------------

// Returns the gradient with elements of another type, which partial sums have.
template <class Result>
DEVICE Gradient<Result> of_type(const Gradient<INPUT>& to) {
    Result* const data = reinterpret_cast<Result*>(to.data);
    return Gradient<Result>{data, to.split_stride, to.batch_stride, to.channel_stride, to.row_stride, to.column_stride};
}

// The sources of a block for a chunk of displacements.
struct Sources {
    Source image, cotangents;
    TileRows tile_rows;
};

// Adds the banded products of the rows k of X, for the chunk that the sources were made for. Rows are copied STAGES - 1 ahead;
// with one stage, each is waited for right after its copies were issued.
DEVICE void add_rows(WarpSums& sums, const WarpOrigin& origin, const Diagonals& diagonals, Range rows, const Words16* kept,
                     INPUT* shared) {
    const INPUT *image = first_vector(Kept<Sources>::load(kept).image, rows.begin),
                *cotangents = first_vector(Kept<Sources>::load(kept).cotangents, rows.begin);
    const auto after = [](int stage) { return stage == (STAGES - 1) * STAGE_ELEMENTS ? 0 : stage + STAGE_ELEMENTS; };
    int to = 0, from = after(0);  // the stages that are filled and read
#pragma unroll 1
    for (int k = rows.begin - (STAGES - 1); k < rows.end; k++) {
        copy_async_wait<STAGES < 2 ? 0 : STAGES - 2>();
        __syncthreads();  // row k is there, and nobody reads row k - 1 any more, whose stage is filled now
        const Sources sources = Kept<Sources>::load(kept);
        if (k + STAGES - 1 < rows.end) {
            load_image(sources.image, image, to, shared);
            load_cotangents(sources.cotangents, sources.tile_rows, k + STAGES - 1, cotangents, to, shared);
            image += sources.image.step_stride;
            cotangents += sources.cotangents.step_stride;
        }
        copy_async_commit();
        if constexpr (STAGES == 1) {  // the copies of row k were issued only now
            copy_async_wait<0>();
            __syncthreads();
        }
        if (k >= rows.begin && sources.tile_rows.multiplies_any(origin.row, k)) add_row(sums, origin, diagonals, shared + from);
        to = after(to);
        from = after(from);
    }
}

// Stores the tile's gradient, one row of each warp at a time.
template <class Result>
DEVICE void store_tile(const Gradient<Result>& gradient, const Image& image, const Cotangent& cotangent, const Tile& tile,
                       const WarpSums& sums, const WarpOrigin& origin, int channels, Sum scale, INPUT* shared) {
    Result* const results = reinterpret_cast<Result*>(shared);
    const Target<Result> target(gradient, tile, channels);
    const bool recomputes = __syncthreads_or(any_nan(sums));
#pragma unroll 1
    for (int q = 0; q < ROWS; q++) {
#pragma unroll
        for (int row = 0; row < ROWS; row++)
            if (row == q) store_shared_results(sums.of[row], origin, scale, results);
        __syncthreads();
        if (recomputes) {
            recompute_nans(image, cotangent, tile, q, channels, scale, results);
            __syncthreads();
        }
        store_results(target, q, results);
        __syncthreads();
    }
}

static_assert((Kept<Tile>::count + Kept<Sources>::count) * sizeof(Words16) <= KEPT_BYTES, "a Tile and its Sources fit");

KERNEL_OF_BLOCKS(THREADS, BLOCKS)
gradient_mma(GRADIENT_PARAMETERS(INPUT), int displacements_at_once, Sum scale) {
    DYNAMIC_SHARED_ARRAY(INPUT, shared);
    Words16* const kept_tile = reinterpret_cast<Words16*>(shared) + (SHARED - KEPT_BYTES) / sizeof(Words16);
    Words16* const kept_sources = kept_tile + Kept<Tile>::count;
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Cotangent g = COTANGENT_OF_PARAMETERS;
    const Gradient<INPUT> result1 = GRADIENT_OF_PARAMETERS(1), result2 = GRADIENT_OF_PARAMETERS(2);
    const Splits splits = SPLITS_OF_PARAMETERS;
    const WarpOrigin origin;
#pragma unroll 1
    for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
        const bool operand2 = number >= tiles1;
        Image image = image2;
        if (operand2) image = image1;
        if (threadIdx.x == 0) {
            const Tile tile =
                tile_of(operand2 ? number - tiles1 : number, Extent{TILE_CHANNELS, TILE_ROWS, TILE_COLUMNS}, channels,
                        VERTICAL_OF_PARAMETERS(operand2), HORIZONTAL_OF_PARAMETERS(operand2), splits);
            Kept<Tile>::store(kept_tile, tile);
        }
        __syncthreads();
        WarpSums sums = {};
        {
            const Diagonals diagonals(operand2);
            const Range n = Kept<Tile>::load(kept_tile).n, rows = Kept<Tile>::load(kept_tile).streamed_rows();
#pragma unroll 1
            for (int first_n = n.begin; first_n < n.end; first_n += displacements_at_once) {
                if (threadIdx.x == 0) {
                    const Tile tile = Kept<Tile>::load(kept_tile);
                    Sources sources;
                    sources.image = image_source(tile, image, first_n, displacements_at_once, channels);
                    sources.cotangents = cotangent_source(tile, g, first_n, displacements_at_once, sources.tile_rows);
                    Kept<Sources>::store(kept_sources, sources);
                }
                clear(shared);
                __syncthreads();
                add_rows(sums, origin, diagonals, rows, kept_sources, shared);
                __syncthreads();
            }
        }
        const Tile tile = Kept<Tile>::load(kept_tile);
        Gradient<INPUT> result = result1;
        if (operand2) result = result2;
        if (splits.row_splits * splits.column_splits > 1)
            store_tile(of_type<float>(result), image, g, tile, sums, origin, channels, scale, shared);
        else store_tile(result, image, g, tile, sums, origin, channels, scale, shared);
    }
}
