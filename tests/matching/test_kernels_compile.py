"""The kernels of matching compile within their registers, and have their signatures.

The default run compiles a few builds of each file for one architecture. Tests marked `every_build` compile every fifth build, and
builds take turns over the architectures; with the environment variable CUPYCORR_EVERY_BUILD=1 they compile each build for all.
"""

from dataclasses import replace
from functools import lru_cache

import nvrtc
import pytest
from compile_gate import ALWAYS, ARCHITECTURES, EVERY, assert_compile
from entry_points import assert_has_parameters
from fake_cupy import FACTS
from kernel_files import kernel_files

from cupycorr._matching.gpu import planner, reduce_mma, reduce_tiled, reductions

BUILDS = dict(planner.builds())

# The most registers that a thread may have. Tiles use all registers.
CEILINGS = {
    "matching/merge_best.cu": 96,
    "matching/merge_mean.cu": 96,
    "matching/reduce_mma.cu": 255,
    "matching/reduce_tiled.cu": 255,
}
files = pytest.mark.parametrize("file", CEILINGS)
SHARED_OF_7_5 = 64 * 1024  # bytes of shared memory of a block
SIGNATURES = (reductions.MERGE_BEST, reductions.MERGE_MEAN, reduce_mma.SIGNATURE, reduce_tiled.SIGNATURE)

# Steps between the builds that are compiled. There are four reductions of each tile, so that they are odd.
FEW, SOME = 99, 5


def builds_of(file, step=1):
    """Return the builds of a file that are so many steps apart."""
    return dict([(name, kernel) for name, kernel in BUILDS.items() if kernel.file == file][::step])


@lru_cache
def offered(architecture):
    """Return the kernels that a plan can launch on devices of an architecture."""
    capability = int(architecture[3:-1]), int(architecture[-1])
    return {kernel for _, kernel in planner.builds(replace(FACTS, compute_capability=capability))}


def fits(kernel, architecture):
    """Return whether tiles on tensor cores fit the shared memory of an architecture; others are never launched there."""
    macros = dict(kernel.macros)
    if kernel.file != "matching/reduce_mma.cu" or int(architecture[3:]) >= 80:
        return True
    return int(macros["STAGES"]) * (int(macros["BYTES1"]) + int(macros["BYTES2"])) <= SHARED_OF_7_5


def builds_for(file, architecture):
    """Return the builds of a file that are compiled for an architecture."""
    found = {}
    for turn, (name, kernel) in enumerate(builds_of(file, 1 if EVERY else SOME).items()):
        able = [each for each in ARCHITECTURES if kernel in offered(each) and fits(kernel, each)]
        if architecture in (able if EVERY else able[turn % len(able) :][:1]):
            found[name] = kernel
    return found


def test_every_kernel_file_has_its_ceiling_and_its_signature():
    found = set(kernel_files(folders=("matching",)))
    assert found == set(CEILINGS) == {f"{each.name}.cu" for each in SIGNATURES} == {kernel.file for kernel in BUILDS.values()}


def test_every_build_has_a_name_and_a_kernel_of_its_own():
    listed = list(planner.builds())
    assert len({name for name, _ in listed}) == len({kernel for _, kernel in listed}) == len(listed)


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.name)
def test_names_order_and_types_are_those_of_the_entry_point(signature):
    assert_has_parameters(signature)


@nvrtc.needed
@files
def test_some_builds_compile_without_warnings_spills_or_stack_within_their_registers(file):
    assert_compile(builds_of(file, FEW), ALWAYS, CEILINGS[file])


@pytest.mark.every_build
@nvrtc.needed
@files
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_builds_compile_without_warnings_spills_or_stack_within_their_registers(file, architecture):
    assert_compile(builds_for(file, architecture), architecture, CEILINGS[file])
