// The dots of a query with TAPS neighbouring taps of a row of its window:
//
//     D(y', x') = sum over c of  input1[s, c, i, j] * input2[t, c, y', x'],   0 outside input2
//
// SPLITS neighbouring lanes (1 or 8) share the channels of a query, each taking every SPLITS-th vector of VECTOR channels; their
// sums are added in a fixed order, and all of them get the totals.
//     rows (NCHW):      VECTOR is 1; neighbouring queries are in neighbouring groups of lanes
//     CHANNELS_LAST:    a vector of channels is one 16-byte load: SPLITS lanes read 128 bytes
//
// Macros: those of query.cuh, SPLITS, CHANNELS_LAST.
#pragma once
#include "lookup/query.cuh"

constexpr int TAPS = 10;  // a patch of nine displacements a pixel apart needs as many
constexpr int VECTOR = CHANNELS_LAST ? VectorOf<INPUT>::width : 1;

// A run of displacements of a row of the patch: those that TAPS neighbouring taps are enough for.
DEVICE Index displacements_of_run(const Axis& horizontal) { return horizontal.step == 1 ? TAPS - 1 : TAPS / 2; }

// Returns whether a displacement of the run begins at a tap of it. `displacement` gets its number in the run.
DEVICE bool begins_displacement(const Axis& horizontal, int tap, Index& displacement) {
    displacement = horizontal.step == 1 ? tap : tap / 2;
    return horizontal.step == 1 || tap % 2 == 0;
}

// Returns whether a row of taps is the last one of a row of displacements. `m` gets the number of that row.
DEVICE bool ends_displacement(const Axis& vertical, Index row, Index& m) {
    const Index first_row = row - (vertical.corners - 1);
    m = first_row / vertical.pitch();
    return first_row >= 0 && m * vertical.pitch() == first_row;
}

// TAPS taps of a row, from one on: which are in the map, and their elements from the beginning of the row.
struct Columns {
    Index offset[TAPS];
    bool inside[TAPS];
};

DEVICE Columns columns_from(const Axis& horizontal, const Image<INPUT>& image2, const Position& x, Index first_tap) {
    Columns columns;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        const Index position = x.begin + horizontal.offset(first_tap + tap);
        columns.inside[tap] = first_tap + tap < horizontal.taps() && horizontal.is_inside(position);
        columns.offset[tap] = columns.inside[tap] ? position * image2.column_stride : 0;
    }
    return columns;
}

// Adds the sums of the lanes that share a query. All of them must call it.
DEVICE Sum total_of_splits(Sum sum) {
    const unsigned lanes = ((1u << SPLITS) - 1) << threadIdx.x % 32 / SPLITS * SPLITS;
#pragma unroll
    for (int apart = SPLITS / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(lanes, sum, apart, SPLITS);
    return sum;
}

// Returns whether neighbouring channels of a pixel, and of every pixel of a row that begins at `row`, can be loaded as vectors.
DEVICE bool has_vectors(const Image<INPUT>& image1, const INPUT* pixel, const Image<INPUT>& image2, const INPUT* row) {
    return VECTOR > 1 && is_vector<VECTOR>(pixel, image1.channel_stride, VECTOR) &&
           is_vector<VECTOR>(row, image2.channel_stride, VECTOR) && image2.column_stride % VECTOR == 0;
}

// Adds the products of a vector of channels; both pointers are at the first of them.
DEVICE void add_vector(Sums<Sum, TAPS>& sums, const INPUT* pixel, const INPUT* row, const Columns& columns) {
    Sum values1[VECTOR];
    load_whole_vector(pixel, values1);
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        if (!columns.inside[tap]) continue;
        Sum values2[VECTOR];
        load_whole_vector(row + columns.offset[tap], values2);
#pragma unroll
        for (int r = 0; r < VECTOR; r++) sums.partial[tap] = multiply_add(values1[r], values2[r], sums.partial[tap]);
    }
}

// Adds the products of one channel.
DEVICE void add_channel(Sums<Sum, TAPS>& sums, const INPUT* pixel, const INPUT* row, const Columns& columns) {
    const Sum value1 = load(pixel);
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++)
        if (columns.inside[tap]) sums.partial[tap] = multiply_add(value1, load(row + columns.offset[tap]), sums.partial[tap]);
}

// The dots of a row of taps. `pixel` and `map` begin at channel 0, `map` at the first pixel of its image.
DEVICE void dots_of_row(const Image<INPUT>& image1, const INPUT* pixel, const Image<INPUT>& image2, const INPUT* map,
                        const Axis& vertical, Index y, const Columns& columns, Index channels, int split, Sum (&dots)[TAPS]) {
    Sums<Sum, TAPS> sums;
    sums.clear();
    if (vertical.is_inside(y)) {
        const INPUT* const row = map + y * image2.row_stride;
        const bool vectors = has_vectors(image1, pixel, image2, row);
        for (Index begin = split * VECTOR; begin < channels; begin += SPLITS * VECTOR) {
            if (vectors && channels - begin >= VECTOR) {
                add_vector(sums, pixel + begin, row + begin, columns);
            } else {
                const Index end = VECTOR < channels - begin ? begin + VECTOR : channels;
#pragma unroll 1
                for (Index c = begin; c < end; c++)
                    add_channel(sums, pixel + c * image1.channel_stride, row + c * image2.channel_stride, columns);
            }
            sums.added(VECTOR);
        }
    }
    sums.fold();
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) dots[tap] = total_of_splits(sums.total[tap]);
}
