"""Results are the same bit for bit at every call, with any number of threads, and for any memory layout."""

import pytest
from cases import DTYPES
from layouts import LAYOUTS
from lookup_cases import ALL, CPU_VARIANTS, NAMED, Case

from cupycorr import correlation_lookup, correlation_lookup_vjp
from cupycorr._cpu import workers
from cupycorr._lookup.cpu import blas, simd

variants = pytest.mark.parametrize("variant", CPU_VARIANTS)

LARGE = Case((2, 70, 41, 60), [(2, 70, 41, 60), (2, 70, 20, 30)], (2, 2, 41, 60), dict(patch_size=7), noise=2.0, strange=0.001)
SOME = {
    "large": LARGE,
    **{name: NAMED[name] for name in ("RAFT", "pyramid and lookups", "edges of patches", "steep flow", "strange numbers")},
}
some = pytest.mark.parametrize("case", SOME.values(), ids=SOME)


def results(case, variant, arrays=None):
    x1, x2, coords = arrays or case.arrays()
    out = correlation_lookup(x1, x2, coords, **case.parameters, variant=variant)
    g1, g2, gc = correlation_lookup_vjp(case.cotangent(), x1, x2, coords, **case.parameters, variant=variant, needs=ALL)
    return [out, g1, *(g2 if isinstance(g2, tuple) else [g2]), gc]


def assert_same_bits(got, want):
    for one, other in zip(got, want, strict=True):
        assert one.tobytes() == other.tobytes()


THREADED = ("simd", "blas")


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", THREADED)
@pytest.mark.parametrize("threads", [2, 7])
@some
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, case, threads, variant):
    for module in (simd, blas):
        monkeypatch.setattr(module, "THREAD_SECONDS", 0.0)  # small calls use several threads too
    monkeypatch.setattr(workers, "blas_threads", workers.thread_count)
    with workers.team_of(1):
        want = results(case, variant)
    with workers.team_of(threads):
        for _ in range(2):
            assert_same_bits(results(case, variant), want)


@pytest.mark.covering(1)
@variants
@some
def test_a_call_gives_the_same_bits_again(case, variant):
    case = case if variant in THREADED or case is not LARGE else NAMED["RAFT"]
    assert_same_bits(results(case, variant), results(case, variant))


@variants
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one image"])
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(name, marks=pytest.mark.slow) for name in DTYPES if name != "float32")]
)
def test_bits_do_not_depend_on_strides(dtype, layout, variant):
    case = NAMED["RAFT's order"].of(dtype)
    x1, x2, coords = case.arrays()
    laid_out = LAYOUTS[layout](x1), [LAYOUTS[layout](each) for each in x2], LAYOUTS[layout](coords)
    assert_same_bits(results(case, variant, laid_out), results(case, variant))


@variants
def test_one_image_in_the_place_of_all_may_be_passed_without_a_copy(variant):
    case = NAMED["a single map"]
    x1, x2, coords = case.arrays()
    one = LAYOUTS["one image"]
    assert_same_bits(
        results(case, variant, (one(x1), one(x2), one(coords))),
        results(case, variant, tuple(one(x).copy() for x in (x1, x2, coords))),
    )
