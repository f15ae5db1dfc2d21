// The gradient of one level of input2, a tile of targets at a time:
//
//     G2[t, c, y', x'] = scale * sum over the queries q = (e, k, i, j) with t = index2[e] whose windows hold (y', x'), of
//                        input1[s, c, i, j] * sum over corners a, b that read (y', x') of  wy(a) wx(b) g[e, k, m, n, i, j]
//
// with s = index1[e]. Queries that are not finite, or have an index out of range, add nothing.
//
// Tile: a block computes TARGET_TILE x TARGET_TILE pixels and CHANNELS channels. It walks the tiles of queries of one segment in
// ascending order, so that nothing is added atomically, and skips those whose boxes (lookup_boxes.cu) do not meet its pixels:
//
//     scan      each thread looks at the box of one tile of queries
//     windows   the windows of the queries of a tile, one thread each
//     factors   the inner sum for every query and pixel, with a bit where the query's window holds the pixel
//     products  a thread has one pixel and THREAD_CHANNELS channels, whose sums it keeps in registers
//
// Where segments > 1, `gradient` has the sums of each segment, which sum_parts.cu adds.
//
// Macros: INPUT, COTANGENT, COORDINATE, GRADIENT, INDEX.
#include "lookup/tiles.cuh"

constexpr int THREADS = 256;
constexpr int TARGET_TILE = 8;
constexpr int TARGETS = TARGET_TILE * TARGET_TILE;
constexpr int GROUPS = THREADS / TARGETS;            // threads of a pixel
constexpr int GROUP_QUERIES = QUERIES / GROUPS;      // whose factors a thread computes
constexpr int THREAD_CHANNELS = 16;
constexpr int CHANNELS = GROUPS * THREAD_CHANNELS;   // of a block
constexpr int VECTOR = VectorOf<INPUT>::width;
constexpr int VECTORS = THREAD_CHANNELS / VECTOR;    // of a thread

struct Target {
    Index y, x;
    int number, group;  // of the pixel in the tile, and of the thread among those of the pixel
};

struct Shared {
    int* meets;            // whether the box of a tile of queries meets the block's pixels, for each tile scanned
    Position* rows;        // of the window of each query
    Position* columns;
    Sum* factors;          // of each query and pixel
    unsigned* in_windows;  // of each group of queries and pixel: a bit for each query whose window holds the pixel
};

DEVICE bool meets(const long long* box, Index top, Index left) {
    return load_global(box) < top + TARGET_TILE && load_global(box + 1) > top && load_global(box + 2) < left + TARGET_TILE &&
           load_global(box + 3) > left;
}

// Stores the windows of a tile of queries; those of queries that add nothing are below the tiles of pixels.
DEVICE void store_windows(const Shared& shared, const Coordinates& coordinates, const Axis& vertical, const Axis& horizontal,
                          const QueryTile& tile, Index height, Index width) {
    const int q = threadIdx.x;
    if (q >= QUERIES) return;
    const Index i = tile.i + q / QUERY_TILE, j = tile.j + q % QUERY_TILE;
    Query query = {false, {0, {0, 0}}, {0, {0, 0}}};
    if (i < height && j < width) query = coordinates.query(vertical, horizontal, tile.e, tile.k, i, j);
    if (!query.finite) query.y.begin = vertical.size + TARGET_TILE;
    store_shared(&shared.rows[q], query.y);
    store_shared(&shared.columns[q], query.x);
}

// Stores the factors of a pixel for the queries of one group.
DEVICE void store_factors(const Shared& shared, const Volume<const COTANGENT>& volume, const Axis& vertical,
                          const Axis& horizontal, const QueryTile& tile, const Target& target) {
    unsigned in_windows = 0;
    for (int bit = 0; bit < GROUP_QUERIES; bit++) {
        const int q = target.group * GROUP_QUERIES + bit;
        const Query query = {true, load_shared(&shared.rows[q]), load_shared(&shared.columns[q])};
        const Index offset_y = target.y - query.y.begin, offset_x = target.x - query.x.begin;
        if (!vertical.has_tap(offset_y) || !horizontal.has_tap(offset_x)) continue;
        const COTANGENT* const patch = volume.patch(tile.e, tile.k, tile.i + q / QUERY_TILE, tile.j + q % QUERY_TILE);
        store_shared(&shared.factors[q * TARGETS + target.number],
                     factor_of_dot(volume, patch, vertical, horizontal, query, offset_y, offset_x));
        in_windows |= 1u << bit;
    }
    store_shared(&shared.in_windows[target.group * TARGETS + target.number], in_windows);
}

