"""The kernels of the lookup in a volume: they compile within their registers, have their signatures, and move few bytes.

The default run compiles a few builds of each file for one architecture. Tests marked `every_build` compile every ninth build;
builds take turns over the architectures. With the environment variable CUPYCORR_EVERY_BUILD=1 they compile each build for all of
them.
"""

import re

import numpy as np
import nvrtc
import pytest
from compile_gate import ALWAYS, ARCHITECTURES, EVERY, assert_compile
from emulated import launched_by
from emulator import Emulator, require_compiler
from entry_points import assert_has_parameters, without_comments
from kernel_files import kernel_files
from layouts import aligned
from volume_cases import BOTH, Case
from volume_emulated import inputs_of, lookup, lookup_vjp

from cupycorr._gpu.limits import SECTOR_BYTES
from cupycorr._volume_lookup.gpu import operands, planner, volume_gradient, volume_gradient_coords, volume_lookup

BUILDS = dict(planner.builds())

# The most registers that a thread may have. A block has 256 threads and a multiprocessor 65536 registers, so 80 leave room for
# three blocks, 128 for two. With offsets of 32 bits and sums in float32, some 50 are used on sm_90.
CEILINGS = {
    "volume_lookup/volume_gradient.cu": 80,
    "volume_lookup/volume_gradient_coords.cu": 112,
    "volume_lookup/volume_lookup.cu": 96,
}
files = pytest.mark.parametrize("file", CEILINGS)
SIGNATURES = {module.SIGNATURE.name: module.SIGNATURE for module in (volume_lookup, volume_gradient, volume_gradient_coords)}

# Steps between the builds that are compiled. They are odd, because macros of two values alternate in the list of builds.
FEW, SOME = 49, 9


def builds_of(file, step=1):
    """Return the builds of a file that are so many steps apart."""
    return dict([(name, kernel) for name, kernel in BUILDS.items() if kernel.file == file][::step])


def builds_for(file, architecture):
    """Return the builds of a file that are compiled for an architecture."""
    if EVERY:
        return builds_of(file)
    turn, turns = ARCHITECTURES.index(architecture), len(ARCHITECTURES)
    return {name: kernel for number, (name, kernel) in enumerate(builds_of(file, SOME).items()) if number % turns == turn}


def test_every_kernel_file_has_its_ceiling_and_its_signature():
    found = set(kernel_files(folders=("volume_lookup",)))
    assert found == set(CEILINGS) == {f"{name}.cu" for name in SIGNATURES} == {kernel.file for kernel in BUILDS.values()}


def test_every_build_has_a_name_and_a_kernel_of_its_own():
    listed = list(planner.builds())
    assert len({name for name, _ in listed}) == len({kernel for _, kernel in listed}) == len(listed)


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_names_order_and_types_are_those_of_the_entry_point(signature):
    assert_has_parameters(signature)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [("windows.cuh", "TAPS", operands.TAPS), ("volume_gradient.cu", "RUN", volume_gradient.RUN)],
)
def test_constants_of_planners_are_those_of_the_kernels(file, name, value):
    found = re.search(rf"constexpr int {name} = (\d+);", without_comments(f"volume_lookup/{file}"))
    assert int(found[1]) == value


def test_a_tile_has_a_query_for_each_lane():
    assert "constexpr int QUERIES = WARP;" in without_comments("volume_lookup/windows.cuh")
    assert operands.QUERIES == 32


@nvrtc.needed
@files
def test_some_builds_of_every_file_compile_without_warnings_spills_or_stack_within_their_registers(file):
    assert_compile(builds_of(file, FEW), ALWAYS, CEILINGS[file])


@pytest.mark.every_build
@nvrtc.needed
@files
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_builds_for_every_architecture_compile_without_warnings_spills_or_stack_within_their_registers(file, architecture):
    assert_compile(builds_for(file, architecture), architecture, CEILINGS[file])


# What is moved ----------------------------------------------------------------------------------------------------------------

