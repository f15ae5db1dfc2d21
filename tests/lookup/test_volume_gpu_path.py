"""CuPy arrays take the same path as NumPy arrays, up to the plan: a fake CuPy, and a variant that computes the definition."""

from dataclasses import replace

import numpy as np
import pytest
from fake_cupy import installed, ndarray, on_cupy
from volume_cases import BOTH, NAMED
from watched import watched

import cupycorr
from cupycorr._dispatch import array_names
from cupycorr._gpu.layout import layout
from cupycorr._volume_lookup.variants import OPERATOR


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


@pytest.mark.parametrize("name", ["DROID's order", "stereo", "strange numbers", "no entries"])
def test_cupy_arrays_give_the_results_of_numpy_arrays_as_cupy_arrays(runs, name):
    case = NAMED[name]
    arrays, g = case.arrays(), case.cotangent()
    volume, coords = map(on_cupy, arrays)
    found = (
        cupycorr.volume_lookup(volume, coords, **case.parameters),
        *cupycorr.volume_lookup_vjp(on_cupy(g), volume, coords, **case.parameters, needs=BOTH),
    )
    wanted = (
        cupycorr.volume_lookup(*arrays, **case.parameters, variant="reference"),
        *cupycorr.volume_lookup_vjp(g, *arrays, **case.parameters, variant="reference", needs=BOTH),
    )
    for got, want in zip(found, wanted, strict=True):
        assert type(got) is ndarray
        np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize("name", ["DROID's order", "stereo"])
@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["volume", "coords"])
def test_the_request_has_the_layout_of_every_array_that_the_plan_gets(runs, name, needs):
    case = NAMED[name]
    volume, coords = map(on_cupy, case.arrays())
    volume = volume[..., ::-1]
    out = on_cupy(np.empty((*case.cotangent().shape, 2), np.float32))[..., 1]
    cupycorr.volume_lookup(volume, coords, **case.parameters, out=out)
    cupycorr.volume_lookup_vjp(out, volume, coords, **case.parameters, needs=needs)
    assert [request.pass_name for request, _ in runs] == ["forward", "vjp"]
    for request, arrays in runs:
        names = array_names(request.pass_name, request.problem.inputs)
        described = {name: each for name, each in zip(names, request.layouts, strict=True) if each is not None}
        assert described == {name: layout(name, array) for name, array in arrays.items()}
