"""The plugin of pytest that leaves out a part of the tests of a function, where all of them take too long.

The marker `covering` leaves a few cases of a test in the default run. The option `--sample` with the value ``K/N`` leaves a part
of the tests that take long, another part for each K. The tests that are taken depend on their names alone, so that every worker
and every machine takes the same ones. K may be any number: as it grows, the samples take turns until they have held all tests,
and begin again.
"""

import hashlib
import itertools
from collections import defaultdict

import pytest

SAMPLE = "--sample"
LONG = ("slow", "sanitizer", "mutants", "every_build")  # the markers of the tests that the default run leaves out


def pytest_addoption(parser):
    parser.addoption(
        SAMPLE,
        metavar="K/N",
        help=f"of each test function run every N-th of its tests with the markers {', '.join(LONG)} only, and at least two of "
        "them; K chooses which",
    )


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(config, items):
    mark_the_others_slow(items)
    sample = config.getoption(SAMPLE)
    if sample is not None:
        leave_a_sample(config, items, can_be_left_out, *parsed(SAMPLE, sample), least=2)


def can_be_left_out(item):
    """Return whether a test is one of many that take long; what needs a device is left to the runs that have one."""
    return any(map(item.get_closest_marker, LONG)) and not item.get_closest_marker("gpu")


def parsed(option, text):
    """Return K and N of the text ``K/N`` that an option was given."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(count)):
        raise pytest.UsageError(f"{option} must be K/N with K from 0 on and N from 1 on, got {text}")
    return int(number), int(count)


def sampled(names, number, count, least=1, apart=1):
    """Return every count-th of the names of a function's tests: another part for each number.

    Parameters
    ----------
    names
        The names of all tests of a function.
    number, count
        K and N of an option ``K/N``.
    least
        A sample holds at least so many tests, or all if the function has fewer.
    apart
        If a function has fewer tests than this, each of them is in one of so many successive samples, and some samples hold none.
    """
    shuffled = sorted(names, key=_digest)
    step = max(apart, min(count, len(shuffled) // least), 1)
    first = number + int.from_bytes(_digest(min(names).partition("[")[0])[:4], "big")  # functions begin with different samples
    return set(shuffled[first % step :: step])


def _digest(name):
    return hashlib.sha256(name.encode()).digest()


def leave_a_sample(config, items, chosen, number, count, **bounds):
    """Deselect the chosen tests of each function but for a sample of them, with the bounds of `sampled`."""
    functions = defaultdict(list)
    for item in items:
        if chosen(item):
            functions[item.nodeid.partition("[")[0]].append(item.nodeid)
    kept = set().union(*(sampled(names, number, count, **bounds) for names in functions.values()))
    left_out = {item for item in items if chosen(item) and item.nodeid not in kept}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def covering(items, strength):
    """Return a few of a function's tests, among which every combination of so many parameters' values occurs."""
    found, met = [], set()
    for item in sorted(items, key=lambda item: _digest(item.nodeid)):
        values = [(name, id(value)) for name, value in item.callspec.params.items()]  # objects that a function's tests share
        combinations = set(itertools.combinations(sorted(values), strength))
        if not combinations <= met:
            found.append(item)
            met |= combinations
    return found


def mark_the_others_slow(items):
    """Mark as slow the tests with the marker ``covering(strength)`` that are not needed to cover its combinations."""
    functions = defaultdict(list)
    for item in items:
        if item.get_closest_marker("covering") and not any(map(item.get_closest_marker, ("slow", "gpu"))):
            functions[item.nodeid.partition("[")[0]].append(item)
    for of_function in functions.values():
        kept = covering(of_function, *of_function[0].get_closest_marker("covering").args)
        for item in of_function:
            if item not in kept:
                item.add_marker("slow")
