"""The plan by groups of rows computes the oracle's output and gradients, touches no other memory, and has the same bits however
it is divided.

Kernels are compiled for the vector registers of other processors too: LLVM divides vectors that this one does not have, and code
for narrower vectors runs on any.
"""

import itertools
import sys
import threading

import numpy as np
import oracle
import pytest
from cases import DTYPES, Case, same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from memory import GUARD, assert_within, peak
from processes import python

import cupycorr
from cupycorr import spatial_correlation_sample as correlate
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._correlation.cpu import (
    planner,
    row_forward,
    row_gradient,
    row_groups,
    row_packing,
    row_side,
    row_tiles,
    simd,
)
from cupycorr._correlation.cpu.row_groups import RowGroups
from cupycorr._cpu import register_tile, task_kernel, workers
from cupycorr._cpu.llvm import Registers
from cupycorr._dispatch import FORWARD, VJP, Request
from cupycorr._dtypes import LONGEST_CHAIN

pytestmark = pytest.mark.skipif(register_tile.why_not() is not None, reason=str(register_tile.why_not()))

NAMES = ("gradient1", "gradient2")
BOTH = (True, True)


def request_of(case, needs=None):
    """Return the request of the output, or of the gradients that are needed."""
    name = FORWARD if needs is None else VJP
    return Request(name, case.problem(), case.dtype, case.dtype, needs=needs or BOTH)


def plan_of(case, needs=None, transposed=False):
    """Return this plan, upright or with height and width exchanged, whatever the cost model prefers."""
    accumulator = "float64" if case.dtype == "float64" else "float32"
    sides = (None,) if needs is None else tuple(side for side in (0, 1) if needs[side])
    problem = case.problem()
    return RowGroups(problem.transposed if transposed else problem, sides, accumulator, transposed)


def run(case, arrays, needs=None, results=None, transposed=False):
    """Return the output, or the gradients that are needed, by this plan."""
    x1, x2, g = arrays
    given = {"input1": x1, "input2": x2} if needs is None else {"cotangent": g, "input1": x1, "input2": x2}
    if results is None:
        shapes = {"out": g} if needs is None else {name: x for name, x, need in zip(NAMES, (x1, x2), needs, strict=True) if need}
        results = {name: np.full(x.shape, 9, x.dtype) for name, x in shapes.items()}
    assert plan_of(case, needs, transposed).run({**given, **results})
    return list(results.values())


def everything(case, arrays, transposed=False):
    """Return the output and both gradients."""
    return [*run(case, arrays, None, None, transposed), *run(case, arrays, BOTH, None, transposed)]


def check(case, orientations=(False,)):
    """Compare the output and both gradients with the oracle; check that the inputs are as before."""
    x1, x2, g = arrays = case.arrays()
    before = [x.tobytes() for x in arrays]
    wanted = [oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)]
    for transposed in orientations:
        for name, got, want in zip(("out", *NAMES), everything(case, arrays, transposed), wanted, strict=True):
            oracle.assert_close(got, want, name=name)
    assert [x.tobytes() for x in arrays] == before, "an input was changed"


def assert_same_bits(got, want):
    for name, one, other in zip(("out", *NAMES), got, want, strict=True):
        assert one.tobytes() == other.tobytes(), f"{name} has other bits"


# Values ---------------------------------------------------------------------------------------------------------------

