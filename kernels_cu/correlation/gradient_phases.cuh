// The gradients of windows of one pixel in phases (forward_phases.cuh), and the tile of a block. The positions of an axis have
// `step` phases; for one of them, the other image is a dense one that begins at `other`, and both gradients are the same sum:
//
//     G[c, t] = scale * sum over m, n of  X[c, other + step (t + m)] * g[m, n, p]    (t and p stand for both axes)
//
//     operand 1:  X is input2, other = phase + first,                    and p is the output at the gradient's own position
//     operand 2:  X is input1, other = phase - first - step (patch - 1), and p is the output at X's; g's m is reversed
//
// A block computes a tile of channels, rows and columns; the columns are of PHASES phases, combined. Positions and offsets within
// a plane have 32 bits, offsets from plane to plane 64.
//
// Macros: INPUT, COTANGENT, PHASES.
#pragma once
#include "common/tile.cuh"

typedef SumOf<INPUT>::type Sum;

struct Range {
    int begin, end;

    DEVICE bool contains(int index) const { return begin <= index && index < end; }
    DEVICE Range intersect(Range outer) const { return Range{max(begin, outer.begin), min(end, outer.end)}; }
};

// The indices i for which first + i step is in [0, size).
DEVICE Range inside(int first, int step, int size) {
    const int below = first < 0 ? (step - 1 - first) / step : -(first / step);
    const int left = size - first;
    return Range{below, left > 0 ? (left + step - 1) / step : -(-left / step)};
}

// Phases of one axis, combined into one: indices t of the gradient's own positions, k of the other image's.
struct Phase {
    int origin, other_origin, output;  // of index 0
    int step, output_step;
    int patch;
    bool operand2;
    int size;  // the gradient's positions are the indices [0, size)
    Range own_range;  // those with products: for operand 1, where there is an output
    Range other_range;  // indices of the other image with products: where there is a pixel, and for operand 2 an output

    // The offset of the cotangent for t and k at displacement m.
    DEVICE long long offset(int t, int k, int m, long long patch_stride, int stride) const {
        const long long at = output + static_cast<long long>(output_step) * (operand2 ? k : t);
        return (operand2 ? patch - 1 - m : m) * patch_stride + at * stride;
    }
};

struct Axis {
    int own_size, other_size;
    int patch, first, step, stride, padding, out;
    bool operand2;

    DEVICE int phases(int combined) const { return min(own_size, step / combined); }
    // The most positions of one phase.
    DEVICE int longest(int combined) const { return (own_size + step / combined - 1) / (step / combined); }

    DEVICE Phase phase(int number, int combined) const {
        Phase result;
        result.patch = patch;
        result.operand2 = operand2;
        result.step = step / combined;
        result.origin = number;
        result.other_origin = number + (operand2 ? -first - (patch - 1) * step : first);
        const int z = (operand2 ? result.other_origin : result.origin) + padding;
        result.output = z / stride;
        result.output_step = result.step / stride;
        result.own_range = inside(result.origin, result.step, own_size);
        result.size = result.own_range.end;
        result.other_range = inside(result.other_origin, result.step, other_size);
        const Range with_output = z % stride == 0 ? inside(result.output, result.output_step, out) : Range{0, 0};
        if (operand2) result.other_range = result.other_range.intersect(with_output);
        else result.own_range = result.own_range.intersect(with_output);
        return result;
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
    long long split_stride, batch_stride, channel_stride;
    int row_stride, column_stride;
};

// The division of the displacements among blocks, each of which makes a partial sum.
struct Splits {
    int row_splits, rows;  // number of splits, and displacements of each
    int column_splits, columns;
};

// Lanes of a warp over channels and columns, so that they access whole sectors.
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

// The largest tile of a block; its columns are those of all its phases.
struct Extent {
    int channels, rows, columns;
};

// The tile of a block, and its displacements.
struct Tile {
    Extent extent;
    int sample, channel, split;
    Phase y, x;
    int row, column;  // first index of either
    Range m, n;

    // The rows of X that have products with the tile's rows.
    DEVICE Range streamed_rows() const {
        const Range rows = Range{row, min(row + extent.rows, y.size)}.intersect(y.own_range);
        if (rows.begin >= rows.end) return Range{0, 0};
        return Range{rows.begin + m.begin, rows.end + m.end - 1}.intersect(y.other_range);
    }

