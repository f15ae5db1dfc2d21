"""The emulated tests fail where a kernel is wrong: a fault put into the kernels' source makes one of them fail.

Here one fault for each file of kernels. ``python tests/support/mutants.py`` tries others, or all of them.
"""

import re
import subprocess
import sys

import pytest
from emulator import require_compiler
from mutants import (
    BAR,
    BY_HAND,
    OPERATORS,
    ROOT,
    TESTS,
    assert_killed,
    drawn,
    generated,
    mutable,
    mutants,
    mutated_files,
    run_tests,
    text_of,
)

from cupycorr._gpu import source

require_compiler()

FILES = mutated_files()
SEED = 2  # another one, where a mutant that is drawn turns out to be equivalent


@pytest.mark.mutants
@pytest.mark.parametrize("file", FILES)
def test_a_mutant_drawn_from_each_file_fails_a_test(file):
    """Among mutants of which hardly any is equivalent. One that does not build says nothing: the next one is tried."""
    strict = [mutant for mutant in mutants(file) if "plus for minus" in mutant.name or "by hand" in mutant.name]
    assert_killed(drawn(strict, 20, SEED))


@pytest.mark.mutants
@pytest.mark.parametrize("file", FILES)
def test_the_kernels_without_a_mutant_pass_the_same_way(file):
    """Run the tests that come first for each file."""
    first = TESTS[file].first.split(BAR)[0]
    code, printed = run_tests(source.folder(), TESTS[file]._replace(first=first), "--only-first")
    assert code == 0, printed


def test_the_tests_that_come_first_are_there():
    files = sorted({word for tests in TESTS.values() for word in tests.selection if word.endswith(".py")})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *files]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for file, tests in TESTS.items():
        missing = [words for words in tests.first.split(BAR) if not any(words in name for name in names)]
        assert not missing, f"no test of {file} has {missing} in its name"


def test_every_file_of_kernels_has_mutants_and_tests_for_them():
    assert set(TESTS) == set(FILES)
    for file in FILES:
        assert any(generated(file, text_of(file))), file


@pytest.mark.parametrize(
    ("file", "pattern"), [(row[0], row[2]) for row in BY_HAND], ids=[f"{row[0]}-{row[1]}" for row in BY_HAND]
)
def test_the_pattern_of_a_mutant_by_hand_matches_once(file, pattern):
    (path,) = (path for path in FILES if path.endswith(f"/{file}"))
    assert len(re.findall(pattern, mutable(text_of(path)))) == 1


def test_at_most_sixty_mutants_are_written_by_hand():
    assert len(BY_HAND) <= 60


@pytest.mark.parametrize("file", FILES)
def test_every_mutant_changes_code_and_has_a_name_of_its_own(file):
    text = text_of(file)
    code = mutable(text)
    found = mutants(file)
    assert len({mutant.name for mutant in found}) == len(found)
    for mutant in found:
        assert mutant.applied(text) != text, mutant
        assert code[mutant.begin : mutant.end] == text[mutant.begin : mutant.end], f"{mutant} changes what must stay"


@pytest.mark.parametrize("operator", [operator.name for operator in OPERATORS] + ["name swapped"])
def test_every_operator_finds_a_place_in_the_kernels(operator):
    assert any(f": {operator} " in mutant.name for file in FILES for mutant in generated(file, text_of(file)))


KERNEL = """#include "common/tile.cuh"  // 1 + 2
#define TWO (1 + 1)
#ifdef CUPYCORR_EMULATED
using emulator::one;
#else
#if __CUDA_ARCH__ >= 800
DEVICE int one() { return 1; }
#endif
#endif
static_assert(WARP == 32, "a warp");
constexpr int FOLD = 128;
template <int count = 3>
DEVICE int sum(int row, int column) {
    __syncthreads();
    if (row < 4) return row + column;
    return 0;
}
"""


def test_operators_change_only_what_the_emulator_builds():
    """No comment, preprocessor line, static assertion or string, and no code that only a device's compiler sees."""
    lines = KERNEL.splitlines()
    changed = {lines[KERNEL[: mutant.begin].count("\n")] for mutant in generated("kernel.cu", KERNEL)}
    assert changed == {line for line in lines if line.startswith(("constexpr", "    "))}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("FOLD: constant up 1", "constexpr int FOLD = 129;"),
        ("sum: constant down 2", "    return -1;"),
        ("sum: barrier of a warp 1", "    __syncwarp();"),
        ("sum: bound moved 1", "    if (row <= 4) return row + column;"),
        ("sum: plus for minus 1", "    if (row < 4) return row - column;"),
        ("sum: name swapped 1", "    if (column < 4) return row + column;"),
    ],
)
def test_a_generated_mutant_is_named_after_its_function_its_operator_and_its_place(name, line):
    (mutant,) = (mutant for mutant in generated("kernel.cu", KERNEL) if mutant.name == name)
    before, after = KERNEL.splitlines(), mutant.applied(KERNEL).splitlines()
    assert [new for old, new in zip(before, after, strict=True) if old != new] == [line]


def test_a_draw_does_not_depend_on_mutants_that_are_not_drawn():
    every = mutants(FILES[0])
    some = drawn(every, 5, 1)
    assert drawn([mutant for number, mutant in enumerate(every) if mutant in some or number % 2], 5, 1) == some
