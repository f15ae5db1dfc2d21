// The levels of input2 that one launch computes: up to LEVELS of a pyramid, each with its map and the factors of its coordinates.
//
// Macros: those of query.cuh.
#pragma once
#include "lookup/query.cuh"

constexpr int LEVELS = 4;

struct Level {
    Image<INPUT> map;
    Index size_y, size_x;
    Sum factor_y, factor_x;
};

// One of the levels. Copies are selected member by member, so that none of them is in local memory.
DEVICE Level level_of_number(int number, const Level& level0, const Level& level1, const Level& level2, const Level& level3) {
    Level level = level0;
    if (number == 1) level = level1;
    if (number == 2) level = level2;
    if (number == 3) level = level3;
    return level;
}

// Parameters of kernels, and initialisers from them and from a `level`.
#define LEVEL_PARAMETERS(n)                                                                                                      \
    Index batch_stride_input2_##n, Index channel_stride_input2_##n, Index row_stride_input2_##n, Index column_stride_input2_##n, \
        Index size_y_##n, Index size_x_##n, Sum factor_y_##n, Sum factor_x_##n
#define LEVEL_OF_PARAMETERS(n)                                                                                                   \
    {{input2_##n, batch_stride_input2_##n, channel_stride_input2_##n, row_stride_input2_##n, column_stride_input2_##n},          \
     size_y_##n, size_x_##n, factor_y_##n, factor_x_##n}
#define COORDS_OF_LEVELS_PARAMETERS                                                                                              \
    Index entry_stride_coords, Index lookup_stride_coords, Index channel_stride_coords, Index row_stride_coords,                 \
        Index column_stride_coords, int channels_coords
#define COORDS_OF_LEVEL                                                                                                          \
    {coords, entry_stride_coords, lookup_stride_coords, channel_stride_coords, row_stride_coords, column_stride_coords,          \
     channels_coords, level.factor_y, level.factor_x}
#define AXIS_OF_LEVELS_PARAMETERS(a) Index patch_##a, Index first_##a, Index step_##a, int corners_##a
#define AXIS_OF_LEVEL(a) {level.size_##a, patch_##a, first_##a, step_##a, corners_##a}
