"""Every kernel of the lookup in a volume computes the oracle's results: through the plans of the GPU path, in the emulator."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import volume_cases
import volume_oracle
from cases import DTYPES
from emulated import launched_by
from emulator import ORDERS, Emulator, require_compiler
from hypothesis import HealthCheck, given, settings
from layouts import far_apart
from volume_cases import BOTH, NAMED, Case
from volume_emulated import assert_right, inputs_of, lookup, lookup_vjp, wanted

from cupycorr._gpu import call, plan

require_compiler()

named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())

FLOW = Case((2, 5, 9, 6, 7), dict(patch_size=(3, 4), scale=-0.3))
DILATED = Case((2, 5, 9, 6, 7), dict(patch_size=(3, 5), dilation_patch=(2, 3), order="dx"))
STEREO = Case((2, 3, 14, 13), dict(patch_size=5, scale=0.5))
CHUNKED = Case((1, 5, 7, 40, 50), dict(patch_size=(13, 40)), noise=10.0)
OF_EACH_KIND = {"flow": FLOW, "dilated": DILATED, "stereo": STEREO, "chunked": CHUNKED}
of_each_kind = pytest.mark.parametrize("case", OF_EACH_KIND.values(), ids=OF_EACH_KIND.keys())
SMALL = Case((2, 3, 5, 4, 6), dict(patch_size=(3, 2), scale=-0.3))


def run(monkeypatch, case, cotangent, inputs, emulator=None, needs=BOTH):
    """Return the output and the gradients of the volume and of coords."""
    emulator = emulator or Emulator()
    with launched_by(monkeypatch, emulator):
        return lookup(emulator, case, inputs), *lookup_vjp(emulator, case, cotangent, inputs, needs)


def assert_same_bits(results, others, message):
    for one, two in zip(results, others, strict=True):
        assert one.tobytes() == two.tobytes(), message


def check(monkeypatch, case, orders=ORDERS):
    """Check that the results of a case are the oracle's, and have the same bits in every order of threads."""
    cotangent, inputs = case.cotangent(), inputs_of(case)
    first, *others = [run(monkeypatch, case, cotangent, inputs, Emulator(order)) for order in orders]
    for other in others:
        assert_same_bits(first, other, "a result depends on the order of threads")
    assert_right(first, wanted(case, cotangent), inputs["volume"].dtype)
    return first


@named
def test_named_lookups_equal_the_oracle_in_every_order_of_threads(monkeypatch, case):
    check(monkeypatch, case)


@pytest.mark.parametrize(
    "case", [pytest.param(each, id=name, marks=() if name == "flow" else pytest.mark.slow) for name, each in OF_EACH_KIND.items()]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_equals_the_oracle(monkeypatch, case, dtype):
    check(monkeypatch, case.of(dtype), ORDERS[:1])


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=volume_cases.lookups())
def test_drawn_lookups_equal_the_oracle(monkeypatch, case):
    check(monkeypatch, case)


# What a call may ask beside the volume's own type -----------------------------------------------------------------------------

QUICK = (("float32", "float16"), ("bfloat16", "bfloat16"), ("float64", "float32"))  # each pair is a build of its own


def pairs_of_dtypes(*pairs):
    """Return pairs as parameters, all but a few of them slow."""
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(
    ("dtype", "coords_dtype"),
    pairs_of_dtypes(*((dtype, each) for dtype in DTYPES for each in DTYPES if each != "float64" or dtype == "float64")),
)
def test_coordinates_of_another_dtype_are_widened_and_have_a_gradient_of_that_dtype(monkeypatch, dtype, coords_dtype):
    results = check(monkeypatch, replace(SMALL, dtype=dtype, coords_dtype=coords_dtype), ORDERS[:1])
    assert results[-1].dtype == DTYPES[coords_dtype]


