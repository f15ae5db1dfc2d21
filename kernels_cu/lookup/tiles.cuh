// Tiles of queries: QUERY_TILE x QUERY_TILE neighbouring pixels of one entry and lookup, and the boxes that their windows are in.
#pragma once
#include "lookup/query.cuh"

constexpr int QUERY_TILE = 8;
constexpr int QUERIES = QUERY_TILE * QUERY_TILE;

// The number of a tile -> its entry, its lookup and its first pixel; tiles of an image are numbered row by row.
struct QueryTile {
    Index e, k, i, j;
};

DEVICE QueryTile query_tile(Index number, Index lookups, Index height, Index width) {
    const Index rows = (height + QUERY_TILE - 1) / QUERY_TILE, columns = (width + QUERY_TILE - 1) / QUERY_TILE;
    const Index lookup = number / columns / rows;
    return QueryTile{lookup / lookups, lookup % lookups, number / columns % rows * QUERY_TILE, number % columns * QUERY_TILE};
}

// A box is four numbers: the first row of a map that a window of the tile may read and the one after the last, then its columns.
constexpr int BOX = 4;
