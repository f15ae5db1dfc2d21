// The dot product of two feature maps at each pixel:
//
//     out[b, p] = sum over c of  input1[b, c, p] * input2[b, c, p]
//
// Macros: INPUT, OUTPUT, THREADS, INDEX.
#include "common/numeric.cuh"

KERNEL(THREADS)
pixel_dot(const INPUT* input1, const INPUT* input2, OUTPUT* out, Index outputs, Index channels, Index pixels) {
    const Index all = gridDim.x * static_cast<Index>(THREADS);
    for (Index at = blockIdx.x * static_cast<Index>(THREADS) + threadIdx.x; at < outputs; at += all) {
        SumOf<INPUT>::type sum = 0;
        const Index first = at / pixels * channels * pixels + at % pixels;
        for (Index c = 0; c < channels; c++) sum += load(input1 + first + c * pixels) * load(input2 + first + c * pixels);
        store(out + at, sum);
    }
}
