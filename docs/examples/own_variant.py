"""Compare a CUDA kernel of your own, and the same in NumPy, with the variants of cupycorr.

The kernel is in own_variant.cu. Without a GPU, only the NumPy function runs.

    pip install "cupycorr[demo]"
    python own_variant.py
"""

from functools import partial
from pathlib import Path
from timeit import repeat

import matplotlib.pyplot as plt
import numpy as np

from cupycorr import explain, spatial_correlation_sample, variants


def launch(problem):  # the grid, the arguments and the macros of own_variant.cu
    threads = problem.batch * problem.patch_size[0] * problem.size1[0] * problem.size1[1]
    sizes = (threads, problem.channels, problem.patch_size[0], *problem.size1)
    scalars = map(np.int32, (*sizes, *problem.first_displacement, *problem.dilation_patch))
    return variants.Launch(-(-threads // 128), 128, [*scalars, np.float32(problem.scale)], {"PATCH": problem.patch_size[1]})


def why_not(problem):
    plain = problem.kernel_size == problem.stride == (1, 1) and problem.padding == (0, 0) and problem.size1 == problem.size2
    taken = plain and problem.dtype == problem.result_dtype == "float32"
    return None if taken else "takes float32 images of one size, windows of one pixel, stride 1, no padding"


variants.register("mine", forward=variants.Kernel(Path(__file__).with_suffix(".cu"), launch), why_not=why_not)


def shifts(problem, input1, input2, out):  # the same in NumPy: one product of shifted images for each displacement
    (rows, columns), (height, width) = problem.displacements, problem.size1
    y, x = (max(abs(each[0]), abs(each[-1])) for each in problem.displacements)
    padded = np.pad(input2, ((0, 0), (0, 0), (y, y), (x, x)))
    for m, n in np.ndindex(len(rows), len(columns)):
        shifted = padded[:, :, y + rows[m] :, x + columns[n] :][:, :, :height, :width]
        out[:, m, n] = problem.scale * np.einsum("bcij,bcij->bij", input1, shifted)


variants.register("mine-numpy", forward=shifts, why_not=why_not)

if __name__ == "__main__":  # other commands load this file for the variants only
    frames, names = np.random.default_rng(0).standard_normal((2, 1, 64, 48, 64), np.float32), ("mine-numpy", "simd", "blas")
    try:
        import cupy

        frames, names = cupy.asarray(frames), ("mine", "tiled", "direct")
    except (ImportError, RuntimeError) as error:
        print(f"The kernel cannot run here, and the NumPy function is compared in its place: {error}")
    print(variants.check(names[0]), explain(*frames, patch_size=9, variant=names[0]), sep="\n")
    calls = [partial(spatial_correlation_sample, *frames, patch_size=9, variant=name) for name in names]
    runs = [repeat(lambda call=call: float(call().ravel()[0]), number=1, repeat=8) for call in calls]  # waits for the device
    bars = plt.figure(figsize=(6, 2.2), layout="constrained").subplots().barh(names, [1e3 * min(seconds) for seconds in runs])
    plt.bar_label(bars, fmt="%.2f", padding=3)
    plt.gca().set(xlabel="ms for 9 x 9 displacements of 64 x 48 x 64 features, best of 8 calls", xmargin=0.15)
    plt.savefig("own_variant.png", dpi=110)
