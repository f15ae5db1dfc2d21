"""A second operator needs no change outside its own folder.

The dispatcher, tuning, plans, the emulator and torch take the one in `pixel_dot` as it is.
"""

import shutil
from functools import cache

import fake_cupy
import numpy as np
import pixel_dot
import pytest
import torch
from emulator import Emulator, require_compiler
from fake_cupy import FACTS, installed, on_cupy
from pixel_dot import OPERATOR

from cupycorr import _dispatch, _tuning
from cupycorr._dispatch import CPU, VJP, Place, Request
from cupycorr._gpu import plan as plans
from cupycorr._gpu import source

require_compiler()

SHAPE = (2, 5, 6, 7)
X1, X2 = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
WANT = np.einsum("bchw,bchw->bhw", X1.astype(np.float64), X2.astype(np.float64))
ON_GPU = Place("cupy", FACTS)

registered = cache(pixel_dot.register_in_torch)


def is_right(got):
    return got.shape == WANT.shape and np.allclose(got, WANT, rtol=0, atol=1e-5)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The package finds a GPU, which is the emulator, and the operator's folder beside those of the other kernels."""
    folder = tmp_path / "kernels_cu"
    shutil.copytree(source.folder(), folder)
    shutil.copytree(pixel_dot.FOLDER, folder / "pixel_dot")
    monkeypatch.setattr(source, "folder", lambda: folder)
    emulator, run = Emulator(), plans.Plan.run

    def lend_and_run(plan, arrays):
        for name, array in arrays.items():
            emulator.register(np.asarray(array), name, writable=name == "out")
        try:
            run(plan, arrays)
        finally:
            emulator.forget()

    with installed(monkeypatch, emulator.bind):
        monkeypatch.setattr(plans.Plan, "run", lend_and_run)
        yield emulator


def test_it_runs_on_numpy_arrays_with_its_gradients():
    assert is_right(pixel_dot.pixel_dot(X1, X2))
    request = Request(VJP, pixel_dot.Problem(SHAPE), "float32", "float32")
    arrays = {"cotangent": np.float32(WANT), "input1": X1, "input2": X2, "gradient2": np.empty(SHAPE, np.float32)}
    _dispatch.choose(OPERATOR, request, CPU).plan.run(arrays)
    assert np.array_equal(arrays["gradient2"], np.float32(WANT)[:, None] * X1)


@pytest.mark.parametrize("variant", ["auto", "wide", "narrow"])
def test_its_kernel_runs_in_the_emulator_through_its_plan(gpu, variant):
    assert is_right(np.asarray(pixel_dot.pixel_dot(on_cupy(X1), on_cupy(X2), variant)))
    assert len(gpu.accounts) == 1


def test_it_is_explained_in_the_words_of_its_variants():
    request = OPERATOR.example()
    told = _dispatch.explain(OPERATOR, request, CPU, "auto")
    assert (told.variant, told.how, told.flops) == ("einsum", "one call of einsum", 2 * 8 * 16 * 16)
    assert told.reasons["wide"].startswith("input is a NumPy array, needs a CuPy array")
    told = _dispatch.explain(OPERATOR, request.dense(), ON_GPU, "auto")
    assert told.variant == "wide"
    assert told.reasons["narrow"].startswith("by the cost model it takes")
    assert "128 threads in a block" in str(told)


def test_a_variant_that_cannot_answer_says_why():
    request = Request(VJP, pixel_dot.Problem(SHAPE), "float32", "float32").dense()
    with pytest.raises(NotImplementedError, match="wide: the kernel has no gradients; narrow: the kernel has no gradients"):
        _dispatch.choose(OPERATOR, request, ON_GPU)
    with pytest.raises(ValueError, match="variant must be 'auto' or one of 'einsum', 'wide', 'narrow'"):
        _dispatch.choose(OPERATOR, request, ON_GPU, "tiled")


def test_its_measured_variant_runs(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "1")
    cupy = fake_cupy.sys.modules["cupy"]
    cupy.__version__ = "14.2.0"
    timed = []

    def seconds(workload, device, candidates):
        timed.append((workload.key, list(workload.arrays()), list(candidates)))
        return {"wide": 2.0, "narrow": 1.0}

    monkeypatch.setattr(_tuning, "seconds", seconds)
    monkeypatch.setattr(_tuning, "versions", lambda: ("13.0", "12.9"))
    arrays = on_cupy(X1), on_cupy(X2)
    for _ in range(2):
        assert is_right(np.asarray(pixel_dot.pixel_dot(*arrays)))
        choice = _dispatch.choose(OPERATOR, pixel_dot.request_of(*arrays), ON_GPU)
        assert choice.variant == "narrow"
        assert choice.plan.calls[0].threads == 32
    ((key, names, variants),) = timed
    assert key.startswith("pixel_dot forward, float32 -> float32")
    assert (names, variants) == (["input1", "input2", "out"], ["wide", "narrow"])


def test_it_is_an_operator_of_torch():
    operator = registered()
    x1, x2 = torch.from_numpy(X1), torch.from_numpy(X2)
    assert is_right(operator(x1, x2).numpy())
    torch.library.opcheck(operator, (x1, x2), test_utils=("test_schema", "test_faketensor"))
    assert is_right(torch.compile(lambda a, b: operator(a, b), backend="eager", fullgraph=True)(x1, x2).numpy())
