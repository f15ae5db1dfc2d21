// The gradient of the volume:
//
//     G[e, i, j, y', x'] = scale * sum over corners a, b that read (y', x') of  wy(a) wx(b) g[e, m, n, i, j],   0 beside the window
//
// A query that is not finite has a slice of zeros. Every element is written once: a query reads no slice but its own.
//
// Tile: a warp writes RUN neighbouring elements of the slice of a query, a vector of lanes at a time.
//
// Macros: INPUT (the type of the gradient), COTANGENT, COORDINATE, INDEX.
#include "volume_lookup/windows.cuh"

constexpr int RUN = 1024;

KERNEL(THREADS)
volume_gradient(const COTANGENT* cotangent, const COORDINATE* coords, INPUT* gradient, Index tasks, Index runs, Index elements,
                Index height, Index width, VOLUME_PARAMETERS(cotangent), COORDS_PARAMETERS, AXIS_PARAMETERS(y),
                AXIS_PARAMETERS(x), SLICES_PARAMETERS(gradient), Sum scale) {
    const Volume<const COTANGENT> output = VOLUME_OF_PARAMETERS(cotangent);
    const Slices<INPUT> slices = SLICES_OF_PARAMETERS(gradient);
    const Axis vertical = AXIS_OF_PARAMETERS(y), horizontal = AXIS_OF_PARAMETERS(x);
    const Coordinates coordinates = COORDS_OF_PARAMETERS;
    const int lane = threadIdx.x % WARP;
    const Index tasks_of_grid = gridDim.x * static_cast<Index>(WARPS);
    const Index down = WARP / horizontal.size, across = WARP % horizontal.size;  // from an element of a lane to its next one
    for (Index task = blockIdx.x * static_cast<Index>(WARPS) + threadIdx.x / WARP; task < tasks; task += tasks_of_grid) {
        const Place at = place(task / runs, height, width);
        const Query query = query_at(coordinates, vertical, horizontal, at);
        const COTANGENT* const patch = output.patch(at.e, 0, at.i, at.j);
        INPUT* const slice = slices.data + slices.slice(at.e, at.i, at.j);
        const Index begin = task % runs * RUN, end = min(begin + RUN, elements);
        Index y = (begin + lane) / horizontal.size, x = (begin + lane) % horizontal.size;
        for (Index element = begin + lane; element < end; element += WARP) {
            const Index offset_y = y - query.y.begin, offset_x = x - query.x.begin;
            Sum factor = 0;
            if (vertical.has_tap(offset_y) && horizontal.has_tap(offset_x))
                factor = factor_of_dot(output, patch, vertical, horizontal, query, offset_y, offset_x);
            store(slice + slices.pixel(y, x), scale * factor);
            x += across;
            y += down;
            if (x >= horizontal.size) {
                x -= horizontal.size;
                y++;
            }
        }
    }
}
