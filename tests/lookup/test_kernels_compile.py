"""Every kernel that a lookup can name compiles for every architecture without a warning, a spill or a stack frame.

The default run compiles a few builds of each file for one architecture. Tests marked `every_build` compile every fifteenth build;
builds take turns over the architectures. With the environment variable CUPYCORR_EVERY_BUILD=1 they compile each build for all of
them.
"""

import re

import nvrtc
import pytest
from compile_gate import ALWAYS, ARCHITECTURES, EVERY, assert_compile, side_by_side
from kernel_files import kernel_files

from cupycorr._gpu import compiler
from cupycorr._lookup.gpu import planner

BUILDS = {name: kernel for name, kernel in planner.builds() if kernel.file.startswith("lookup/")}  # others have a gate already

# The most registers that a thread may have. A block has 256 threads and a multiprocessor 65536 registers, so 128 leave room for
# two blocks. Rows of dots use all registers where offsets have 64 bits; with 32 bits, they use some 120 on sm_90.
CEILINGS = {
    "lookup/lookup_boxes.cu": 64,
    "lookup/lookup_direct.cu": 255,
    "lookup/lookup_gradient1.cu": 144,
    "lookup/lookup_gradient2.cu": 192,
    "lookup/lookup_gradient_coords.cu": 255,
    "lookup/lookup_mma.cu": 192,  # 128 by its launch bounds, where `HAS` says so
    "lookup/lookup_tiled.cu": 240,  # float32 has 128 by its launch bounds, where `HAS` says so
}

files = pytest.mark.parametrize("file", CEILINGS)


# Steps between the builds that are compiled. They are odd, because macros of two values alternate in the list of builds.
FEW = {"lookup/lookup_boxes.cu": 9, "lookup/lookup_gradient2.cu": 77, "lookup/lookup_tiled.cu": 49}  # of the default run
FEW_OF_OTHERS = 265
SOME = 15  # the step of the tests marked `every_build`


def builds_of(file, step=1):
    """Return the builds of a file, or those that are so many steps apart."""
    builds = [(name, kernel) for name, kernel in BUILDS.items() if kernel.file == file]
    return dict(builds[::step])


def builds_for(file, architecture):
    """Return the builds of a file that are compiled for an architecture."""
    if EVERY:
        return of_architecture(builds_of(file), architecture)
    turn, turns = ARCHITECTURES.index(architecture), len(ARCHITECTURES)
    some = {name: kernel for number, (name, kernel) in enumerate(builds_of(file, SOME).items()) if number % turns == turn}
    return of_architecture(some, architecture)


def of_architecture(builds, architecture):
    """Return the builds that an architecture has the instructions for: those of tensor cores came one type after the other."""
    capability = int(architecture.removeprefix("sm_"))
    oldest = {"half": 75, "bfloat16": 80, "float": 80}
    return {
        name: kernel
        for name, kernel in builds.items()
        if "mma" not in kernel.file or capability >= oldest[dict(kernel.macros)["INPUT"]]
    }


def test_every_kernel_file_has_its_ceiling():
    assert set(CEILINGS) == {kernel.file for kernel in BUILDS.values()} == set(kernel_files(folders=("lookup",)))


def test_every_build_has_a_name_and_a_kernel_of_its_own():
    listed = list(planner.builds())
    assert len({name for name, _ in listed}) == len({kernel for _, kernel in listed}) == len(listed)


@nvrtc.needed
@files
def test_some_builds_of_every_file_compile_without_warnings_spills_or_stack_within_their_registers(file):
    assert_compile(builds_of(file, FEW.get(file, FEW_OF_OTHERS)), ALWAYS, CEILINGS[file])


@pytest.mark.every_build
@nvrtc.needed
@files
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_builds_for_every_architecture_compile_without_warnings_spills_or_stack_within_their_registers(file, architecture):
    assert_compile(builds_for(file, architecture), architecture, CEILINGS[file])


# Instructions that the PTX of builds with these macros must have.
LOAD_16 = r"ld\.global\.nc\.(v4\.[uf]32|v2\.[uf]64|v4\.b32)"
TILED, MMA = "lookup/lookup_tiled.cu", "lookup/lookup_mma.cu"
HAS = {
    "room for two blocks": (TILED, {"INPUT": "float", "INDEX": "int"}, r"\.minnctapersm 2"),
    "copies of channels": (TILED, {"INPUT": "float", "CHANNELS_LAST": "1"}, r"cp\.async\.cg\.shared\.global"),
    "copies of pixels": (TILED, {"INPUT": "float", "CHANNELS_LAST": "0"}, r"cp\.async\.ca\.shared\.global"),
    "vectors of 16-bit channels": (TILED, {"INPUT": "half", "CHANNELS_LAST": "1"}, LOAD_16),
    "matrices with room for two blocks": (MMA, {"CHANNELS_LAST": "1", "INDEX": "int"}, r"\.minnctapersm 2"),
    "copies of lines": (MMA, {"CHANNELS_LAST": "1"}, r"cp\.async\.cg\.shared\.global"),
    "products of matrices": (MMA, {}, r"mma\.sync\.aligned\.m16n8k(16|8)\."),
    "channels of dots": ("lookup/lookup_direct.cu", {"CHANNELS_LAST": "1"}, LOAD_16),
    "channels of slopes": ("lookup/lookup_gradient_coords.cu", {"CHANNELS_LAST": "1"}, LOAD_16),
    "channels of a pixel": ("lookup/lookup_gradient1.cu", {"CHANNELS_LAST": "1"}, LOAD_16),
    "products that round by themselves": ("lookup/lookup_boxes.cu", {}, r"mul\.rn\.(ftz\.f32|f64)"),
}


@pytest.mark.every_build
@nvrtc.needed
@pytest.mark.parametrize(("file", "macros", "instruction"), HAS.values(), ids=HAS)
def test_builds_have_the_instructions_they_promise(file, macros, instruction):
    builds = {name: kernel for name, kernel in builds_of(file).items() if macros.items() <= dict(kernel.macros).items()}
    builds = builds if EVERY else dict(list(builds.items())[::17])
    assert builds
    texts = side_by_side(lambda kernel: compiler.ptx(kernel, "sm_80"), builds.values())
    assert not [name for name, text in zip(builds, texts, strict=True) if not re.search(instruction, text)]
