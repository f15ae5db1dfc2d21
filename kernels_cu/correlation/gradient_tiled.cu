// The gradients of windows of one pixel over tiles in shared memory: the sum at the top of gradient_phases.cuh,
//
//     G[c, t] = scale * sum over m, n of  X[c, other + step (t + m)] * g[m, n, p]
//
//     thread block tile   TILE_CHANNELS channels x TILE_ROWS rows x TILE_COLUMNS columns. Rows of X stream past, once each, with
//                         the cotangents that are multiplied with them
//     thread              CHANNELS channels x ROWS rows x COLUMNS columns. It holds cotangents of some displacements in registers
//                         for all its channels: sum[c][q][i] += g[q][n][i] * X[c][i + n]
//     warp                four channels, then columns, then the other channels, so that the 16-byte loads of eight lanes have no
//                         bank conflicts
//     pipeline stage      one row of X and WIDTH displacements, double buffered
//
// Where step is 2 and stride 1, PHASES is 2: a block takes both phases of the columns, so that it reads and writes whole rows;
// they are deinterleaved in shared memory.
//
// Padding is 0 in both operands, as Inf * 0 would give NaN; displacements of a row beyond the patch are skipped, and pixels that
// no output reads are set to 0 in the epilogue.
//
// Macros: INPUT, COTANGENT, RESULT (the gradient's type, or that of the sums for partial sums), INDEX, PHASES, COLUMN_LANES,
// CHANNEL_WARPS, ROW_WARPS, WIDTH (the most displacements of a row taken at once), EXACT (never fewer), and THREADS and SHARED,
// which the host computes too.
#include "correlation/gradient_phases.cuh"

constexpr int ROWS = 2;  // of a thread
constexpr int CHANNELS = 8;  // of a thread
constexpr int COLUMNS = sizeof(Words16) / sizeof(Sum);  // of a thread: one vector
constexpr int CHANNEL_LANES = WARP / COLUMN_LANES;
constexpr int WARPS = PHASES * CHANNEL_WARPS * ROW_WARPS;

constexpr int TILE_CHANNELS = CHANNELS * CHANNEL_LANES * CHANNEL_WARPS;
constexpr int TILE_ROWS = ROWS * ROW_WARPS;
constexpr int PHASE_COLUMNS = COLUMNS * COLUMN_LANES;
constexpr int TILE_COLUMNS = PHASES * PHASE_COLUMNS;

// A buffer: X[phase][channel][PITCH], then g[phase][row][WIDTH][PHASE_COLUMNS]; the two phases are half of the banks apart.
constexpr int BETWEEN_PHASES = PHASES > 1 ? 64 / sizeof(Sum) : 0;
constexpr int PITCH = pitch(PHASE_COLUMNS + round_up(WIDTH - 1, COLUMNS), COLUMNS, 4);
constexpr int IMAGE_PLANE = TILE_CHANNELS * PITCH + BETWEEN_PHASES;
constexpr int COTANGENT_PLANE = TILE_ROWS * WIDTH * PHASE_COLUMNS + BETWEEN_PHASES;
constexpr int BUFFER = PHASES * (IMAGE_PLANE + COTANGENT_PLANE);

static_assert(THREADS == WARP * WARPS, "the host and the kernel agree on the threads");
static_assert(SHARED == 2 * BUFFER * sizeof(Sum), "the host and the kernel agree on shared memory");
static_assert(ROW_WARPS * PHASES * IMAGE_PLANE <= 2 * BUFFER, "the sums of one row of each thread fit into shared memory");


// Loading ----------------------------------------------------------------------------------------------------------------------

// The offset of column u of a tile's combined phases, in a plane for each phase.
DEVICE int plane_offset(int u, int plane) { return u % PHASES * plane + u / PHASES; }

constexpr int VECTOR = VectorOf<INPUT>::width;

// The row segment of X for a step: columns u < end, which are the indices first + u of a phase. Some columns and channels may be
// outside.
struct Segment {
    const INPUT* data;  // of the tile's first channel, and of u = 0
    long long channel_stride, column_stride;
    int channels, first, end;
    Range other_range;

    DEVICE bool valid(int u, int c) const { return other_range.contains(first + u) && c < channels; }

