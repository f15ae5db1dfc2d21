// The gradients of windows of one pixel in phases, and what a block has of them. The positions of an axis fall into `step`
// phases; seen from one of them, the other image is a dense one that begins at `other`, and both gradients are the same sum:
//
//     G[c, t] = scale * sum over m, n of  X[c, other + step (t + m)] * g[m, n, output of t and m]    (t stands for both axes)
//
//     operand 1:  X is input2, other = phase + first,                    and the output stands at the gradient's own position
//     operand 2:  X is input1, other = phase - first - step (patch - 1), and the output stands at X's; g's m counts backwards
//
// A block answers a tile of channels, rows and columns; these are of PHASES phases, taken as one. Positions and offsets within
// a plane have 32 bits, offsets from plane to plane 64.
//
// Macros: INPUT, COTANGENT, PHASES.
#pragma once
#include "common/tile.cuh"

constexpr int SECTOR = 32;  // bytes that global memory moves at least

struct Range {
    int begin, end;

    DEVICE bool has(int index) const { return begin <= index && index < end; }
    DEVICE Range within(Range outer) const { return Range{max(begin, outer.begin), min(end, outer.end)}; }
};

// The indices i for which first + i step lies in 0 .. size.
DEVICE Range inside(int first, int step, int size) {
    const int below = first < 0 ? (step - 1 - first) / step : -(first / step);
    const int left = size - first;
    return Range{below, left > 0 ? (left + step - 1) / step : -(-left / step)};
}

// Phases of one axis taken as one: indices t of the gradient's own positions, k of the other image's.
struct Phase {
    int own, other, output;  // of index 0
    int step, output_step;
    int patch;
    bool second;  // operand 2
    int size;    // the gradient's positions are the indices 0 .. size
    Range read;  // those of them that count: for operand 1, where there is an output
    Range met;   // the indices of the other image that count: where there is a pixel, for operand 2 with an output

    // Of the cotangent where t meets k at displacement m.
    DEVICE long long offset(int t, int k, int m, long long patch_stride, int stride) const {
        const long long at = output + static_cast<long long>(output_step) * (second ? k : t);
        return (second ? patch - 1 - m : m) * patch_stride + at * stride;
    }
};

struct Axis {
    int own_size, other_size;
    int patch, first, step, stride, padding, out;
    bool second;  // operand 2

    DEVICE int phases(int together) const { return min(own_size, step / together); }
    // Positions of one phase, at most.
    DEVICE int longest(int together) const { return (own_size + step / together - 1) / (step / together); }

    DEVICE Phase phase(int number, int together) const {
        Phase made;
        made.patch = patch;
        made.second = second;
        made.step = step / together;
        made.own = number;
        made.other = number + (second ? -first - (patch - 1) * step : first);
        const int z = (second ? made.other : made.own) + padding;
        made.output = z / stride;
        made.output_step = made.step / stride;
        made.read = inside(made.own, made.step, own_size);
        made.size = made.read.end;
        made.met = inside(made.other, made.step, other_size);
        const Range answered = z % stride == 0 ? inside(made.output, made.output_step, out) : Range{0, 0};
        if (second) made.met = made.met.within(answered);
        else made.read = made.read.within(answered);
        return made;
    }
};

struct Image {
    const INPUT* data;
    long long batch_stride, channel_stride;
    int row_stride, column_stride;
};

struct Cotangent {
    const COTANGENT* data;
    long long batch_stride, m_stride, n_stride;
    int row_stride, column_stride;
};

template <class Result>
struct Gradient {
    Result* data;
    long long part_stride, batch_stride, channel_stride;
    int row_stride, column_stride;
};

// How the displacements are shared between blocks that each make a part of the sum.
struct Parts {
    int of_rows, rows;        // how many, of so many displacements each
    int of_columns, columns;  // likewise
};

// Lanes of a warp over channels and columns, so that they meet whole sectors.
struct Lanes {
    int channels, channel, columns, column;

    DEVICE Lanes(bool channels_last, int element) {
        const int lane = threadIdx.x % WARP;
        channels = channels_last ? SECTOR / element : 1;
        columns = WARP / channels;
        channel = lane % channels;
        column = lane / channels;
    }
};

// What a block answers at most; its columns are those of all its phases.
struct Extent {
    int channels, rows, columns;
};

