// The forward problem in phases, and the tile of a block.
//
// Along each axis, output i and patch index m read input2 at i stride + m step. With g = gcd(stride, step), outputs step / g
// apart and patch indices stride / g apart form an independent problem, a phase, in which every displacement is a whole number of
// positions, stride step / g pixels apart. A phase of a strided lattice is its elements with the same remainder.
//
// The patch is the range of displacements: its indices m along an axis are 0, 1, ..., patch - 1. The taps of a window are its
// pixels along an axis.
//
// Positions and offsets within a plane have 32 bits, offsets from plane to plane 64.
//
// Macros: INPUT, OUTPUT (the input's type or that of its sums).
#pragma once
#include "common/tile.cuh"

typedef SumOf<INPUT>::type Sum;

// STAGING: how tiles get into shared memory.
#define COPIED 0  // vectors of columns, by asynchronous copies
#define COLUMNWISE 1  // vectors of columns, through registers, where they are deinterleaved into phases
#define CHANNELWISE 2  // vectors of contiguous channels

// One axis. Output i = output_phase + t output_phase_stride is at tile position t output_step; patch index
// m = patch_phase + u patch_phase_stride displaces it by `shift` u positions; `shift` is a parameter of block_tile_of. It is 1
// for positions of one phase. If a kernel takes both phases of x (PHASES 2), the host describes them as one lattice, with phase
// strides 1, and `shift` is 2.
struct Axis {
    int size1, size2, out, patch;
    int output_phase_stride, patch_phase_stride;
    int origin1, origin2;  // of position 0 of phase 0: in input1, and displaced by patch index 0 in input2
    int stride, step, spacing;  // pixels between outputs, patch indices, positions
    int tile_outputs, output_step;  // outputs of a tile; positions from one to the next
    int taps, tap_step;  // taps of a window; positions from one to the next
};

// The tile of a block along one axis: outputs and patch indices of one phase each, as Axis describes them.
struct AxisTile {
    int first_output, outputs;
    int first_patch, patches;
    int start1, start2;  // of position 0 in input1, and displaced by the first patch index in input2
};

DEVICE AxisTile axis_tile(const Axis& axis, int tile, int output_phase, int patch_tile, int patch_phase, int patch_tile_size,
                          int shift) {
    const int first = tile * axis.tile_outputs, first_displacement = patch_tile * patch_tile_size;
    AxisTile result;
    result.first_output = output_phase + first * axis.output_phase_stride;
    result.outputs = min(axis.tile_outputs, ceil_div(axis.out - result.first_output, axis.output_phase_stride));
    result.first_patch = patch_phase + first_displacement * axis.patch_phase_stride;
    result.patches = min(patch_tile_size, ceil_div(axis.patch - result.first_patch, axis.patch_phase_stride));
    const int position = first * axis.output_step;
    result.start1 = axis.origin1 + output_phase * axis.stride + position * axis.spacing;
    result.start2 = axis.origin2 + output_phase * axis.stride + patch_phase * axis.step +
                    (position + first_displacement * shift) * axis.spacing;
    return result;
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
    OUTPUT* data;  // of the block's sample and split of the channels
    long long m_stride, n_stride;
    int row_stride, column_stride;
    Sum scale;

    DEVICE OUTPUT* at(int m, int n, int i, int j) const {
        return data + (m * m_stride + n * n_stride) + (i * row_stride + j * column_stride);
    }
};

// The number of tiles and phases along each axis, and of splits of the channels.
struct Grid {
    int tiles_y, patch_tiles_y, output_phases_y, patch_phases_y, tiles_x, patch_tiles_x, output_phases_x, patch_phases_x, splits;
};

// One tile of a CUDA block, which may have several, one after the other.
struct BlockTile {
    AxisTile rows, columns;
    int split, b;

    DEVICE bool has_no_outputs() const { return rows.outputs <= 0 || columns.outputs <= 0; }
    DEVICE bool empty() const { return has_no_outputs() || rows.patches <= 0 || columns.patches <= 0; }
};

// Tiles of the same outputs are consecutive, because they read the same part of input1. Each has `patch_rows` x
// `patch_columns` patch indices of a phase, from `first_patch` on. A tile of forward_mma.cuh that is not SKEWED owns rows of
// input2 instead, so it does not use `rows.patches`. `shift`: the positions by which a patch index along x displaces.
template <bool as_unsigned = false>
DEVICE BlockTile block_tile_of(int tile, const Grid& grid, const Axis& vertical, const Axis& horizontal, int patch_rows,
                                int patch_columns, int shift) {
    const int m_tile = digit<as_unsigned>(tile, grid.patch_tiles_y), n_tile = digit<as_unsigned>(tile, grid.patch_tiles_x);
    const int m_patch_phase = digit<as_unsigned>(tile, grid.patch_phases_y);
    const int n_patch_phase = digit<as_unsigned>(tile, grid.patch_phases_x);
    const int x_tile = digit<as_unsigned>(tile, grid.tiles_x), y_tile = digit<as_unsigned>(tile, grid.tiles_y);
    const int x_output_phase = digit<as_unsigned>(tile, grid.output_phases_x);
    const int y_output_phase = digit<as_unsigned>(tile, grid.output_phases_y);
    const int split = digit<as_unsigned>(tile, grid.splits);
    return BlockTile{axis_tile(vertical, y_tile, y_output_phase, m_tile, m_patch_phase, patch_rows, 1),
                     axis_tile(horizontal, x_tile, x_output_phase, n_tile, n_patch_phase, patch_columns, shift), split, tile};
}

// Parameters of the kernels, and initialisers from them.
#define GRID_PARAMETERS                                                                                                          \
    int splits, int tiles_y, int patch_tiles_y, int output_phases_y, int patch_phases_y, int tiles_x, int patch_tiles_x,         \
        int output_phases_x, int patch_phases_x
#define GRID_OF_PARAMETERS                                                                                                       \
    {tiles_y, patch_tiles_y, output_phases_y, patch_phases_y, tiles_x, patch_tiles_x, output_phases_x, patch_phases_x, splits}
#define IMAGE_PARAMETERS(n)                                                                                                      \
    long long batch_stride_input##n, long long channel_stride_input##n, int row_stride_input##n, int column_stride_input##n
#define IMAGE_OF_PARAMETERS(n)                                                                                                   \
    {input##n, batch_stride_input##n, channel_stride_input##n, row_stride_input##n, column_stride_input##n}
#define OUTPUT_PARAMETERS                                                                                                        \
    long long split_stride_out, long long batch_stride_out, long long m_stride_out, long long n_stride_out, int row_stride_out,  \
        int column_stride_out
#define AXIS_PARAMETERS(a)                                                                                                       \
    int size1_##a, int size2_##a, int out_##a, int patch_##a, int output_phase_stride_##a, int patch_phase_stride_##a,           \
        int origin1_##a, int origin2_##a, int stride_##a, int step_##a, int spacing_##a, int tile_outputs_##a,                   \
        int output_step_##a, int taps_##a, int tap_step_##a
#define AXIS_OF_PARAMETERS(a)                                                                                      \
    {size1_##a,   size2_##a,  out_##a,  patch_##a,   output_phase_stride_##a, patch_phase_stride_##a, origin1_##a, \
     origin2_##a, stride_##a, step_##a, spacing_##a, tile_outputs_##a,        output_step_##a,        taps_##a,    \
     tap_step_##a}