// Adds the products of a tile of queries. `pixels` begins at the first channel of the thread and at the first query.
DEVICE void add_products(Sums<Sum, THREAD_CHANNELS>& sums, const Shared& shared, const Image<INPUT>& image1, const INPUT* pixels,
                         const Target& target, Index wanted) {
    for (int group = 0; group < GROUPS; group++) {
        const unsigned in_windows = load_shared(&shared.in_windows[group * TARGETS + target.number]);
        for (int bit = 0; bit < GROUP_QUERIES; bit++) {
            if (!(in_windows >> bit & 1)) continue;
            const int q = group * GROUP_QUERIES + bit;
            const Sum factor = load_shared(&shared.factors[q * TARGETS + target.number]);
            const INPUT* const pixel = pixels + (q / QUERY_TILE * image1.row_stride + q % QUERY_TILE * image1.column_stride);
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                Sum values[VECTOR];
                load_vector(pixel + v * VECTOR * image1.channel_stride, image1.channel_stride, wanted - v * VECTOR, values);
#pragma unroll
                for (int r = 0; r < VECTOR; r++)
                    sums.partial[v * VECTOR + r] = multiply_add(factor, values[r], sums.partial[v * VECTOR + r]);
            }
            sums.added(1);
        }
    }
}

KERNEL(THREADS)
lookup_gradient2(const COTANGENT* cotangent, const INPUT* input1, const COORDINATE* coords, const void* index1,
                 const void* index2, const long long* boxes, GRADIENT* gradient, Index blocks, Index segments, Index tiles,
                 Index lookups, Index height, Index width, Index channels, VOLUME_PARAMETERS(cotangent),
                 IMAGE_PARAMETERS(input1), COORDS_PARAMETERS, ENTRIES_PARAMETERS(1), ENTRIES_PARAMETERS(2), AXIS_PARAMETERS(y),
                 AXIS_PARAMETERS(x), Index segment_stride_gradient, IMAGE_PARAMETERS(gradient), Sum scale) {
    SHARED_ARRAY(int, meeting, THREADS);
    SHARED_ARRAY(Position, rows, QUERIES);
    SHARED_ARRAY(Position, columns, QUERIES);
    SHARED_ARRAY(Sum, factors, QUERIES * TARGETS);
    SHARED_ARRAY(unsigned, in_windows, GROUPS * TARGETS);
    const Shared shared = {meeting, rows, columns, factors, in_windows};
    const Volume<const COTANGENT> volume = VOLUME_OF_PARAMETERS(cotangent);
    const Image<INPUT> image1 = IMAGE_OF_PARAMETERS(input1);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const Entries entries1 = ENTRIES_OF_PARAMETERS(1), entries2 = ENTRIES_OF_PARAMETERS(2);
    const Index tiles_y = (vertical.size + TARGET_TILE - 1) / TARGET_TILE;
    const Index tiles_x = (horizontal.size + TARGET_TILE - 1) / TARGET_TILE;
    const Index slices = (channels + CHANNELS - 1) / CHANNELS;
    const Index tiles_of_segment = (tiles + segments - 1) / segments;
    const int number = threadIdx.x % TARGETS, group = threadIdx.x / TARGETS;
    for (Index block = blockIdx.x; block < blocks; block += gridDim.x) {
        const Index segment = block % segments, slice = block / segments % slices, column = block / segments / slices % tiles_x;
        const Index row = block / segments / slices / tiles_x % tiles_y, t = block / segments / slices / tiles_x / tiles_y;
        const Index top = row * TARGET_TILE, left = column * TARGET_TILE;
        const Target target = {top + number / TARGET_TILE, left + number % TARGET_TILE, number, group};
        const Index c = slice * CHANNELS + group * THREAD_CHANNELS;
        const Index end = min(tiles, (segment + 1) * tiles_of_segment);

        Sums<Sum, THREAD_CHANNELS> sums;
        sums.clear();
        for (Index begin = segment * tiles_of_segment; begin < end; begin += THREADS) {
            const Index scanned = begin + threadIdx.x;
            const bool mine = scanned < end && meets(boxes + scanned * BOX, top, left) &&
                              entries2.image(query_tile(scanned, lookups, height, width).e) == t;
            store_shared(&meeting[threadIdx.x], static_cast<int>(mine));
            if (!__syncthreads_or(mine)) continue;
            for (int at = 0; at < THREADS; at++) {
                if (!load_shared(&meeting[at])) continue;
                const QueryTile tile = query_tile(begin + at, lookups, height, width);
                store_windows(shared, coordinates, vertical, horizontal, tile, height, width);
                __syncthreads();
                store_factors(shared, volume, vertical, horizontal, tile, target);
                __syncthreads();
                const INPUT* const pixels = image1.at(entries1.image(tile.e), c, tile.i, tile.j);
                if (c < channels) add_products(sums, shared, image1, pixels, target, channels - c);
            }
            __syncthreads();
        }
        sums.fold();

        if (c >= channels || target.y >= vertical.size || target.x >= horizontal.size) continue;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            Sum values[VECTOR];
#pragma unroll
            for (int r = 0; r < VECTOR; r++) values[r] = scale * sums.total[v * VECTOR + r];
            store_vector(gradient + (segment * segment_stride_gradient + t * batch_stride_gradient +
                                     (c + v * VECTOR) * channel_stride_gradient + target.y * row_stride_gradient +
                                     target.x * column_stride_gradient),
                         channel_stride_gradient, channels - c - v * VECTOR, values);
        }
    }
}