GEOMETRIES = {
    "one pixel": same((1, 1, 1, 1)),
    "one displacement": same((2, 5, 9, 21)),
    "a square patch": same((1, 6, 11, 19), patch_size=5),
    "an even patch": same((1, 3, 8, 18), patch_size=(4, 2)),
    "a row of displacements": same((1, 7, 3, 40), patch_size=(1, 13)),
    "a column of displacements": same((1, 7, 13, 9), patch_size=(7, 1)),
    "a patch larger than the image": same((1, 2, 3, 4), patch_size=(9, 11)),
    "displacements two apart": same((1, 4, 13, 18), patch_size=(4, 3), dilation_patch=2),
    "displacements far apart along x": same((1, 2, 3, 70), patch_size=(2, 3), dilation_patch=(1, 64)),
    "displacements far apart along y": same((1, 2, 33, 5), patch_size=(3, 2), dilation_patch=(60, 1)),
    "displacements further apart than the image": same((1, 2, 5, 6), patch_size=3, dilation_patch=(40, 7)),
    "an offset": same((1, 3, 9, 17), patch_size=3, patch_offset=(2, -5)),
    "an offset beyond the end": same((1, 2, 5, 6), patch_size=3, patch_offset=(0, 100)),
    "an offset beyond the beginning": same((1, 2, 5, 6), patch_size=3, patch_offset=(-100, 0)),
    "padding": same((1, 3, 6, 9), patch_size=3, padding=(2, 5)),
    "padding beyond the patch": same((1, 2, 3, 4), patch_size=(3, 2), padding=(6, 20)),
    "a crop": same((1, 3, 11, 21), patch_size=3, padding=(-2, -3)),
    "a crop of all but a pixel": same((1, 3, 7, 9), patch_size=5, padding=(-3, -4)),
    "a crop along y, padding along x": same((2, 3, 9, 7), patch_size=3, padding=(-2, 4)),
    "a larger image": Case((1, 3, 4, 6), (1, 3, 12, 30), dict(patch_size=(9, 5), patch_offset=(4, 12))),
    "a smaller image": Case((1, 3, 12, 30), (1, 3, 4, 6), dict(patch_size=(5, 9), patch_offset=(-3, -12))),
    "a crop and a larger image": Case((1, 2, 9, 14), (1, 2, 12, 33), dict(patch_size=4, patch_offset=(1, 9), padding=-2)),
    "a batch": same((5, 3, 4, 11), patch_size=3),
    "a scale": same((1, 3, 5, 18), patch_size=3, scale=-0.37),
    "channels of two chains": same((1, 129, 3, 17), patch_size=3),
    "channels of three chains": same((1, 300, 2, 5), patch_size=(2, 3)),
    "displacements of four chains": same((1, 2, 3, 5), patch_size=21),
    "a row of displacements of two chains": Case((1, 2, 2, 9), (1, 2, 2, 160), dict(patch_size=(1, 150), patch_offset=(0, 74))),
    "a column of displacements of two chains": Case(
        (1, 2, 9, 2), (1, 2, 160, 2), dict(patch_size=(150, 1), patch_offset=(74, 0))
    ),
}
QUICK = ("a square patch",)


def in_dtypes(geometries, quick):
    """Return each geometry in every dtype; in the default run only quick ones are in others than float32."""
    found = []
    for (name, case), dtype in itertools.product(geometries.items(), DTYPES):
        marks = () if dtype == "float32" or name in quick else pytest.mark.slow
        found.append(pytest.param(Case(case.shape1, case.shape2, case.parameters, dtype), id=f"{name}-{dtype}", marks=marks))
    return found


@pytest.mark.parametrize("case", in_dtypes(GEOMETRIES, QUICK))
def test_geometries_equal_the_oracle_in_every_dtype(case):
    check(case)


def some_slow(values, quick):
    """Return parameters, of which the default run takes the quick ones."""
    return [pytest.param(each, id=name, marks=() if name in quick else pytest.mark.slow) for name, each in values.items()]


@pytest.mark.parametrize("case", some_slow(GEOMETRIES, ("a crop and a larger image", "padding", "displacements of four chains")))
def test_geometries_with_height_and_width_exchanged_equal_the_oracle(case):
    check(case, orientations=(True,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", range(1, 71))
def test_rows_of_every_width_equal_the_oracle(width, dtype):
    check(same((1, 2, 2, width), dtype, patch_size=(1, 3)))


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("height", [*range(1, 15), 21])
def test_groups_of_every_number_of_rows_equal_the_oracle(height, step):
    check(same((1, 3, height, 3), patch_size=(5, 1), dilation_patch=step))


@pytest.mark.parametrize("channels", [1, 2, 5, 7, 11, 19, 127, 128, 257])
def test_every_number_of_channels_equals_the_oracle(channels):
    check(same((1, channels, 2, 3), patch_size=(2, 1)))


@pytest.mark.parametrize("patch", [1, 2, 5, 7, 10, 11, 23])
def test_every_number_of_displacement_columns_equals_the_oracle(patch):
    check(same((1, 2, 3, 5), patch_size=(2, patch)))


@pytest.mark.parametrize("step", [8, 33, 64])
def test_every_distance_of_displacement_columns_equals_the_oracle(step):
    check(same((1, 2, 2, 70), patch_size=(1, 2), dilation_patch=(1, step)))


@st.composite
def drawn(draw, few_kernels):
    """Draw windows of one pixel with stride 1; few kernels compute them all if that is asked for."""

    def both(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    most = 14 if few_kernels else 30
    parameters = dict(
        patch_size=(draw(st.sampled_from([1, 4, 5])), draw(st.sampled_from([1, 3]))) if few_kernels else both(1, 9),
        padding=both(-2, 4),
        dilation_patch=(draw(st.integers(1, 4)), draw(st.sampled_from([1, 2]) if few_kernels else st.integers(1, 64))),
        scale=draw(st.sampled_from([1.0, -0.3])),
    )
    sizes1 = sizes2 = both(1, most)
    if draw(st.booleans()):
        parameters["patch_offset"] = both(-6, 6)
        sizes2 = both(1, most)
    front = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]) if few_kernels else st.integers(1, 40))
    dtype = "float32" if few_kernels else draw(st.sampled_from(list(DTYPES)))
    case = Case((*front, *sizes1), (*front, *sizes2), parameters, dtype, draw(st.integers(0, 99)))
    assume(min(case.out_shape()) > 0)
    return case


