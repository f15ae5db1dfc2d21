"""Every kernel of the lookup computes the oracle's output and gradients: through the plans of the GPU path, in the emulator."""

from dataclasses import replace

import lookup_cases
import lookup_oracle
import numpy as np
import pytest
from cases import DTYPES
from emulated import BUSY, IDLE, launched_by
from emulator import ORDERS, Emulator, require_compiler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, channels_last, far_apart, rows
from lookup_cases import ALL, LONG_SUMS, NAMED, Case, index
from lookup_emulated import assert_right, inputs_of, lookup, lookup_vjp, wanted

from cupycorr._gpu import call, plan
from cupycorr._lookup.gpu import planner

require_compiler()

devices = pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
mostly_busy = pytest.mark.parametrize("device", [BUSY, pytest.param(IDLE, marks=pytest.mark.slow)], ids=["busy", "idle"])
named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
orders = pytest.mark.parametrize("lay", [rows, channels_last], ids=["rows", "channels last"])

PYRAMID = Case((2, 20, 9, 11), [(2, 20, 9, 11), (2, 20, 4, 5)], (2, 2, 2, 9, 11), dict(patch_size=(3, 4), scale=-0.3))
DILATED = replace(PYRAMID, parameters=dict(patch_size=(3, 5), dilation_patch=(2, 3), order="dx"))
ONE_ROW = replace(PYRAMID, coords=(2, 1, 9, 11), parameters=dict(patch_size=(2, 12), level_step=(1, 2)))
SMALL = Case((2, 9, 5, 6), [(2, 9, 5, 6), (2, 9, 2, 3)], (2, 2, 5, 6), dict(patch_size=(3, 2), scale=-0.3))
OF_EACH_KIND = {"pyramid": PYRAMID, "dilated": DILATED, "own rows": ONE_ROW}
of_each_kind = pytest.mark.parametrize("case", OF_EACH_KIND.values(), ids=OF_EACH_KIND.keys())


def run(monkeypatch, case, cotangent, inputs, emulator=None, device=BUSY, needs=ALL, **changed):
    """Return the output and the gradients of input1, each level and coords; ``changed`` are names of the planner."""
    emulator = emulator or Emulator()
    with launched_by(monkeypatch, emulator, device, planner, **changed):
        out = lookup(emulator, case, inputs)
        first, levels, coords = lookup_vjp(emulator, case, cotangent, inputs, needs)
    return out, first, *levels, coords


def assert_same_bits(results, others, message):
    for one, two in zip(results, others, strict=True):
        assert one.tobytes() == two.tobytes(), message


def check(monkeypatch, case, device=BUSY, lay=rows, every_order=False, **changed):
    """Check that output and gradients of a case are the oracle's, and have the same bits in every order of threads."""
    cotangent, inputs = case.cotangent(), inputs_of(case, lay)
    emulators = [Emulator(order) for order in (ORDERS if every_order else ORDERS[:1])]
    first, *others = [run(monkeypatch, case, cotangent, inputs, emulator, device, **changed) for emulator in emulators]
    for other in others:
        assert_same_bits(first, other, "a result depends on the order of threads")
    assert_right(first, wanted(case, cotangent), inputs["input1"].dtype)
    return first


SPLIT = ("RAFT's order", "pyramid and lookups", "stereo", "edges of patches", "strange numbers", "many channels")


@pytest.mark.parametrize(
    ("case", "device"),
    [pytest.param(case, BUSY, id=f"{name}-busy") for name, case in NAMED.items()]
    + [pytest.param(NAMED[name], IDLE, id=f"{name}-idle") for name in SPLIT],
)
def test_named_lookups_equal_the_oracle(monkeypatch, case, device):
    check(monkeypatch, case, device)


@pytest.mark.slow
@devices
@named
def test_results_do_not_depend_on_the_order_of_threads(monkeypatch, case, device):
    check(monkeypatch, case, device, every_order=True)


