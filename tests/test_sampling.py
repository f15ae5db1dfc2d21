"""Samples leave no test out for ever, and a few cases of a test cover the combinations that they are said to cover."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import sampling


def test_every_test_is_in_one_sample_and_every_function_in_all():
    names = [f"test_many[{number}]" for number in range(23)]
    samples = [sampling.sampled(names, number, 5) for number in range(5)]
    assert set().union(*samples) == set(names)
    assert sum(map(len, samples)) == len(names)
    assert all(sampling.sampled(["test_one"], number, 5) == {"test_one"} for number in range(5))
    assert sampling.sampled(list(reversed(names)), 2, 5) == samples[2] == sampling.sampled(names, 7, 5)


@pytest.mark.parametrize(("tests", "least", "taken"), [(23, 2, [4, 5]), (7, 2, [2, 3]), (3, 2, [3]), (2, 2, [2]), (1, 2, [1])])
def test_a_sample_holds_no_fewer_tests_of_a_function_than_are_asked_for(tests, least, taken):
    names = [f"test_many[{number}]" for number in range(tests)]
    assert sorted({len(sampling.sampled(names, number, 5, least)) for number in range(10)}) == taken


@pytest.mark.parametrize("tests", [1, 2, 3, 4])
def test_samples_that_are_apart_hold_each_test_of_a_small_function_once(tests):
    for function in ("one", "other", "third"):
        names = [f"test_{function}[{number}]" for number in range(tests)]
        samples = [sampling.sampled(names, number, 40, apart=4) for number in range(7, 11)]
        assert sorted(name for sample in samples for name in sample) == names


def test_functions_of_one_test_are_not_all_in_the_same_sample():
    taken = [sum(len(sampling.sampled([f"test_{name}"], number, 40, apart=4)) for name in range(100)) for number in range(4)]
    assert sum(taken) == 100
    assert min(taken) > 10


ROOT = Path(__file__).resolve().parents[1]
AXES = {"dtype": ("float16", "float32", "float64"), "device": ("busy", "idle"), "value": (0.5, 1.5, 2.5, 3.5)}
CASES = [dict(zip(AXES, case, strict=True)) for case in itertools.product(*AXES.values())]


def items():
    """Return a stand-in of pytest's item for each combination of the values in `AXES`."""
    return [SimpleNamespace(nodeid=f"test_many[{case}]", callspec=SimpleNamespace(params=case)) for case in CASES]


@pytest.mark.parametrize(("strength", "most"), [(1, 6), (2, 18), (3, 24)])
def test_a_few_cases_cover_every_combination_of_so_many_values(strength, most):
    found = [item.callspec.params for item in sampling.covering(items(), strength)]
    assert len(found) <= most
    for names in itertools.combinations(AXES, strength):
        wanted = set(itertools.product(*(AXES[name] for name in names)))
        assert {tuple(case[name] for name in names) for case in found} == wanted


def test_the_cases_do_not_depend_on_the_order_of_the_tests():
    found = sampling.covering(items(), 2)
    assert [item.nodeid for item in sampling.covering(items()[::-1], 2)] == [item.nodeid for item in found]


TESTS = """
import pytest


@pytest.mark.covering(1)
@pytest.mark.parametrize("one", range(3))
@pytest.mark.parametrize("other", range(3))
def test_of_two_values(one, other):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_that_takes_long(number):
    pass
"""


@pytest.mark.parametrize(
    ("options", "passed"), [((), range(3, 6)), (("-m", ""), [17]), (("-m", "slow", "--sample=7/4", "-k", "long"), [2])]
)
def test_the_other_cases_run_only_where_slow_tests_do(tmp_path, options, passed):
    path = tmp_path / "test_cases.py"
    path.write_text(TESTS)
    words = (sys.executable, "-m", "pytest", "-q", "-p", "tests.sampling", "-p", "no:cacheprovider", "-c", "setup.cfg")
    done = subprocess.run([*words, "--rootdir", tmp_path, *options, path], cwd=ROOT, capture_output=True, text=True)
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) in passed, done.stdout + done.stderr
