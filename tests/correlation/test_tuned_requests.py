"""Tuning of this operator: which requests have an answer of their own, the arrays that are measured with, and the command.

What tuning does with requests in general is tested with fakes in ``machines/test_tuning.py``.
"""

import sys
from types import SimpleNamespace

import pytest
from cases import DTYPES
from fake_cupy import FACTS

from benchmarks import tune
from benchmarks.cases import Case
from cupycorr import _dispatch, _tuning
from cupycorr._arguments import effective_precision
from cupycorr._correlation.problem import parameters, problem
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import Request, Variant, Workload
from cupycorr._gpu import device as devices
from cupycorr._gpu.layout import CHANNELS_LAST, ROWS, dense_layout


def workload(pass_name="vjp", dtype="float32", shape=(1, 8, 6, 7), size2=None, orders=(ROWS, ROWS), **more):
    needs, precision = more.pop("needs", (True, True)), more.pop("precision", "highest")
    result, given = more.pop("result_dtype", dtype), parameters(**{"patch_size": 3, "patch_offset": 0, **more})
    asked = problem(given, shape, (*shape[:2], *(size2 or shape[2:])))
    request = Request(pass_name, asked, dtype, result, needs=needs, precision=effective_precision(precision, dtype))
    return Workload(OPERATOR, request.dense(*orders))


# Requests ---------------------------------------------------------------------------------------------------------------------

DIFFERENT = {
    "pass": workload("forward"),
    "needs": workload(needs=(True, False)),
    "needs the other": workload(needs=(False, True)),
    "dtype": workload(dtype="float64", result_dtype="float32"),
    "result's dtype": workload(result_dtype="float64"),
    "order of input1": workload(orders=(CHANNELS_LAST, ROWS)),
    "order of input2": workload(orders=(ROWS, CHANNELS_LAST)),
    "batch": workload(shape=(2, 8, 6, 7)),
    "channels": workload(shape=(1, 16, 6, 7)),
    "size of both": workload(shape=(1, 8, 7, 7)),
    "size of input2": workload(size2=(6, 8)),
    "axes exchanged": workload(shape=(1, 8, 7, 6)),
    "kernel_size": workload(kernel_size=2),
    "patch_size": workload(patch_size=5),
    "stride": workload(stride=2),
    "padding": workload(padding=1),
    "dilation": workload(kernel_size=2, dilation=2),
    "dilation_patch": workload(dilation_patch=2),
    "patch_offset": workload(patch_offset=1),
    "precision": workload(precision="high"),
}
SAME = {
    "scale": (workload(), workload(scale=0.5)),
    "patch_offset of 0, not passed": (workload(), workload(patch_offset=None)),
    "needs of a forward pass": (workload("forward"), workload("forward", needs=(False, False))),
    "precisions below the highest": (workload(precision="high"), workload(precision="medium")),
    "precision of float16": (workload(dtype="float16"), workload(dtype="float16", precision="high")),
}


def test_what_decides_about_speed_makes_a_request_of_its_own():
    keys = [workload().key, *(each.key for each in DIFFERENT.values())]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_takes_no_time_makes_no_other_request(one, other):
    assert one.key == other.key


def test_the_arrays_are_those_of_the_pass_in_the_memory_orders_of_the_request():
    image, volume = dense_layout("float16", (1, 8, 6, 7), CHANNELS_LAST), dense_layout("float64", (1, 3, 3, 6, 7))
    given = dict(dtype="float16", result_dtype="float64", orders=(CHANNELS_LAST, CHANNELS_LAST))
    assert workload("forward", **given).arrays() == {"input1": image, "input2": image, "out": volume}
    gradient2 = dense_layout("float16", (1, 8, 6, 7))
    arrays = {"cotangent": volume, "input1": image, "input2": image, "gradient2": gradient2}
    assert workload(needs=(False, True), **given).arrays() == arrays


# The command ------------------------------------------------------------------------------------------------------------------

