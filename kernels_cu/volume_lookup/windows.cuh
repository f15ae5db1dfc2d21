// The windows of a tile of QUERIES neighbouring queries in shared memory, a chunk of displacements at a time:
//
//     D(y', x') = volume[e, i, j, y', x'],   0 outside the slice of the query
//
// Neighbouring lanes read neighbouring taps, those of one query after those of another. Afterwards a lane has a query, so that
// neighbouring lanes write neighbouring elements of a plane of the output. Planners choose chunks whose taps fit.
//
// Macros: those of query.cuh; INPUT is the type of the volume.
#pragma once
#include "common/tile.cuh"
#include "lookup/query.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int QUERIES = WARP;       // of a tile
constexpr int TAPS = 128;           // of a chunk, at most
constexpr int PITCH = QUERIES + 1;  // between taps: neither taps of a query nor queries of a tap are in one bank

// The volume (E, H, W, H2, W2).
template <class Element>
struct Slices {
    Element* data;
    Index entry_stride, i_stride, j_stride, row_stride, column_stride;

    // The elements from the beginning of the volume to that of a slice.
    DEVICE Index slice(Index e, Index i, Index j) const { return e * entry_stride + i * i_stride + j * j_stride; }

    // The number of elements from the beginning of a slice to one of its pixels.
    DEVICE Index pixel(Index y, Index x) const { return y * row_stride + x * column_stride; }
};

// The number of a query -> its entry and its pixel.
struct Place {
    Index e, i, j;
};

DEVICE Place place(Index number, Index height, Index width) {
    return Place{number / width / height, number / width % height, number % width};
}

// A query with a slice of one row has no coordinate along y, and looks into that row.
DEVICE Query query_at(const Coordinates& coordinates, const Axis& vertical, const Axis& horizontal, const Place& at) {
    Query query = coordinates.query(vertical, horizontal, at.e, 0, at.i, at.j);
    if (coordinates.channels == 1) query.y.begin = 0;
    return query;
}

// A chunk of displacements, and the taps that they read.
struct Chunk {
    Index m, n;       // the first displacement
    int rows, columns;  // of displacements
    int taps_y, taps_x;
};

DEVICE int taps_of(const Axis& axis, int displacements) {
    return static_cast<int>(axis.pitch()) * (displacements - 1) + axis.corners;
}

// Chunk `number` of those that have so many rows and columns of displacements, or fewer at the end of the patch.
DEVICE Chunk chunk_of(const Axis& vertical, const Axis& horizontal, Index number, int rows, int columns) {
    const Index across = (horizontal.patch + columns - 1) / columns;
    const Index m = number / across * rows, n = number % across * columns;
    const int height = static_cast<int>(min(vertical.patch - m, static_cast<Index>(rows)));
    const int width = static_cast<int>(min(horizontal.patch - n, static_cast<Index>(columns)));
    return Chunk{m, n, height, width, taps_of(vertical, height), taps_of(horizontal, width)};
}

// A query of the tile, and where its slice begins.
struct TileQuery {
    Query query;
    Index slice;
};

// Stores the queries of a tile that begins with number `first`, and returns how many there are.
DEVICE int store_queries(TileQuery* queries, const Slices<const INPUT>& slices, const Coordinates& coordinates,
                         const Axis& vertical, const Axis& horizontal, Index first, Index count, Index height, Index width) {
    const int size = static_cast<int>(min(count - first, static_cast<Index>(QUERIES))), q = threadIdx.x;
    if (q < size) {
        const Place at = place(first + q, height, width);
        store_shared(&queries[q],
                     TileQuery{query_at(coordinates, vertical, horizontal, at), slices.slice(at.e, at.i, at.j)});
    }
    return size;
}

// Stores the taps of a chunk for so many queries, 0 outside the slices.
DEVICE void store_taps(Sum* taps, const TileQuery* queries, int size, const Slices<const INPUT>& slices, const Axis& vertical,
                       const Axis& horizontal, const Chunk& chunk) {
    const Index first_y = vertical.pitch() * chunk.m, first_x = horizontal.pitch() * chunk.n;
    const int taps_of_query = chunk.taps_y * chunk.taps_x;
    for (int number = threadIdx.x; number < size * taps_of_query; number += THREADS) {
        const int q = number / taps_of_query, tap = number % taps_of_query;
        const TileQuery tile_query = load_shared(&queries[q]);
        const Index y = tile_query.query.y.begin + vertical.offset(first_y + tap / chunk.taps_x);
        const Index x = tile_query.query.x.begin + horizontal.offset(first_x + tap % chunk.taps_x);
        Sum value = 0;
        if (vertical.is_inside(y) && horizontal.is_inside(x))
            value = static_cast<Sum>(load(slices.data + (tile_query.slice + slices.pixel(y, x))));
        store_shared(&taps[tap * PITCH + q], value);
    }
}

// The taps of the corners of a displacement of the chunk, for the lane's query. With one row, the lower ones are those above.
struct Corners {
    Sum upper_left, upper_right, lower_left, lower_right;
};

DEVICE Corners corners_of(const Sum* taps, const Axis& vertical, const Axis& horizontal, const Chunk& chunk, int m, int n) {
    const int row = m * static_cast<int>(vertical.pitch()), column = n * static_cast<int>(horizontal.pitch());
    const Sum* const upper = taps + (row * chunk.taps_x + column) * PITCH + threadIdx.x % WARP;
    const Sum* const lower = upper + (vertical.corners - 1) * chunk.taps_x * PITCH;
    return Corners{load_shared(upper), load_shared(upper + PITCH), load_shared(lower), load_shared(lower + PITCH)};
}

#define SLICES_PARAMETERS(n)                                                                                          \
    Index entry_stride_##n, Index i_stride_##n, Index j_stride_##n, Index row_stride_##n, Index column_stride_##n
#define SLICES_OF_PARAMETERS(n) {n, entry_stride_##n, i_stride_##n, j_stride_##n, row_stride_##n, column_stride_##n}