    // Returns whether the segment can be loaded by vectors of columns, each wholly inside or outside.
    DEVICE bool has_vectors() const {
        const bool aligned = reinterpret_cast<unsigned long long>(data) % sizeof(Words16) == 0 && channel_stride % VECTOR == 0;
        return column_stride == 1 && aligned && (other_range.begin - first) % VECTOR == 0 &&
               (other_range.end - first) % VECTOR == 0;
    }
};

// Copies to shared memory are asynchronous, unless elements of 16 bits must be widened on the way.
constexpr bool WIDENS = sizeof(INPUT) < sizeof(Sum);
constexpr bool COPIES = HAS_ASYNC_COPIES && !WIDENS;

// Loads in flight of a thread, where elements are widened. Loops of variable length need registers of their own.
constexpr int LOADS_IN_FLIGHT = EXACT ? 8 : 4;

// Loads by vectors of columns, of which a thread has the same one of every CHANNEL_DISTANCE-th channel.
constexpr int STAGED_COLUMNS = TILE_COLUMNS + PHASES * (WIDTH - 1);
constexpr int COLUMN_VECTORS = ceil_div(STAGED_COLUMNS, VECTOR);
constexpr int VECTOR_LANES = COLUMN_VECTORS <= 8 ? 8 : COLUMN_VECTORS <= 16 ? 16 : COLUMN_VECTORS <= 32 ? 32 : 64;
constexpr int CHANNEL_DISTANCE = THREADS / VECTOR_LANES;

static_assert(VECTOR_LANES * CHANNEL_DISTANCE == THREADS && TILE_CHANNELS % CHANNEL_DISTANCE == 0,
              "every thread loads as many vectors");
static_assert(PHASES * PITCH >= COLUMN_VECTORS * VECTOR, "vectors of columns end within the row");

// Stores a vector of columns to the planes of the phases, as many elements at a time as are contiguous there.
DEVICE void store_vector_phases(Sum* to, Words16 words) {
    INPUT elements[VECTOR];
    memcpy(elements, &words, sizeof words);
    constexpr int packed = VECTOR / PHASES < COLUMNS ? VECTOR / PHASES : COLUMNS;
    struct __attribute__((aligned(packed * sizeof(Sum)))) Packed {
        Sum of[packed];
    };
#pragma unroll
    for (int k = 0; k < VECTOR; k += packed * PHASES)
#pragma unroll
        for (int p = 0; p < PHASES; p++) {
            Packed values;
#pragma unroll
            for (int i = 0; i < packed; i++) values.of[i] = widen(elements[k + i * PHASES + p]);
            store_shared(reinterpret_cast<Packed*>(to + p * IMAGE_PLANE + k / PHASES), values);
        }
}

DEVICE void stage_column_vectors(const Segment& segment, Sum* to) {
    constexpr int count = TILE_CHANNELS / CHANNEL_DISTANCE < LOADS_IN_FLIGHT ? TILE_CHANNELS / CHANNEL_DISTANCE : LOADS_IN_FLIGHT;
    const int u = threadIdx.x % VECTOR_LANES * VECTOR;
    if (u >= segment.end) return;
    int c = threadIdx.x / VECTOR_LANES;
    const INPUT* from = segment.data + (c * segment.channel_stride + u);
    to += c * PITCH + u / PHASES;
#pragma unroll 1
    for (; c < TILE_CHANNELS; c += count * CHANNEL_DISTANCE, to += count * CHANNEL_DISTANCE * PITCH) {
        Words16 vectors[count];
#pragma unroll
        for (int k = 0; k < count; k++, from += CHANNEL_DISTANCE * segment.channel_stride) {
            const bool valid = segment.valid(u, c + k * CHANNEL_DISTANCE);
            if constexpr (WIDENS) vectors[k] = valid ? load_global_16(from) : Words16{};
            else copy_async<sizeof(Words16)>(to + k * CHANNEL_DISTANCE * PITCH, from, valid);
        }
        if constexpr (WIDENS) {
#pragma unroll
            for (int k = 0; k < count; k++) store_vector_phases(to + k * CHANNEL_DISTANCE * PITCH, vectors[k]);
        }
    }
}