PLAIN = Case("plain", (1, 4, 6, 7), {"patch_size": 3})
WINDOW = Case("window", (1, 4, 6, 7), {"kernel_size": 2, "patch_size": 3})
BY_COST_MODEL = {"box": 2.0, "direct": 1.0}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command on a device whose variants take the given seconds, or fail for None; returns exit code and lines."""
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CUPYCORR_AUTOTUNE", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.2.0"))
    monkeypatch.setattr(_tuning, "versions", lambda: ("13.0", "12.9"))
    monkeypatch.setattr(_tuning, "_found", {})
    for module in (_dispatch, tune):
        monkeypatch.setattr(module, "facts", lambda index: FACTS)

    why_nots = {row.name: row.why_not for row in OPERATOR.variants}

    def variant(name):
        return Variant(name, "cupy", why_nots[name], lambda *_: SimpleNamespace(seconds=BY_COST_MODEL[name]))

    monkeypatch.setattr(OPERATOR, "variants", tuple(map(variant, BY_COST_MODEL)))

    def run(seconds, **given):
        def measured(request, device, plans):
            return {name: seconds[name] for name in plans if seconds[name] is not None}

        monkeypatch.setattr(_tuning, "seconds", measured)
        code = tune.run(**{"cases": [PLAIN, WINDOW], "dtypes": ["float32"], "passes": ["forward"], **given})
        return code, capsys.readouterr().out.splitlines()

    _tuning._read_once.cache_clear()
    _tuning._versions.cache_clear()
    yield run
    _tuning._read_once.cache_clear()
    _tuning._versions.cache_clear()


def cells(lines, *first):
    """Return the cells of the table's line that begins with these words."""
    (line,) = [line.split() for line in lines if line.split()[: len(first)] == list(first)]
    return line[len(first) :]


def answer(case, pass_name, dtype, **more):
    return _tuning.known(Workload(OPERATOR, Request(pass_name, case.problem, dtype, dtype, **more).dense()), FACTS)


def test_the_command_measures_every_case_dtype_and_pass_and_keeps_the_answers(command):
    passes = dict(dtypes=["float32", "float16"], passes=["forward", "vjp"])
    code, lines = command({"box": 0.002, "direct": 0.0031}, cases=[WINDOW], **passes)
    assert code == 0
    for dtype in passes["dtypes"]:
        for which in passes["passes"]:
            assert cells(lines, "window", which, dtype) == ["2", "3.1", "box", "direct", "(1.55x)"]
            assert answer(WINDOW, which, dtype) == "box"
    assert answer(PLAIN, "forward", "float32") is None


def test_tf32_is_measured_as_float32_with_products_that_may_be_rounded(command):
    code, lines = command({"box": 0.002, "direct": 0.004}, cases=[WINDOW], dtypes=["tf32"])
    assert code == 0
    assert cells(lines, "window", "forward", "tf32") == ["2", "4", "box", "direct", "(2.00x)"]
    assert answer(WINDOW, "forward", "float32", precision="high") == "box"
    assert answer(WINDOW, "forward", "float32") is None


def test_the_table_shows_which_variants_did_not_run_and_where_the_cost_model_is_wrong(command):
    code, lines = command({"box": 0.002, "direct": 0.004})
    assert code == 0
    assert cells(lines, "plain", "forward", "float32") == ["-", "4", "direct", "direct", "(1.00x)"]
    assert cells(lines, "window", "forward", "float32") == ["2", "4", "box", "direct", "(2.00x)"]
    assert lines[-2:] == [
        "the cost model chooses the fastest variant in 1 of 2",
        "worst: window forward float32: direct takes 2.00 times as long as box",
    ]


def test_the_command_says_what_could_not_be_measured(command):
    code, lines = command({"box": 0.002, "direct": None})
    assert code == 1
    assert cells(lines, "window", "forward", "float32") == ["2", "box", "direct", "(failed)"]
    assert any(line.startswith("not measured: plain forward float32") for line in lines)
    assert (answer(WINDOW, "forward", "float32"), answer(PLAIN, "forward", "float32")) == ("box", None)


# On a device ------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("order", [ROWS, CHANNELS_LAST])
@pytest.mark.parametrize("pass_name", ["forward", "vjp"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_is_measured_on_a_device(monkeypatch, dtype, pass_name, order):
    monkeypatch.setattr(_tuning, "FILLER", 2**20)  # the times do not matter
    cupy = pytest.importorskip("cupy")
    device = devices.facts(cupy.cuda.runtime.getDevice())
    made = workload(pass_name, dtype, shape=(2, 16, 24, 31), kernel_size=3, orders=(order, order))
    able = [row for row in OPERATOR.variants if row.why_not_at(_dispatch.gpu(device.index), made.request) is None]
    taken = _tuning.seconds(made, device, {row.name: row.plan(made.request, device) for row in able})
    assert set(taken) == {row.name for row in able}
    assert all(seconds > 0 for seconds in taken.values())
