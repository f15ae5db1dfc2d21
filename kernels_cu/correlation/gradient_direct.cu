// The gradient of one input, each element on its own, as a gather:
//
//     OPERAND 1:  G1[b, c, y, x] = scale * sum over m, n of  X2[b, c, y + dy(m), x + dx(n)] * sum of g[b, m, n, i, j]
//     OPERAND 2:  G2[b, c, y, x] = scale * sum over m, n of  X1[b, c, y - dy(m), x - dx(n)] * sum of g[b, m, n, i, j]
//     dy(m) = first + m step; the inner sum is over the outputs (i, j) that read input1 there (window.cuh);
//     both positions inside their images
//
// Tile: a thread computes a vector of VECTOR channels at one position, so that the inner sum is computed once for all of them.
//     rows (NCHW):      lanes are along x; each channel of the vector is one coalesced load
//     CHANNELS_LAST:    lanes are along the channels; the vector is one 16-byte load
//
// A sum over the displacements may be split over several launches: all but the first start from `previous_sums`, all but the last
// store to `next_sums` instead of the gradient; the pointers are null elsewhere.
//
// Macros: INPUT (of the other input and the gradient), COTANGENT, INDEX, OPERAND, CHANNELS_LAST.
#include "correlation/window.cuh"

typedef SumOf<INPUT>::type Sum;

constexpr int THREADS = 256;
constexpr int VECTOR = VectorOf<INPUT>::width;

// One axis: sizes of the gradient's own image and of the other one, displacements, outputs.
struct Axis {
    Index size, other_size;
    Index patch, first, step, padding;
    Window window;

    // The position in the other image at displacement m.
    DEVICE Index other(Index position, Index m) const {
        const Index displacement = first + m * step;
        return OPERAND == 1 ? position + displacement : position - displacement;
    }

    // The outputs of displacement m whose products have this position and one inside the other image as factors.
    DEVICE Progression outputs(Index position, Index m) const {
        const Index other_position = other(position, m);
        if (other_position < 0 || other_position >= other_size) return Progression{0, 0, 0};
        return outputs_at_position(window, output(position, m));
    }

    // The output of displacement m, if each position has its own.
    DEVICE Index output(Index position, Index m) const { return (OPERAND == 1 ? position : other(position, m)) + padding; }

    // Returns whether there is one, and a position inside the other image.
    DEVICE bool has_output(Index position, Index m) const {
        const Index other_position = other(position, m), at = output(position, m);
        return other_position >= 0 && other_position < other_size && at >= 0 && at < window.out;
    }
};

struct Cotangent {
    const COTANGENT* data;
    Index batch_stride, m_stride, n_stride, row_stride, column_stride;

    // The sum over some outputs of one displacement.
    DEVICE Sum sum(Index b, Index m, Index n, const Progression& rows, const Progression& columns) const {
        const COTANGENT* row = data + (b * batch_stride + m * m_stride + n * n_stride + rows.first * row_stride +
                                       columns.first * column_stride);
        Sums<Sum, 1> sums;
        sums.clear();
        for (Index u = 0; u < rows.count; u++, row += rows.step * row_stride) {
            const COTANGENT* at = row;
            for (Index v = 0; v < columns.count; v++, at += columns.step * column_stride) {
                sums.partial[0] += static_cast<Sum>(load(at));
                sums.added(1);
            }
        }
        sums.fold();
        return sums.total[0];
    }
};

// The vector of channels of the other image that a thread multiplies.
struct Vector {
    const INPUT* data;  // at the image's first pixel
    Index channel_stride, row_stride, column_stride;
    Index channels;  // from its first on

    // Loads it at one pixel; it is 0 at a pixel outside.
    DEVICE void load(Index row, Index column, bool inside, Sum (&values)[VECTOR]) const {
        const INPUT* const from = data + (inside ? row * row_stride + column * column_stride : 0);
        load_vector(from, channel_stride, inside ? channels : 0, values);
    }
};

DEVICE void add_product(Sums<Sum, VECTOR>& sums, Sum weight, const Sum (&values)[VECTOR]) {
#pragma unroll
    for (int r = 0; r < VECTOR; r++) sums.partial[r] = multiply_add(weight, values[r], sums.partial[r]);
}

// Adds the products of all displacements.
DEVICE void add_windows(Sums<Sum, VECTOR>& sums, const Cotangent& g, const Vector& image, const Axis& vertical,
                        const Axis& horizontal, Index b, Index y, Index x) {
    for (Index m = 0; m < vertical.patch; m++) {
        const Progression rows = vertical.outputs(y, m);
        if (rows.count == 0) continue;
        for (Index n = 0; n < horizontal.patch; n++) {
            const Progression columns = horizontal.outputs(x, n);
            if (columns.count == 0) continue;
            Sum values[VECTOR];
            image.load(vertical.other(y, m), horizontal.other(x, n), true, values);
            add_product(sums, g.sum(b, m, n, rows, columns), values);
            sums.added(1);
        }
    }
}