// Loads by vectors of channels: two lanes to a sector, then the columns.
DEVICE void stage_channel_vectors(const Segment& segment, Sum* to) {
    constexpr int count = 4, distance = WARP / 2;
    const int lane = threadIdx.x % WARP;
#pragma unroll 1
    for (int c = (threadIdx.x / WARP * 2 + lane % 2) * VECTOR; c < TILE_CHANNELS; c += 2 * WARPS * VECTOR) {
#pragma unroll 1
        for (int u = lane / 2; u < segment.end; u += count * distance) {
            Sum vectors[count][VECTOR];
#pragma unroll
            for (int k = 0; k < count; k++) {
                const bool valid = segment.valid(u + k * distance, c);
                const INPUT* const from = segment.data + (valid ? c + (u + k * distance) * segment.column_stride : 0);
                load_vector(from, 1, valid ? segment.channels - c : 0, vectors[k]);
            }
#pragma unroll
            for (int k = 0; k < count; k++)
#pragma unroll
                for (int r = 0; r < VECTOR; r++)
                    if (u + k * distance < segment.end)
                        store_shared(to + plane_offset(u + k * distance, IMAGE_PLANE) + (c + r) * PITCH, vectors[k][r]);
        }
    }
}

// The columns of a segment that a step loads. Where a block takes all displacements at once, no other column is ever loaded: those
// outside are set to 0 before the first step.
DEVICE Range loaded_columns(const Segment& segment) {
    const Range columns = {0, segment.end};
    return EXACT ? columns.intersect(Range{segment.other_range.begin - segment.first, segment.other_range.end - segment.first})
                 : columns;
}

// Loads one by one, for any strides. Lanes are along the columns, beginning at a sector, and warps along the channels.
template <bool contiguous>
DEVICE void stage_elements(const Segment& segment, Sum* to) {
    constexpr int sector = SECTOR / sizeof(INPUT), rounds = ceil_div(STAGED_COLUMNS + sector - 1, WARP);
    const Range columns = loaded_columns(segment);
    const long long column_stride = contiguous ? 1 : segment.column_stride;
    const int before = reinterpret_cast<unsigned long long>(segment.data + columns.begin) / sizeof(INPUT) % sector;
    const int first = threadIdx.x / WARP, u = columns.begin - before + static_cast<int>(threadIdx.x % WARP);
    bool loads[rounds], inside[rounds];
#pragma unroll
    for (int round = 0; round < rounds; round++) {
        loads[round] = columns.contains(u + round * WARP);
        inside[round] = EXACT || segment.other_range.contains(segment.first + u + round * WARP);
    }
    const INPUT* from = opaque(segment.data + (first * segment.channel_stride + u * column_stride));
    to += plane_offset(u + WARP, IMAGE_PLANE) - WARP / PHASES + first * PITCH;  // u may be negative
    const int channels = min(segment.channels - first, TILE_CHANNELS);  // nothing reads sums of channels outside
    const long long next = WARPS * segment.channel_stride;
#pragma unroll
    for (int c = 0; c < TILE_CHANNELS; c += WARPS, from = opaque(from + next)) {
        if (c >= channels) break;
#pragma unroll
        for (int round = 0; round < rounds; round++)
            if (loads[round])
                copy_element(to + c * PITCH + round * (WARP / PHASES), from + round * WARP * column_stride, inside[round]);
    }
}

// Loads row k of X for all channels of the tile.
DEVICE void stage_image(const Image& image, const Tile& tile, Step at, int count, int channels, Sum* to) {
    const int first = tile.column + PHASES * at.n, column = tile.x.other_origin + first * tile.x.step;
    const INPUT* const data = image.data + (tile.sample * image.batch_stride + tile.channel * image.channel_stride +
                                            (tile.y.other_origin + at.k * tile.y.step) * image.row_stride +
                                            static_cast<long long>(column) * image.column_stride);
    const long long column_stride = static_cast<long long>(tile.x.step) * image.column_stride;
    const int end = PHASES * (PHASE_COLUMNS + count - 1);
    const Segment segment = {data, image.channel_stride, column_stride, channels - tile.channel, first, end, tile.x.other_range};
    // An asynchronous copy of a vector does not part its phases.
    if ((WIDENS || PHASES == 1) && segment.has_vectors()) stage_column_vectors(segment, to);
    else if (image.channel_stride == 1) stage_channel_vectors(segment, to);
    else if (column_stride == 1) stage_elements<true>(segment, to);
    else stage_elements<false>(segment, to);
}

