"""Compare a CUDA kernel of your own, and the same in NumPy, with the variants of cupycorr."""

from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from timeit import repeat

import numpy as np
from matplotlib.figure import Figure

import cupycorr
from cupycorr import variants


def launch(problem):
    threads = problem.batch * problem.patch_size[0] * prod(problem.size1)
    sizes = (threads, problem.channels, problem.patch_size[0], *problem.size1)
    scalars = map(np.int32, (*sizes, *problem.first_displacement, *problem.dilation_patch))
    return variants.Launch(-(-threads // 128), 128, [*scalars, np.float32(problem.scale)], {"PATCH": problem.patch_size[1]})


def why_not(problem):
    plain = problem.kernel_size == problem.stride == (1, 1) and problem.padding == (0, 0) and problem.size1 == problem.size2
    around = all(each[0] <= 0 <= each[-1] for each in problem.displacements)
    taken = plain and around and problem.dtype == problem.result_dtype == "float32"
    return None if taken else "takes float32 images of one size, windows of one pixel, stride 1, no padding, a search around 0"


variants.register("mine", forward=variants.Kernel(Path(__file__).with_suffix(".cu"), launch), why_not=why_not)


def shifts(problem, input1, input2, out):  # the same in NumPy: one product of shifted images for each displacement
    padded = np.pad(input2, ((0, 0), (0, 0), *((-each[0], each[-1]) for each in problem.displacements)))
    (rows, columns), (height, width) = problem.displacements, problem.size1
    for m, n in np.ndindex(len(rows), len(columns)):
        y, x = rows[m] - rows[0], columns[n] - columns[0]
        np.einsum("bcij,bcij->bij", input1, padded[:, :, y : y + height, x : x + width], out=out[:, m, n])
    out *= np.float32(problem.scale)


variants.register("mine-numpy", forward=shifts, why_not=why_not)


def call(frames, variant):
    return float(cupycorr.spatial_correlation_sample(*frames, patch_size=9, variant=variant).ravel()[0])  # waits for the device


if __name__ == "__main__":
    frames = np.random.default_rng(0).standard_normal((2, 1, 64, 48, 64), np.float32)
    mine, others = "mine-numpy", ["simd", "blas", "reference"]
    try:
        import cupy

        frames, mine, others = cupy.asarray(frames), "mine", ["tiled", "direct"]
    except (ImportError, RuntimeError) as error:
        print(f"The kernel cannot run here, and the NumPy function is compared in its place: {error}")
    print(variants.check(mine), cupycorr.explain(*frames, patch_size=9, variant=mine), sep="\n")
    milliseconds = {name: 1e3 * median(repeat(partial(call, frames, name), number=1, repeat=8)[1:]) for name in (mine, *others)}
    axes = (figure := Figure((6, 2.5), layout="constrained")).subplots()
    bars = axes.barh([*milliseconds], milliseconds.values(), color=["#d55e00"] + ["#0072b2"] * len(others))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="ms for 9 x 9 displacements of 64 x 48 x 64 features, median of 7 calls", xmargin=0.1)
    axes.invert_yaxis()
    figure.savefig("own_variant.png", dpi=110)