require_compiler()
SINTEL = Case((1, 2, 64, 24, 40), noise=2.0)  # rows of queries as wide as two tiles, at RAFT's radius
FULL = Case((1, 1, 64, 24, 40), dict(patch_size=(7, 15)))  # as many taps as the lanes of four warps


def traced(monkeypatch, needs, case=SINTEL):
    """Return the emulator that counted a lookup, or its gradients, of arrays that begin as CuPy's do."""
    inputs = {name: aligned(array) for name, array in inputs_of(case).items()}
    cotangent = aligned(case.cotangent())
    with launched_by(monkeypatch, emulator := Emulator(traced=True)):
        if needs is None:
            lookup(emulator, case, inputs, out=aligned(cotangent))
        else:
            results = [aligned(each) if needed else None for each, needed in zip(inputs.values(), needs, strict=True)]
            lookup_vjp(emulator, case, cotangent, inputs, needs, results)
    return emulator


def of_kind(emulator, kind):
    return [each for each in emulator.traffic if each.kind == kind]


def taps_inside():
    """Return the number of taps of all windows that are inside their slices."""
    volume, coords = SINTEL.arrays()
    low = np.floor(coords[0]).astype(int)[:, None] + np.arange(-4, 6)[:, None, None]
    inside = (low >= 0) & (low < np.array(volume.shape[:2:-1])[:, None, None, None])
    return int((inside.sum(1)[0] * inside.sum(1)[1]).sum())


@pytest.mark.parametrize("needs", [None, (False, True)], ids=["output", "gradient of coords"])
def test_each_tap_inside_is_read_once_by_neighbouring_lanes(monkeypatch, needs):
    emulator = traced(monkeypatch, needs)
    reads = [each for each in of_kind(emulator, "global load") if any("windows.cuh" in line for line in each.lines)]
    reads = [each for each in reads if each.accesses == taps_inside()]
    assert len(reads) == 1
    rows = 2 * 64 * 10
    assert reads[0].transactions <= 2.5 * rows, "a row of ten taps is in at most three sectors"


def test_outputs_are_written_in_whole_sectors(monkeypatch):
    (writes,) = of_kind(traced(monkeypatch, None), "global store")
    assert writes.accesses == SINTEL.problem().outputs
    assert writes.transactions == writes.least


def test_the_gradient_of_the_volume_is_written_once_in_whole_sectors(monkeypatch):
    (writes,) = of_kind(traced(monkeypatch, (True, False)), "global store")
    assert writes.accesses == np.prod(SINTEL.volume)
    assert writes.transactions * SECTOR_BYTES == writes.bytes


def test_cotangents_of_neighbouring_queries_are_read_in_whole_sectors(monkeypatch):
    emulator = traced(monkeypatch, (False, True))
    reads = [each for each in of_kind(emulator, "global load") if each.accesses == SINTEL.problem().outputs]
    assert len(reads) == 1
    assert reads[0].transactions == reads[0].least


@pytest.mark.parametrize("needs", [None, *(tuple(each) for each in np.eye(2, dtype=bool).tolist())], ids=str)
def test_taps_in_shared_memory_are_read_and_written_without_conflicts(monkeypatch, needs):
    emulator = traced(monkeypatch, needs, FULL)
    for each in of_kind(emulator, "shared load") + of_kind(emulator, "shared store"):
        if each.bytes == 4 * each.accesses:  # taps and sums; windows of queries are structures
            assert each.transactions == each.requests


def test_no_launch_needs_a_workspace(monkeypatch):
    planned = []
    monkeypatch.setattr("emulated.run", lambda emulator, plan, reads, writes: planned.append(plan.workspace))
    with launched_by(monkeypatch, emulator := Emulator()):
        lookup(emulator, SINTEL, inputs_of(SINTEL))
        lookup_vjp(emulator, SINTEL, SINTEL.cotangent(), inputs_of(SINTEL), BOTH)
    assert planned == [0, 0]