// Loads the cotangents of the outputs whose products have row k of X. Lanes are along the columns, warps along the rows and the
// displacements.
template <bool contiguous>
DEVICE void stage_cotangent(const Cotangent& cotangent, const Tile& tile, Step at, int count, Sum* to) {
    constexpr int lanes = TILE_COLUMNS < WARP ? TILE_COLUMNS : WARP;
    constexpr int rows = WARPS < TILE_ROWS ? WARPS : TILE_ROWS, distance = WARPS / rows * (WARP / lanes);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int u = lane % lanes, t = tile.column + u, first = warp / rows * (WARP / lanes) + lane / lanes;
    const long long column_stride = contiguous ? 1 : tile.x.output_step * static_cast<long long>(cotangent.column_stride);
    const auto along_x = [&](int n) {
        return tile.x.offset(t, t + PHASES * n, n, cotangent.n_stride, cotangent.column_stride);
    };
    const long long next = distance * (along_x(1) - along_x(0));
    const COTANGENT* const data = cotangent.data + (tile.sample * cotangent.batch_stride + along_x(at.n + first));
    to += plane_offset(u, COTANGENT_PLANE) + first * PHASE_COLUMNS;
    // Columns of X, counted from the first that has products; in unsigned numbers, one comparison holds them against both ends.
    const Range columns = tile.x.other_range;
    const uint32 column = t + PHASES * (at.n + first) - columns.begin, end = max(columns.end - columns.begin, 0);
#pragma unroll 1
    for (int q = warp % rows; q < TILE_ROWS; q += rows) {
        if (!tile.multiplies(tile.row + q, at.k)) continue;  // nothing reads them
        const COTANGENT* from =
            opaque(data + tile.y.offset(tile.row + q, at.k, at.k - tile.row - q, cotangent.m_stride, cotangent.row_stride));
        Sum* const row = to + q * (WIDTH * PHASE_COLUMNS);
#pragma unroll
        for (int n = 0; n < WIDTH; n += distance, from = opaque(from + next)) {
            if (!(EXACT && n + distance <= WIDTH) && first + n >= count) break;
#pragma unroll
            for (int x = 0; x < TILE_COLUMNS; x += lanes)
                copy_element(row + n * PHASE_COLUMNS + x / PHASES, from + x * column_stride,
                             column + (PHASES * n + x) < (tile.x.own_range.contains(t + x) ? end : 0));
        }
    }
}

DEVICE void stage(const Image& image, const Cotangent& cotangent, const Tile& tile, Step at, int channels, Sum* to) {
    if (at.n >= tile.n.end) return;
    if (EXACT) at.n = 0;
    const int count = EXACT ? WIDTH : min(tile.n.end - at.n, WIDTH);
    stage_image(image, tile, at, count, channels, to);
    if (tile.x.output_step * cotangent.column_stride == 1)
        stage_cotangent<true>(cotangent, tile, at, count, to + PHASES * IMAGE_PLANE);
    else stage_cotangent<false>(cotangent, tile, at, count, to + PHASES * IMAGE_PLANE);
    copy_async_commit();
}

// Sums -------------------------------------------------------------------------------------------------------------------------

struct ThreadSums {
    Sum of[CHANNELS][ROWS][COLUMNS];
};

// Adds `count` displacements from n on for the first `rows` of the thread's rows. n is a multiple of COLUMNS.
template <int rows, int count>
DEVICE void add_displacements(ThreadSums& sums, const Sum* image, const Sum* cotangent, int n) {
    Sum g[rows][count][COLUMNS];
#pragma unroll
    for (int q = 0; q < rows; q++)
#pragma unroll
        for (int i = 0; i < count; i++) load_shared_vectors(cotangent + (q * WIDTH + n + i) * PHASE_COLUMNS, g[q][i]);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
        Sum x[round_up(count + COLUMNS - 1, COLUMNS)];
        load_shared_vectors(image + c * CHANNEL_LANES * PITCH + n, x);
#pragma unroll
        for (int i = 0; i < count; i++)
#pragma unroll
            for (int q = 0; q < rows; q++)
#pragma unroll
                for (int column = 0; column < COLUMNS; column++)
                    sums.of[c][q][column] = multiply_add(g[q][i][column], x[i + column], sums.of[c][q][column]);
    }
}

