// Loads the tiles of both images into shared memory, a pipeline stage of channels at a time, by asynchronous copies.
//
// Only what is inside an image is loaded. That is a rectangle of each tile, whose units the threads of the block share:
//
//           columns of a tile                          a unit, one access for each channel
//         +---------------------+
//         | - - - - - - - - - - |    rows of pixels    `width` neighbouring columns, 4, 8 or 16 bytes: the widest at which all
//         | - - . . . . . . . . |                      units are aligned and wholly inside or outside. Where that would be
//         | - - .  rectangle  . |                      less than 4 bytes: two columns, through registers
//         | - - . . . . . . . . |    channels last     one pixel; an access moves `width` of its channels
//         +---------------------+
//           .  inside the image, -  outside
//
// Accesses wider than an element rest on what the host ensures of `vector_width` (for_each_pass in forward_mma.cuh): tiles and
// images begin and end at its multiples, so no unit is partly inside; channels end at its multiples if they are contiguous, so no
// access has channels after the last. Two elements through registers are tested one by one.
//
// A unit keeps its thread for all stages, or its threads, each of which takes some of its channels: where it is in the images and
// in shared memory is computed once. What is outside stays as it is in shared memory, and may be anything; channels after the
// last are 0.
//
// A kernel describes its tiles by a type with
//
//     threads, channels, channels_last                  of the block, of a stage, and the memory order of the images
//     rows1, rows2, columns1, columns2                  of either tile, with the columns of all phases of the block
//     parted                                            neighbouring columns are in different planes of shared memory
//     pitch1, pitch2                                    elements from channel to channel; 1 if channels are contiguous
//     pixel_offset(second, row, column)                 the offset of a pixel's first channel in input1's or input2's stage
#pragma once
#include "correlation/forward_phases.cuh"

// The rows and the columns of a tile that are inside its image: [begin, end), nothing where begin >= end.
struct InsideTile {
    int begin_row, end_row, begin_column, end_column;

    DEVICE static InsideTile of(int y, int rows, int height, int row_spacing, int x, int columns, int width, int column_spacing) {
        return InsideTile{first_inside(y, row_spacing), min(end_inside(y, row_spacing, height), rows),
                      first_inside(x, column_spacing), min(end_inside(x, column_spacing, width), columns)};
    }
    DEVICE bool has_rows() const { return begin_row < end_row; }
};

template <class Tiles>
struct TileLoader {
    static constexpr int BYTES = sizeof(INPUT);
    static constexpr bool CHANNELS_LAST = Tiles::channels_last;
    static constexpr int VECTOR = VectorOf<INPUT>::width;
    static constexpr int NARROWEST = BYTES < 4 ? 4 / BYTES : 1;  // elements of the narrowest unit
    static constexpr int UNIT = CHANNELS_LAST ? 1 : NARROWEST;  // its columns
    static constexpr int UNITS = (Tiles::rows1 * Tiles::columns1 + Tiles::rows2 * Tiles::columns2) / UNIT;
    // Neighbouring threads load neighbouring channels of a pixel.
    static constexpr int PIXEL_THREADS = CHANNELS_LAST ? Tiles::channels / VECTOR : 1;
    static constexpr int SLOTS = ceil_div(UNITS * PIXEL_THREADS, Tiles::threads);
    static_assert(Tiles::threads % PIXEL_THREADS == 0, "a thread loads the same channels of every pixel");
    static_assert((Tiles::channels & (Tiles::channels - 1)) == 0, "threads that share a unit have equally many of its channels");
    static_assert(!CHANNELS_LAST || Tiles::channels % VECTOR == 0, "a pixel's threads take a vector each");
    static_assert(!Tiles::parted || BYTES >= 4 || CHANNELS_LAST, "asynchronous copies move 4 bytes or more");

    // A unit of this thread. `packed` saves a register: sums leave few.
    struct Slot {
        int from;  // its offset in a channel of its image
        int packed;  // negative: no unit

        DEVICE static Slot none() { return Slot{0, -1}; }
        DEVICE static Slot of(int from, int to, uint32 inside, bool second) {
            return Slot{from, to | static_cast<int>(inside) << 20 | static_cast<int>(second) << 24};
        }
        DEVICE bool is_none() const { return packed < 0; }
        DEVICE int to() const { return packed & 0xfffff; }  // its offset in shared memory
        DEVICE bool column_inside(int column) const { return (packed >> 20 >> column & 1) != 0; }  // one of its columns
        DEVICE bool second() const { return (packed >> 24 & 1) != 0; }  // it is of input2
    };
    static_assert(Tiles::pixel_offset(false, Tiles::rows1 - 1, Tiles::columns1 - 1) < 1 << 20, "an offset fits into its bits");
    static_assert(Tiles::pixel_offset(true, Tiles::rows2 - 1, Tiles::columns2 - 1) < 1 << 20, "an offset fits into its bits");

