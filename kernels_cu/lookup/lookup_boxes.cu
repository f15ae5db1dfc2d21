// The boxes of all tiles of queries at one level: the smallest rectangle of the map that all windows of a tile are in,
//
//     box[tile] = {min y_first, max y_last + 1, min x_first, max x_last + 1} over the queries of the tile that are finite
//
// limited to the map; empty where the tile reads nothing, or an index of its entry is out of range.
//
// Tile: a warp takes a tile of queries, two of them in each lane.
//
// Macros: INPUT (the type of sums), COORDINATE, INDEX.
#include "lookup/tiles.cuh"

constexpr int THREADS = 256;
constexpr int LANES = 32;

// The least of a number of all lanes.
DEVICE long long least_of_warp(long long number) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) number = min(number, __shfl_xor_sync(0xffffffffu, number, apart));
    return number;
}

KERNEL(THREADS)
lookup_boxes(const COORDINATE* coords, const void* index1, const void* index2, long long* boxes, Index tiles, Index lookups,
             Index height, Index width, COORDS_PARAMETERS, ENTRIES_PARAMETERS(1), ENTRIES_PARAMETERS(2), AXIS_PARAMETERS(y),
             AXIS_PARAMETERS(x)) {
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
    const int lane = threadIdx.x % LANES;
    const Index warps = gridDim.x * static_cast<Index>(THREADS / LANES);
    for (Index number = blockIdx.x * static_cast<Index>(THREADS / LANES) + threadIdx.x / LANES; number < tiles; number += warps) {
        const QueryTile tile = query_tile(number, lookups, height, width);
        const bool known = entries1.image(tile.e) >= 0 && entries2.image(tile.e) >= 0;
        Index top = vertical.size, bottom = 0, left = horizontal.size, right = 0;
        for (int at = lane; at < QUERIES; at += LANES) {
            const Index i = tile.i + at / QUERY_TILE, j = tile.j + at % QUERY_TILE;
            if (!known || i >= height || j >= width) continue;
            const Query query = coordinates.query(vertical, horizontal, tile.e, tile.k, i, j);
            if (!query.finite) continue;
            top = min(top, max(query.y.begin, static_cast<Index>(0)));
            left = min(left, max(query.x.begin, static_cast<Index>(0)));
            bottom = max(bottom, min(query.y.begin + vertical.reach() + 1, vertical.size));
            right = max(right, min(query.x.begin + horizontal.reach() + 1, horizontal.size));
        }
        // The greatest number is the least with the other sign.
        const long long box[BOX] = {least_of_warp(top), -least_of_warp(-static_cast<long long>(bottom)), least_of_warp(left),
                                    -least_of_warp(-static_cast<long long>(right))};
        if (lane == 0) {
#pragma unroll
            for (int side = 0; side < BOX; side++) store_global(boxes + (number * BOX + side), box[side]);
        }
    }
}
