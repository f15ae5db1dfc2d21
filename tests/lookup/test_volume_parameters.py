"""Requests of the lookup in a volume describe every array, its variants say when they cannot run, and its memory is bounded."""

import inspect

import numpy as np
import pytest
from cases import DTYPES
from memory import assert_within, peak
from volume_cases import BOTH, CPU_VARIANTS, NAMED, Case, check_forward, check_vjp

import cupycorr
from cupycorr._cpu import llvm, workers
from cupycorr._dispatch import FORWARD, VJP, Request, array_names
from cupycorr._volume_lookup.cpu import simd, window_kernel
from cupycorr._volume_lookup.variants import OPERATOR

compiles = pytest.mark.skipif(llvm.why_not() is not None, reason="no kernel can be compiled")


def test_the_functions_have_the_same_parameters_with_the_same_defaults():
    forward, vjp, explain = (
        inspect.signature(each).parameters
        for each in (cupycorr.volume_lookup, cupycorr.volume_lookup_vjp, cupycorr.explain_volume_lookup)
    )
    shared = {name: each.default for name, each in forward.items() if name != "out"}
    for other in (vjp, explain):
        assert {name: each.default for name, each in other.items() if name in shared} == shared


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_a_request_describes_every_array(needs):
    dense = Request(VJP, NAMED["DROID's order"].problem(), "float16", "float32", (), needs).dense()
    names = array_names(VJP, dense.problem.inputs)
    found = {name: each and (each.shape, each.dtype) for name, each in zip(names, dense.layouts, strict=True)}
    volume, coords = ((3, 5, 6, 5, 6), "float16"), ((3, 2, 5, 6), "float32")
    assert found == {
        "cotangent": ((3, 3, 5, 5, 6), "float32"),
        "volume": volume,
        "coords": coords,
        "gradient_volume": volume if needs[0] else None,
        "gradient_coords": coords if needs[1] else None,
    }


@pytest.mark.parametrize("name", NAMED)
def test_typical_values_are_coordinates_near_the_slices(name):
    request = Request(FORWARD, NAMED[name].problem(), "float32", "float32")
    coords = OPERATOR.typical_values(request, "coords")
    assert (coords.shape, coords.dtype.name) == (request.problem.coords, request.problem.coords_dtype)
    assert np.isfinite(coords.astype(float)).all()
    assert OPERATOR.typical_values(request, "volume") is None


def test_explain_counts_the_work_and_names_the_variants():
    volume, coords = NAMED["RAFT"].arrays()
    told = cupycorr.explain_volume_lookup(volume, coords)
    queries = 7 * 11
    assert told.flops == 8 * 81 * queries
    assert told.bytes == 4 * queries * (100 + 2 + 81)
    assert {told.variant, *told.reasons} == {row.name for row in OPERATOR.variants}
    gradients = cupycorr.explain_volume_lookup(volume, coords, gradients=(True, False))
    assert gradients.bytes == 4 * (queries * (2 + 81) + volume.size)


@compiles
def test_the_kernels_run_where_they_can_be_compiled():
    assert cupycorr.explain_volume_lookup(*NAMED["RAFT"].arrays()).variant == "simd"


def test_without_a_compiler_the_definition_runs_and_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(window_kernel, "why_not", lambda: "llvmlite is not installed")
    cupycorr._dispatch._planned.cache_clear()
    told = cupycorr.explain_volume_lookup(*NAMED["RAFT"].arrays())
    cupycorr._dispatch._planned.cache_clear()
    assert told.variant == "reference"
    assert told.reasons["simd"] == "llvmlite is not installed"


@compiles
def test_windows_that_scratch_memory_does_not_hold_are_left_to_the_definition(monkeypatch):
    monkeypatch.setattr(simd, "SCRATCH_BYTES", 100 * 64 - 1)
    cupycorr._dispatch._planned.cache_clear()
    told = cupycorr.explain_volume_lookup(*NAMED["RAFT"].arrays())
    cupycorr._dispatch._planned.cache_clear()
    assert told.variant == "reference"
    assert told.reasons["simd"].startswith("windows of 100 taps need 6400 bytes of scratch memory")


@compiles
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_a_few_queries_equal_the_definition(monkeypatch, dtype):
    monkeypatch.setattr(simd, "PATCH_BYTES", 2000)
    for name in ("DROID's order", "stereo", "strange numbers"):
        check_forward(NAMED[name].of(dtype), "simd")
        check_vjp(NAMED[name].of(dtype), "simd")


@compiles
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_read_exactly(dtype):
    volume = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype]).reshape(256, 1, 1, 256)
    out = cupycorr.volume_lookup(volume, np.full((256, 1, 1, 1), 100, np.float32), 320, dtype="float32", variant="simd")
    read = out[:, 59 : 59 + 256, 0, 0]  # displacement -100 is number 59
    want = volume[:, 0, 0].astype(np.float32)
    following = np.pad(want[:, 1:], ((0, 0), (0, 1)))  # has the weight 0
    alone = np.isfinite(following) & ~np.isnan(want)
    np.testing.assert_array_equal(read[alone], want[alone])
    assert np.isnan(read[~alone]).all()
    assert alone.sum() > 60_000


@compiles
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_16_bits_are_rounded_to_nearest(dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 2**14, dtype=np.uint32)
    near = DTYPES[dtype].type(1.5) * np.exp2(rng.integers(-30, 20, 2**14)).astype(np.float32)  # ties, and numbers beside them
    numbers = np.concatenate((words.view(np.float32), near + near * rng.integers(-2, 3, 2**14).astype(np.float32) * 2**-11))
    g = numbers.astype(np.float32).reshape(1, 1, 2**7, 2**8)
    volume = np.zeros((1, 2**7, 2**8, 1), DTYPES[dtype])
    found = cupycorr.volume_lookup_vjp(g, volume, np.zeros((1, 1, 2**7, 2**8), np.float32), 1, dtype="float32", variant="simd")[0]
    with np.errstate(all="ignore"):
        want = g.reshape(-1).astype(DTYPES[dtype])
    got, nan = found.reshape(-1), np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
    assert (got[~nan] + 0).tobytes() == (want[~nan] + 0).tobytes()  # -0 becomes 0


# Memory -----------------------------------------------------------------------------------------------------------------------

DEMANDS = {
    "a volume beyond the workspace": Case((1, 40, 60, 80, 90), dict(patch_size=9), "bfloat16"),
    "large patch": Case((1, 40, 60, 10, 12), dict(patch_size=(31, 41))),
    "stereo": Case((1, 60, 400, 400), dict(patch_size=9), "float16"),
}


@pytest.mark.parametrize("variant", CPU_VARIANTS)
@pytest.mark.parametrize("case", DEMANDS.values(), ids=DEMANDS)
def test_a_call_allocates_its_results_and_the_workspace(case, variant):
    dtype = DTYPES[case.dtype]
    volume = np.zeros(case.volume, dtype)
    coords = np.random.default_rng(0).uniform(0, 9, case.coords).astype(np.float32)
    with workers.team_of(2):
        out, used = peak(lambda: cupycorr.volume_lookup(volume, coords, **case.parameters, variant=variant))
        assert used >= out.nbytes
        assert_within(used, [out], "output")
        found, used = peak(
            lambda: cupycorr.volume_lookup_vjp(out, volume, coords, **case.parameters, variant=variant, needs=BOTH)
        )
    assert_within(used, found, "gradients")