constexpr int MAX_DISPLACEMENTS = 12;  // whose cotangents fit the registers

// Adds the displacements from n on, WIDTH - n of them.
template <int n>
DEVICE void add_exactly(ThreadSums& sums, const Sum* image, const Sum* cotangent) {
    constexpr int left = WIDTH - n, count = left > MAX_DISPLACEMENTS ? MAX_DISPLACEMENTS : left;
    add_displacements<ROWS, count>(sums, image, cotangent, n);
    if constexpr (left > count) add_exactly<n + count>(sums, image, cotangent);
}

// Adds `count` displacements.
template <int rows>
DEVICE void add_any(ThreadSums& sums, const Sum* image, const Sum* cotangent, int count) {
    constexpr int split = rows == ROWS ? 8 : 4;
    int n = 0;
#pragma unroll 1
    for (; n + split <= count; n += split) add_displacements<rows, split>(sums, image, cotangent, n);
    if (split > 4 && n + 4 <= count) {
        add_displacements<rows, 4>(sums, image, cotangent, n);
        n += 4;
    }
    if (n + 3 == count) add_displacements<rows, 3>(sums, image, cotangent, n);
    else if (n + 2 == count) add_displacements<rows, 2>(sums, image, cotangent, n);
    else if (n + 1 == count) add_displacements<rows, 1>(sums, image, cotangent, n);
}

// Registers cannot be indexed: if only the second row has something to add, it is swapped with the first.
DEVICE void swap_rows(ThreadSums& sums) {
#pragma unroll
    for (int c = 0; c < CHANNELS; c++)
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const Sum first = sums.of[c][0][column];
            sums.of[c][0][column] = sums.of[c][1][column];
            sums.of[c][1][column] = first;
        }
}

// The first element of the thread's tile within that of its block.
struct ThreadOrigin {
    int phase, channel, row, column;

    DEVICE ThreadOrigin() {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        phase = warp % PHASES;
        row = warp / PHASES / CHANNEL_WARPS * ROWS;
        column = lane / 4 % COLUMN_LANES * COLUMNS;
        channel = warp / PHASES % CHANNEL_WARPS * (CHANNELS * CHANNEL_LANES) + lane / (4 * COLUMN_LANES) * 4 + lane % 4;
    }
};

DEVICE void add_row(ThreadSums& sums, const Tile& tile, const ThreadOrigin& thread, Step at, const Sum* buffer) {
    if (at.n >= tile.n.end) return;
    const int count = min(tile.n.end - at.n, WIDTH);
    const Sum* const image = buffer + thread.phase * IMAGE_PLANE + thread.channel * PITCH + thread.column;
    const Sum* const cotangent = buffer + PHASES * IMAGE_PLANE + thread.phase * COTANGENT_PLANE +
                                 thread.row * (WIDTH * PHASE_COLUMNS) + thread.column;
    const int t = tile.row + thread.row;
    const bool first = tile.multiplies(t, at.k), second = tile.multiplies(t + 1, at.k);
    if (first && second) {
        if constexpr (EXACT) add_exactly<0>(sums, image, cotangent);
        else add_any<ROWS>(sums, image, cotangent, count);
    } else if (first || second) {
        if (second) swap_rows(sums);
        add_any<1>(sums, image, second ? cotangent + WIDTH * PHASE_COLUMNS : cotangent, count);
        if (second) swap_rows(sums);
    }
}

// Epilogue ---------------------------------------------------------------------------------------------------------------------