    Slot slots[SLOTS];
    const INPUT* next1;  // the next channels to load, those of this thread
    const INPUT* next2;
    long long channel_stride1, channel_stride2;
    int column_stride1, column_stride2, spacing;
    int left;  // channels to load
    int width;  // elements that one access moves
    int step;  // channels from one access of this thread to the next
    int accesses;  // of this thread to a unit, in a stage
    int thread_channel;  // its first channel

    DEVICE static InsideTile inside1(const Axis& vertical, const Axis& horizontal, const BlockTile& block) {
        return InsideTile::of(block.rows.start1, Tiles::rows1, vertical.size1, vertical.spacing, block.columns.start1,
                          Tiles::columns1, horizontal.size1, horizontal.spacing);
    }
    // The elements that an access can move, of at most `widest`.
    DEVICE static int access_width(const INPUT* data1, const INPUT* data2, int widest) {
        return Tiles::parted && !CHANNELS_LAST ? 1 : min(aligned(data1, widest), aligned(data2, widest));
    }

    // `first_column2`: the position of the first column of input2's tile, which may be before the first displacement's.
    DEVICE static InsideTile inside2(const Axis& vertical, const Axis& horizontal, const BlockTile& block, int first_column2) {
        return InsideTile::of(block.rows.start2, Tiles::rows2, vertical.size2, vertical.spacing, first_column2, Tiles::columns2,
                          horizontal.size2, horizontal.spacing);
    }

