"""CuPy arrays take the same path as NumPy arrays, up to the plan: a fake CuPy, and a variant that computes the definition."""

from dataclasses import replace

import numpy as np
import pytest
from fake_cupy import FACTS, installed, ndarray, on_cupy
from lookup_cases import ALL, NAMED
from watched import watched

import cupycorr
from cupycorr import _dispatch
from cupycorr._dispatch import FORWARD, VJP, array_names
from cupycorr._gpu.layout import CHANNELS_LAST, layout
from cupycorr._lookup.variants import OPERATOR


@pytest.fixture
def runs(monkeypatch):
    """A list of the runs of a variant on a device: the request and the arrays of each."""
    (definition,) = OPERATOR.named("reference")
    found = []
    on_gpu = replace(definition, name="definition", kind="cupy", why_not=lambda request, device: None)
    row = watched(on_gpu, lambda request, arrays: found.append((request, arrays)))
    on_cpu = [each for each in OPERATOR.variants if each.kind == "numpy"]
    monkeypatch.setattr(OPERATOR, "variants", (*on_cpu, row))
    with installed(monkeypatch, bind=lambda *_: pytest.fail("a kernel was bound")):
        yield found


def on_gpu(case):
    x1, x2, coords = case.arrays()
    given = {name: on_cupy(value) if name.startswith("index") else value for name, value in case.parameters.items()}
    return on_cupy(x1), [on_cupy(each) for each in x2] if isinstance(x2, list) else on_cupy(x2), on_cupy(coords), given


SOME = ("RAFT", "a single map", "pyramid and lookups", "edges of patches", "one index")


@pytest.mark.parametrize("name", SOME)
def test_cupy_arrays_give_the_results_of_numpy_arrays_as_cupy_arrays(runs, name):
    case = NAMED[name]
    x1, x2, coords, given = on_gpu(case)
    arrays, g = case.arrays(), case.cotangent()
    out = cupycorr.correlation_lookup(x1, x2, coords, **given)
    gradients = cupycorr.correlation_lookup_vjp(on_cupy(g), x1, x2, coords, **given, needs=ALL)
    want = cupycorr.correlation_lookup(*arrays, **case.parameters, variant="reference")
    wanted = cupycorr.correlation_lookup_vjp(g, *arrays, **case.parameters, variant="reference", needs=ALL)
    assert type(out) is ndarray
    np.testing.assert_array_equal(np.asarray(out), want)
    for got, other in zip(gradients, wanted, strict=True):
        assert type(got) is type(other) is tuple or type(got) is ndarray
        for one, another in zip(*((each if isinstance(each, tuple) else (each,)) for each in (got, other)), strict=True):
            np.testing.assert_array_equal(np.asarray(one), another)


@pytest.mark.parametrize("name", SOME)
def test_the_request_has_the_layout_of_every_array_that_the_plan_gets(runs, name):
    case = NAMED[name]
    x1, x2, coords, given = on_gpu(case)
    x1 = on_cupy(np.ascontiguousarray(x1.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    cupycorr.correlation_lookup(x1, x2, coords, **given)
    cupycorr.correlation_lookup_vjp(on_cupy(case.cotangent()), x1, x2, coords, **given, needs=(True, False, True))
    assert [request.pass_name for request, _ in runs] == ["forward", "vjp"]
    for request, arrays in runs:
        names = array_names(request.pass_name, request.problem.inputs)
        described = {name: each for name, each in zip(names, request.layouts, strict=True) if each is not None}
        assert described == {name: layout(name, array) for name, array in arrays.items()}
        assert request.inputs[0].order == (CHANNELS_LAST if x1.shape[1] >= 4 else request.inputs[0].order)


def test_indices_on_a_gpu_are_not_checked_before_the_kernel(runs):
    x1, x2, coords, given = on_gpu(NAMED["edges of patches"])
    given["index1"] = on_cupy(np.full(7, 99))
    assert cupycorr.explain_lookup(x1, x2, coords, **given).variant == "definition"


@pytest.mark.parametrize(("pass_name", "raced"), [(FORWARD, ["direct", "mma", "tiled"]), (VJP, None)], ids=[FORWARD, VJP])
def test_variants_of_one_plan_are_not_measured(monkeypatch, pass_name, raced):
    """The gradients are those of one variant: with nothing to choose, no arrays are filled and no kernel is timed."""
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "1")
    races = []
    monkeypatch.setattr(_dispatch._tuning, "known", lambda request, device: None)
    monkeypatch.setattr(_dispatch._tuning, "measure", lambda request, device, plans: races.append(sorted(plans)))
    request = OPERATOR.example()._replace(pass_name=pass_name, dtype="float16", result_dtype="float16").dense()
    plan = _dispatch.choose(OPERATOR, request, _dispatch.Place("cupy", FACTS)).plan
    assert races == ([raced] if raced else [])
    others = [row.plan(request, FACTS) for row in OPERATOR.variants if row.kind == "cupy"]
    assert all((other == plan) is (other.calls == plan.calls) for other in others)