@settings(max_examples=60)
@given(case=drawn(few_kernels=True))
def test_drawn_problems_equal_the_oracle(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=150)
@given(case=drawn(few_kernels=False))
def test_drawn_problems_of_all_kernels_equal_the_oracle(case):
    check(case, orientations=(False, True))


def test_the_output_has_the_bits_of_the_variant_that_packs_nothing():
    for case in GEOMETRIES.values():
        x1, x2, _ = arrays = case.arrays()
        want = correlate(x1, x2, **case.parameters, variant="unpacked")
        for transposed in (False, True):
            np.testing.assert_array_equal(run(case, arrays, transposed=transposed)[0], want)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("patch", [(21, 21), (1, 441), (441, 1)], ids=str)
def test_no_gradient_is_a_chain_of_sums_longer_than_promised(patch, at, transposed):
    case = Case((1, 1, 1, 3), (1, 1, 450, 450), dict(patch_size=patch, patch_offset=225))
    g = np.ones(case.out_shape(), np.float32)
    g.reshape(-1, 3)[at] = 2**24  # to which float32 cannot add ones
    ones = np.ones(case.shape1, np.float32), np.ones(case.shape2, np.float32)
    found = run(case, (*ones, g), (True, False), transposed=transposed)[0]
    assert abs(found - (2.0**24 + 440)).max() <= LONGEST_CHAIN.registers


@pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
def test_no_output_is_a_chain_of_sums_longer_than_promised(at):
    case = same((1, 441, 3, 3))
    x1, x2 = np.ones((2, *case.shape1), np.float32)
    x1[:, at] = 2**24
    assert abs(run(case, (x1, x2, np.empty(case.out_shape(), np.float32)))[0] - (2.0**24 + 440)).max() <= LONGEST_CHAIN.registers


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_a_gradient_that_is_not_needed_is_not_computed(needs):
    case = GEOMETRIES["a crop and a larger image"]
    both = run(case, case.arrays(), BOTH)
    want = [each for needed, each in zip(needs, both, strict=True) if needed]
    found = run(case, case.arrays(), needs)
    assert len(found) == 1
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("shape", [(1, 16, 20, 30), (1, 256, 121, 409), (4, 256, 80, 488), (1, 2048, 30, 30)], ids=str)
@pytest.mark.parametrize("patch", [9, (21, 1), (21, 5)], ids=str)
def test_a_gradient_has_the_same_plan_if_the_other_is_needed_and_if_not(shape, patch):
    requests = [request_of(same(shape, patch_size=patch), needs) for needs in (BOTH, (True, False), (False, True))]
    assert len({row_groups.why_not(request) for request in requests}) == 1
    both, *alone = map(RowGroups.of, requests)
    assert [plan.transposed for plan in alone] == [both.transposed] * 2
    assert [plan.sides[0].tiles for plan in alone] == [side.tiles for side in both.sides]


# Values that are not finite -------------------------------------------------------------------------------------------

EDGES = ("a square patch", "an offset", "padding", "a crop", "a crop along y, padding along x", "a crop and a larger image")
EDGES = {name: GEOMETRIES[name] for name in (*EDGES, "displacements of four chains")}


