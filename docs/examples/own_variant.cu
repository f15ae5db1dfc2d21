// The correlation of windows of one pixel, with one thread for each output position and row of displacements:
//
//     out[b, m, n, i, j] = scale * sum over c of  input1[b, c, i, j] * input2[b, c, i + first_y + m step_y, j + first_x + n step_x]
//
// A thread keeps the sums of all PATCH columns of displacements in registers.
#include "common/platform.cuh"

constexpr int THREADS = 128;

KERNEL(THREADS)
own_variant(const float* input1, const float* input2, float* out, int threads, int channels, int rows, int height, int width,
            int first_y, int first_x, int step_y, int step_x, float scale) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= threads) return;
    const int j = at % width, i = at / width % height, m = at / width / height % rows, b = at / width / height / rows;
    const int y = i + first_y + m * step_y;
    float sums[PATCH] = {};
    for (int c = b * channels; y >= 0 && y < height && c < (b + 1) * channels; c++) {
        const float pixel = load_global(input1 + (c * height + i) * width + j);
        for (int n = 0; n < PATCH; n++) {
            const int x = j + first_x + n * step_x;
            if (x >= 0 && x < width) sums[n] = multiply_add(pixel, load_global(input2 + (c * height + y) * width + x), sums[n]);
        }
    }
    for (int n = 0; n < PATCH; n++) store_global(out + (((b * rows + m) * PATCH + n) * height + i) * width + j, scale * sums[n]);
}
