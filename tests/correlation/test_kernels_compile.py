"""Every kernel that a call can name compiles for every architecture without a warning, a spill or a stack frame.

NVRTC compiles, which needs no GPU, with the options that CuPy passes on a device (`test_cuda.py` compares them with CuPy's).
The default run compiles a few builds of each file for one architecture. Tests marked `every_build` compile each build for one
architecture, its neighbours for others, and those of the tiled kernels for sm_90 too; with the environment variable
CUPYCORR_EVERY_BUILD=1 they compile each build for all architectures.
"""

import re
from dataclasses import replace
from functools import lru_cache
from itertools import product

import nvrtc
import pytest
from cases import DTYPES
from compile_gate import ALWAYS, ARCHITECTURES, EVERY, SAMPLE, assert_compile, complaints, side_by_side
from fake_cupy import FACTS
from kernel_files import kernel_files

from cupycorr._correlation.gpu import planner
from cupycorr._correlation.problem import parameters, problem
from cupycorr._dispatch import Request
from cupycorr._gpu import compiler, source
from cupycorr._gpu.layout import CHANNELS_LAST, ROWS
from cupycorr._gpu.source import Kernel

BUILDS = dict(planner.builds())
FILES = sorted({kernel.file for kernel in BUILDS.values()})


# The most registers that a thread may have. A block has 256 threads and a multiprocessor 65536 registers, so 128 leave room for
# two blocks. Tiles use all registers.
CEILINGS = {
    "correlation/box_filter.cu": 112,
    "correlation/forward_direct.cu": 168,
    "correlation/forward_mma.cu": 255,
    "correlation/forward_tiled.cu": 255,
    "correlation/gradient_direct.cu": 152,
    "correlation/gradient_mma.cu": 255,
    "correlation/gradient_tiled.cu": 255,
    "common/sum_parts.cu": 128,
}
SHARED = {"7.5": 64 * 1024, "7.0": 96 * 1024, "8.6 to 12": 99 * 1024, "8.0": 163 * 1024, "9.0 and 10": 227 * 1024}  # of a block

# The PTX of builds with these macros must have these instructions, which move 16 bytes at a time or multiply matrices.
LOAD_16, STORE_16 = r"ld\.global\.nc\.(v4\.[uf]32|v2\.[uf]64|v4\.b32)", r"st\.global\.(v4\.[uf]32|v2\.[uf]64|v4\.b32)"
COPY_16, MULTIPLY = r"cp\.async\.cg\.shared\.global \[%r\d+\], \[%rd\d+\], 16", r"mma\.sync\.aligned\.m16n8k(16|8)\."
HAS = {
    "channels of each output": ("correlation/forward_direct.cu", {"CHANNELS_LAST": "1"}, (LOAD_16,)),
    "channels of each gradient": ("correlation/gradient_direct.cu", {"CHANNELS_LAST": "1"}, (LOAD_16, STORE_16)),
    "windows along y": ("correlation/box_filter.cu", {"ALONG_Y": "1"}, (LOAD_16, STORE_16)),
    "rows of matrices": ("correlation/forward_mma.cu", {"STAGING": "0", "WARP_ROWS1": "2"}, (COPY_16, STORE_16, MULTIPLY)),
    "phases of matrices": ("correlation/forward_mma.cu", {"PHASES": "2", "PLANES": "1"}, (COPY_16, STORE_16, MULTIPLY)),
    "pixels of matrices": ("correlation/forward_mma.cu", {"STAGING": "2", "WARP_ROWS1": "2"}, (COPY_16, STORE_16, MULTIPLY)),
}


def builds_of(file, architecture=None):
    """Return the builds of a file, or those of them that are compiled for an architecture."""
    builds = {name: kernel for name, kernel in BUILDS.items() if kernel.file == file}
    if architecture is None or (architecture == ALWAYS and file in TILED):
        return builds
    return {name: kernel for turn, (name, kernel) in enumerate(builds.items()) if architecture in architectures_of(kernel, turn)}


