"""No call allocates more than its result and 64 MiB, whatever the problem and however many threads."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from cases import DTYPES
from memory import WORKSPACE, assert_within, peak

from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._cpu import workers


@dataclass(frozen=True)
class Demand:
    """A problem whose unfolded input would not fit."""

    shape: tuple
    parameters: dict
    out_shape: tuple
    dtype: str = "float32"

    @property
    def unfolded(self):
        """The bytes of all displaced copies of input2, which an unfold would write."""
        return math.prod(self.shape) * math.prod(self.out_shape[1:3]) * DTYPES[self.dtype].itemsize

    def arrays(self):
        """input1, input2 and a cotangent."""
        rng = np.random.default_rng(0)
        shapes = self.shape, self.shape, self.out_shape
        return tuple(rng.random(shape, np.float32).astype(DTYPES[self.dtype]) for shape in shapes)


DEMANDS = {
    "flownet": Demand((1, 256, 48, 64), dict(patch_size=21, dilation_patch=2), (1, 21, 21, 48, 64)),
    "inputs beyond the workspace": Demand((4, 64, 200, 300), dict(patch_size=(1, 3)), (4, 1, 3, 200, 300), "float16"),
    "bfloat16": Demand((2, 64, 80, 120), dict(patch_size=9), (2, 9, 9, 80, 120), "bfloat16"),
    "float64": Demand((1, 64, 96, 128), dict(patch_size=9), (1, 9, 9, 96, 128), "float64"),
    "PIV windows": Demand((1, 1, 369, 511), dict(kernel_size=32, patch_size=13, stride=16), (1, 13, 13, 22, 30)),
    "dense windows": Demand((1, 1, 369, 511), dict(kernel_size=32, patch_size=13, stride=4), (1, 13, 13, 85, 120)),
    "windows apart": Demand((1, 64, 240, 320), dict(kernel_size=3, patch_size=5, stride=9), (1, 5, 5, 27, 36)),
    "windows of channels": Demand((1, 64, 160, 160), dict(kernel_size=3, patch_size=5, dilation=2), (1, 5, 5, 156, 156)),
    "one-sided stereo": Demand((1, 48, 150, 400), dict(patch_size=(1, 64), patch_offset=(0, -32)), (1, 1, 64, 150, 400)),
    "many channels": Demand((1, 4096, 24, 24), dict(patch_size=5), (1, 5, 5, 24, 24)),
    "one long row": Demand((1, 16, 1, 200_000), dict(patch_size=(1, 9)), (1, 1, 9, 1, 200_000)),
    "one long column": Demand((1, 512, 6000, 1), dict(patch_size=(9, 1)), (1, 9, 1, 6000, 1)),
}
QUICK = ("flownet", "bfloat16", "PIV windows", "windows apart")
demands = pytest.mark.parametrize(
    "demand",
    [pytest.param(each, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, each in DEMANDS.items()],
)
few_demands = pytest.mark.parametrize("demand", [DEMANDS["flownet"], DEMANDS["float64"]], ids=["flownet", "float64"])
variants = pytest.mark.parametrize("variant", ["simd", "blas"])


def check_forward(demand, variant):
    x1, x2, _ = demand.arrays()
    out, used = peak(lambda: spatial_correlation_sample(x1, x2, **demand.parameters, variant=variant))
    assert out.shape == demand.out_shape
    assert used >= out.nbytes
    assert_within(used, [out], "forward")
    _, used = peak(lambda: spatial_correlation_sample(x1, x2, **demand.parameters, variant=variant, out=out))
    assert_within(used, [], "forward into out")


def check_vjp(demand, variant):
    x1, x2, g = demand.arrays()
    gradients, used = peak(lambda: spatial_correlation_sample_vjp(g, x1, x2, **demand.parameters, variant=variant))
    assert used >= x1.nbytes + x2.nbytes
    assert_within(used, gradients, "vjp")


@demands
def test_an_unfold_would_not_fit(demand):
    assert demand.unfolded > math.prod(demand.out_shape) * DTYPES[demand.dtype].itemsize + WORKSPACE


@pytest.mark.covering(1)
@variants
@demands
def test_forward_needs_no_more_than_its_output_and_the_workspace(demand, variant):
    with workers.team_of(2):
        check_forward(demand, variant)


@pytest.mark.covering(1)
@variants
@demands
def test_vjp_needs_no_more_than_its_gradients_and_the_workspace(demand, variant):
    with workers.team_of(2):
        check_vjp(demand, variant)


@pytest.mark.slow
@variants
@few_demands
@pytest.mark.parametrize("threads", [1, 16])
def test_any_number_of_threads_shares_the_same_workspace(demand, variant, threads):
    with workers.team_of(threads):
        check_forward(demand, variant)
        check_vjp(demand, variant)


@variants
def test_one_gradient_needs_the_room_of_one(variant):
    demand = DEMANDS["inputs beyond the workspace"]
    x1, x2, g = demand.arrays()
    needs = dict(needs=(False, True), variant=variant)
    with workers.team_of(2):
        (_, g2), used = peak(lambda: spatial_correlation_sample_vjp(g, x1, x2, **demand.parameters, **needs))
    assert_within(used, [g2], "vjp of input2")