// Stores through shared memory, where the phases are interleaved again, one of each thread's rows at a time.
DEVICE void store_sums(const ThreadSums& sums, const Gradient<RESULT>& to, const Tile& tile, const ThreadOrigin& thread,
                       int channels, Sum scale, Sum* shared) {
    RESULT* const plane = to.data + (tile.split * to.split_stride + tile.sample * to.batch_stride +
                                     tile.channel * to.channel_stride);
    const Lanes lanes(to.channel_stride == 1 && to.column_stride != 1, sizeof(RESULT));
    const int stride = lanes.channels * WARPS, channel = lanes.channel + threadIdx.x / WARP * lanes.channels;
#pragma unroll
    for (int q = 0; q < ROWS; q++) {
        __syncthreads();
        Sum* const target = shared + (thread.row / ROWS * PHASES + thread.phase) * IMAGE_PLANE + thread.channel * PITCH +
                          thread.column;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) store_shared_vector(target + c * CHANNEL_LANES * PITCH, sums.of[c][q]);
        __syncthreads();
#pragma unroll 1
        for (int group = 0; group < ROW_WARPS; group++) {
            const int t = tile.row + group * ROWS + q;
            if (t >= tile.y.size) break;
            RESULT* const row = plane + (tile.y.origin + t * tile.y.step) * to.row_stride;
#pragma unroll 1
            for (int u = lanes.column; u < TILE_COLUMNS && tile.column + u < tile.x.size; u += lanes.columns) {
                const bool own_range = tile.x.own_range.contains(tile.column + u);
                const Sum* const from = shared + group * (PHASES * IMAGE_PLANE) + plane_offset(u, IMAGE_PLANE);
                RESULT* const column = row + (tile.x.origin + (tile.column + u) * tile.x.step) * to.column_stride;
#pragma unroll 4
                for (int c = channel; c < TILE_CHANNELS && tile.channel + c < channels; c += stride)
                    store(column + c * to.channel_stride, own_range ? load_shared(from + c * PITCH) * scale : Sum(0));
            }
        }
    }
}

// Kernel -----------------------------------------------------------------------------------------------------------------------

KERNEL(THREADS)
gradient_tiled(GRADIENT_PARAMETERS(RESULT), Sum scale) {
    DYNAMIC_SHARED_ARRAY(Sum, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Cotangent g = COTANGENT_OF_PARAMETERS;
    const Gradient<RESULT> result1 = GRADIENT_OF_PARAMETERS(1), result2 = GRADIENT_OF_PARAMETERS(2);
    const Splits splits = SPLITS_OF_PARAMETERS;
    const ThreadOrigin thread;
#pragma unroll 1
    for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
        const bool operand2 = number >= tiles1;
        const Axis vertical = VERTICAL_OF_PARAMETERS(operand2), horizontal = HORIZONTAL_OF_PARAMETERS(operand2);
        Image image = image2;
        if (operand2) image = image1;
        const Tile tile = tile_of(operand2 ? number - tiles1 : number, Extent{TILE_CHANNELS, TILE_ROWS, TILE_COLUMNS},
                                  channels, vertical, horizontal, splits);
        const Range rows = tile.streamed_rows();

        // Vectors are read whole: no part of them may be undefined. Where columns are loaded exactly, the others must be 0.
        if (EXACT || number == static_cast<int>(blockIdx.x)) {
            for (int at = threadIdx.x * COLUMNS; at < 2 * BUFFER; at += THREADS * COLUMNS) store_shared_16(shared + at, Words16{});
            __syncthreads();
        }
        ThreadSums sums = {};
        const Step none = {0, tile.n.end};
        Step now = none, next = rows.begin < rows.end ? Step{rows.begin, tile.n.begin} : none;
        Sum *work = shared, *load = shared + BUFFER;
#pragma unroll 1
        while (now.n < tile.n.end || next.n < tile.n.end) {
            if constexpr (COPIES) {
                stage(image, g, tile, next, channels, load);
                add_row(sums, tile, thread, now, work);
            } else {  // two warps share a scheduler: one waits for its loads while the other one adds
                const int loads_in_half = threadIdx.x / WARP / SCHEDULERS % 2;
#pragma unroll 1
                for (int half = 0; half < 2; half++) {
                    if (half == loads_in_half) stage(image, g, tile, next, channels, load);
                    else add_row(sums, tile, thread, now, work);
                }
            }
            copy_async_wait<0>();
            __syncthreads();
            now = next;
            if (++next.k >= rows.end) next = Step{rows.begin, next.n + WIDTH};
            Sum* const worked = work;
            work = load;
            load = worked;
        }
        Gradient<RESULT> result = result1;
        if (operand2) result = result2;
        store_sums(sums, result, tile, thread, channels, scale, shared);
        __syncthreads();
    }
}