def architectures_of(kernel, turn):
    """Return the architectures that a build is compiled for: builds take turns over those that have its matrix instructions."""
    able = [each for each in ARCHITECTURES if each not in without_products(kernel) and kernel in offered(each)]
    return able if EVERY else able[turn % len(able) :][:1]


@lru_cache
def offered(architecture):
    """Return the kernels that a plan can launch on devices of an architecture: some tiles are only for some devices."""
    capability = int(architecture[3:-1]), int(architecture[-1])
    return {kernel for _, kernel in planner.builds(replace(FACTS, compute_capability=capability))}


TILED = ("correlation/forward_tiled.cu", "correlation/gradient_tiled.cu")
MATRICES = ("correlation/forward_mma.cu", "correlation/gradient_mma.cu")


def without_products(kernel):
    """Return the architectures that lack a kernel's matrix instructions, or the shared memory that its tiles take.

    The dispatch never names the kernel there.
    """
    if kernel.file not in MATRICES:
        return ()
    macros = dict(kernel.macros)
    fits = kernel.file != "correlation/forward_mma.cu" or tile_bytes(macros) <= SHARED["7.5"]
    before = 75 if macros["INPUT"] == "half" and fits else 80
    return [architecture for architecture in ARCHITECTURES if int(architecture[3:]) < before]


# Element types, the last architecture without their matrix product, and the compiler's error for it.
WITHOUT_PRODUCT = [
    ("half", "sm_72", "matrix products of float16 need compute capability 7.5"),
    ("bfloat16", "sm_75", 'incomplete type "Multiplier<bfloat16>"'),
    ("float", "sm_75", 'incomplete type "Multiplier<float>"'),
]


def tile_bytes(macros):
    """Return the least shared memory of a tile of forward_mma.cu."""
    return int(macros["STAGES"]) * (int(macros["BYTES1"]) + int(macros["BYTES2"]))


# The gate ------------------------------------------------------------------------------------------------------------


@nvrtc.needed
def test_nvrtc_knows_the_architectures_of_today():
    assert {"sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"} <= set(ARCHITECTURES)


def test_every_kernel_file_has_its_ceiling():
    assert set(CEILINGS) == set(FILES) == set(kernel_files())


def test_every_build_has_a_name_and_a_kernel_of_its_own():
    listed = list(planner.builds())
    assert len({name for name, _ in listed}) == len({kernel for _, kernel in listed}) == len(listed)


@nvrtc.needed
@pytest.mark.parametrize("file", FILES)
def test_some_builds_of_every_file_compile_without_warnings_spills_or_stack_within_their_registers(file):
    assert_compile(dict(list(builds_of(file).items())[::SAMPLE]), ALWAYS, CEILINGS[file])


@pytest.mark.every_build
@nvrtc.needed
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_build_compiles_without_warnings_spills_or_stack_within_its_registers(file, architecture):
    assert_compile(builds_of(file, architecture), architecture, CEILINGS[file])


@nvrtc.needed
@pytest.mark.parametrize("file", FILES)
def test_every_build_is_compiled_for_some_architecture(file):
    compiled = [name for architecture in ARCHITECTURES for name in builds_of(file, architecture)]
    assert set(compiled) == set(builds_of(file))


@nvrtc.needed
@pytest.mark.parametrize("file", MATRICES)
@pytest.mark.parametrize(("c_type", "architecture", "error"), WITHOUT_PRODUCT, ids=[row[0] for row in WITHOUT_PRODUCT])
def test_kernels_on_tensor_cores_do_not_compile_for_devices_without_the_product(file, c_type, architecture, error):
    if architecture not in ARCHITECTURES:
        pytest.skip(f"this NVRTC does not compile for {architecture}")
    kernel = next(kernel for kernel in builds_of(file).values() if dict(kernel.macros)["INPUT"] == c_type)
    with pytest.raises(RuntimeError, match=error):
        compiler.cubin(kernel, architecture)


