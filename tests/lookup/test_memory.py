"""No call allocates more than its results and 64 MiB, whatever the lookup and however many threads."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from cases import DTYPES
from lookup_cases import ALL, CPU_VARIANTS
from memory import WORKSPACE, assert_within, peak
from oracle import pair

from cupycorr import correlation_lookup, correlation_lookup_vjp
from cupycorr._cpu import llvm, workers


@dataclass(frozen=True)
class Demand:
    """A lookup whose volume of all pairs, or whose windows of features, would not fit."""

    shape: tuple
    levels: int = 1
    noise: float = 2.0
    dtype: str = "float32"
    parameters: dict = field(default_factory=dict, hash=False)
    size2: tuple | None = None
    lookups: tuple = ()  # the axis K, if there is one

    def arrays(self):
        rng = np.random.default_rng(0)
        batch, channels, height, width = self.shape
        dtype = DTYPES[self.dtype]
        height2, width2 = self.size2 or (height, width)
        maps = [rng.random((batch, channels, height2 >> level, width2 >> level), np.float32) for level in range(self.levels)]
        input1 = rng.random(self.shape, np.float32)
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))
        coords = grid + self.noise * rng.standard_normal((batch, *self.lookups, 2, height, width))
        coords_dtype = np.float64 if self.dtype == "float64" else np.float32
        return input1.astype(dtype), [each.astype(dtype) for each in maps], coords.astype(coords_dtype)


DEMANDS = {
    "RAFT": Demand((1, 96, 55, 128), 4),
    "bfloat16": Demand((1, 96, 55, 128), dtype="bfloat16"),
    "float64": Demand((1, 96, 55, 128), dtype="float64"),
    "4K": Demand((1, 256, 270, 480), 4),
    "noise": Demand((1, 64, 60, 90), noise=30.0),
    "maps beyond the workspace": Demand((1, 48, 30, 40), noise=200.0, dtype="float16", size2=(600, 900)),
    "many channels": Demand((1, 8192, 12, 16), parameters=dict(patch_size=5)),
    "hundreds of lookups": Demand((1, 8, 12, 16), 2, parameters=dict(patch_size=5), lookups=(500,)),
    "large patch": Demand((1, 16, 20, 30), parameters=dict(patch_size=(41, 61))),
}
QUICK = ("RAFT", "large patch")
demands = pytest.mark.parametrize(
    "demand",
    [pytest.param(each, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, each in DEMANDS.items()],
)
variants = pytest.mark.parametrize("variant", CPU_VARIANTS)


@demands
def test_the_volume_of_all_pairs_the_windows_of_features_or_widened_maps_would_not_fit(demand):
    batch, channels, height, width = demand.shape
    itemsize = DTYPES[demand.dtype].itemsize
    taps_h, taps_w = (size + 1 for size in pair(demand.parameters.get("patch_size", 9)))
    features = batch * math.prod(demand.lookups) * channels * height * width * taps_h * taps_w * itemsize
    widened = 4 * batch * channels * np.prod(demand.size2 or (height, width))
    assert max(batch * (height * width) ** 2 * itemsize, features, widened) > WORKSPACE


@pytest.mark.parametrize("threads", [2, pytest.param(16, marks=pytest.mark.slow)])
@variants
@demands
def test_a_call_allocates_its_results_and_the_workspace(monkeypatch, demand, variant, threads):
    if variant == "reference" and (threads > 2 or demand.shape[2] > 50):
        pytest.skip("the definition has one thread, and takes long")
    monkeypatch.setattr(workers, "blas_threads", workers.thread_count)
    x1, x2, coords = demand.arrays()
    with workers.team_of(threads):
        out, used = peak(lambda: correlation_lookup(x1, x2, coords, **demand.parameters, variant=variant))
        assert used >= out.nbytes
        assert_within(used, [out], "output")
        needs = ALL
        found, used = peak(lambda: correlation_lookup_vjp(out, x1, x2, coords, **demand.parameters, variant=variant, needs=needs))
    assert_within(used, [found[0], *found[1], found[2]], "gradients")


JOINED = {
    "of one pixel": Demand((1, 16, 500, 500), 4, noise=1.0, parameters=dict(patch_size=1), lookups=(3,)),
    "outside": Demand((1, 1, 500, 500), 4, noise=1e30, parameters=dict(patch_size=3), lookups=(2,)),
}


@pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))
@pytest.mark.parametrize("demand", JOINED.values(), ids=JOINED)
def test_lookups_whose_windows_are_joined_and_kept_take_no_more_than_the_workspace(demand):
    x1, x2, coords = demand.arrays()
    out = correlation_lookup(x1, x2, coords, **demand.parameters, variant="simd")
    found, used = peak(lambda: correlation_lookup_vjp(out, x1, x2, coords, **demand.parameters, variant="simd"))
    assert_within(used, [found[0], *found[1]], "gradients")