@pytest.mark.parametrize(("dtype", "result"), pairs_of_dtypes(*product(DTYPES, DTYPES)))
def test_a_result_of_another_dtype_is_rounded_once_from_the_sum(monkeypatch, dtype, result):
    case = replace(SMALL, dtype=dtype)
    inputs, sums = inputs_of(case), "float64" if dtype == "float64" else "float32"
    with launched_by(monkeypatch, emulator := Emulator()):
        out = lookup(emulator, case, inputs, DTYPES[result])
        exact = lookup(emulator, case, inputs, np.dtype(sums))
    assert out.tobytes() == exact.astype(out.dtype).tobytes()
    cotangent = case.cotangent(result)
    gradients = run(monkeypatch, case, cotangent, inputs)[1:]
    assert_right((exact, *gradients), wanted(case, cotangent), inputs["volume"].dtype)


VIEWS = {
    "permuted": lambda x: np.ascontiguousarray(x.transpose(0, 3, 4, 1, 2)).transpose(0, 3, 4, 1, 2),
    "cropped": lambda x: np.pad(x, [(0, 0), (1, 2), (2, 1), (3, 0), (0, 4)], constant_values=np.nan)[
        :, 1 : 1 + x.shape[1], 2 : 2 + x.shape[2], 3:, : x.shape[4]
    ],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1, ::-1],
    "one slice": lambda x: np.broadcast_to(x[:, :1, :1], x.shape),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("order", ["dy", "dx"])
def test_every_array_may_have_any_strides(monkeypatch, view, order):
    case = replace(FLOW, parameters={**FLOW.parameters, "order": order})
    inputs, cotangent = inputs_of(case), case.cotangent()
    inputs["volume"] = inputs["volume"] if view is not VIEWS["one slice"] else np.ascontiguousarray(view(inputs["volume"]))
    want = run(monkeypatch, case, cotangent, inputs)
    laid = {"volume": view(inputs["volume"]), "coords": inputs["coords"][:, ::-1].copy()[:, ::-1]}
    with launched_by(monkeypatch, emulator := Emulator()):
        out = lookup(emulator, case, laid, out=np.empty((*want[0].shape[::-1], 2), np.float32)[..., 1].T)
        results = [np.empty(x.shape[::-1], np.float32).T for x in want[1:]]
        lookup_vjp(emulator, case, np.ascontiguousarray(cotangent.T).T, laid, results=results)
    for got, other in zip((out, *results), want, strict=True):
        np.testing.assert_array_equal(got, other)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_the_gradient_asked_for_is_computed(monkeypatch, needs):
    inputs, cotangent = inputs_of(FLOW), FLOW.cotangent()
    every = run(monkeypatch, FLOW, cotangent, inputs)[1:]
    emulator = Emulator()
    got = run(monkeypatch, FLOW, cotangent, inputs, emulator, needs)[1:]
    assert [gradient is not None for gradient in got] == list(needs)
    assert all(one is None or np.array_equal(one, other) for one, other in zip(got, every, strict=True))
    assert len(emulator.accounts) == 1 + sum(needs)


# Sizes beyond those of a test -------------------------------------------------------------------------------------------------


@of_each_kind
def test_a_grid_smaller_than_the_work_loops_over_the_rest(monkeypatch, case):
    monkeypatch.setattr(plan, "LARGEST_GRID", 3)
    check(monkeypatch, case, ORDERS[:1])


def test_slices_of_more_elements_than_a_warp_writes_equal_the_oracle(monkeypatch):
    check(monkeypatch, Case((1, 1, 3, 47, 53), dict(patch_size=3), noise=9.0), ORDERS[:1])