// The same where each position has its own output: nothing is divided to find it, and several loads are in flight. What is outside
// is 0 in both factors.
DEVICE void add_pixels(Sums<Sum, VECTOR>& sums, const Cotangent& g, const Vector& image, const Axis& vertical,
                       const Axis& horizontal, Index b, Index y, Index x) {
    constexpr int together = VECTOR > 4 ? 2 : 4;  // loads of 8 elements take more registers
    for (Index m = 0; m < vertical.patch; m++) {
        if (!vertical.has_output(y, m)) continue;
        const COTANGENT* const row = g.data + (b * g.batch_stride + m * g.m_stride + vertical.output(y, m) * g.row_stride);
        for (Index first = 0; first < horizontal.patch; first += together) {
            Sum weights[together], values[together][VECTOR];
#pragma unroll
            for (int k = 0; k < together; k++) {
                const Index n = first + k;
                const bool inside = n < horizontal.patch && horizontal.has_output(x, n);
                weights[k] =
                    inside ? static_cast<Sum>(load(row + n * g.n_stride + horizontal.output(x, n) * g.column_stride)) : Sum(0);
                image.load(vertical.other(y, m), horizontal.other(x, n), inside, values[k]);
            }
#pragma unroll
            for (int k = 0; k < together; k++) add_product(sums, weights[k], values[k]);
            sums.added(together);
        }
    }
}

KERNEL(THREADS)
gradient_direct(const COTANGENT* cotangent, const INPUT* other, INPUT* gradient, const Sum* previous_sums, Sum* next_sums,
                Index threads, Index channels, Index batch_stride_cotangent, Index m_stride_cotangent, Index n_stride_cotangent,
                Index row_stride_cotangent, Index column_stride_cotangent, Index batch_stride_other, Index channel_stride_other,
                Index row_stride_other, Index column_stride_other, Index batch_stride_gradient, Index channel_stride_gradient,
                Index row_stride_gradient, Index column_stride_gradient, Index size_y, Index other_size_y, Index patch_y,
                Index first_y, Index step_y, Index padding_y, Index kernel_y, Index out_y, Index common_y, Index inverse_y,
                Index tap_step_y, Index output_step_y, Index size_x, Index other_size_x, Index patch_x, Index first_x,
                Index step_x, Index padding_x, Index kernel_x, Index out_x, Index common_x, Index inverse_x, Index tap_step_x,
                Index output_step_x, Sum scale) {
    const Axis vertical = {size_y, other_size_y, patch_y, first_y, step_y, padding_y,
                           {kernel_y, out_y, common_y, inverse_y, tap_step_y, output_step_y}};
    const Axis horizontal = {size_x, other_size_x, patch_x, first_x, step_x, padding_x,
                             {kernel_x, out_x, common_x, inverse_x, tap_step_x, output_step_x}};
    const Cotangent g = {cotangent,          batch_stride_cotangent, m_stride_cotangent,
                         n_stride_cotangent, row_stride_cotangent,   column_stride_cotangent};
    const Index vectors = (channels + VECTOR - 1) / VECTOR;
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < threads; at += all) {
        const Index pixel = CHANNELS_LAST ? at / vectors : at;
        const Index x = pixel % size_x, y = pixel / size_x % size_y;
        const Index index = pixel / size_x / size_y;
        const Index c = (CHANNELS_LAST ? at % vectors : index % vectors) * VECTOR, b = CHANNELS_LAST ? index : index / vectors;
        const Vector image = {other + (b * batch_stride_other + c * channel_stride_other), channel_stride_other,
                              row_stride_other, column_stride_other, channels - c};

        Sums<Sum, VECTOR> sums;
        sums.clear();
        if (vertical.window.is_pixel() && horizontal.window.is_pixel())
            add_pixels(sums, g, image, vertical, horizontal, b, y, x);
        else add_windows(sums, g, image, vertical, horizontal, b, y, x);
        sums.fold();

        if (previous_sums) {
#pragma unroll
            for (int r = 0; r < VECTOR; r++) sums.total[r] += load(previous_sums + at * VECTOR + r);
        }
        if (next_sums) {
#pragma unroll
            for (int r = 0; r < VECTOR; r++) store(next_sums + at * VECTOR + r, sums.total[r]);
        } else {
#pragma unroll
            for (int r = 0; r < VECTOR; r++) sums.total[r] *= scale;
            store_vector(gradient + (b * batch_stride_gradient + c * channel_stride_gradient + y * row_stride_gradient +
                                     x * column_stride_gradient),
                         channel_stride_gradient, channels - c, sums.total);
        }
    }
}
