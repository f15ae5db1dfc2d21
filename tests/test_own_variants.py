"""Variants that users have written compute the oracle's output and gradients on every problem that they do not refuse.

A function runs on NumPy arrays. A kernel runs in the emulator, in three orders of threads, and on a device or the software CUDA.
By default these are the variants of docs/examples; ``--variants my_variant.py`` names another file.
"""

from dataclasses import replace

import oracle
import pytest
from cases import DTYPES, NAMED
from emulated import BUSY, correlate, correlate_vjp, in_every_order, launched_by
from emulator import require_compiler
from own_variants import EXAMPLE, registered, rows_of

import cupycorr
from cupycorr._dispatch import CPU, FORWARD, VJP, Place, Request

FUNCTIONS = {FORWARD: oracle.forward, VJP: oracle.vjp}


def runs(config, kinds, device=BUSY):
    """Return the row, the case and the pass of each problem that a variant of these kinds does not refuse, by their names."""
    found = {}
    for row in rows_of(config.getoption("--variants") or EXAMPLE):
        where = CPU if row.kind == "numpy" else Place("cupy", device)
        for name, case in NAMED.items() if row.kind in kinds else ():
            for dtype in DTYPES:
                for which in FUNCTIONS:
                    request = Request(which, case.problem(), dtype, dtype)
                    if row.why_not(request if row.kind == "numpy" else request.dense(), where.device) is None:
                        found[f"{row.name}-{name}-{dtype}-{which}"] = row, replace(case, dtype=dtype), which
    return found


KINDS = {"a_function": ["numpy"], "a_kernel": ["cupy"]}


def pytest_generate_tests(metafunc):
    (kinds,) = (kinds for words, kinds in KINDS.items() if words in metafunc.function.__name__)
    found = runs(metafunc.config, kinds)
    metafunc.parametrize(("row", "case", "which"), found.values(), ids=found.keys())


def wanted(case, which):
    x1, x2, g = case.arrays()
    return [oracle.forward(x1, x2, **case.parameters)] if which == FORWARD else oracle.vjp(g, x1, x2, **case.parameters)


def assert_right(results, case, which):
    names = ["output"] if which == FORWARD else ["g1", "g2"]
    for name, result, triple in zip(names, results, wanted(case, which), strict=True):
        oracle.assert_close(result, triple, name=name)


def by_name(row, case, which, arrays):
    """Return the results of the public functions."""
    x1, x2, g = arrays
    options = dict(case.parameters, variant=row.name)
    if which == FORWARD:
        return [cupycorr.spatial_correlation_sample(x1, x2, **options)]
    return cupycorr.spatial_correlation_sample_vjp(g, x1, x2, **options)


def test_a_function_computes_the_oracle(row, case, which):
    with registered(row):
        assert_right(by_name(row, case, which, case.arrays()), case, which)


def test_a_kernel_computes_the_oracle_in_the_emulator_in_every_order_of_threads(monkeypatch, row, case, which):
    require_compiler()
    x1, x2, g = case.arrays()

    def run(emulator):
        with registered(row), launched_by(monkeypatch, emulator):
            if which == FORWARD:
                return [correlate(emulator, row.name, x1, x2, **case.parameters)]
            return correlate_vjp(emulator, row.name, g, x1, x2, **case.parameters)

    assert_right(in_every_order(run), case, which)


@pytest.mark.gpu
def test_a_kernel_computes_the_oracle_on_a_device(row, case, which):
    cupy = pytest.importorskip("cupy")
    with registered(row):
        results = by_name(row, case, which, [cupy.asarray(array) for array in case.arrays()])
        assert_right([cupy.asnumpy(result) for result in results], case, which)
        assert all(isinstance(result, cupy.ndarray) for result in results)