// The tile of a block: what it answers, and which displacements.
struct Tile {
    Extent extent;
    int sample, channel, part;
    Phase y, x;
    int row, column;  // first index of either
    Range m, n;

    // The rows of X that meet any of the tile's.
    DEVICE Range stream() const {
        const Range rows = Range{row, min(row + extent.rows, y.size)}.within(y.read);
        if (rows.begin >= rows.end) return Range{0, 0};
        return Range{rows.begin + m.begin, rows.end + m.end - 1}.within(y.met);
    }

    // Whether row k of X meets row t of the gradient at one of the displacements.
    DEVICE bool meets(int t, int k) const { return y.read.has(t) && m.has(k - t); }
};

// Takes the fastest of the digits that a number is made of.
DEVICE int digit(int& number, int base) {
    const int taken = number % base;
    number /= base;
    return taken;
}

DEVICE Tile tile_of(int number, Extent extent, int channels, const Axis& vertical, const Axis& horizontal, const Parts& parts) {
    Tile tile;
    tile.extent = extent;
    tile.channel = digit(number, ceil_div(channels, extent.channels)) * extent.channels;
    tile.x = horizontal.phase(digit(number, horizontal.phases(PHASES)), PHASES);
    tile.column = digit(number, ceil_div(horizontal.longest(PHASES), extent.columns)) * extent.columns;
    tile.row = digit(number, ceil_div(vertical.longest(1), extent.rows)) * extent.rows;
    tile.y = vertical.phase(digit(number, vertical.phases(1)), 1);
    tile.part = digit(number, parts.of_rows * parts.of_columns);
    tile.sample = number;
    const int m = tile.part % parts.of_rows * parts.rows, n = tile.part / parts.of_rows * parts.columns;
    tile.m = Range{m, min(m + parts.rows, vertical.patch)};
    tile.n = Range{n, min(n + parts.columns, horizontal.patch)};
    return tile;
}

// A row of X, and the first of the displacements taken with it.
struct Step {
    int k, n;
};

// What a kernel is called with, and what it makes of it.
#define GRADIENT_PARAMETERS(Result)                                                                                           \
    const COTANGENT *cotangent, const INPUT *input1, const INPUT *input2, Result *gradient1, Result *gradient2,               \
        long long batch_stride, long long m_stride, long long n_stride, long long row_stride, long long column_stride,        \
        long long batch_stride_1, long long channel_stride_1, long long row_stride_1, long long column_stride_1,              \
        long long batch_stride_2, long long channel_stride_2, long long row_stride_2, long long column_stride_2,              \
        long long part_stride_g1, long long batch_stride_g1, long long channel_stride_g1, long long row_stride_g1,            \
        long long column_stride_g1, long long part_stride_g2, long long batch_stride_g2, long long channel_stride_g2,         \
        long long row_stride_g2, long long column_stride_g2, int tiles, int tiles_of_first, int channels, int height1,        \
        int height2, int patch_y, int first_y, int step_y, int stride_y, int padding_y, int out_y, int width1, int width2,    \
        int patch_x, int first_x, int step_x, int stride_x, int padding_x, int out_x, int parts_of_rows, int part_rows,       \
        int parts_of_columns, int part_columns
#define IMAGE_OF_PARAMETERS(k) {input##k, batch_stride_##k, channel_stride_##k, int(row_stride_##k), int(column_stride_##k)}
#define COTANGENT_OF_PARAMETERS {cotangent, batch_stride, m_stride, n_stride, int(row_stride), int(column_stride)}
#define GRADIENT_OF_PARAMETERS(k)                                                                                             \
    {gradient##k, part_stride_g##k, batch_stride_g##k, channel_stride_g##k, int(row_stride_g##k), int(column_stride_g##k)}
#define PARTS_OF_PARAMETERS {parts_of_rows, part_rows, parts_of_columns, part_columns}
#define VERTICAL_OF_PARAMETERS(second)                                                                                        \
    {second ? height2 : height1, second ? height1 : height2, patch_y, first_y, step_y, stride_y, padding_y, out_y, second}
#define HORIZONTAL_OF_PARAMETERS(second)                                                                                      \
    {second ? width2 : width1, second ? width1 : width2, patch_x, first_x, step_x, stride_x, padding_x, out_x, second}
