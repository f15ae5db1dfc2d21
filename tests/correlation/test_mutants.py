"""The emulated tests see the faults of a kernel that they should: mutants of the kernels' source fail one of them.

Here a sample of the mutants; ``python tests/support/mutants.py`` tries all of them, and takes minutes.
"""

import pytest
from emulator import require_compiler
from mutants import FILES, MUTANTS, TESTS, attempts, run_tests

from cupycorr._gpu import source

require_compiler()

SAMPLE = MUTANTS[::25]


@pytest.fixture(scope="module")
def outcomes(request):
    """Those of the mutants that the selected tests ask for: each comes while the ones before are looked at."""
    asking = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    with attempts([given["mutant"] for given in asking if "mutant" in given]) as futures:
        yield futures


@pytest.mark.parametrize("mutant", SAMPLE, ids=str)
def test_a_mutant_fails_a_test(outcomes, mutant):
    outcome = outcomes[mutant].result()
    assert outcome.killer is not None, f"every test passes with {mutant.after!r} in the place of {mutant.before!r}"


@pytest.mark.parametrize("file", FILES)
def test_the_kernels_without_a_mutant_pass_the_same_way(file):
    """A test for each file; the suite runs all of them."""
    seen_by = next(mutant.seen_by for mutant in reversed(MUTANTS) if mutant.file == file)
    run = run_tests(source.folder(), TESTS[file], [seen_by], "--only-first")
    assert run.code == 0, run.printed


@pytest.mark.parametrize("row", MUTANTS, ids=str)
def test_what_a_mutant_changes_stands_once_in_its_file(row):
    assert (source.folder() / row.file).read_text().count(row.before) == 1


def test_every_file_of_kernels_has_mutants():
    """But platform.cuh, whose device half is not run here."""
    files = {
        path.relative_to(source.folder()).as_posix() for path in source.folder().rglob("*.cu*") if path.suffix in (".cu", ".cuh")
    }
    assert set(FILES) == files - {"common/platform.cuh"}