@pytest.mark.slow
@pytest.mark.parametrize("lay", FOR_KERNELS.values(), ids=FOR_KERNELS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(monkeypatch, dtype, lay):
    for channels in (35, 72):  # runs of channels that end in the middle of 16 bytes, and at the end of them
        shapes = [(2, channels, 6, 9), (2, channels, 3, 4)]
        case = Case(shapes[0], shapes, (2, 2, 6, 9), dict(patch_size=(3, 4), dilation_patch=(1, 2), scale=0.25), dtype)
        check(monkeypatch, case, IDLE, lay, every_order=channels == 35)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=lookup_cases.lookups(), lay=st.sampled_from(list(FOR_KERNELS.values())), device=st.sampled_from([BUSY, IDLE]))
def test_drawn_lookups_equal_the_oracle(monkeypatch, case, lay, device):
    check(monkeypatch, case, device, lay, every_order=True)


# What a call may ask beside the features' own type ----------------------------------------------------------------------------


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("dtype", "coords_dtype"),
    [(dtype, coords) for dtype in DTYPES for coords in DTYPES if coords != "float64" or dtype == "float64"],
)
def test_coordinates_of_another_dtype_are_widened_and_have_a_gradient_of_that_dtype(monkeypatch, dtype, coords_dtype):
    case = replace(SMALL, dtype=dtype, coords_dtype=coords_dtype)
    results = check(monkeypatch, case)
    assert results[-1].dtype == DTYPES[coords_dtype]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("result", DTYPES)
def test_a_result_of_another_dtype_is_rounded_once_from_the_sum(monkeypatch, dtype, result):
    case = replace(SMALL, dtype=dtype)
    inputs, sums = inputs_of(case), "float64" if dtype == "float64" else "float32"
    with launched_by(monkeypatch, emulator := Emulator()):
        out = lookup(emulator, case, inputs, DTYPES[result])
        exact = lookup(emulator, case, inputs, np.dtype(sums))
    assert out.tobytes() == exact.astype(out.dtype).tobytes()
    cotangent = case.cotangent(result)
    gradients = run(monkeypatch, case, cotangent, inputs)[1:]
    assert_right((exact, *gradients), wanted(case, cotangent), inputs["input1"].dtype)


OUTS = {
    "every other column": lambda shape: np.empty((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2],
    "transposed": lambda shape: np.empty(shape[::-1], np.float32).T,
    "reversed": lambda shape: np.empty(shape, np.float32)[::-1, :, :, ::-1, :, :, ::-1],
}


@pytest.mark.parametrize("make", OUTS.values(), ids=OUTS.keys())
@pytest.mark.parametrize("order", ["dy", "dx"])
def test_out_and_cotangent_may_have_any_strides(monkeypatch, make, order):
    case = replace(PYRAMID, parameters={**PYRAMID.parameters, "order": order})
    inputs, cotangent = inputs_of(case), case.cotangent()
    want = run(monkeypatch, case, cotangent, inputs)
    laid = make(cotangent.shape)
    laid[...] = cotangent
    with launched_by(monkeypatch, emulator := Emulator()):
        out = lookup(emulator, case, inputs, out=make(cotangent.shape))
    assert np.array_equal(out, want[0])
    assert_same_bits(run(monkeypatch, case, laid, inputs)[1:], want[1:], "a gradient depends on the cotangent's strides")


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True), (False, False, False)])
def test_only_the_gradient_asked_for_is_computed(monkeypatch, needs):
    inputs, cotangent = inputs_of(PYRAMID), PYRAMID.cotangent()
    every = run(monkeypatch, PYRAMID, cotangent, inputs)
    emulator = Emulator()
    _, *got = run(monkeypatch, PYRAMID, cotangent, inputs, emulator, needs=needs)
    assert [gradient is not None for gradient in got] == [needs[0], needs[1], needs[1], needs[2]]
    assert all(one is None or np.array_equal(one, other) for one, other in zip(got, every[1:], strict=True))
    levels, sums = 2, 1
    launches = needs[0] * (levels + sums) + needs[1] * 2 * levels + needs[2] * (levels + sums)
    assert len(emulator.accounts) == levels + launches


# Sizes beyond those of a test -------------------------------------------------------------------------------------------------


@devices
@of_each_kind
def test_a_grid_smaller_than_the_work_loops_over_the_rest(monkeypatch, case, device):
    monkeypatch.setattr(plan, "LARGEST_GRID", 3)
    check(monkeypatch, case, device)


