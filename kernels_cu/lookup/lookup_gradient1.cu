// The gradient of input1 from one level of the lookup, each element on its own, as a gather over the windows of a pixel:
//
//     G1[s, c, i, j] = scale * sum over e, k with s = index1[e], and over the taps (y', x') of the window of (e, k, i, j), of
//                      input2[t, c, y', x'] * sum over corners a, b that read the tap of  wy(a) wx(b) g[e, k, m, n, i, j]
//
// with t = index2[e]; taps outside input2 add nothing (query.cuh). NaN where a coordinate of a query of the pixel is not finite.
// `gradient` is the gradient, or a sum for each level that sum_parts.cu adds.
//
// Tile: a thread computes a vector of VECTOR channels at one pixel, so that the inner sum is computed once for all of them.
//     rows (NCHW):      lanes are along x; each channel of the vector is a load, coalesced where the windows of neighbours are
//     CHANNELS_LAST:    lanes are along the channels; the vector is one 16-byte load
//
// Macros: INPUT, COTANGENT, COORDINATE, GRADIENT, INDEX, CHANNELS_LAST.
#include "lookup/query.cuh"

constexpr int THREADS = 256;
constexpr int VECTOR = VectorOf<INPUT>::width;

// Adds the taps of one window to the sums of a vector of channels. `map` begins at the first of them, at the first pixel.
DEVICE void add_window(Sums<Sum, VECTOR>& sums, const Volume<const COTANGENT>& volume, const COTANGENT* patch,
                       const Axis& vertical, const Axis& horizontal, const Query& query, const Image<INPUT>& image2,
                       const INPUT* map, Index wanted) {
    for (Index row = 0; row < vertical.taps(); row++) {
        const Index offset_y = vertical.offset(row), y = query.y.begin + offset_y;
        if (!vertical.is_inside(y)) continue;
        for (Index column = 0; column < horizontal.taps(); column++) {
            const Index offset_x = horizontal.offset(column), x = query.x.begin + offset_x;
            if (!horizontal.is_inside(x)) continue;
            const Sum factor = factor_of_dot(volume, patch, vertical, horizontal, query, offset_y, offset_x);
            Sum values[VECTOR];
            load_vector(map + (y * image2.row_stride + x * image2.column_stride), image2.channel_stride, wanted, values);
#pragma unroll
            for (int r = 0; r < VECTOR; r++) sums.partial[r] = multiply_add(factor, values[r], sums.partial[r]);
            sums.added(1);
        }
    }
}

KERNEL(THREADS)
lookup_gradient1(const COTANGENT* cotangent, const INPUT* input2, const COORDINATE* coords, const void* index1,
                 const void* index2, GRADIENT* gradient, Index threads, Index entries, Index lookups, Index height, Index width,
                 Index channels, VOLUME_PARAMETERS(cotangent), IMAGE_PARAMETERS(input2), COORDS_PARAMETERS,
                 ENTRIES_PARAMETERS(1), ENTRIES_PARAMETERS(2), AXIS_PARAMETERS(y), AXIS_PARAMETERS(x),
                 IMAGE_PARAMETERS(gradient), Sum scale) {
    const Volume<const COTANGENT> volume = VOLUME_OF_PARAMETERS(cotangent);
    const Image<INPUT> image2 = IMAGE_OF_PARAMETERS(input2);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
    const Index vectors = (channels + VECTOR - 1) / VECTOR;
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < threads; at += all) {
        const Index pixel = CHANNELS_LAST ? at / vectors : at;
        const Index j = pixel % width, i = pixel / width % height, index = pixel / width / height;
        const Index c = (CHANNELS_LAST ? at % vectors : index % vectors) * VECTOR, s = CHANNELS_LAST ? index : index / vectors;

        Sums<Sum, VECTOR> sums;
        sums.clear();
        bool finite = true;
        // Without an array of indices, only entry s has image s.
        const Index begin = bytes_index1 == 0 ? s : 0, end = bytes_index1 == 0 ? s + 1 : entries;
        for (Index e = begin; e < end; e++) {
            const Index t = entries2.image(e);
            if (entries1.image(e) != s || t < 0) continue;
            for (Index k = 0; k < lookups; k++) {
                const Query query = coordinates.query(vertical, horizontal, e, k, i, j);
                finite = finite && query.finite;
                if (query.finite)
                    add_window(sums, volume, volume.patch(e, k, i, j), vertical, horizontal, query, image2,
                               image2.at(t, c, 0, 0), channels - c);
            }
        }
        sums.fold();
#pragma unroll
        for (int r = 0; r < VECTOR; r++) sums.total[r] = finite ? scale * sums.total[r] : not_a_number();
        store_vector(gradient + (s * batch_stride_gradient + c * channel_stride_gradient + i * row_stride_gradient +
                                 j * column_stride_gradient),
                     channel_stride_gradient, channels - c, sums.total);
    }
}
