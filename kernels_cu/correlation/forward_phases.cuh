// The forward problem in phases, and what a block has of it: along each axis, outputs and patch indices fall into phases that never
// meet. Every number is of positions and elements within 32 bits, but for offsets from plane to plane.
//
// Macros: INPUT, OUTPUT (the input's type or that of its sums).
#pragma once
#include "common/tile.cuh"

typedef SumOf<INPUT>::type Sum;

// STAGING: how images get into shared memory.
#define COPIED 0       // runs of columns, by asynchronous copies
#define COLUMNWISE 1   // runs of columns, through registers, where they are parted into phases
#define CHANNELWISE 2  // runs of channels that are neighbours in memory

// One axis. Output i = residue + t outputs_apart stands at tile position t output_step, patch index m = rest + u patches_apart is
// `shift` u positions away.
struct Axis {
    int size1, size2, out, patch;
    int outputs_apart, patches_apart;
    int origin1, origin2;        // of position 0 of phase 0: in input1, and displaced by patch index 0 in input2
    int stride, step, spacing;   // pixels between outputs, patch indices, positions
    int tile_outputs, output_step, taps, tap_step;  // outputs of a block; positions between outputs, and between taps
};

// What a block has of one axis.
struct Part {
    int output, outputs;  // the first, and how many
    int patch, patches;
    int at1, at2;  // where position 0 is in input1, and where the first displacement takes it in input2
};

DEVICE Part part_of(const Axis& axis, int tile, int residue, int patch_tile, int rest, int patch_tile_size, int shift) {
    const int first = tile * axis.tile_outputs, patch_first = patch_tile * patch_tile_size;
    Part part;
    part.output = residue + first * axis.outputs_apart;
    part.outputs = min(axis.tile_outputs, ceil_div(axis.out - part.output, axis.outputs_apart));
    part.patch = rest + patch_first * axis.patches_apart;
    part.patches = min(patch_tile_size, ceil_div(axis.patch - part.patch, axis.patches_apart));
    const int position = first * axis.output_step;
    part.at1 = axis.origin1 + residue * axis.stride + position * axis.spacing;
    part.at2 = axis.origin2 + residue * axis.stride + rest * axis.step + (position + patch_first * shift) * axis.spacing;
    return part;
}

struct Image {
    const INPUT* data;
    long long batch_stride, channel_stride;
    int row_stride, column_stride;
};

// The positions from `at` on, `spacing` apart, that are inside [0, size): the first, and the one after the last.
DEVICE int first_inside(int at, int spacing) { return at < 0 ? ceil_div(-at, spacing) : 0; }
DEVICE int end_inside(int at, int spacing, int size) { return at < size ? ceil_div(size - at, spacing) : 0; }

struct Output {
    OUTPUT* data;  // of the block's sample and share of the channels
    long long m_stride, n_stride;
    int row_stride, column_stride;
    Sum scale;

    DEVICE OUTPUT* at(int m, int n, int i, int j) const {
        return data + (m * m_stride + n * n_stride) + (i * row_stride + j * column_stride);
    }
};

// How many tiles and phases there are along each axis, and splits of the channels.
struct Grid {
    int tiles_y, patch_tiles_y, residues_y, rests_y, tiles_x, patch_tiles_x, residues_x, rests_x, splits;
};

struct Block {
    Part rows, columns;
    int split, b;

    DEVICE bool empty() const { return rows.outputs <= 0 || columns.outputs <= 0 || rows.patches <= 0 || columns.patches <= 0; }
};

// The next of a number's digits, the last first.
DEVICE int digit(int& number, int base) {
    const int last = number % base;
    number /= base;
    return last;
}

// Displacements of the same outputs stand next to each other in time: they read the same input1.
// A block takes so many patch indices of a phase along each axis; one of x moves it by `shift` positions.
DEVICE Block block_of(int tile, const Grid& grid, const Axis& vertical, const Axis& horizontal, int patch_rows, int patch_columns,
                      int shift) {
    const int m_tile = digit(tile, grid.patch_tiles_y), n_tile = digit(tile, grid.patch_tiles_x);
    const int m_rest = digit(tile, grid.rests_y), n_rest = digit(tile, grid.rests_x);
    const int x_tile = digit(tile, grid.tiles_x), y_tile = digit(tile, grid.tiles_y);
    const int x_residue = digit(tile, grid.residues_x), y_residue = digit(tile, grid.residues_y);
    const int split = digit(tile, grid.splits);
    return Block{part_of(vertical, y_tile, y_residue, m_tile, m_rest, patch_rows, 1),
                 part_of(horizontal, x_tile, x_residue, n_tile, n_rest, patch_columns, shift), split, tile};
}

// The parameters of a kernel that stand for these.
#define GRID_PARAMETERS \
    int splits, int tiles_y, int patch_tiles_y, int residues_y, int rests_y, int tiles_x, int patch_tiles_x, int residues_x, int rests_x
#define GRID_OF_PARAMETERS {tiles_y, patch_tiles_y, residues_y, rests_y, tiles_x, patch_tiles_x, residues_x, rests_x, splits}
#define IMAGE_PARAMETERS(n) long long batch_stride##n, long long channel_stride##n, int row_stride##n, int column_stride##n
#define IMAGE_OF_PARAMETERS(n) {input##n, batch_stride##n, channel_stride##n, row_stride##n, column_stride##n}
#define OUTPUT_PARAMETERS                                                                                                    \
    long long split_stride_out, long long batch_stride_out, long long m_stride_out, long long n_stride_out, int row_stride_out, \
        int column_stride_out
#define AXIS_PARAMETERS(a)                                                                                                 \
    int size1_##a, int size2_##a, int out_##a, int patch_##a, int outputs_apart_##a, int patches_apart_##a, int origin1_##a, \
        int origin2_##a, int stride_##a, int step_##a, int spacing_##a, int tile_outputs_##a, int output_step_##a, int taps_##a,  \
        int tap_step_##a
#define AXIS_OF_PARAMETERS(a)                                                                                                \
    {size1_##a,  size2_##a, out_##a,     patch_##a,        outputs_apart_##a, patches_apart_##a, origin1_##a, origin2_##a,       \
     stride_##a, step_##a,  spacing_##a, tile_outputs_##a, output_step_##a,   taps_##a,          tap_step_##a}
