"""The translator knows every instruction of our kernels as NVRTC writes them, and g++ compiles what it makes of them.

The default run translates and compiles one build of each file. Tests marked `every_build` translate each build for one
architecture, its neighbours for others; with the environment variable CUPYCORR_EVERY_BUILD=1 they translate each build for all.
"""

import os

import emulator
import numpy as np
import nvrtc
import pytest

from cupycorr._correlation.gpu import planner
from cupycorr._gpu import compiler
from tests.software_cuda import harness
from tests.software_cuda.translator import translate

BUILDS = dict(planner.builds())
FILES = sorted({kernel.file for kernel in BUILDS.values()})
ARCHITECTURES = nvrtc.architectures()
EVERY = os.environ.get("CUPYCORR_EVERY_BUILD") == "1"
ALWAYS = "sm_90"
MATRICES = ("correlation/forward_mma.cu", "correlation/gradient_mma.cu")
SAMPLE = 40  # g++ compiles every fortieth translation

pytestmark = nvrtc.needed


def builds_of(file):
    return [kernel for kernel in BUILDS.values() if kernel.file == file]


def architectures_of(kernel, turn):
    """Return the architectures that a build is translated for, of those that have its instructions."""
    oldest = 80 if kernel.file in MATRICES else 70
    able = [architecture for architecture in ARCHITECTURES if int(architecture[3:]) >= oldest]
    return able if EVERY else able[turn % len(able) :][:1]


@pytest.mark.parametrize("file", FILES)
def test_a_build_of_each_file_is_translated_and_compiled(file):
    emulator.require_compiler()
    builds = builds_of(file)
    assert harness.build(compiler.ptx(builds[len(builds) // 2], ALWAYS)).exists()


@pytest.mark.every_build
@pytest.mark.parametrize("file", FILES)
def test_every_build_is_translated(file):
    for turn, kernel in enumerate(builds_of(file)):
        for architecture in architectures_of(kernel, turn):
            ptx = compiler.ptx(kernel, architecture)
            assert f"kernel_{kernel.entry}" in translate(ptx)
            if turn % SAMPLE == 0:
                emulator.require_compiler()
                harness.build(ptx)


# Kernels in CUDA C ------------------------------------------------------------------------------------------------------------

SOURCE = """
struct Pair { int number; double value; char letters[5]; };

__device__ __noinline__ Pair moved(Pair pair, int by) {
    pair.number += by;
    pair.value /= by + 1;
    pair.letters[2] = 'a' + by;
    return pair;
}

extern "C" __global__ void structures(Pair* pairs) { pairs[threadIdx.x] = moved(pairs[threadIdx.x], threadIdx.x); }

__constant__ int table[8] = {5, 7, 11, 13, 17, 19, 23, 29};

extern "C" __global__ void tables(const int* input, int* output) {
    int own[16];
    for (int i = 0; i < 16; ++i) own[i] = table[i & 7] * i;
    const int i = threadIdx.x;
    switch (input[i] & 7) {
        case 0: output[i] = own[input[i] & 15]; break;
        case 1: output[i] = -1; break;
        case 2: output[i] = input[i] / 7; break;
        case 3: output[i] = input[i] % 7; break;
        case 4: output[i] = __popc(input[i]); break;
        case 5: output[i] = __clz(input[i]); break;
        default: output[i] = own[i & 15];
    }
}

extern "C" __global__ void histogram(const int* input, int* output, int count) {
    __shared__ int bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    const int first = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    for (int i = first; i < count; i += threads) atomicAdd(&bins[input[i] & 15], 1);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&output[threadIdx.x], bins[threadIdx.x]);
}

extern "C" __global__ void wide(const long long* a, const long long* b, unsigned long long* high, long long* quotient) {
    const int i = threadIdx.x;
    high[i] = __umul64hi(a[i], b[i]);
    quotient[i] = a[i] / b[i];
}
"""


def compiled(architecture=ALWAYS):
    from cupy.cuda import nvrtc as binding

    program = binding.createProgram(SOURCE, "kernels.cu", [], [])
    binding.compileProgram(program, (f"-arch=compute_{architecture[3:]}", "-std=c++17"))
    ptx = binding.getPTX(program)
    return ptx.decode() if isinstance(ptx, bytes) else ptx


def ran(name, arrays, **options):
    emulator.require_compiler()
    outcome = harness.run(compiled(), name, arrays, **options)
    assert (outcome.failure, outcome.report) == (0, "")


@pytest.mark.parametrize("backwards", [False, True])
def test_structures_are_passed_to_functions_and_returned(backwards):
    pairs = np.zeros(8, np.dtype([("number", "i4"), ("value", "f8"), ("letters", "S5")], align=True))
    pairs["number"], pairs["value"], pairs["letters"] = np.arange(8) * 10, np.arange(8) + 0.5, b"wxyz"
    expected = pairs.copy()
    for i, pair in enumerate(expected):
        pair["number"] += i
        pair["value"] /= i + 1
        pair["letters"] = b"wx" + bytes([ord("a") + i]) + b"z"
    ran("structures", [pairs], block=(8,), backwards=backwards)
    assert pairs.tolist() == expected.tolist()


def test_tables_and_branches_of_many_targets():
    values = np.random.default_rng(2).integers(0, 2**31 - 1, 64, np.int32)
    output = np.zeros(64, np.int32)
    ran("tables", [values, output], block=(64,))
    table = [5, 7, 11, 13, 17, 19, 23, 29]
    own = [table[i & 7] * i for i in range(16)]
    cases = {
        0: lambda i, x: own[x & 15],
        1: lambda i, x: -1,
        2: lambda i, x: x // 7,
        3: lambda i, x: x % 7,
        4: lambda i, x: x.bit_count(),
        5: lambda i, x: 32 - x.bit_length(),
        6: lambda i, x: own[i & 15],
        7: lambda i, x: own[i & 15],
    }
    assert output.tolist() == [cases[x & 7](i, x) for i, x in enumerate(values.tolist())]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_histogram_counts_in_shared_memory(backwards):
    values = np.random.default_rng(3).integers(0, 1000, 5000, np.int32)
    output = np.zeros(16, np.int32)
    ran("histogram", [values, output, np.int32(len(values))], grid=(3,), block=(64,), backwards=backwards)
    np.testing.assert_array_equal(output, np.bincount(values & 15, minlength=16))


def test_products_and_quotients_of_64_bits():
    draw = np.random.default_rng(4)
    a, b = draw.integers(-(2**62), 2**62, (2, 32), np.int64)
    high, quotient = np.zeros(32, np.uint64), np.zeros(32, np.int64)
    ran("wide", [a, b, high, quotient], block=(32,))
    assert high.tolist() == [(x % 2**64) * (y % 2**64) >> 64 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    expected = [abs(x) // abs(y) * (1 if x * y > 0 else -1) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert quotient.tolist() == expected
