// Where the windows of queries are. Along each axis, with the factor p of the coordinates at this level:
//
//     X = coordinate * p,   x0 = floor(X),   weights {1 - (X - x0), X - x0} of the pixels x0 and x0 + 1
//     displacement n reads the pixels  x0 + first + n step + corner,   corner < corners
//
// The taps of a window are the distinct pixels that it reads, numbered upwards. Where displacements are a pixel apart, neighbours
// share a tap. Queries without a coordinate along y look into their own row: one corner, of weight 1.
//
// Macros: INPUT (of the features, or the type of their sums), COORDINATE, INDEX.
#pragma once
#include "common/image.cuh"

typedef SumOf<INPUT>::type Sum;

// The largest position that a coordinate is taken for. Those beyond it are outside every map that INDEX is chosen for.
constexpr Index FARTHEST = static_cast<Index>(1) << (sizeof(Index) == 4 ? 30 : 62);

// The geometry of all windows along one axis.
struct Axis {
    Index size;  // of the map
    Index patch, first, step;
    int corners;

    // The taps from a displacement to the next one.
    DEVICE Index pitch() const { return step == 1 ? 1 : corners; }

    DEVICE Index taps() const { return pitch() * (patch - 1) + corners; }

    // The pixels from the first tap to another one.
    DEVICE Index offset(Index tap) const { return step == 1 ? tap : tap / corners * step + tap % corners; }

    // The pixels from the first tap to the last one.
    DEVICE Index reach() const { return (patch - 1) * step + corners - 1; }

    // The displacement that has a corner at this offset from the first tap, -1 if there is none.
    DEVICE Index displacement(Index offset, int corner) const {
        const Index from_first = offset - corner;
        if (corner >= corners || from_first < 0 || from_first > (patch - 1) * step) return -1;
        const Index n = step == 1 ? from_first : from_first / step;
        return n * step == from_first ? n : -1;
    }

    DEVICE bool has_tap(Index offset) const {
        return offset >= 0 && offset <= reach() && (step == 1 || offset % step < corners);
    }

    DEVICE bool is_inside(Index position) const { return position >= 0 && position < size; }

    // The position of the first tap of a window around a pixel. One that is wholly outside stays outside, but near.
    DEVICE Index begin(Index pixel) const { return min(max(pixel + first, -reach() - 1), size); }
};

// The window of a query along one axis: the position of its first tap, and the weights of the corners.
struct Position {
    Index begin;
    Sum weights[2];
};

struct Query {
    bool finite;
    Position y, x;
};

DEVICE Sum not_a_number() { return float_of_bits(0x7fffffff); }
DEVICE bool is_finite(Sum number) { return number - number == 0; }

DEVICE Position position_around(const Axis& axis, Sum coordinate) {
    const Sum low = round_down(coordinate), upper = coordinate - low, farthest = static_cast<Sum>(FARTHEST);
    const Index pixel = static_cast<Index>(min(max(low, -farthest), farthest));
    return Position{axis.begin(pixel), {1 - upper, upper}};
}

struct Coordinates {
    const COORDINATE* data;
    Index entry_stride, lookup_stride, channel_stride, row_stride, column_stride;
    int channels;
    Sum factor_y, factor_x;

    DEVICE Query query(const Axis& vertical, const Axis& horizontal, Index e, Index k, Index i, Index j) const {
        const COORDINATE* const at =
            data + (e * entry_stride + k * lookup_stride + i * row_stride + j * column_stride);
        // The product must round by itself: the pixel and the weights are those of the rounded one.
        const Sum x = multiply(static_cast<Sum>(load(at)), factor_x);
        const Position columns = position_around(horizontal, x);
        if (channels == 1) return Query{is_finite(x), {vertical.begin(i), {1, 0}}, columns};
        const Sum y = multiply(static_cast<Sum>(load(at + channel_stride)), factor_y);
        return Query{is_finite(x) && is_finite(y), position_around(vertical, y), columns};
    }
};

// The images of one input that the entries compare: those of an array of 32-bit or 64-bit indices, or image e of entry e.
struct Entries {
    const void* index;
    Index stride;
    int bytes;  // of an index, 0 without an array
    Index images;

    // Returns -1 if the index is out of range.
    DEVICE Index image(Index e) const {
        const long long found = bytes == 8   ? load_global(static_cast<const long long*>(index) + e * stride)
                                : bytes == 4 ? load_global(static_cast<const int*>(index) + e * stride)
                                             : e;
        return found >= 0 && found < images ? static_cast<Index>(found) : -1;
    }
};

// The array (E, K, PH, PW, H, W) of one level: an output or a cotangent.
template <class Element>
struct Volume {
    Element* data;
    Index entry_stride, lookup_stride, m_stride, n_stride, row_stride, column_stride;

    // The patch of a query begins here.
    DEVICE Element* patch(Index e, Index k, Index i, Index j) const {
        return data + (e * entry_stride + k * lookup_stride + i * row_stride + j * column_stride);
    }
};

// The factor of the dot at some offsets from the first tap: the sum of weighted cotangents over the outputs that read it.
template <class Element>
DEVICE Sum factor_of_dot(const Volume<const Element>& cotangent, const Element* patch, const Axis& vertical,
                         const Axis& horizontal, const Query& query, Index offset_y, Index offset_x) {
    Sum factor = 0;
#pragma unroll
    for (int a = 0; a < 2; a++) {
        const Index m = vertical.displacement(offset_y, a);
        if (m < 0) continue;
#pragma unroll
        for (int b = 0; b < 2; b++) {
            const Index n = horizontal.displacement(offset_x, b);
            if (n < 0) continue;
            const Sum weight = query.y.weights[a] * query.x.weights[b];
            const Sum g = static_cast<Sum>(load(patch + (m * cotangent.m_stride + n * cotangent.n_stride)));
            factor = multiply_add(weight, g, factor);
        }
    }
    return factor;
}

// Parameters of the kernels, and initialisers from them.
#define AXIS_PARAMETERS(a) Index size_##a, Index patch_##a, Index first_##a, Index step_##a, int corners_##a
#define AXIS_OF_PARAMETERS(a) {size_##a, patch_##a, first_##a, step_##a, corners_##a}
#define IMAGE_PARAMETERS(n) Index batch_stride_##n, Index channel_stride_##n, Index row_stride_##n, Index column_stride_##n
#define IMAGE_OF_PARAMETERS(n) {n, batch_stride_##n, channel_stride_##n, row_stride_##n, column_stride_##n}
#define VOLUME_PARAMETERS(n)                                                                                                     \
    Index entry_stride_##n, Index lookup_stride_##n, Index m_stride_##n, Index n_stride_##n, Index row_stride_##n,               \
        Index column_stride_##n
#define VOLUME_OF_PARAMETERS(n)                                                                                                  \
    {n, entry_stride_##n, lookup_stride_##n, m_stride_##n, n_stride_##n, row_stride_##n, column_stride_##n}
#define COORDS_PARAMETERS                                                                                                        \
    Index entry_stride_coords, Index lookup_stride_coords, Index channel_stride_coords, Index row_stride_coords,                 \
        Index column_stride_coords, int channels_coords, Sum factor_y, Sum factor_x
#define COORDS_OF_PARAMETERS                                                                                                     \
    {coords, entry_stride_coords, lookup_stride_coords, channel_stride_coords, row_stride_coords, column_stride_coords,          \
     channels_coords, factor_y, factor_x}
#define ENTRIES_PARAMETERS(k) Index stride_index##k, int bytes_index##k, Index images##k
#define ENTRIES_OF_PARAMETERS(k) {index##k, stride_index##k, bytes_index##k, images##k}