@mostly_busy
def test_more_tiles_of_queries_than_threads_that_scan_them_equal_the_oracle(monkeypatch, device):
    check(monkeypatch, Case((1, 2, 1, 2), (1, 2, 3, 20), (1, 600, 2, 1, 2), dict(patch_size=2), noise=8.0), device)


@pytest.mark.covering(1)
@mostly_busy
@of_each_kind
@orders
def test_integers_of_64_bits_give_the_same_bits(monkeypatch, case, device, lay):
    case = replace(case, strange=0.05)
    cotangent, inputs = case.cotangent(), inputs_of(case, lay)
    narrow = run(monkeypatch, case, cotangent, inputs, device=device)
    monkeypatch.setattr(call, "SAFE_INDEX", 0)
    wide = run(monkeypatch, case, cotangent, inputs, device=device)
    assert_same_bits(wide, narrow, "a result depends on the width of integers")


@pytest.mark.parametrize("axis", [0, 1, pytest.param(2, marks=pytest.mark.slow), 3], ids=["batch", "channels", "rows", "columns"])
@pytest.mark.parametrize("name", ["input1", "input2"])
def test_features_more_than_2_to_the_31_apart_are_reached(monkeypatch, name, axis):
    case = Case((2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2), dict(patch_size=2), "float16")
    inputs, cotangent = inputs_of(case), case.cotangent()
    inputs[name] = far_apart(inputs[name], axis)
    assert_right(run(monkeypatch, case, cotangent, inputs), wanted(case, cotangent), np.float16)


COORDS_AXES = tuple(enumerate(("entries", "lookups", "x and y", "rows", "columns")))


@pytest.mark.parametrize("axis", range(7), ids=["entries", "levels", "lookups", "dy", "dx", "rows", "columns"])
def test_cotangents_more_than_2_to_the_31_apart_are_reached(monkeypatch, axis):
    case = Case((2, 2, 2, 2), [(2, 2, 2, 2)] * 2, (2, 2, 2, 2, 2), dict(patch_size=2), "float16")
    inputs, cotangent = inputs_of(case), case.cotangent()
    results = run(monkeypatch, case, cotangent, inputs)
    apart = run(monkeypatch, case, far_apart(cotangent, axis), inputs)
    assert_same_bits(apart, results, "a cotangent that is far away is not reached")


@pytest.mark.parametrize(
    "axis",
    [pytest.param(axis, id=name, marks=() if name in ("entries", "x and y") else pytest.mark.slow) for axis, name in COORDS_AXES],
)
def test_coordinates_more_than_2_to_the_31_apart_are_reached(monkeypatch, axis):
    case = Case((2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2, 2), dict(patch_size=2), "float16", "float16")
    inputs, cotangent = inputs_of(case), case.cotangent()
    inputs["coords"] = far_apart(inputs["coords"], axis)
    assert_right(run(monkeypatch, case, cotangent, inputs), wanted(case, cotangent), np.float16)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_indices_may_have_any_strides(monkeypatch, dtype):
    first, second = index(2, 0, 0, dtype=dtype), index(1, 1, 0, dtype=dtype)
    case = Case((3, 4, 5, 6), (2, 4, 7, 8), (3, 2, 5, 6), dict(patch_size=3, index1=first, index2=second))
    inputs = {**inputs_of(case), "index1": np.repeat(first, 3)[::3], "index2": second[::-1].copy()[::-1]}
    cotangent = case.cotangent()
    assert_right(run(monkeypatch, case, cotangent, inputs), wanted(case, cotangent), np.float32)


FAR = {
    "a dilation beyond 32 bits": dict(patch_size=(2, 3), dilation_patch=(2**30, 2**29)),
    "a dilation of one displacement": dict(patch_size=1, dilation_patch=2**31),
    "a dilation near 32 bits": dict(patch_size=3, dilation_patch=2**27),
    "levels far apart": dict(patch_size=3, level_step=2**40),
}


@pytest.mark.parametrize("parameters", FAR.values(), ids=FAR)
def test_parameters_of_any_size_equal_the_oracle(monkeypatch, parameters):
    maps = [(1, 3, 5, 6), (1, 3, 2, 2)]
    check(monkeypatch, Case((1, 3, 5, 6), maps, (1, 2, 5, 6), parameters, strange=0.1))


