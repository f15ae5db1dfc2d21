"""Digests of results, which tests compute in several ways and compare. They are not recorded: processors differ in bits."""

import hashlib

import numpy as np
from cases import same

from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp

FAST = ("simd", "blas")


def problems(count=50):
    """Return problems of one to many tasks, with windows, strides, steps and dtypes."""
    rng = np.random.default_rng(14)
    found = []
    while len(found) < count:
        kernel = (1, 1) if rng.random() < 0.6 else tuple(rng.integers(1, 6, 2).tolist())
        case = same(
            (int(rng.integers(1, 3)), int(rng.choice([1, 3, 16, 70, 200])), *rng.integers(6, 60, 2).tolist()),
            str(rng.choice(["float16", "float32", "float64"])),
            kernel_size=kernel,
            patch_size=tuple(rng.integers(1, 12, 2).tolist()),
            stride=tuple(rng.integers(1, 4, 2).tolist()),
            dilation_patch=tuple(rng.integers(1, 3, 2).tolist()),
        )
        if min(case.out_shape()) > 0:
            found.append(case)
    # The one that was reported: its gradients were cut by the number of threads.
    return [*found[:-1], same((2, 256, 40, 64), patch_size=21, dilation_patch=2)]


def digests(count=50):
    """Return a digest of the output and both gradients for each problem and variant."""
    found = {}
    for number, case in enumerate(problems(count)):
        x1, x2, g = case.arrays()
        for variant in ("auto", *FAST):
            out = spatial_correlation_sample(x1, x2, **case.parameters, variant=variant)
            gradients = spatial_correlation_sample_vjp(g, x1, x2, **case.parameters, variant=variant)
            found[number, variant] = hashlib.sha256(b"".join(array.tobytes() for array in (out, *gradients))).hexdigest()
    return found
