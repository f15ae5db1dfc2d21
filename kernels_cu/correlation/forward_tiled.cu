// The correlation over tiles in shared memory (forward_tiled.cuh), with an epilogue that stores the outputs.
//
// Macros: those of forward_tiled.cuh.
#include "correlation/forward_tiled.cuh"

#if SHARED_EPILOGUE

DEVICE void store_displacements(Sum* shared, int first, const Output& out, const Axis& vertical, const Axis& horizontal,
                                const AxisTile& rows, const AxisTile& columns) {
    const int vectors = ceil_div(columns.outputs, COLUMNS), lines = rows.outputs * PATCH_ROWS * GROUPS * STORED_DISPLACEMENTS;
    for (int item = threadIdx.x; item < lines * vectors; item += THREADS) {
        const int j = item % vectors * COLUMNS, line = item / vectors;
        const int i = line % rows.outputs, plane = line / rows.outputs;
        const int patch_row = plane % PATCH_ROWS, n = plane / PATCH_ROWS % STORED_DISPLACEMENTS,
                  group = plane / PATCH_ROWS / STORED_DISPLACEMENTS;
        const int patch_column = group * DISPLACEMENTS + first + n;
        if (patch_row >= rows.patches || first + n >= DISPLACEMENTS || patch_column >= columns.patches) continue;
        Sum values[COLUMNS];
#pragma unroll
        for (int k = 0; k < COLUMNS; k++)
            values[k] = j + k < columns.outputs
                         ? out.scale * sum_of_taps(shared, group, n, patch_row, i, j + k, vertical, horizontal)
                         : Sum(0);
        store_vector(out.at(rows.first_patch + patch_row * vertical.patch_phase_stride,
                            columns.first_patch + patch_column * horizontal.patch_phase_stride,
                            rows.first_output + i * vertical.output_phase_stride,
                            columns.first_output + j * horizontal.output_phase_stride),
                     horizontal.output_phase_stride * out.column_stride, columns.outputs - j, values);
    }
}

// The same where every position is an output of one tap. A thread has the same row and columns of every patch index.
DEVICE void store_pixels(const Sum* shared, int first, const Output& out, const Axis& vertical, const Axis& horizontal,
                         const AxisTile& rows, const AxisTile& columns) {
    constexpr int vectors = PHASES * TILE_COLUMNS / COLUMNS, together = THREADS / vectors, of_phase = COLUMNS / PHASES;
    constexpr int lines = PATCH_ROWS * STORED_DISPLACEMENTS * GROUPS;  // of the same row
    static_assert(THREADS % vectors == 0 && together % TILE_ROWS == 0, "a thread has the same row and columns of every line");
    struct __attribute__((aligned(of_phase * sizeof(Sum)))) Neighbours {
        Sum of[of_phase];
    };
    const int j = threadIdx.x % vectors * COLUMNS, first_line = threadIdx.x / vectors, i = first_line % TILE_ROWS;
    if (j >= columns.outputs || i >= rows.outputs) return;
    OUTPUT* const to = out.at(rows.first_patch, columns.first_patch, rows.first_output + i * vertical.output_phase_stride,
                              columns.first_output + j * horizontal.output_phase_stride);
    const long long m_stride = vertical.patch_phase_stride * out.m_stride, n_stride = horizontal.patch_phase_stride * out.n_stride;
    const int column_stride = horizontal.output_phase_stride * out.column_stride;
    shared += i * (PHASES * ROW_PITCH) + j / PHASES;
#pragma unroll 2
    for (int line = first_line / TILE_ROWS; line < lines; line += together / TILE_ROWS) {
        const int patch_row = line % PATCH_ROWS, plane = line / PATCH_ROWS;
        const int n = plane % STORED_DISPLACEMENTS, group = plane / STORED_DISPLACEMENTS;
        const int patch_column = group * DISPLACEMENTS + first + n;
        if (patch_row >= rows.patches || first + n >= DISPLACEMENTS || patch_column >= columns.patches) continue;
        Sum values[COLUMNS];
#pragma unroll
        for (int warp_split = 0; warp_split < WARP_SPLITS; warp_split++)
#pragma unroll
            for (int phase = 0; phase < PHASES; phase++) {
                const Sum* const from = shared_row(shared, warp_split, group, n, patch_row, 0, phase);
                const Neighbours sums = load_shared(reinterpret_cast<const Neighbours*>(from));
#pragma unroll
                for (int k = 0; k < of_phase; k++)
                    values[k * PHASES + phase] = warp_split ? values[k * PHASES + phase] + sums.of[k] : sums.of[k];
            }
#pragma unroll
        for (int k = 0; k < COLUMNS; k++) values[k] *= out.scale;
        store_vector(to + (patch_row * m_stride + patch_column * n_stride), column_stride, columns.outputs - j, values);
    }
}

