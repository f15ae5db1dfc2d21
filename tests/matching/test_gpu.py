"""Matching on a device: CuPy arrays have the displacements of their volumes, by kernels and in slices of a few displacements."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from cases import NAMED, same
from matching_cases import OUTSIDE, inputs, of

import cupycorr
from cupycorr._gpu import compiler
from cupycorr._gpu.device import facts
from cupycorr._matching import by_slices, slices
from cupycorr._matching.gpu import planner

pytestmark = pytest.mark.gpu
CASES = ("pwcnet-like", "even patch", "window, stride and dilation")
variants = pytest.mark.parametrize("variant", ["tiled", "slices"])


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    whole = slices.slices
    monkeypatch.setattr(by_slices, "slices", lambda volume, itemsize: whole(volume, itemsize, 50_000))


def on_cupy(case, kind):
    import cupy

    return tuple(map(cupy.asarray, inputs(NAMED[case], kind)))


@variants
@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("case", CASES)
def test_cupy_arrays_have_the_displacements_of_numpy_arrays(case, outside, variant):
    arrays, parameters = on_cupy(case, "ties"), dict(NAMED[case].parameters, outside=outside)
    plain = inputs(NAMED[case], "ties")
    for top_k in (1, 3):
        found = cupycorr.correlation_argmax(*arrays, **parameters, top_k=top_k, variant=variant)
        want = cupycorr.correlation_argmax(*plain, **parameters, top_k=top_k)
        for got, each in zip((*found, found.flow), (*want, want.flow), strict=True):
            assert type(got).__module__.startswith("cupy")
            np.testing.assert_array_equal(got.get(), each)
    found = cupycorr.correlation_soft_argmax(*arrays, **parameters, temperature=4.0, variant=variant)
    want = cupycorr.correlation_soft_argmax(*plain, **parameters, temperature=4.0)
    for got, each in zip(found, want, strict=True):
        np.testing.assert_allclose(got.get(), each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensor_cores_find_the_displacements_of_numpy_arrays(dtype):
    import cupy

    case = of(NAMED["pwcnet-like"], dtype)
    plain = inputs(case, "ties")
    arrays = [cupy.asarray(x) for x in plain]
    if not facts(cupy.cuda.Device().id).has_matrix_product(dtype):
        with pytest.raises(NotImplementedError, match=f"no tensor cores for {dtype}"):
            cupycorr.correlation_argmax(*arrays, **case.parameters, variant="mma")
        return
    found = cupycorr.correlation_argmax(*arrays, **case.parameters, top_k=2, variant="mma")
    want = cupycorr.correlation_argmax(*plain, **case.parameters, top_k=2)
    for got, each in zip(found, want, strict=True):
        np.testing.assert_array_equal(got.get(), each)
    found, want = (cupycorr.correlation_soft_argmax(*each, **case.parameters, temperature=4.0) for each in (arrays, plain))
    np.testing.assert_allclose(found.flow.get(), want.flow, rtol=1e-4, atol=1e-4)


def test_the_volume_is_reduced_as_it_is_made_unless_it_must_not_be():
    arrays, parameters = on_cupy("pwcnet-like", "values"), NAMED["pwcnet-like"].parameters
    told = cupycorr.explain_argmax(*arrays, **parameters)
    assert (told.variant, told.how.endswith("reduced in the epilogue")) == ("tiled", True)
    told = cupycorr.explain_argmax(*arrays, **parameters, subpixel=True)
    assert told.variant == "slices"
    assert told.reasons["tiled"] == "subpixel displacements need the scores around the best one"


def test_measuring_leaves_the_choice_to_the_cost_model(monkeypatch):
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "1")
    arrays, plain = on_cupy("even patch", "ties"), inputs(NAMED["even patch"], "ties")
    found, want = (cupycorr.correlation_argmax(*each, **NAMED["even patch"].parameters) for each in (arrays, plain))
    np.testing.assert_array_equal(found.channel.get(), want.channel)


def test_nan_is_the_highest_score_and_makes_the_mean_nan():
    x1, x2 = inputs(NAMED["even patch"], "ties")
    x1[0, 0, 4, 4] = np.nan
    import cupy

    arrays, parameters = tuple(map(cupy.asarray, (x1, x2))), NAMED["even patch"].parameters
    found, want = (cupycorr.correlation_argmax(*each, **parameters) for each in (arrays, (x1, x2)))
    np.testing.assert_array_equal(found.channel.get(), want.channel)
    found, want = (cupycorr.correlation_soft_argmax(*each, **parameters) for each in (arrays, (x1, x2)))
    np.testing.assert_array_equal(np.isnan(found.dx.get()), np.isnan(want.dx))


def test_subpixel_displacements():
    arrays, plain = on_cupy("even patch", "values"), inputs(NAMED["even patch"], "values")
    parameters = NAMED["even patch"].parameters
    found, want = (cupycorr.correlation_argmax(*each, **parameters, subpixel=True) for each in (arrays, plain))
    np.testing.assert_allclose(found.flow.get(), want.flow, atol=1e-3)


@pytest.mark.slow
def test_every_build_compiles_and_loads():
    import cupy

    device = cupy.cuda.runtime.getDevice()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = list(pool.map(lambda build: compiler.function(build[1], device), planner.builds(facts(device))))
    assert all(kernel.num_regs <= 255 and kernel.local_size_bytes == 0 for kernel in loaded)


FUNCTIONS = {
    "best": lambda arrays, **given: cupycorr.correlation_argmax(*arrays, **given, top_k=2),
    "between pixels": lambda arrays, **given: cupycorr.correlation_argmax(*arrays, **given, subpixel=True),
    "mean": lambda arrays, **given: cupycorr.correlation_soft_argmax(*arrays, **given, temperature=4.0),
    "best of groups": lambda arrays, **given: cupycorr.correlation_argmax(*arrays, **given, groups=2),
}


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(
    ("function", "variant"), [each for each in product(FUNCTIONS, ("tiled", "slices")) if each != ("between pixels", "tiled")]
)
def test_a_captured_call_finds_the_displacements_of_new_images_at_every_replay(variant, function, outside):
    import cupy

    case = same((2, 4, 13, 21), patch_size=(3, 5), stride=2, dilation_patch=2)
    given = dict(case.parameters, outside=outside, variant=variant)
    call = FUNCTIONS[function]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        arrays = tuple(map(cupy.asarray, inputs(case, "values")))
        call(arrays, **given)
        stream.synchronize()
        stream.begin_capture()
        found = call(arrays, **given)
        graph = stream.end_capture()
        new = tuple(map(cupy.asarray, inputs(case, "ties")))
        for target, source in zip(arrays, new, strict=True):
            target[...] = source
        graph.launch(stream)
        for got, want in zip(found, call(new, **given), strict=True):
            if got is not None:
                cupy.testing.assert_array_equal(got, want)