@pytest.mark.parametrize("which", ["forward", "vjp"])
@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
def test_tiles_fit_the_shared_memory_of_every_architecture(shared, which):
    device = replace(FACTS, shared_memory=shared)
    for dtype, (patch, step), order in product(
        DTYPES, [(21, 2), (21, 1), (9, 1), (15, 1), (7, 2), (4, 3)], (ROWS, CHANNELS_LAST)
    ):
        shape = (4, 64, 48, 64)
        asked = problem(parameters(patch_size=patch, dilation_patch=step), shape, shape)
        plan = planner.plan("tiled", Request(which, asked, dtype, dtype).dense(order, order), device)
        assert plan.calls[0].kernel.file in TILED
        assert max(call.shared for call in plan.calls) <= shared


@pytest.mark.every_build
@nvrtc.needed
@pytest.mark.parametrize(("file", "macros", "instructions"), HAS.values(), ids=HAS)
def test_builds_have_the_instructions_they_promise(file, macros, instructions):
    builds = {name: kernel for name, kernel in builds_of(file).items() if macros.items() <= dict(kernel.macros).items()}
    assert builds
    texts = side_by_side(lambda kernel: compiler.ptx(kernel, "sm_80"), builds.values())
    lacking = [
        f"{name}: no {instruction}"
        for name, text in zip(builds, texts, strict=True)
        for instruction in instructions
        if not re.search(instruction, text)
    ]
    assert not lacking, "\n".join(lacking)


# The gate itself -------------------------------------------------------------------------------------------------------

GOOD = (
    'extern "C" __global__ void __launch_bounds__(1024) k(const float* from, float* to) { to[threadIdx.x] = from[threadIdx.x]; }'
)
VALUES = range(150)  # all of them are needed after the barrier, with 64 registers to hold them
BAD = {
    "a remark of the front end": ("{", "{ int unused;", 'variable "unused" was declared but never referenced'),
    "a warning of the optimiser": ("__global__", "__global__ __noinline__", "overriding noinline attribute"),
    "spills": (
        "{",
        f"""{{ {"".join(f"float x{i} = from[{i} * blockDim.x + threadIdx.x];" for i in VALUES)}
        __syncthreads();
        const float y = to[threadIdx.x];
        {"".join(f"to[{i} * blockDim.x + threadIdx.x] = x{i} * y;" for i in VALUES)}""",
        "bytes spill stores; [0-9]+ bytes spill loads",
    ),
    "a stack": (
        "{",
        "{ int local[64]; for (int i = 0; i < 64; i++) local[to[i] > 0 ? i : 5] = i; to[1] = local[int(to[0])];",
        "256 bytes stack",
    ),
    "too many registers": ("", "", "registers, not more than 2 wanted"),
    "another name": (" k(", " another(", "no entry point k"),
    "an error": ("float*", "floot*", 'kernels_cu/k.cu.1.: error: identifier "floot" is undefined'),
}


def kernel_of(text, folder, monkeypatch):
    (folder / "k.cu").write_text(text)
    monkeypatch.setattr(source, "folder", lambda: folder)
    return Kernel("k.cu", "k")


@nvrtc.needed
@pytest.mark.parametrize(("old", "new", "said"), BAD.values(), ids=BAD)
def test_the_gate_finds_what_is_wrong_with_a_kernel(tmp_path, monkeypatch, old, new, said):
    kernel = kernel_of(GOOD.replace(old, new, 1), tmp_path, monkeypatch)
    found = complaints(kernel, "sm_80", 2 if "registers" in said else None)
    assert re.search(said, "; ".join(found)), found


@nvrtc.needed
def test_the_gate_lets_a_good_kernel_pass(tmp_path, monkeypatch):
    kernel = kernel_of(GOOD, tmp_path, monkeypatch)
    for architecture in ARCHITECTURES:
        assert complaints(kernel, architecture, 64) == []


@nvrtc.needed
def test_single_elements_are_not_taken_for_16_bytes(tmp_path, monkeypatch):
    text = compiler.ptx(kernel_of(GOOD, tmp_path, monkeypatch), "sm_80")
    assert not re.search(LOAD_16, text)
    assert not re.search(STORE_16, text)
