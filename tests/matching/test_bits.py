"""Results are the same bit for bit at every call, with any number of threads, for any memory layout and any division."""

import numpy as np
import pytest
from cases import DTYPES, NAMED, same
from layouts import FOR_TENSORS, LAYOUTS
from matching_cases import CPU_VARIANTS, OUTSIDE, inputs, of

from cupycorr import correlation_argmax, correlation_soft_argmax
from cupycorr._correlation.cpu import engine
from cupycorr._cpu import workers
from cupycorr._matching.cpu import destination

LARGE = {
    "large": same((2, 70, 41, 60), patch_size=9),
    "many displacements": same((1, 5, 6, 130), patch_size=(5, 300)),
    "windows": same((1, 40, 41, 60), kernel_size=3, patch_size=7, stride=2),
    "passes of channels": same((1, 6000, 4, 64), patch_size=(1, 64)),
    "windows apart": same((1, 64, 90, 90), kernel_size=3, patch_size=5, stride=9),
    "tall": same((1, 9, 200, 7), patch_size=(40, 3)),
}
variants = pytest.mark.parametrize("variant", ["simd", "blas"])
large = pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)


def results(case, variant, arrays=None, outside="excluded"):
    """Return the bits of all results."""
    x1, x2 = arrays or inputs(case, "ties")
    options = dict(case.parameters, variant=variant, outside=outside)
    found = [correlation_argmax(x1, x2, **options, top_k=k) for k in (1, 3)]
    if not case.problem().windowed:
        found.append(correlation_argmax(x1, x2, **options, subpixel=True))
    found.append(correlation_soft_argmax(x1, x2, **options, temperature=3.0))
    return [array.tobytes() for each in found for array in each]


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("threads", [2, 7])
@large
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, case, threads, variant):
    monkeypatch.setattr(engine, "THREAD_SECONDS", 1e-6)
    monkeypatch.setattr(workers, "blas_threads", workers.thread_count)
    with workers.team_of(1):
        want = results(case, variant)
    with workers.team_of(threads):
        for _ in range(2):
            assert results(case, variant) == want


@pytest.mark.covering(1)
@variants
@large
def test_bits_do_not_depend_on_how_much_is_packed_and_kept_at_once(monkeypatch, case, variant):
    """Portions of few tasks, in which tasks at the same positions are apart, give what whole blocks give."""
    found = []
    for least, kept in ((2**30, 2**30), (2**12, 2**12)):
        monkeypatch.setattr(destination, "LEAST_BYTES", least)
        monkeypatch.setattr(destination, "KEPT_BYTES", kept)
        monkeypatch.setattr(workers, "WORKSPACE", least)
        found.append(results(case, variant))
    assert found[0] == found[1]


@variants
@large
def test_large_problems_have_the_best_displacements_of_their_volumes(case, variant):
    from cupycorr import argmax_displacement, spatial_correlation_sample

    for kind in ("values", "ties"):
        x1, x2 = inputs(case, kind)
        volume = spatial_correlation_sample(x1, x2, **case.parameters, variant=variant)
        want = argmax_displacement(volume, case.parameters["patch_size"])
        found = correlation_argmax(x1, x2, **case.parameters, variant=variant)
        np.testing.assert_array_equal(found[:2], want)
        np.testing.assert_array_equal(found.score, volume.max((1, 2)))


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_a_call_gives_the_same_bits_again(variant):
    case = NAMED["pwcnet-like"]
    for outside in OUTSIDE:
        assert results(case, variant, outside=outside) == results(case, variant, outside=outside)


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", CPU_VARIANTS)
@pytest.mark.parametrize("layout", [name for name in FOR_TENSORS if name != "one image"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_strides(dtype, layout, variant):
    case = of(NAMED["flownet-like"], dtype)
    arrays = inputs(case, "ties")
    assert results(case, variant, tuple(map(LAYOUTS[layout], arrays))) == results(case, variant, arrays)