@of_each_kind
def test_integers_of_64_bits_give_the_same_bits(monkeypatch, case):
    case = replace(case, strange=0.05)
    cotangent, inputs = case.cotangent(), inputs_of(case)
    narrow = run(monkeypatch, case, cotangent, inputs)
    monkeypatch.setattr(call, "SAFE_INDEX", 0)
    wide = run(monkeypatch, case, cotangent, inputs)
    assert_same_bits(wide, narrow, "a result depends on the width of integers")


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", ["volume", "coords", "cotangent"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4])
def test_elements_more_than_2_to_the_31_apart_are_reached(monkeypatch, name, axis):
    case = Case((2, 2, 2, 2, 2), dict(patch_size=2), "float16", "float16")
    inputs, cotangent = inputs_of(case), case.cotangent()
    if name == "cotangent":
        cotangent = far_apart(cotangent, axis)
    elif axis < inputs[name].ndim:
        inputs[name] = far_apart(inputs[name], axis)
    assert_right(run(monkeypatch, case, cotangent, inputs), wanted(case, cotangent), np.float16)


FAR = {
    "a dilation beyond 32 bits": dict(patch_size=(2, 3), dilation_patch=(2**30, 2**29)),
    "a dilation of one displacement": dict(patch_size=1, dilation_patch=2**31),
    "a dilation near 32 bits": dict(patch_size=3, dilation_patch=2**27),
}


@pytest.mark.parametrize("parameters", FAR.values(), ids=FAR)
def test_parameters_of_any_size_equal_the_oracle(monkeypatch, parameters):
    check(monkeypatch, Case((1, 3, 4, 5, 6), parameters, strange=0.1), ORDERS[:1])


# Queries that have no window --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [1e30, -1e30, 3e38, -(2.0**31), 2.0**31, 2.0**63])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_wholly_outside_is_zero_and_has_no_gradient(monkeypatch, axis, far):
    inputs, cotangent = inputs_of(SMALL), SMALL.cotangent()
    inputs["coords"][1, axis, 2, 3] = far
    out, volume, coords = run(monkeypatch, SMALL, cotangent, inputs)
    assert (out[1, :, :, 2, 3] == 0).all()
    assert (volume[1, 2, 3] == 0).all()
    assert (coords[1, :, 2, 3] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("case", "axis"), [(SMALL, 0), (SMALL, 1), (STEREO, 0)], ids=["x", "y", "stereo"])
def test_a_coordinate_that_is_not_finite_is_nan_at_its_query_only(monkeypatch, case, axis, bad):
    inputs, cotangent = inputs_of(case), case.cotangent()
    clean = run(monkeypatch, case, cotangent, inputs)
    inputs["coords"][1, axis, 2, 3] = bad
    found = run(monkeypatch, case, cotangent, inputs)
    for got, want in ((found[0], clean[0]), (found[2], clean[2])):
        hit = np.zeros(got.shape, bool)
        hit[1, ..., 2, 3] = True
        assert np.isnan(got[hit]).all()
        np.testing.assert_array_equal(got[~hit], want[~hit])
    assert (found[1][1, 2, 3] == 0).all()
    found[1][1, 2, 3] = clean[1][1, 2, 3]
    np.testing.assert_array_equal(found[1], clean[1])


@pytest.mark.slow
@pytest.mark.parametrize("stereo", [False, True], ids=["flow", "stereo"])
def test_slopes_of_one_sign_keep_the_error_bound_over_many_displacements(monkeypatch, stereo):
    """A volume that rises to the right has slopes that all add up."""
    case = Case((1, 1, 1, 6000), dict(patch_size=5001)) if stereo else Case((1, 1, 1, 130, 130), dict(patch_size=(101, 101)))
    volume = np.broadcast_to((0.1 * np.arange(case.volume[-1])).astype(np.float32), case.volume).copy()
    coords = np.full(case.coords, 3000.3 if stereo else 64.3, np.float32)
    cotangent = np.full(case.problem().out_shape, 0.1, np.float32)
    want = (
        volume_oracle.forward(volume, coords, **case.parameters),
        *volume_oracle.vjp(cotangent, volume, coords, **case.parameters),
    )
    got = run(monkeypatch, case, cotangent, {"volume": volume, "coords": coords})
    assert_right(got, want, np.float32)
