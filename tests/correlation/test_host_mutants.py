"""The device tests fail where the path from an array to its kernels is wrong: a fault put into it makes one of them fail."""

import pytest
from host_mutants import FAILED, MUTANTS, ROOT, attempt


@pytest.mark.mutants
@pytest.mark.usefixtures("software_cuda_prepared")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_of_the_host_path_fails_a_device_test(mutant, tmp_path):
    done = attempt(mutant, tmp_path, mutant.tests)
    assert done.returncode == FAILED, done.stdout + done.stderr
    assert "error" not in done.stdout.splitlines()[-1], done.stdout


@pytest.mark.mutants
@pytest.mark.usefixtures("software_cuda_prepared")
@pytest.mark.parametrize("tests", sorted({mutant.tests for mutant in MUTANTS}), ids=" ".join)
def test_the_same_device_tests_pass_without_a_fault(tests, tmp_path):
    done = attempt(None, tmp_path, tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_that_a_fault_changes_occurs_once(mutant):
    assert mutant.applied((ROOT / mutant.file).read_text("utf-8"))
