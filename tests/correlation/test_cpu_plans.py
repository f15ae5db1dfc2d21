"""The work of a call on the CPU, counted: products, packed elements and sums, compared with those that the definition needs.

Nothing is computed and no time is measured: an engine that only counts takes the place of the real ones.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from cases import Case, same
from memory import assert_within, peak

from benchmarks.cliffs import draw
from cupycorr import explain, spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._correlation.cpu import blas, planner, simd
from cupycorr._correlation.cpu import forward as cpu_forward
from cupycorr._correlation.cpu import gradient as cpu_gradient
from cupycorr._correlation.cpu.blocks import padded
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import CPU, FORWARD, VJP, Request, choose

ENGINES = {"simd": simd.ENGINE, "blas": blas.ENGINE}


@dataclass
class Counted:
    """An engine that counts the work of another one, whose estimates it uses for its plans."""

    planned_by: object
    products: int = 0
    sums: int = 0
    packed: int = 0
    tasks: int = 0
    compiles: bool = False
    sums_rows: bool = field(init=False)

    def __post_init__(self):
        self.sums_rows = self.planned_by.sums_rows
        self.seconds = self.planned_by.seconds

    def __hash__(self):
        return id(self)

    def threads(self):
        return 1

    def volume(self, block, query, total):
        self._count(block, query.shape[1] * block.window.taps, total)

    def gradient(self, block, cotangent, total):
        self._count(block, total.shape[1], total)

    def _count(self, block, each, total):
        _, _, columns, _, ns = block.region.lengths
        rows = sum(end - begin for begin, end in block.valid_rows) / (1 if block.window.taps == 1 else block.window.taps)
        self.products += int(rows) * ns * padded(columns) * each
        self.sums += total.size
        self.tasks += 1
        total.fill(0)

    def pack(self, rectangle, compiled):
        self.packed += rectangle.target.size
        rectangle.target.fill(0)

    @property
    def work(self):
        """All that was counted, in products; a task costs about as much as 30 000 of them."""
        return self.products + self.packed + self.sums + 30_000 * self.tasks


def work_of(asked, dtype, which, monkeypatch):
    """Return the work of a call of a problem, and the least work that the definition needs."""
    needs = which != "gradient2", which != "gradient1"
    request = Request(FORWARD if which == "forward" else VJP, asked, dtype.name, dtype.name, needs=needs)
    chosen = choose(OPERATOR, request, CPU).variant
    least = asked.flops_inside() // 2 + asked.outputs
    if chosen in ("reference", "unpacked"):  # both compute the products of the definition and pack nothing
        return 4 * asked.flops_inside() // 2 + asked.outputs, least
    engine = Counted(ENGINES[chosen])
    for module in (cpu_forward, cpu_gradient):
        monkeypatch.setattr(module, "pack", engine.pack)
    x1, x2, g = (np.broadcast_to(dtype.type(1), shape) for shape in (asked.shape1, asked.shape2, asked.out_shape))
    results = {"out": g, "gradient1": x1, "gradient2": x2}
    arrays = {"input1": x1, "input2": x2, "cotangent": g, **{name: np.empty(x.shape, dtype) for name, x in results.items()}}
    planner.plan(engine, request, None).run(arrays)
    return engine.work, least + asked.channels * asked.batch * (np.prod(asked.size1) + np.prod(asked.size2)) // 8


# Problems that once cost a hundred to ten thousand times the work of the definition.
CLIFFS = {
    "a stride beyond the patch": same((1, 64, 256, 256), patch_size=(1, 9), stride=16),
    "a stride far beyond the patch": same((1, 512, 4, 8192), stride=(1, 4096)),
    "displacements wholly outside": same((1, 64, 256, 256), patch_size=9, patch_offset=(1000, 0)),
    "a dilated window of many channels": same(
        (1, 256, 200, 32), kernel_size=(7, 3), patch_size=(1, 4), stride=(1, 8), dilation=(11, 11)
    ),
    "steps beyond the image": Case((1, 16, 2, 2), (1, 16, 900, 900), dict(patch_size=30, dilation_patch=30, patch_offset=440)),
    "a narrow image": same((1, 101, 1265, 2)),
    "few pixels of a strided search": same((1, 113, 3713, 3), "float16", patch_size=(71, 1), stride=(62, 1)),
}
cliffs = pytest.mark.parametrize("case", CLIFFS.values(), ids=CLIFFS.keys())
passes = pytest.mark.parametrize("which", ["forward", "gradient1", "gradient2"])
MOST = 16  # times what the definition needs: a vector of columns may hold a single one


def assert_cheap(asked, dtype, which, monkeypatch):
    work, least = work_of(asked, np.dtype(dtype), which, monkeypatch)
    assert work <= MOST * (least + 100_000), f"{which} costs {work / (least + 100_000):.3g} times what the definition needs"


@passes
@cliffs
def test_no_problem_costs_far_more_than_the_definition(case, which, monkeypatch):
    assert_cheap(case.problem(), case.dtype, which, monkeypatch)


@passes
def test_no_random_problem_costs_far_more_than_the_definition(which, monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(60):
        drawn = draw(rng)
        assert_cheap(drawn.problem(), drawn.dtype, which, monkeypatch)


def piv(stride):
    return same((1, 1, 200, 200), kernel_size=32, patch_size=25, stride=stride)


def template(height):
    patch = 512 - height + 1, 443
    parameters = dict(kernel_size=(height, 70), patch_size=patch, patch_offset=((patch[0] - 1) // 2, 221))
    return Case((1, 1, height, 70), (1, 1, 512, 512), parameters)


@pytest.mark.parametrize(
    ("one", "next_one"),
    [(piv(32), piv(33)), (template(52), template(56)), (template(52), template(60))],
    ids=["a step beyond the window", "template 56 high", "template 60 high"],
)
def test_a_pixel_further_costs_about_the_same(one, next_one, monkeypatch):
    one, next_one = (work_of(case.problem(), np.dtype(np.float32), "forward", monkeypatch)[0] for case in (one, next_one))
    assert next_one <= 2 * one


@pytest.mark.covering(1)
@pytest.mark.parametrize("case", [CLIFFS["a stride far beyond the patch"], CLIFFS["a dilated window of many channels"]], ids=str)
@pytest.mark.parametrize("variant", ["auto", "simd", "blas", "reference"])
def test_cliffs_stay_within_the_workspace(case, variant):
    x1, x2, g = case.arrays()
    given = dict(**case.parameters, variant=variant)
    out, used = peak(lambda: spatial_correlation_sample(x1, x2, **given))
    assert_within(used, [out], "forward")
    gradients, used = peak(lambda: spatial_correlation_sample_vjp(g, x1, x2, **given))
    assert_within(used, gradients, "vjp")


@pytest.mark.parametrize("variant", ["auto", "simd", "blas", "reference"])
def test_a_stride_through_a_file_reads_what_the_definition_reads(variant, tmp_path):
    size, stride = 2**32 + 10, 2**31
    image = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(1, 1, 1, size))  # 8 GiB, of which nothing is stored
    at = [0, 1, stride - 1, stride, stride + 1, 2 * stride, 2 * stride + 1]
    image[0, 0, 0, at] = values = [2, 1, 7, 3, 10, 5, 6]
    held = dict(zip(at, values, strict=True))
    spatial_correlation_sample(image[..., :9], image[..., :9], patch_size=(1, 3), stride=(1, 4), variant=variant)  # compiles
    out, used = peak(lambda: spatial_correlation_sample(image, image, patch_size=(1, 3), stride=(1, stride), variant=variant))
    want = [[held[x] * held.get(x + dx, 0) for x in (0, stride, 2 * stride)] for dx in (-1, 0, 1)]
    assert out[0, 0, :, 0].tolist() == want
    assert used < 2**20


def test_explaining_a_search_of_millions_counts_its_taps():
    x1, x2 = (np.broadcast_to(np.float32(0), (1, 1, size, size)) for size in (500, 4000))
    told = explain(x1, x2, kernel_size=500, patch_size=3501, patch_offset=1750)
    assert told.flops == told.flops_inside == 2 * 500**2 * 3501**2  # every displacement of the template lies inside the image


def test_auto_takes_what_the_cost_model_finds_cheapest():
    case = same((1, 512, 4, 8192), kernel_size=(1, 2), stride=(1, 4096))
    x1, x2, _ = case.arrays()
    told = explain(x1, x2, **case.parameters)
    assert told.variant == "reference"
    assert "by the cost model it takes" in told.reasons["simd"]
    flownet = np.zeros((1, 256, 48, 64), np.float32)
    assert explain(flownet, flownet, patch_size=21, dilation_patch=2).variant == "simd"