@pytest.mark.parametrize("bytes_of_workspace", [1, 20_000, 60_000])
def test_partial_sums_cut_to_fit_the_workspace_give_the_same_bits(monkeypatch, bytes_of_workspace):
    case = Case((1, 37, 8, 9), [(1, 37, 8, 9), (1, 37, 4, 4)], (1, 2, 8, 9), dict(patch_size=3))
    inputs, cotangent = inputs_of(case), case.cotangent()
    whole = run(monkeypatch, case, cotangent, inputs, device=IDLE)
    cut = run(monkeypatch, case, cotangent, inputs, device=IDLE, WORKSPACE_BYTES=bytes_of_workspace)
    assert_same_bits([cut[1], cut[-1]], [whole[1], whole[-1]], "a gradient depends on the size of the workspace")
    assert_right(cut, wanted(case, cotangent), np.float32)


def test_the_workspace_of_partial_sums_keeps_to_its_bound(monkeypatch):
    case = Case((1, 200, 8, 9), [(1, 200, 8, 9), (1, 200, 4, 4)], (1, 2, 8, 9), dict(patch_size=3))
    planned = []
    monkeypatch.setattr("emulated.run", lambda emulator, plan, reads, writes: planned.append(plan.workspace))
    run(monkeypatch, case, case.cotangent(), inputs_of(case), device=IDLE, WORKSPACE_BYTES=50_000)
    boxes = 2 * 256
    assert 0 < planned[1] <= 50_000 + boxes


# Queries that have no window, and entries that have no images -------------------------------------------------------------------

WRONG = {"below": -1, "above": 3, "far above": 2**31 - 1, "far below": -(2**31)}


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["index1", "index2"])
def test_an_index_out_of_range_is_nan_in_its_entry_has_no_gradient_and_reads_nothing(monkeypatch, name, wrong, dtype):
    indices = {"index1": index(0, 2, 1, 2, dtype=dtype), "index2": index(1, 0, 1, 2, dtype=dtype)}
    case = Case((3, 5, 6, 7), [(3, 5, 6, 7), (3, 5, 3, 3)], (4, 2, 6, 7), dict(patch_size=3, **indices))
    inputs, cotangent = inputs_of(case), case.cotangent()
    inputs[name] = indices[name].copy()
    inputs[name][1] = wrong
    out, first, *levels, coords = run(monkeypatch, case, cotangent, inputs)
    cotangent[1] = 0  # its entry then adds nothing to the gradients of the oracle
    of_all, *gradients, of_coords = wanted(case, cotangent)
    others = [0, 2, 3]
    assert np.isnan(out[1]).all()
    assert (coords[1] == 0).all()
    for got, triple in ((out, of_all), (coords, of_coords)):
        lookup_oracle.assert_close(got[others], [part[others] for part in triple])
    for got, triple in zip((first, *levels), gradients, strict=True):
        lookup_oracle.assert_close(got, triple)


@pytest.mark.parametrize("wrong", [2**32, 2**32 + 1, 2**63 - 1, -(2**63), -(2**32)])
def test_an_index_beyond_32_bits_is_out_of_range_in_32_bit_kernels_too(monkeypatch, wrong):
    case = Case((3, 5, 4, 4), (3, 5, 4, 4), (2, 2, 4, 4), dict(patch_size=3, index1=index(0, 2), index2=index(1, 0)))
    inputs = {**inputs_of(case), "index2": index(1, wrong)}
    out = run(monkeypatch, case, case.cotangent(), inputs)[0]
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[0]).all()


@pytest.mark.covering(2)
@devices
@orders
@pytest.mark.parametrize("far", [1e30, -1e30, 3e38, -(2.0**31), 2.0**31, 2.0**63])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_wholly_outside_is_zero_and_has_no_gradient(monkeypatch, axis, far, lay, device):
    case = Case((1, 16, 6, 7), [(1, 16, 6, 7), (1, 16, 3, 3)], (1, 2, 6, 7), dict(patch_size=3))
    inputs, cotangent = inputs_of(case, lay), case.cotangent()
    inputs["coords"][0, axis, 2, 3] = far
    out, first, _, _, coords = run(monkeypatch, case, cotangent, inputs, device=device)
    assert (out[..., 2, 3] == 0).all()
    assert (first[..., 2, 3] == 0).all()
    assert (coords[..., 2, 3] == 0).all()