    // Finds this thread's units. With `only_second`, input1 is in shared memory already.
    DEVICE void start(const Image& image1, const Image& image2, const InsideTile& inside1, const InsideTile& inside2,
                      const Axis& vertical, const Axis& horizontal, const BlockTile& block, int first_column2, int first_channel,
                      int channels, int access_width, bool only_second) {
        channel_stride1 = image1.channel_stride, channel_stride2 = image2.channel_stride;
        column_stride1 = image1.column_stride, column_stride2 = image2.column_stride, spacing = horizontal.spacing;
        left = channels;
        width = access_width;

        const int unit = CHANNELS_LAST ? 1 : max(width, NARROWEST), log_unit = unit == 8 ? 3 : unit == 4 ? 2 : unit == 2 ? 1 : 0;
        const int first1 = inside1.begin_column >> log_unit, first2 = inside2.begin_column >> log_unit;
        const int units1 = max(((inside1.end_column + unit - 1) >> log_unit) - first1, 0);  // of a row
        const int units2 = max(((inside2.end_column + unit - 1) >> log_unit) - first2, 0);
        const int all1 = max(inside1.end_row - inside1.begin_row, 0) * units1;
        const int all2 = max(inside2.end_row - inside2.begin_row, 0) * units2;
        const int count1 = only_second ? 0 : all1, count = count1 + all2;
        const int thread = opaque(static_cast<int>(threadIdx.x));
        int sharing = PIXEL_THREADS, number = thread / PIXEL_THREADS, share = thread % PIXEL_THREADS;
        if (!CHANNELS_LAST) {
            while (2 * sharing * count <= Tiles::threads && 4 * sharing <= Tiles::channels) sharing *= 2;
            if (sharing > 1 && count > 0) share = number / count, number = share < sharing ? number % count : count;
        }
        const int elements = CHANNELS_LAST ? max(width, NARROWEST) : 1;  // channels of an access
        thread_channel = share * elements, step = sharing * elements, accesses = Tiles::channels / step;
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const int item = number + s * (Tiles::threads / PIXEL_THREADS);
            slots[s] = Slot::none();
            if (item >= count) continue;
            const bool second = item >= count1;
            const int within = second ? item - count1 : item, units = second ? units2 : units1;
            const int row = (second ? inside2.begin_row : inside1.begin_row) + within / units;
            const int column = ((second ? first2 : first1) + within % units) << log_unit;
            const int y = (second ? block.rows.start2 : block.rows.start1) + row * vertical.spacing;
            const int x = (second ? first_column2 : block.columns.start1) + column * horizontal.spacing;
            uint32 columns_inside = 0;
#pragma unroll
            for (int k = 0; k < UNIT; k++)
                if (x + k * horizontal.spacing >= 0 && x + k * horizontal.spacing < (second ? horizontal.size2 : horizontal.size1))
                    columns_inside |= 1u << k;
            const int from = y * (second ? image2.row_stride : image1.row_stride) +
                             x * (second ? image2.column_stride : image1.column_stride);
            slots[s] = Slot::of(from, Tiles::pixel_offset(second, row, column), columns_inside, second);
        }
        const int first = first_channel + thread_channel;
        next1 = image1.data + (block.b * image1.batch_stride + first * image1.channel_stride);
        next2 = image2.data + (block.b * image2.batch_stride + first * image2.channel_stride);
    }

    // Starts the copies of a stage to shared memory. The kernel calls copy_async_commit afterwards.
    DEVICE void load_stage(INPUT* stage1, INPUT* stage2) {
        if (VECTOR >= 8 && width == 8) copy_units<8>(stage1, stage2);
        else if (VECTOR >= 4 && width == 4) copy_units<4>(stage1, stage2);
        else if (VECTOR >= 2 && width == 2) copy_units<2>(stage1, stage2);
        else if constexpr (NARROWEST == 1) copy_units<1>(stage1, stage2);
        else move_pairs(stage1, stage2);
        next1 += Tiles::channels * channel_stride1;
        next2 += Tiles::channels * channel_stride2;
        left -= Tiles::channels;
    }

  private:
    static constexpr int UNROLLED = HAS_ASYNC_COPIES ? 4 : 1;  // copies; synchronous ones take registers

    // Several slots are unpacked where they are used, as sums leave no registers to keep their fields.
    DEVICE Slot slot(int s) const {
        return SLOTS > 1 ? Slot{opaque(slots[s].from), opaque(slots[s].packed)} : slots[s];
    }

    template <int elements>
    DEVICE void copy_units(INPUT* stage1, INPUT* stage2) const {
        if constexpr (elements * BYTES >= 4 && elements <= VECTOR) {
            int wanted = accesses;  // those of which there are channels
            if (left < Tiles::channels) wanted = left <= thread_channel ? 0 : ceil_div(left - thread_channel, step);
#pragma unroll
            for (int s = 0; s < SLOTS; s++) {
                const Slot slot = this->slot(s);
                if (slot.is_none()) break;
                const bool second = slot.second();
                const INPUT* from = (second ? next2 : next1) + slot.from;
                const int to_step = step * (second ? Tiles::pitch2 : Tiles::pitch1);
                INPUT* to = (second ? stage2 : stage1) + (slot.to() + thread_channel * (second ? Tiles::pitch2 : Tiles::pitch1));
                const long long from_step = step * (second ? channel_stride2 : channel_stride1);
#pragma unroll UNROLLED
                for (int k = 0; k < wanted; k++, from += from_step, to += to_step) copy_async<elements * BYTES>(to, from, true);
#pragma unroll 1
                for (int k = wanted; k < accesses; k++, to += to_step) copy_async<elements * BYTES>(to, next1, false);
            }
        }
    }

    // Two elements at a time through registers, because they are too small for asynchronous copies.
    DEVICE void move_pairs(INPUT* stage1, INPUT* stage2) const {
        struct __attribute__((aligned(NARROWEST * BYTES))) Pair {
            INPUT of[NARROWEST];
        };
        constexpr int BATCH = UNROLLED;  // pairs in flight in registers
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            const Slot slot = this->slot(s);
            if (slot.is_none()) break;
            const bool second = slot.second();
            const int pitch = second ? Tiles::pitch2 : Tiles::pitch1;
            const int distance = CHANNELS_LAST ? 1 : opaque(spacing) * (second ? column_stride2 : column_stride1);
            const long long from_step = opaque(step) * (second ? channel_stride2 : channel_stride1);
            const INPUT* from = (second ? next2 : next1) + slot.from;
            INPUT* to = (second ? stage2 : stage1) + (slot.to() + thread_channel * pitch);
            const bool whole = left >= Tiles::channels && slot.column_inside(0) && slot.column_inside(NARROWEST - 1);
#pragma unroll 1
            for (int k = 0; k < accesses; k += BATCH) {
                Pair pairs[BATCH];
                if ((CHANNELS_LAST || whole) && k + BATCH <= accesses && left >= Tiles::channels) {
#pragma unroll
                    for (int b = 0; b < BATCH; b++, from += from_step)
#pragma unroll
                        for (int e = 0; e < NARROWEST; e++) pairs[b].of[e] = load_element(from + e * distance);
                } else {
#pragma unroll
                    for (int b = 0; b < BATCH; b++, from += from_step) {
                        const int channel = thread_channel + (k + b) * step;
#pragma unroll
                        for (int e = 0; e < NARROWEST; e++) {
                            const bool valid = CHANNELS_LAST ? channel + e < left : channel < left && slot.column_inside(e);
                            pairs[b].of[e] = valid && k + b < accesses ? load_element(from + e * distance) : INPUT{};
                        }
                    }
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++, to += step * pitch)
                    if (k + b < accesses) store_shared(reinterpret_cast<Pair*>(to), pairs[b]);
            }
        }
    }
};