def kinds(array):
    """Return for each element whether it is finite, which infinity it is, or that it is no number."""
    return np.where(np.isnan(array), 2, np.where(np.isposinf(array), 1, np.where(np.isneginf(array), -1, 0)))


def kinds_by_formula(case, arrays):
    """Return the kinds of the output and both gradients by float64 loops over the pairs inside both images."""
    x1, x2, g = arrays
    with np.errstate(invalid="ignore"):
        found = [oracle.forward(x1, x2, **case.parameters)[0]]
        found += [each[0] for each in oracle.vjp(g, x1, x2, **case.parameters)]
    return [kinds(each) for each in found]


@pytest.mark.covering(2)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("everywhere", [False, True], ids=["corners", "everywhere"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["input1", "input2", "cotangent"])
@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES)
def test_values_that_are_not_finite_reach_what_the_formula_says(case, which, value, everywhere):
    arrays = case.arrays()
    changed = arrays[which]
    if everywhere:
        changed[...] = value
    else:
        for corner in itertools.product((0, -1), repeat=2):
            changed[(..., *corner)] = value
    wanted = kinds_by_formula(case, arrays)
    for transposed in (False, True):
        for name, got, want in zip(("out", *NAMES), everything(case, arrays, transposed), wanted, strict=True):
            np.testing.assert_array_equal(kinds(got), want, name)


# Memory ---------------------------------------------------------------------------------------------------------------

SMALL = same((2, 5, 6, 21), patch_size=3, dilation_patch=2)


