// The correlation as CUDA code for optical flow has computed it for years: one thread block for each output pixel.
//
//     out[b, m, n, i, j] = scale * sum over c of  X1[b, i, j, c] * X2[b, i + m step_y, j + n step_x, c]
//
// Both images are channels last, and padded so that every position that is read is inside. The block keeps its pixel of X1 in
// shared memory and computes one displacement after the other: each thread sums some of the channels, and a warp reduction adds
// these sums. A thread loads from shared memory only what it has stored itself, so no barrier is needed.
constexpr int THREADS = 32;

KERNEL(THREADS) pixel_blocks(const float* x1, const float* x2, float* out, int channels, int height2, int width2, int patch_y,
                             int patch_x, int step_y, int step_x, float scale) {
    DYNAMIC_SHARED_ARRAY(float, pixel);
    const int thread = threadIdx.x;
    const long long rows = gridDim.y, columns = gridDim.x, b = blockIdx.z, i = blockIdx.y, j = blockIdx.x;
    const float* const own = x1 + ((b * rows + i) * columns + j) * channels;
    for (int c = thread; c < channels; c += THREADS) store_shared(&pixel[c], load_global(own + c));
    for (int m = 0; m < patch_y; m++)
        for (int n = 0; n < patch_x; n++) {
            const float* const other = x2 + ((b * height2 + i + m * step_y) * width2 + j + n * step_x) * channels;
            float sum = 0;
            for (int c = thread; c < channels; c += THREADS)
                sum = multiply_add(load_shared(&pixel[c]), load_global(other + c), sum);
            for (int apart = THREADS / 2; apart > 0; apart /= 2) sum += __shfl_down_sync(0xffffffffu, sum, apart);
            if (thread == 0) store_global(&out[(((b * patch_y + m) * patch_x + n) * rows + i) * columns + j], scale * sum);
        }
}