DEVICE void store_products(const Products& products, Sum* shared, const Thread& thread, const Inside& inside, const Output& out,
                           const Axis& vertical, const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
    const bool pixels = has_pixels(vertical, horizontal);
    share_products(products, shared, thread, inside, [&](int first) {
        if (pixels) store_pixels(shared, first, out, vertical, horizontal, rows, columns);
        else store_displacements(shared, first, out, vertical, horizontal, rows, columns);
    });
}

#else

// Epilogue from registers: a thread's columns are contiguous, and those of a warp's lanes along x make whole lines.
DEVICE void store_products(const Products& products, Sum*, const Thread& thread, const Inside& inside, const Output& out,
                           const Axis& vertical, const Axis& horizontal, const AxisTile& rows, const AxisTile& columns) {
    if (thread.idle) return;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int patch_row = thread.patch_row(r), row = thread.rows + r;
        if (patch_row < 0 || patch_row >= rows.patches || row >= rows.outputs || thread.column >= columns.outputs) continue;
        OUTPUT* to = out.at(rows.first_patch + patch_row * vertical.patch_phase_stride,
                            columns.first_patch + thread.group * DISPLACEMENTS * horizontal.patch_phase_stride,
                            rows.first_output + row * vertical.output_phase_stride,
                            columns.first_output + thread.column * horizontal.output_phase_stride);
#pragma unroll
        for (int n = 0; n < DISPLACEMENTS; n++, to += horizontal.patch_phase_stride * out.n_stride) {
            if (thread.group * DISPLACEMENTS + n >= columns.patches) break;
            const uint32 columns_inside = inside.columns(r, n);
            Sum values[COLUMNS];
#pragma unroll
            for (int k = 0; k < COLUMNS; k++) values[k] = columns_inside >> k & 1 ? out.scale * products[r][n][k] : Sum(0);
            store_vector(to, horizontal.output_phase_stride * out.column_stride, columns.outputs - thread.column, values);
        }
    }
}

#endif

KERNEL(THREADS)
forward_tiled(const INPUT* input1, const INPUT* input2, OUTPUT* out, int tiles, int channels, int split_channels,
              int vector_width, GRID_PARAMETERS, IMAGE_PARAMETERS(1), IMAGE_PARAMETERS(2), OUTPUT_PARAMETERS, AXIS_PARAMETERS(y),
              AXIS_PARAMETERS(x), Sum scale) {
    DYNAMIC_SHARED_ARRAY(Sum, shared);
    const Image image1 = IMAGE_OF_PARAMETERS(1), image2 = IMAGE_OF_PARAMETERS(2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Grid grid = GRID_OF_PARAMETERS;
    const auto finish = [&](const Products& products, const Thread& thread, const BlockTile& block, int) {
        const Output result = {out + (block.split * split_stride_out + block.b * batch_stride_out), m_stride_out, n_stride_out,
                            row_stride_out, column_stride_out, scale};
        const Inside inside = inside_of(thread, vertical, horizontal, block.rows, block.columns);
        store_products(products, shared, thread, inside, result, vertical, horizontal, block.rows, block.columns);
    };
    for_each_tile<false>(shared, tiles, channels, split_channels, vector_width, grid, image1, image2, vertical, horizontal, finish);
}