@pytest.mark.parametrize("lay", [*LAYOUTS.values(), np.asfortranarray], ids=[*LAYOUTS, "Fortran order"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_may_lie_in_any_way(lay, dtype):
    case = Case(SMALL.shape1, SMALL.shape2, SMALL.parameters, dtype)
    x1, x2, g = case.arrays()
    x1, x2 = lay(x1), lay(x2)
    g = lay(g.reshape(2, 9, 6, 21)).reshape(g.shape)
    oracle.assert_close(correlate(x1, x2, **case.parameters, variant="simd"), oracle.forward(x1, x2, **case.parameters))
    found = correlate_vjp(g, x1, x2, **case.parameters, variant="simd")
    for name, got, want in zip(NAMES, found, oracle.vjp(g, x1, x2, **case.parameters), strict=True):
        oracle.assert_close(got, want, name=name)


def in_gaps(shape, dtype):
    """Return an array whose elements are apart along every axis, in descending order along two, and the memory around it."""
    memory = np.full([2 * size + 3 for size in shape], GUARD, dtype)
    view = memory[tuple(slice(1, 2 * size + 1, 2) for size in shape)]
    return view[..., ::-1, ::-1], memory


def in_a_frame(shape, dtype):
    """Return an array with neighbouring columns and others around it, and the memory of all."""
    memory = np.full([*shape[:-2], shape[-2] + 2, shape[-1] + 2], GUARD, dtype)
    return memory[..., 1:-1, 1:-1], memory


def channels_last(shape, dtype):
    """Return an array whose last axes are the first ones in memory, and the memory around it."""
    memory = np.full([*shape[-2:], *shape[:-2], 3], GUARD, dtype)
    view = np.moveaxis(memory[..., 1], (0, 1), (-2, -1))
    return view, memory


@pytest.mark.parametrize("dtype", ["float32", "float16", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", [in_gaps, in_a_frame, channels_last])
def test_results_are_written_between_other_elements(place, dtype):
    case = Case(SMALL.shape1, SMALL.shape2, {**SMALL.parameters, "padding": (1, 2)}, dtype)
    x1, x2, g = arrays = case.arrays()
    shapes = {"out": g.shape, "gradient1": x1.shape, "gradient2": x2.shape}
    placed = {name: place(shape, x1.dtype) for name, shape in shapes.items()}
    run(case, arrays, results={"out": placed["out"][0]})
    run(case, arrays, BOTH, {name: placed[name][0] for name in NAMES})
    for (name, (got, memory)), want in zip(placed.items(), everything(case, arrays), strict=True):
        np.testing.assert_array_equal(got, want, name)
        written = memory != np.asarray(GUARD, memory.dtype)
        got[...] = GUARD
        assert written.sum() == got.size, f"{name}: an element beside the result was written"
        assert (memory == np.asarray(GUARD, memory.dtype)).all(), f"{name}: an element beside the result was written"


def test_an_output_with_gaps_is_written_by_the_public_function():
    x1, x2, g = SMALL.arrays()
    out, _ = in_gaps(g.shape, g.dtype)
    assert correlate(x1, x2, **SMALL.parameters, out=out, variant="simd") is out
    np.testing.assert_array_equal(out, correlate(x1, x2, **SMALL.parameters, variant="simd"))


def test_an_output_of_another_dtype_is_rounded_once():
    case = Case(SMALL.shape1, SMALL.shape2, SMALL.parameters, "float16")
    x1, x2, _ = case.arrays()
    wide = correlate(x1, x2, **case.parameters, dtype=np.float32, variant="simd")
    triple = oracle.forward(x1, x2, **case.parameters)
    oracle.assert_close(wide, triple)
    np.testing.assert_array_equal(correlate(x1, x2, **case.parameters, variant="simd"), wide.astype(np.float16))


def unaligned(array):
    """Return an equal array whose elements are no whole number of elements apart."""
    view = np.zeros(array.shape, [("byte", np.uint8), ("value", array.dtype)])["value"]
    view[...] = array
    return view


def test_elements_that_are_not_aligned_are_taken_too():
    x1, x2, g = SMALL.arrays()
    out = unaligned(np.full_like(g, 9))
    correlate(unaligned(x1), unaligned(x2), **SMALL.parameters, out=out, variant="simd")
    oracle.assert_close(out, oracle.forward(x1, x2, **SMALL.parameters))
    found = correlate_vjp(unaligned(g), unaligned(x1), unaligned(x2), **SMALL.parameters, variant="simd")
    for name, got, want in zip(NAMES, found, oracle.vjp(g, x1, x2, **SMALL.parameters), strict=True):
        oracle.assert_close(got, want, name=name)


BETWEEN_HOLES = """
import contextlib, ctypes, math, mmap, sys
import numpy as np
sys.path.insert(0, "tests/support")
sys.path.insert(0, "tests/correlation")
from cupycorr._cpu import workers
import test_row_groups as tests

libc = ctypes.CDLL(None, use_errno=True)
page, line = mmap.PAGESIZE, 64

def between_pages(size):
    "Return whole pages of memory with a page before and one after them that cannot be touched."
    size = -(-size // page) * page
    whole = np.frombuffer(mmap.mmap(-1, size + 2 * page), np.uint8)
    for hole in (0, size + page):
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + hole), ctypes.c_size_t(page), 0) == 0
    return whole, page + size

def between_holes(values, at_the_end):
    "Return an equal array whose first element follows, or whose last one precedes, a page that cannot be touched."
    whole, end = between_pages(values.nbytes)
    first = end - values.nbytes if at_the_end else page
    array = whole[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array

@contextlib.contextmanager
def scratch(shape, dtype):
    "Return memory full of NaN whose last byte, apart from those that are left for its alignment, precedes a hole."
    size = math.prod(shape) * dtype.itemsize
    whole, end = between_pages(size)
    whole[page:end] = 255
    begin = end - size + line - 1
    yield whole[begin : begin + size]

kept = workers.scratch
for name in tests.FENCED:
    for dtype in ("float32", "bfloat16"):
        case = tests.Case(*(getattr(tests.GEOMETRIES[name], field) for field in ("shape1", "shape2", "parameters")), dtype)
        workers.scratch = kept
        wanted = tests.everything(case, case.arrays())
        workers.scratch = scratch
        for order in (np.ascontiguousarray, np.transpose):
            for at_the_end in (False, True):
                def held(values):
                    return order(between_holes(np.ascontiguousarray(order(values)), at_the_end))
                x1, x2, g = arrays = [held(each) for each in case.arrays()]
                out, gradient1, gradient2 = (held(np.zeros_like(each)) for each in (g, x1, x2))
                found = [*tests.run(case, arrays, results={"out": out})]
                found += tests.run(case, arrays, tests.BOTH, {"gradient1": gradient1, "gradient2": gradient2})
                for got, want in zip(found, wanted):
                    assert np.array_equal(got, want), (name, dtype)
print("inside")
"""
FENCED = ("one pixel", "a square patch", "padding", "a crop and a larger image", "a smaller image")


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory as Linux does")
def test_no_byte_outside_the_arrays_is_touched():
    assert python(BETWEEN_HOLES) == "inside"


@pytest.mark.parametrize("gradients", [False, True], ids=["output", "gradients"])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_no_call_holds_more_than_its_results_and_the_workspace(threads, gradients):
    case = same((2, 64, 90, 160), patch_size=(9, 7))
    x1, x2, g = case.arrays()
    needs = BOTH if gradients else None
    with workers.team_of(threads):
        run(case, (x1, x2, g), needs)  # compiles
        found, used = peak(lambda: run(case, (x1, x2, g), needs))
    assert used >= sum(each.nbytes for each in found)
    assert_within(used, found, "gradients" if gradients else "output")


# Divisions and threads ------------------------------------------------------------------------------------------------

DIVIDED = {
    "rows, columns and samples": same((3, 9, 23, 75), patch_size=5),
    "steps": same((2, 6, 31, 50), patch_size=(4, 3), dilation_patch=(3, 2), padding=(2, 1)),
    "a crop": same((2, 140, 20, 70), patch_size=3, padding=-3),
    "many displacements": same((1, 3, 17, 40), patch_size=(12, 13)),
    "float16": same((3, 9, 23, 75), "float16", patch_size=5),
    "float64": same((2, 9, 23, 75), "float64", patch_size=5),
}
LIMITS = {
    "chunks of columns": dict(SCRATCH_BYTES=1),
    "parts of rows": dict(PACKED_BYTES=1),
    "parts of samples": dict(PACKED_BYTES=2**19),
    "few tasks": dict(FEWEST_TASKS=1),
    "many tasks": dict(FEWEST_TASKS=10**6, FEWEST_COLUMNS=16),
    "all": dict(SCRATCH_BYTES=1, PACKED_BYTES=1),
}


def limit_to(monkeypatch, limits):
    """Limit the division of the work."""
    for name, limit in limits.items():
        monkeypatch.setattr(row_groups if name == "PACKED_BYTES" else row_side, name, limit)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("case", DIVIDED.values(), ids=DIVIDED)
def test_bits_do_not_depend_on_the_division(case, limits, monkeypatch):
    arrays = case.arrays()
    limit_to(monkeypatch, dict(SCRATCH_BYTES=2**40, PACKED_BYTES=2**40, FEWEST_TASKS=1))
    whole = everything(case, arrays)
    assert [len(side.parts) * side.chunks for side in plan_of(case, BOTH).sides] == [1, 1]
    limit_to(monkeypatch, limits)
    assert_same_bits(everything(case, arrays), whole)


@pytest.mark.parametrize(("limit", "divided"), [("SCRATCH_BYTES", "chunks"), ("PACKED_BYTES", "parts")])
def test_a_limit_divides(limit, divided, monkeypatch):
    limit_to(monkeypatch, {limit: 1})
    for needs in (None, BOTH):
        for side in plan_of(DIVIDED["rows, columns and samples"], needs).sides:
            count = getattr(side, divided)
            assert (count if limit == "SCRATCH_BYTES" else len(count)) > 3


@pytest.mark.parametrize("case", DIVIDED.values(), ids=DIVIDED)
def test_bits_do_not_depend_on_the_number_of_threads(case, monkeypatch):
    monkeypatch.setattr(row_groups, "THREAD_SECONDS", 1e-9)  # else small problems take one thread
    arrays, found = case.arrays(), []
    for threads in (1, 2, 3, 5):
        with workers.team_of(threads):
            found.append(everything(case, arrays))
    for each in found[1:]:
        assert_same_bits(each, found[0])


def test_threads_of_the_caller_run_one_plan_at_the_same_time():
    case = DIVIDED["rows, columns and samples"]
    arrays = [Case(case.shape1, case.shape2, case.parameters, seed=seed).arrays() for seed in range(3)]
    alone = [[each.tobytes() for each in everything(case, each)] for each in arrays]
    together, results = threading.Barrier(3), {}

    def call(number):
        x1, x2, g = arrays[number]
        together.wait()
        for _ in range(10):
            out = correlate(x1, x2, **case.parameters, variant="simd")
            gradients = correlate_vjp(g, x1, x2, **case.parameters, variant="simd")
            results.setdefault(number, []).append([each.tobytes() for each in (out, *gradients)])

    callers = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == {number: [alone[number]] * 10 for number in range(3)}


def test_one_plan_serves_arrays_of_many_layouts():
    x1, x2, g = SMALL.arrays()
    plan = plan_of(SMALL)
    want = run(SMALL, (x1, x2, g))[0]
    for number in range(40):
        out = np.full((*g.shape[:-1], g.shape[-1] + number), GUARD, g.dtype)[..., : g.shape[-1]]
        plan.run({"input1": x1, "input2": x2, "out": out})
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("step", [1, 7, 1000, 2**40])
def test_there_are_no_more_groups_than_rows(step):
    for needs in (None, BOTH):
        for side in plan_of(same((1, 2, 70, 3), patch_size=(3, 1), dilation_patch=(step, 1)), needs).sides:
            assert side.groups(side.rows) <= side.rows


# Registers of other processors ----------------------------------------------------------------------------------------

REGISTERS = {
    "AVX-512": Registers(32, (64, 32)),
    "AVX": Registers(16, (32, 16)),
    "NEON": Registers(32, (16,)),
    "SSE": Registers(16, (16,)),
}


def forget_kernels():
    for kernels in (row_packing, row_forward, row_gradient):
        kernels._compiled.cache_clear()
    row_tiles._fastest.cache_clear()


@pytest.fixture(params=REGISTERS.values(), ids=REGISTERS)
def other_registers(request, monkeypatch):
    """Compile kernels for vector registers of another number and width."""
    for module in (register_tile, row_side, row_tiles, task_kernel):
        monkeypatch.setattr(module, "registers", lambda: request.param)
    forget_kernels()
    yield
    forget_kernels()


@pytest.mark.usefixtures("other_registers")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_kernels_for_other_processors_equal_the_oracle(dtype):
    for name in ("displacements two apart", "a crop and a larger image", "channels of two chains"):
        case = GEOMETRIES[name]
        check(Case(case.shape1, case.shape2, case.parameters, dtype))
    for width in (1, 5, 15, 33):
        check(same((1, 7, 7, width), dtype, patch_size=(3, 2)))


@pytest.mark.usefixtures("other_registers")
def test_kernels_for_other_processors_have_the_same_bits_however_the_work_is_divided(monkeypatch):
    case = DIVIDED["rows, columns and samples"]
    whole = everything(case, case.arrays())
    limit_to(monkeypatch, dict(SCRATCH_BYTES=1, PACKED_BYTES=1))
    assert_same_bits(everything(case, case.arrays()), whole)


# Choice ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    "windows have more than one pixel": dict(kernel_size=2),
    "the stride is not 1": dict(stride=2),
    "a group of rows does not fit into the workspace": dict(patch_size=201),
    "a group of rows does not fit into the workspace, or displacements are too far apart": dict(patch_size=2, dilation_patch=65),
}


@pytest.mark.parametrize(("reason", "parameters"), REFUSED.items(), ids=REFUSED)
def test_other_problems_are_left_to_blocks(reason, parameters):
    case = same((1, 2, 9, 70), **parameters)
    assert row_groups.why_not(request_of(case, BOTH)).startswith(reason)
    assert not isinstance(planner.plan(simd.ENGINE, request_of(case, BOTH), None), planner.ByRowGroups)


@pytest.mark.parametrize("step", [65, 1000, 2**40])
@pytest.mark.parametrize("axis", [0, 1], ids=["along y", "along x"])
def test_displacements_far_apart_equal_the_oracle(step, axis):
    steps = (step, 1) if axis == 0 else (1, step)
    case = same((1, 2, 70, 3) if axis == 0 else (1, 2, 3, 70), patch_size=2, dilation_patch=steps)
    x1, x2, g = case.arrays()
    oracle.assert_close(correlate(x1, x2, **case.parameters, variant="simd"), oracle.forward(x1, x2, **case.parameters))
    found = correlate_vjp(g, x1, x2, **case.parameters, variant="simd")
    for name, got, want in zip(NAMES, found, oracle.vjp(g, x1, x2, **case.parameters), strict=True):
        oracle.assert_close(got, want, name=name)


@pytest.mark.parametrize("gradients", [False, True], ids=["output", "gradients"])
def test_one_pixel_windows_with_stride_1_are_computed_by_groups_of_rows(gradients):
    x = np.zeros((1, 64, 48, 64), np.float32)
    told = cupycorr.explain(x, x, patch_size=9, gradients=gradients, variant="simd")
    assert told.algorithm == "row groups"