@orders
@pytest.mark.parametrize("value", [np.inf, *(pytest.param(value, marks=pytest.mark.slow) for value in (-np.inf, np.nan))])
@of_each_kind
def test_features_and_cotangents_that_are_not_finite_stay_where_the_definition_puts_them(monkeypatch, case, value, lay):
    x1, maps, coords = case.arrays()
    cotangent = case.cotangent()
    x1[0, 1, 0, 3] = x1[1, 0, 6, 8] = maps[0][0, 1, -1, -1] = maps[1][1, 0, 0, 0] = value
    cotangent[0, 1, 0, 1, 2, 1] = cotangent[1, 0, -1, 0, 0, -1] = value
    with np.errstate(invalid="ignore"):
        first, second, third = lookup_oracle.vjp(cotangent, x1, maps, coords, **case.parameters)
        want = lookup_oracle.forward(x1, maps, coords, **case.parameters), first, *second, third
    names = dict(zip(case.problem().level_names, map(lay, maps), strict=True))
    got = run(monkeypatch, case, cotangent, {"input1": lay(x1), **names, "coords": coords})
    for name, one, triple in zip(("output", "g1", "level 0", "level 1", "coords"), got, want, strict=True):
        assert np.array_equal(np.isfinite(one), np.isfinite(triple[0])), name


def test_the_pixel_and_the_weights_are_those_of_the_rounded_product(monkeypatch):
    """A third is rounded up: of 3 times it, only the rounded product is the whole number 1, with no weight for pixel 2."""
    x1, x2 = np.ones((1, 1, 1, 1), np.float32), np.array([0, 1, 2.0**30], np.float32).reshape(1, 1, 1, 3)
    case = Case(x1.shape, [x2.shape] * 2, (1, 1, 1, 1), dict(patch_size=1, level_step=3))
    inputs = {"input1": x1, "input2[0]": x2, "input2[1]": x2, "coords": np.full((1, 1, 1, 1), 3, np.float32)}
    with launched_by(monkeypatch, emulator := Emulator()):
        assert lookup(emulator, case, inputs).ravel().tolist() == [0, 1]


# Numbers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@devices
@pytest.mark.parametrize("long", LONG_SUMS.values(), ids=LONG_SUMS)
def test_long_sums_of_terms_that_drift_keep_the_error_bound(monkeypatch, long, device):
    case = Case(long.shape1, long.shape2, long.coords, long.parameters)
    x1, x2, coords, cotangent = long.arrays()
    first, second, third = lookup_oracle.vjp(cotangent, x1, x2, coords, **long.parameters)
    want = lookup_oracle.forward(x1, x2, coords, **long.parameters), first, second, third
    got = run(monkeypatch, case, cotangent, {"input1": x1, "input2": x2, "coords": coords}, device=device)
    assert_right(got, want, np.float32)


# What is loaded ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coordinate", "met", "idle"), [(None, 8 + 7, 0), (0.0, 8, 7)], ids=["each at itself", "all at the first pixel"]
)
def test_tiles_of_queries_whose_boxes_do_not_meet_a_tile_of_pixels_are_skipped(monkeypatch, coordinate, met, idle):
    """A query reads its pixel and the next one: eight tiles of pixels meet their own queries, and seven those on their left."""
    case = Case((1, 4, 8, 64), (1, 4, 8, 64), (1, 2, 8, 64), dict(patch_size=1), noise=0.0)
    inputs = inputs_of(case)
    if coordinate is not None:
        inputs["coords"] = np.full_like(inputs["coords"], coordinate)
    run(monkeypatch, case, case.cotangent(), inputs, emulator := Emulator(), needs=(False, True, False))
    blocks, scans = 8, 2  # a barrier before and one after the tiles that are found; a block that finds none has the first
    assert emulator.account.barriers == scans * blocks - idle + 2 * met