    // Returns whether row k of X is multiplied for row t of the gradient, at one of the displacements.
    DEVICE bool multiplies(int t, int k) const { return y.own_range.contains(t) && m.contains(k - t); }
};

DEVICE Tile tile_of(int number, Extent extent, int channels, const Axis& vertical, const Axis& horizontal, const Splits& splits) {
    Tile tile;
    tile.extent = extent;
    tile.channel = digit(number, ceil_div(channels, extent.channels)) * extent.channels;
    tile.x = horizontal.phase(digit(number, horizontal.phases(PHASES)), PHASES);
    tile.column = digit(number, ceil_div(horizontal.longest(PHASES), extent.columns)) * extent.columns;
    tile.row = digit(number, ceil_div(vertical.longest(1), extent.rows)) * extent.rows;
    tile.y = vertical.phase(digit(number, vertical.phases(1)), 1);
    tile.split = digit(number, splits.row_splits * splits.column_splits);
    tile.sample = number;
    const int m = tile.split % splits.row_splits * splits.rows, n = tile.split / splits.row_splits * splits.columns;
    tile.m = Range{m, min(m + splits.rows, vertical.patch)};
    tile.n = Range{n, min(n + splits.columns, horizontal.patch)};
    return tile;
}

// A pipeline step: a row of X, and the first of the displacements taken with it.
struct Step {
    int k, n;
};

// Parameters of the kernels, and initialisers from them.
#define GRADIENT_PARAMETERS(Result)                                                                                          \
    const COTANGENT *cotangent, const INPUT *input1, const INPUT *input2, Result *gradient1, Result *gradient2,              \
        long long batch_stride_cotangent, long long m_stride_cotangent, long long n_stride_cotangent,                        \
        long long row_stride_cotangent, long long column_stride_cotangent, long long batch_stride_input1,                    \
        long long channel_stride_input1, long long row_stride_input1, long long column_stride_input1,                        \
        long long batch_stride_input2, long long channel_stride_input2, long long row_stride_input2,                         \
        long long column_stride_input2, long long split_stride_gradient1, long long batch_stride_gradient1,                  \
        long long channel_stride_gradient1, long long row_stride_gradient1, long long column_stride_gradient1,               \
        long long split_stride_gradient2, long long batch_stride_gradient2, long long channel_stride_gradient2,              \
        long long row_stride_gradient2, long long column_stride_gradient2, int tiles, int tiles1, int channels,              \
        int size1_y, int size2_y, int patch_y, int first_y, int step_y, int stride_y, int padding_y, int out_y,              \
        int size1_x, int size2_x, int patch_x, int first_x, int step_x, int stride_x, int padding_x, int out_x,              \
        int row_splits, int split_rows, int column_splits, int split_columns
#define IMAGE_OF_PARAMETERS(k)                                                                                               \
    {input##k, batch_stride_input##k, channel_stride_input##k, int(row_stride_input##k), int(column_stride_input##k)}
#define COTANGENT_OF_PARAMETERS                                                                                              \
    {cotangent,          batch_stride_cotangent,    m_stride_cotangent,                                                      \
     n_stride_cotangent, int(row_stride_cotangent), int(column_stride_cotangent)}
#define GRADIENT_OF_PARAMETERS(k)                                                                                            \
    {gradient##k,                 split_stride_gradient##k,    batch_stride_gradient##k,                                     \
     channel_stride_gradient##k, int(row_stride_gradient##k), int(column_stride_gradient##k)}
#define SPLITS_OF_PARAMETERS {row_splits, split_rows, column_splits, split_columns}
#define VERTICAL_OF_PARAMETERS(operand2)                                                                                       \
    {operand2 ? size2_y : size1_y, operand2 ? size1_y : size2_y, patch_y, first_y, step_y, stride_y, padding_y, out_y, operand2}
#define HORIZONTAL_OF_PARAMETERS(operand2)                                                                                     \
    {operand2 ? size2_x : size1_x, operand2 ? size1_x : size2_x, patch_x, first_x, step_x, stride_x, padding_x, out_x, operand2}
