// The windows of a tile of queries, and the parts of the tile whose windows are in a rectangle of the map, which is loaded once:
//
//     box of a query                  the pixels of the map that its window may read; empty if it reads nothing
//     box of a run, quarter or part   the smallest rectangle that the boxes of its queries are in (their union)
//
// A run is RUN neighbours in a row, a quarter is 4 x 4 queries, and a part is a set of quarters: the whole tile, a half of it or
// a quarter. Queries are numbered so that those of a run, of a quarter, and of the upper and the lower half are contiguous:
//
//     number = 32 (row / 4) + 16 (column / 4) + 4 (row % 4) + column % 4
//
// Macros: those of query.cuh.
#pragma once
#include "lookup/tiles.cuh"

constexpr int RUN = 4;
constexpr int RUNS = QUERIES / RUN;
constexpr int QUARTERS = 4;
constexpr int QUARTER = QUERIES / QUARTERS;  // queries
constexpr unsigned WHOLE_TILE = 0xf;         // the part of all quarters; bit k is quarter k

// Every part, four bits each, in the order in which they are tried: the whole, the upper and the lower half, the left and the
// right half, the quarters.
constexpr unsigned long long PARTS = 0x8421a5c3full;

DEVICE int row_of_query(int number) { return number / 32 * 4 + number / 4 % 4; }
DEVICE int column_of_query(int number) { return number / 16 % 2 * 4 + number % 4; }
DEVICE int number_of_query(int row, int column) { return row / 4 * 32 + column / 4 * 16 + row % 4 * 4 + column % 4; }

// The rows [top, bottom) and the columns [left, right) of a map.
struct Box {
    Index top, bottom, left, right;

    // Returns whether it is a rectangle of so many pixels at most. An empty one always is.
    DEVICE bool fits(int rows, int columns) const { return bottom - top <= rows && right - left <= columns; }

    DEVICE void add(const Box& other) {
        top = min(top, other.top);
        bottom = max(bottom, other.bottom);
        left = min(left, other.left);
        right = max(right, other.right);
    }
};

// An empty box has no effect where it is added to another one, and does not exceed the size of any rectangle.
DEVICE Box empty_box(const Axis& vertical, const Axis& horizontal) { return Box{vertical.size, 0, horizontal.size, 0}; }

DEVICE Box box_of_query(const Axis& vertical, const Axis& horizontal, const Query& query) {
    const Index zero = 0;
    const Box box = {max(query.y.begin, zero), min(query.y.begin + vertical.reach() + 1, vertical.size),
                     max(query.x.begin, zero), min(query.x.begin + horizontal.reach() + 1, horizontal.size)};
    return query.finite && box.top < box.bottom && box.left < box.right ? box : empty_box(vertical, horizontal);
}

// The windows of the queries of a tile and the boxes of its runs and its quarters, in shared memory. The weights of a query that
// is not finite are NaN, and its window is outside, as are the windows of queries beyond the image.
struct Windows {
    Position* rows;     // of each query
    Position* columns;
    Box* runs;          // of each run
    Box* quarters;      // of each quarter

    DEVICE Query query(int number) const { return Query{true, load_shared(&rows[number]), load_shared(&columns[number])}; }
};

// Adds the boxes of the lanes of each group of `end`, of which each group of `begin` has one box already.
DEVICE void add_boxes_of_lanes(Box& box, int begin, int end) {
    for (int apart = begin; apart < end; apart *= 2) {
        const Box other = {__shfl_xor_sync(0xffffffffu, box.top, apart), __shfl_xor_sync(0xffffffffu, box.bottom, apart),
                           __shfl_xor_sync(0xffffffffu, box.left, apart), __shfl_xor_sync(0xffffffffu, box.right, apart)};
        box.add(other);
    }
}

// Stores the windows of a tile; every thread of the block must call it. They can be read after the next barrier.
DEVICE void store_windows(const Windows& windows, const Coordinates& coordinates, const Axis& vertical, const Axis& horizontal,
                          const QueryTile& tile, Index height, Index width) {
    const int number = opaque(static_cast<int>(threadIdx.x));  // so that nothing that depends on it is kept in registers
    if (number >= QUERIES) return;
    const Index i = tile.i + row_of_query(number), j = tile.j + column_of_query(number);
    Query query = {false, {vertical.size, {0, 0}}, {horizontal.size, {0, 0}}};
    if (i < height && j < width) query = coordinates.query(vertical, horizontal, tile.e, tile.k, i, j);
    store_shared(&windows.rows[number], query.y);
    store_shared(&windows.columns[number], query.x);
    Box box = box_of_query(vertical, horizontal, query);
    add_boxes_of_lanes(box, 1, RUN);
    if (number % RUN == 0) store_shared(&windows.runs[number / RUN], box);
    add_boxes_of_lanes(box, RUN, QUARTER);
    if (number % QUARTER == 0) store_shared(&windows.quarters[number / QUARTER], box);
}

// Returns the largest part of the quarters in `left` whose box fits, the first of those, or 0 if not even a quarter fits.
// `box` gets its box.
DEVICE unsigned next_part(const Windows& windows, unsigned left, int rows, int columns, Box& box) {
#pragma unroll 1
    for (unsigned long long parts = PARTS; parts; parts >>= 4) {
        const unsigned part = parts & 0xf;
        if ((part & left) != part) continue;
        box = Box{FARTHEST, 0, FARTHEST, 0};
#pragma unroll
        for (int k = 0; k < QUARTERS; k++)
            if (part >> k & 1) box.add(load_shared(&windows.quarters[k]));
        if (box.fits(rows, columns)) return part;
    }
    return 0;
}

// Returns whether a part has a run or a query.
DEVICE bool has_run(unsigned part, int run) { return part >> run * RUN / QUARTER & 1; }
DEVICE bool has_query(unsigned part, int number) { return part >> number / QUARTER & 1; }
