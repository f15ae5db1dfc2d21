// The correlation, each output on its own:
//
//     out[b, m, n, i, j] = scale * sum over c, u < kH, v < kW of  X1[b, c, y, x] * X2[b, c, y + dy(m), x + dx(n)]
//     y = i sH + u dH - aH,   x = j sW + v dW - aW,   dy(m) = first + m step;   both positions inside their images
//
// It supports all parameters, strides and types, and has no reuse but that of the caches: the fallback, and a second
// implementation for tests.
//
// Tile: a block computes POSITIONS neighbouring outputs (i, j) of one displacement. SPLITS threads share the channels of an
// output, each taking every SPLITS-th vector of VECTOR channels, and their sums are added in a fixed order.
//     rows (NCHW):      lanes are along x, so that loads of a warp are coalesced; a split is a warp or more, VECTOR is 1
//     CHANNELS_LAST:    splits are neighbouring lanes, a vector of channels is one 16-byte load: SPLITS lanes read 128 bytes
//
// Macros: INPUT, OUTPUT, INDEX, SPLITS, CHANNELS_LAST.
#include "common/image.cuh"

typedef SumOf<INPUT>::type Sum;

constexpr int THREADS = 256;
constexpr int POSITIONS = THREADS / SPLITS;
constexpr int VECTOR = CHANNELS_LAST ? VectorOf<INPUT>::width : 1;
constexpr int UNROLLED = CHANNELS_LAST ? 1 : 4;  // loads in flight: as many as fit without spills

// One axis: sizes of the images, displacements, and the positions of the outputs' taps.
struct Axis {
    Index size1, size2;
    Index patch, first, step;
    Index out, kernel, stride, dilation, padding;
};

// Adds the products of one pixel with another, over the channels of one split.
DEVICE void add_pixels(Sums<Sum, 1>& sums, const Image<INPUT>& image1, const INPUT* pixel1, const Image<INPUT>& image2, const INPUT* pixel2,
                       Index channels, int split) {
    const Index step = SPLITS * VECTOR;
    for (Index begin = split * VECTOR; begin < channels;) {
        const Index end = channels - begin < FOLD * SPLITS ? channels : begin + FOLD * SPLITS;
        int terms = 0;
#pragma unroll UNROLLED
        for (; begin < end; begin += step, terms += VECTOR) {
            Sum values1[VECTOR], values2[VECTOR];
            load_vector(pixel1 + begin * image1.channel_stride, image1.channel_stride, channels - begin, values1);
            load_vector(pixel2 + begin * image2.channel_stride, image2.channel_stride, channels - begin, values2);
#pragma unroll
            for (int r = 0; r < VECTOR; r++) sums.partial[0] = multiply_add(values1[r], values2[r], sums.partial[0]);
        }
        sums.added(terms);
    }
}

// The sum of one split over the taps of the window.
DEVICE Sum sum_of_taps(const Image<INPUT>& image1, const Image<INPUT>& image2, const Axis& vertical, const Axis& horizontal, Index channels,
                       Index b, Index m, Index n, Index i, Index j, int split) {
    Sums<Sum, 1> sums;
    sums.clear();
    Index y1 = i * vertical.stride - vertical.padding;
    for (Index u = 0; u < vertical.kernel; u++, y1 += vertical.dilation) {
        const Index y2 = y1 + vertical.first + m * vertical.step;
        if (y1 < 0 || y1 >= vertical.size1 || y2 < 0 || y2 >= vertical.size2) continue;
        Index x1 = j * horizontal.stride - horizontal.padding;
        for (Index v = 0; v < horizontal.kernel; v++, x1 += horizontal.dilation) {
            const Index x2 = x1 + horizontal.first + n * horizontal.step;
            if (x1 < 0 || x1 >= horizontal.size1 || x2 < 0 || x2 >= horizontal.size2) continue;
            add_pixels(sums, image1, image1.at(b, 0, y1, x1), image2, image2.at(b, 0, y2, x2), channels, split);
        }
    }
    sums.fold();
    return sums.total[0];
}

// Adds the sums of the splits of each position; split 0 gets the total. Every thread of the block must call it.
#if SPLITS == 1
DEVICE Sum total_of_splits(Sum sum, int, int) { return sum; }
#elif CHANNELS_LAST
DEVICE Sum total_of_splits(Sum sum, int, int) {
#pragma unroll
    for (int apart = SPLITS / 2; apart > 0; apart /= 2) sum += __shfl_down_sync(0xffffffffu, sum, apart, SPLITS);
    return sum;
}
#else
DEVICE Sum total_of_splits(Sum sum, int position, int split) {
    SHARED_ARRAY(Sum, sums, THREADS);
    store_shared(&sums[split * POSITIONS + position], sum);
    __syncthreads();
    if (split == 0) {
#pragma unroll
        for (int other = 1; other < SPLITS; other++) sum += load_shared(&sums[other * POSITIONS + position]);
    }
    __syncthreads();  // the next tile writes here
    return sum;
}
#endif

KERNEL(THREADS)
forward_direct(const INPUT* input1, const INPUT* input2, OUTPUT* out, Index tiles, Index channels, Index batch_stride_input1,
               Index channel_stride_input1, Index row_stride_input1, Index column_stride_input1, Index batch_stride_input2,
               Index channel_stride_input2, Index row_stride_input2, Index column_stride_input2, Index batch_stride_out,
               Index m_stride_out, Index n_stride_out, Index row_stride_out, Index column_stride_out, Index size1_y,
               Index size2_y, Index patch_y, Index first_y, Index step_y, Index out_y, Index kernel_y, Index stride_y,
               Index dilation_y, Index padding_y, Index size1_x, Index size2_x, Index patch_x, Index first_x, Index step_x,
               Index out_x, Index kernel_x, Index stride_x, Index dilation_x, Index padding_x, Sum scale) {
    const Image<INPUT> image1 = {input1, batch_stride_input1, channel_stride_input1, row_stride_input1, column_stride_input1};
    const Image<INPUT> image2 = {input2, batch_stride_input2, channel_stride_input2, row_stride_input2, column_stride_input2};
    const Axis vertical = {size1_y, size2_y, patch_y, first_y, step_y, out_y, kernel_y, stride_y, dilation_y, padding_y};
    const Axis horizontal = {size1_x, size2_x, patch_x, first_x, step_x, out_x, kernel_x, stride_x, dilation_x, padding_x};
    const int thread = threadIdx.x;
    const int split = CHANNELS_LAST ? thread % SPLITS : thread / POSITIONS;
    const int position = CHANNELS_LAST ? thread / SPLITS : thread % POSITIONS;
    const Index plane = out_y * out_x;
    const Index chunks = (plane + POSITIONS - 1) / POSITIONS;
    for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        // Neighbouring displacements are consecutive, as they read the same pixels.
        const Index n = tile % patch_x, m = tile / patch_x % patch_y, chunk = tile / patch_x / patch_y % chunks;
        const Index b = tile / patch_x / patch_y / chunks;
        const Index at = chunk * POSITIONS + position, i = at / out_x, j = at % out_x;
        const bool inside = at < plane;
        Sum sum = 0;
        if (inside) sum = sum_of_taps(image1, image2, vertical, horizontal, channels, b, m, n, i, j, split);
        sum = total_of_splits(sum, position, split);
        if (inside && split == 0)
            store(out + (b * batch_stride_out + m * m_stride_out + n * n_stride_out + i * row_stride_out + j * column_stride_out),
                  scale * sum);
    }
}
