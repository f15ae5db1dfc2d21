"""The emulator runs correct kernels as CUDA does, and names thread, access and line where a kernel is wrong.

Each file of ``emulator/faults`` is a kernel that is correct, and wrong with the macro ``FAULT``; the lines that an error may name
are marked in it. Each kernel of ``emulator/checks`` calls one function, to be compared with NumPy and the PTX manual.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import emulator
import numpy as np
import pytest
from emulator import ORDERS, EmulationError, Emulator, build

from cupycorr._gpu import source
from cupycorr._gpu.source import Kernel

emulator.require_compiler()

FOLDER = Path(emulator.__file__).parent
SIZE = 128  # elements of what most kernels here are given, two blocks of 64


def text(file):
    """Return the source of a file of the folder with the kernels' header in the place of its #include."""
    own = (FOLDER / file).read_text("utf-8")
    header = re.search(r'#include "(.*\.cuh)"', own)
    return f'{source.text(header[1])}#line 1 "{Path(file).name}"\n{own.replace(header[0], "")}'


def kernel(file, entry=None, **macros):
    return Kernel(file, entry or Path(file).stem, tuple((name, str(value)) for name, value in macros.items()))


def run(asked, reads, writes, scalars=(), *, grid=1, block=64, shared=0, order="forward", limits=None, **lending):
    """Launch a kernel on the arrays, those to read first, and return the emulator."""
    machine = Emulator(order, text, **(limits or {}))
    arrays = {**reads, **writes}
    with machine.lending(reads, writes, **lending):
        launch = machine.bind(asked, 0, grid, block, shared)
        launch((*(array.ctypes.data for array in arrays.values()), *scalars))
        for name, array in writes.items():
            assert not machine.unwritten(array).any(), f"{name} has elements that nobody wrote"
    return machine


def numbers(size=SIZE, dtype=np.float32):
    """Return distinct whole numbers, whose sums are exact."""
    return np.random.default_rng(0).permutation(size).astype(dtype)


# Planted faults -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A kernel of ``faults``: its correct result, and the message of the error of each fault."""

    answer: Callable
    errors: tuple[str, ...]
    grid: int = 2
    block: int = 64
    takes_size: bool = False


def by_64(function):
    return lambda x: function(x.reshape(-1, 64)).ravel()


PLANTED = {
    "removed_barrier": Planted(by_64(lambda part: part[:, ::-1]), ("race: (reads|writes) byte .* of shared 'part'",)),
    "race_between_warps": Planted(lambda x: x, ("race: (reads|writes) byte .* of shared 'values'",)),
    "write_after_read": Planted(
        by_64(lambda part: np.repeat(part[:, 0], 64)),
        ("race: (writes byte .* which thread .* read at|reads byte .* which thread .* wrote at)",),
    ),
    "vote_is_no_barrier": Planted(
        lambda x: np.where(np.arange(SIZE) % 32 < 30, 0, np.repeat(x[::32], 32)),
        ("race: writes byte 0 of shared 'first' .* which thread .* read at",),
        block=32,
        grid=4,
    ),
    "barrier_of_one_warp": Planted(
        by_64(lambda part: np.tile(part[:, :32], 2)), ("race: (reads|writes) byte .* of shared 'values'",)
    ),
    "out_of_bounds_read": Planted(
        lambda x: x + np.append(x[1:], 0), ("loads 4 bytes .* 0 bytes past the end of input float32",), takes_size=True
    ),
    "out_of_bounds_write": Planted(lambda x: x, ("stores 4 bytes .* 0 bytes past the end of out",)),
    "shared_out_of_bounds": Planted(
        by_64(lambda part: np.roll(part, -1, 1)), ("reads 4 bytes .* byte 256 of 'part', which has 256",)
    ),
    "misaligned": Planted(lambda x: x, ("loads 16 bytes at an address that is not a multiple of 16",), block=16),
    "misaligned_shared": Planted(lambda x: x, ("writes 16 bytes at an address that is not a multiple of 16",), block=16),
    "missing_copy_wait": Planted(
        by_64(lambda part: part[:, ::-1]),
        ("reads byte .* has not been waited for", "race: (copies to|reads) byte .* of shared 'part'"),
    ),
    "copy_too_early": Planted(lambda x: x.reshape(-1, 32)[:, ::-1].ravel(), ("race: (copies to|reads) byte",), block=32),
    "two_writers": Planted(lambda x: x[::2] + x[1::2], ("stores to byte .* of out .* has been written by thread",)),
    "load_of_output": Planted(lambda x: x + 1, ("loads byte .* of out .* has been written by thread",)),
    "load_of_nothing": Planted(lambda x: x + 1, ("loads 4 bytes that nobody has written",)),
    "diverged_barrier": Planted(
        by_64(lambda part: part + part[:, np.arange(64) ^ 1]),
        (
            "diverged barrier: thread .* waits in __syncthreads .* has ended",
            "diverged barrier: thread .* waits in __syncthreads .* has ended",
            "diverged barrier: thread .* waits in __syncthreads .* waits in __syncthreads",
        ),
    ),
    "diverged_shuffle": Planted(
        by_64(lambda part: part + part[:, np.arange(64) ^ 1]),
        (
            "diverged warp: thread .* waits in __shfl_xor_sync .* has ended",
            "diverged warp: thread .* waits in __shfl_xor_sync .* waits in __syncwarp",
            "calls __shfl_xor_sync .* with the mask 000fffff, which does not name it",
        ),
    ),
    "never_ends": Planted(
        by_64(lambda part: np.repeat(part.sum(1), 64)),
        (*("is still running after 100000 steps",) * 3, "is still running after 0.1 s of CPU time without a step"),
    ),
}
# Of launches that would not end. The thread of the last one takes no steps, so that its time alone can end it.
LIMITS = {**{("never_ends", fault): dict(steps=100_000) for fault in (1, 2, 3)}, ("never_ends", 4): dict(seconds_of_a_step=0.1)}


def run_planted(name, fault, order, **options):
    planted = PLANTED[name]
    x = numbers()
    out = np.empty(planted.answer(x).shape, np.float32)
    macros = {"FAULT": fault} if fault else {}
    scalars = (np.int32(SIZE),) if planted.takes_size else ()
    run(
        kernel(f"faults/{name}.cu", **macros),
        {"input": x},
        {"out": out},
        scalars,
        grid=planted.grid,
        block=planted.block,
        order=order,
        **options,
    )
    return x, out


def lines_marked(name):
    lines = (FOLDER / "faults" / f"{name}.cu").read_text("utf-8").splitlines()
    return [f"{name}.cu:{number}" for number, line in enumerate(lines, 1) if "// caught here" in line]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PLANTED)
def test_a_kernel_without_fault_runs_and_is_right(name, order):
    x, out = run_planted(name, 0, order)
    np.testing.assert_array_equal(out, PLANTED[name].answer(x))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "fault"), [(name, i + 1) for name in PLANTED for i in range(len(PLANTED[name].errors))])
def test_a_planted_fault_is_caught_with_its_kernel_and_line(name, fault, order):
    with pytest.raises(EmulationError, match=PLANTED[name].errors[fault - 1]) as caught:
        run_planted(name, fault, order, limits=LIMITS.get((name, fault)))
    message = str(caught.value)
    assert f"kernel '{name}'" in message
    assert any(re.search(rf"{re.escape(line)}\b", message) for line in lines_marked(name)) or name == "never_ends", message


@pytest.mark.parametrize("order", ORDERS)
def test_a_launch_is_given_up_by_the_number_of_its_steps_and_not_by_the_time_they_take(order):
    steps = SIZE * (1 + 64 + 1)  # each thread starts, loads 64 elements and stores one
    run_planted("never_ends", 0, order, limits=dict(steps=steps))
    with pytest.raises(EmulationError, match=f"is still running after {steps - 1} steps"):
        run_planted("never_ends", 0, order, limits=dict(steps=steps - 1))


def test_a_race_is_one_whoever_comes_first():
    for order, happened in (
        ("forward", "writes byte 0 of .*, which thread .* read at"),
        ("reverse", "reads byte 0 of .* wrote at"),
    ):
        with pytest.raises(EmulationError, match=f"race: {happened} write_after_read.cu:"):
            run_planted("write_after_read", 1, order)


def test_a_fault_in_a_function_names_who_called_it():
    with pytest.raises(EmulationError, match=r"at out_of_bounds_read.cu:5: .*\n  called from out_of_bounds_read.cu:16"):
        run_planted("out_of_bounds_read", 1, "forward")


def test_an_output_that_nobody_wrote_is_known_by_its_element():
    x, out = numbers(), np.empty(SIZE, np.float32)
    machine = Emulator("forward", text)
    with machine.lending({"input": x}, {"out": out}):
        for fault, unwritten in (({}, []), ({"FAULT": 1}, [SIZE - 1])):
            machine.register(out, "out", writable=True)
            machine.bind(kernel("faults/unwritten_output.cu", **fault), 0, 2, 64, 0)(
                (x.ctypes.data, out.ctypes.data, np.int32(SIZE))
            )
            assert np.flatnonzero(machine.unwritten(out)).tolist() == unwritten
    assert np.isnan(out[-1])


# What a launch is given -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        ((), "takes 3 arguments, got 2"),
        ((np.int32(SIZE), np.int32(1)), "takes 3 arguments, got 4"),
        ((np.int64(SIZE),), "argument 2 is an integer of 4 bytes, got an integer of 8 bytes"),
        ((np.float32(SIZE),), "argument 2 is an integer of 4 bytes, got a floating-point number of 4 bytes"),
        ((SIZE,), "argument 2 is an integer of 4 bytes, got a pointer of 8 bytes"),
        (("128",), "a Python integer .* or a NumPy scalar, got '128'"),
    ],
    ids=["too few", "too many", "width", "kind", "pointer", "type"],
)
def test_arguments_that_the_kernel_does_not_take_are_refused(scalars, message):
    x = numbers()
    with pytest.raises(EmulationError, match=message):
        run(kernel("faults/unwritten_output.cu"), {"input": x}, {"out": np.empty_like(x)}, scalars, grid=2)


@pytest.mark.parametrize("address", [0, 8, 2**47 - 64, 2**63], ids=["null", "low", "high", "no address"])
def test_a_wild_pointer_is_an_error_and_not_a_crash(address):
    x = numbers()
    machine = Emulator(text=text)
    with machine.lending({"input": x}, {}), pytest.raises(EmulationError, match="stores 4 bytes it may not touch"):
        machine.bind(kernel("faults/out_of_bounds_write.cu"), 0, 2, 64, 0)((x.ctypes.data, address))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"block": 65}, "a block has from 1 to 64 threads"),
        ({"block": 0}, "a block has from 1 to 64 threads"),
        ({"grid": 0}, "a grid has from 1 to"),
        ({"shared": 228 * 1024}, "bytes of shared memory, got 233472"),
    ],
    ids=["block beyond the kernel's bounds", "empty block", "empty grid", "shared memory"],
)
def test_a_launch_that_no_device_takes_is_refused(sizes, message):
    x = numbers()
    with pytest.raises(EmulationError, match=message):
        run(kernel("faults/two_writers.cu"), {"input": x}, {"out": np.empty(64, np.float32)}, **{"grid": 2, **sizes})


def test_a_kernel_that_does_not_build_says_where():
    with pytest.raises(EmulationError, match=r"broken.cu:1:\d+: error"):
        Emulator(text=lambda file: '#line 1 "broken.cu"\nvoid broken( {}\n').bind(kernel("broken.cu"), 0, 1, 1, 0)


def test_a_read_only_array_is_not_stored_to():
    x, out = numbers(), numbers()
    with pytest.raises(EmulationError, match=r"stores 4 bytes it may not touch, at .*: byte 0 of out .* lent to be read"):
        run(kernel("faults/out_of_bounds_write.cu"), {"input": x, "out": out}, {}, grid=2)


def test_what_lies_between_the_elements_of_a_view_is_not_the_launchs():
    x = numbers(2 * SIZE)
    with pytest.raises(EmulationError, match=r"loads 4 bytes .* byte 4 of input .*between its elements"):
        run(kernel("faults/out_of_bounds_write.cu"), {"input": x[::2]}, {"out": np.empty(SIZE, np.float32)}, grid=2)


def test_an_output_lent_as_it_is_keeps_its_values():
    x, out = numbers(), numbers()
    run(kernel("faults/load_of_nothing.cu"), {"input": x}, {"out": out}, grid=2, poison=False)
    np.testing.assert_array_equal(out, x + 1)
    total = np.array([5], np.float32)
    run(kernel("checks/order.cu", "totals"), {"input": x}, {"total": total}, grid=2, poison=False)
    assert total == 5 + x.sum()


def test_the_account_counts_accesses_and_bytes():
    x, out = numbers(), np.empty(SIZE, np.float32)
    account = run(kernel("faults/removed_barrier.cu"), {"input": x}, {"out": out}, grid=2).account
    assert account == emulator.Account(128, 512, 128, 512, 128, 512, 128, 512, barriers=2, collectives=0, multiply_adds=0)
    assert run(kernel("faults/misaligned.cu"), {"input": x}, {"out": out}, grid=2, block=16).account.global_loads == 32


def in_sectors(size):
    """Return floats that begin at a sector of global memory."""
    space = np.zeros(size + 8, np.float32)
    return space[-space.ctypes.data % 32 // 4 :][:size]


@pytest.mark.parametrize(
    ("apart", "sectors", "passes"), [(1, 4, 1), (2, 8, 2), (3, 12, 1), (8, 32, 8), (32, 32, 32)], ids="{} apart".format
)
def test_traffic_is_counted_by_sectors_and_by_passes_over_the_banks(apart, sectors, passes):
    x, out = in_sectors(1024), in_sectors(32)
    machine = Emulator(text=text, traced=True)
    with machine.lending({"input": x}, {"out": out}):
        machine.bind(kernel("checks/traffic.cu"), 0, 1, 32, 0)((x.ctypes.data, out.ctypes.data, np.int32(apart)))
    found = {(place.kind, place.lines[-1]): (place.transactions, place.least) for place in machine.traffic}
    assert found == {
        ("global load", "traffic.cu:10"): (sectors, 4),
        ("shared store", "traffic.cu:10"): (passes, 1),
        ("shared store", "traffic.cu:11"): (4, 4),
        ("shared load", "traffic.cu:13"): (1, 1),
        ("shared load", "traffic.cu:14"): (passes, 1),
        ("global store", "traffic.cu:14"): (4, 4),
    }
    assert {place.lines for place in machine.traffic if place.kind == "global load"} == {("traffic.cu:4", "traffic.cu:10")}
    assert {place.accesses for place in machine.traffic} == {32}


# Threads --------------------------------------------------------------------------------------------------------------


def test_the_orders_run_threads_warps_and_blocks_as_they_say():
    """Blocks, their warps and the lanes of warps run forward, backward, or the odd ones before the even ones."""
    odd_first = np.r_[1:32:2, 0:32:2]
    forward = np.arange(SIZE)
    expected = {
        "forward": forward,
        "reverse": forward[::-1],
        "odd-even": np.concatenate([32 * warp + odd_first for warp in (3, 2, 1, 0)]),
    }
    for order in ORDERS:
        turn, counter = np.empty(SIZE, np.int32), np.zeros(1, np.int32)
        run(kernel("checks/order.cu", "turns"), {}, {"turn": turn, "counter": counter}, grid=2, order=order, poison=False)
        np.testing.assert_array_equal(np.argsort(turn), expected[order], order)


def test_shared_memory_is_nan_to_every_block():
    fixed, dynamic = np.empty(SIZE, np.float32), np.empty(SIZE, np.float16)
    run(kernel("checks/order.cu", "unwritten_shared"), {}, {"fixed": fixed, "dynamic": dynamic}, grid=2, shared=128)
    assert np.isnan(fixed).all()
    assert np.isnan(dynamic).all()


def test_atomic_additions_add_up():
    x = numbers()
    for order in ORDERS:
        total = np.zeros(1, np.float32)
        run(kernel("checks/order.cu", "totals"), {"input": x}, {"total": total}, grid=2, order=order, poison=False)
        assert total == x.sum()


LANE = np.arange(64) % 32
FIRST = np.arange(64) - LANE  # lane of each thread's warp


def shuffled_from(entry, argument, width):
    """Return the lane that each of 64 threads takes its value from, by the CUDA programming guide."""
    group, within = LANE // width * width, LANE % width
    return {
        "from_lane": group + argument % width,
        "from_below": np.where(within >= argument, LANE - argument, LANE),
        "from_above": np.where(within + argument < width, LANE + argument, LANE),
        "from_flipped": np.where((LANE ^ argument) < group + width, LANE ^ argument, LANE),
    }[entry]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("entry", ["from_lane", "from_below", "from_above", "from_flipped"])
def test_shuffles_take_the_value_of_the_lane_they_say(entry, width, order):
    x, out = numbers(64), np.empty(64, np.float32)
    for argument in (0, 1, 3, 9, 17, 31):
        run(kernel("checks/warp.cu", entry, WIDTH=width), {"input": x}, {"out": out}, (np.int32(argument),), order=order)
        np.testing.assert_array_equal(out, x[FIRST + shuffled_from(entry, argument, width)], f"argument {argument}")


def test_a_warp_may_be_shuffled_by_halves():
    x, out = numbers(64), np.empty(64, np.float32)
    for order in ORDERS:
        run(kernel("checks/warp.cu", "halves_of_warps"), {"input": x}, {"out": out}, order=order)
        np.testing.assert_array_equal(out, x[FIRST + np.where(LANE < 16, 3, 20)])


def test_a_lane_that_is_not_there_gives_a_nan():
    x, out = numbers(20), np.empty(20, np.float32)
    run(kernel("checks/warp.cu", "from_above"), {"input": x}, {"out": out}, (np.int32(4),), block=20)
    np.testing.assert_array_equal(out, np.append(x[4:], [np.nan] * 4))


@pytest.mark.parametrize("argument", [-1, 31, 60, 63])
def test_votes_count_the_lanes_that_agree(argument):
    x = numbers(64)
    holds = (x > argument).reshape(2, 32)
    expected = {
        "ballot": np.repeat((holds * (1 << np.arange(32, dtype=np.uint64))).sum(1), 32),
        "any": np.repeat(holds.any(1), 32),
        "all": np.repeat(holds.all(1), 32),
        "block_count": np.repeat(holds.sum(), 64),
        "block_or": np.repeat(holds.any(), 64),
        "block_and": np.repeat(holds.all(), 64),
    }
    for entry, answer in expected.items():
        out = np.empty(64, np.uint32)
        run(kernel("checks/warp.cu", entry), {"input": x}, {"out": out}, (np.int32(argument),))
        np.testing.assert_array_equal(out, answer.astype(np.uint32), entry)


# Conversions ----------------------------------------------------------------------------------------------------------


def converted(entry, values, to):
    out = np.empty(values.shape, to)
    run(
        kernel("checks/conversions.cu", entry),
        {"input": values},
        {"out": out},
        (np.int32(values.size),),
        grid=-(-values.size // 256),
        block=256,
    )
    return out


def same_bits(got, expected):
    """Check that numbers are equal with the signs of zeros; any NaN equals any other."""
    kind = f"u{got.itemsize}"
    differs = (got.view(kind) != expected.view(kind)) & ~(np.isnan(got) & np.isnan(expected))
    assert not differs.any(), f"{differs.sum()} differ: {got[differs][:5]}, expected {expected[differs][:5]}"


ALL_HALVES = np.arange(65536).astype(np.uint16).view(np.float16)


def around_ties():
    """Return doubles halfway between neighbouring halves and the next doubles on either side, and the half each rounds to."""
    below = ALL_HALVES[:0x7C00]  # the positive finite ones
    bits = np.arange(1, 0x7C01).astype(np.uint16)
    above = bits.view(np.float16).astype(np.float64)
    above[-1] = 65536  # where the next half would lie
    tie = (below.astype(np.float64) + above) / 2
    even = np.where(bits % 2 == 0, bits, bits - 1).astype(np.uint16).view(np.float16)
    values = np.concatenate([tie, np.nextafter(tie, 0), np.nextafter(tie, np.inf)])
    halves = np.concatenate([even, below, bits.view(np.float16)])
    return np.concatenate([values, -values]), np.concatenate([halves, -halves])


def many_doubles():
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**64, 200_000, np.uint64).view(np.float64)
    sized = random.standard_normal(200_000) * 2.0 ** random.integers(-30, 20, 200_000)
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 1e300, -1e300, 5e-324, 2**-24, 2**-25, 3e-8, 1e-40]
    )
    return np.concatenate([bits, sized, special])


def test_halves_become_floats_exactly():
    same_bits(converted("halves_to_floats", ALL_HALVES, np.float32), ALL_HALVES.astype(np.float32))


def test_floats_become_halves_rounded_to_nearest_even():
    with np.errstate(all="ignore"):
        floats = np.concatenate([many_doubles().astype(np.float32), ALL_HALVES.astype(np.float32)])
        expected = floats.astype(np.float16)
    same_bits(converted("floats_to_halves", floats, np.float16), expected)


def test_doubles_become_halves_rounded_once():
    values, expected = around_ties()
    same_bits(converted("doubles_to_halves", values, np.float16), expected)
    doubles = many_doubles()
    with np.errstate(all="ignore"):
        expected = doubles.astype(np.float16)
    same_bits(converted("doubles_to_halves", doubles, np.float16), expected)


def test_doubles_become_floats_towards_zero():
    doubles = many_doubles()
    with np.errstate(all="ignore"):
        nearest = doubles.astype(np.float32)
        too_far = np.abs(nearest.astype(np.float64)) > np.abs(doubles)
        expected = np.where(too_far, np.nextafter(nearest, np.float32(0)), nearest)
    same_bits(converted("doubles_towards_zero", doubles, np.float32), expected)


def test_multiply_add_rounds_once():
    """(1 + e)^2 - 1 = 2 e + e^2 has more bits than the square rounded to float keeps."""
    values = 1 + np.arange(1, 1000) * 2.0**-20
    exact = values * values - 1
    got = converted("products_rounded_once", values, np.float32)
    np.testing.assert_array_equal(got, exact.astype(np.float32))
    assert (got != (values * values).astype(np.float32) - 1).any()


def test_a_floats_bits_come_back():
    with np.errstate(all="ignore"):
        floats = many_doubles().astype(np.float32)
    same_bits(converted("bits_and_back", floats, np.float32), floats)


# Tensor cores: the layouts are those of the PTX manual, mma.m16n8k16, mma.m16n8k8 and ldmatrix ------------------------


def places(registers, elements, place):
    """(rows, columns) of element e of register r of each lane, by a formula of group = lane / 4, thread = lane % 4 and i."""
    lane, register, element = np.ogrid[:32, :registers, :elements]
    rows, columns = place(lane // 4, lane % 4, register * elements + element)
    shape = (32, registers, elements)
    return np.broadcast_to(rows, shape), np.broadcast_to(columns, shape)


A_16 = places(4, 2, lambda group, thread, i: (group + 8 * (((i >= 2) & (i < 4)) | (i >= 6)), 2 * thread + i % 2 + 8 * (i >= 4)))
B_16 = places(2, 2, lambda group, thread, i: (2 * thread + i % 2 + 8 * (i >= 2), group))
A_32 = places(4, 1, lambda group, thread, i: (group + 8 * ((i == 1) | (i == 3)), thread + 4 * (i >= 2)))
B_32 = places(2, 1, lambda group, thread, i: (thread + 4 * i, group))
C = places(4, 1, lambda group, thread, i: (group + 8 * (i >= 2), 2 * thread + i % 2))

MMA = {
    "mma_m16n8k16_f16": (np.uint16, A_16, B_16, lambda x: x.astype(np.float16)),
    "mma_m16n8k16_bf16": (np.uint16, A_16, B_16, lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)),
    "mma_m16n8k8_tf32": (np.uint32, A_32, B_32, lambda x: x.astype(np.float32)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MMA)
def test_mma_multiplies_matrices_laid_out_as_in_the_manual(name, order):
    element, place_a, place_b, narrowed = MMA[name]
    depth = 8 if element == np.uint32 else 16
    random = np.random.default_rng(2)
    a, b = random.integers(-100, 100, (16, depth)), random.integers(-100, 100, (depth, 8))
    c = random.integers(-1000, 1000, (16, 8)).astype(np.float32)
    registers = [
        narrowed(matrix).view(element)[place].reshape(32, -1).view(np.uint32) for matrix, place in ((a, place_a), (b, place_b))
    ]
    fragments = {"a": registers[0], "b": np.pad(registers[1], ((0, 0), (0, 2))), "c": np.ascontiguousarray(c[C].reshape(32, 4))}
    d = np.empty((32, 4), np.float32)
    run(kernel("checks/tensor_cores.cu", "product", MMA=name, INDEX="int"), fragments, {"d": d}, block=32, order=order)
    np.testing.assert_array_equal(d, (a @ b + c)[C].reshape(32, 4))


def test_tf32_reads_ten_bits_of_the_fraction():
    fine = np.zeros((32, 4), np.float32)
    fine[:, 0] = np.float32(1 + 2**-10 + 2**-11)
    d = np.empty((32, 4), np.float32)
    ones = {"a": fine.view(np.uint32), "b": np.ones((32, 4), np.float32).view(np.uint32), "c": np.zeros((32, 4), np.float32)}
    run(kernel("checks/tensor_cores.cu", "product", MMA="mma_m16n8k8_tf32", INDEX="int"), ones, {"d": d}, block=32)
    assert d[0, 0] == 4 * (1 + 2**-10)


def test_numbers_are_rounded_to_the_nearest_tf32():
    rounded = {
        1 + 2**-10: 1 + 2**-10,
        1 + 2**-12: 1,
        1 + 2**-11: 1 + 2**-10,  # ties away from zero
        -1 - 2**-11: -1 - 2**-10,
        1 + 2**-10 - 2**-20: 1 + 2**-10,
        float(np.finfo(np.float32).max): np.inf,
        -np.inf: -np.inf,
        -0.0: -0.0,
        np.nan: np.nan,
    }
    x = np.resize(np.array(list(rounded), np.float32), 32)
    out = np.empty(32, np.float32)
    run(kernel("checks/tensor_cores.cu", "rounded", INDEX="int"), {"from": x}, {"to": out}, block=32)
    same_bits(out, np.resize(np.array(list(rounded.values()), np.float32), 32))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("count", [2, 4])
def test_ldmatrix_deals_out_rows_or_columns(count, transposed, order):
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    out = np.empty((32, count), np.uint32)
    run(
        kernel("checks/tensor_cores.cu", "fragments_of_matrices", COUNT=count, TRANSPOSED=int(transposed), INDEX="int"),
        {"matrices": matrices},
        {"out": out},
        block=32,
        order=order,
    )
    lane, matrix = np.ogrid[:32, :count]
    pairs = [(lane // 4, 2 * (lane % 4) + element) for element in range(2)]
    low, high = (matrices[(matrix, *(place[::-1] if transposed else place))].astype(np.uint32) for place in pairs)
    np.testing.assert_array_equal(out, low | high << 16)


@pytest.mark.parametrize(
    ("shift", "message"),
    [(1, "reads 16 bytes at an address that is not a multiple of 16"), (8, "reads 16 bytes out of the bounds of shared memory")],
    ids=["misaligned", "out of bounds"],
)
def test_ldmatrix_takes_whole_aligned_rows(shift, message):
    asked = kernel("checks/tensor_cores.cu", "fragments_of_matrices", COUNT=4, TRANSPOSED=0, SHIFT=shift, INDEX="int")
    with pytest.raises(EmulationError, match=message):
        run(asked, {"matrices": np.zeros(256, np.uint16)}, {"out": np.empty(128, np.uint32)}, block=32)


def test_a_tensor_core_instruction_needs_a_whole_warp():
    with pytest.raises(EmulationError, match="needs all 32 lanes"):
        run(
            kernel("checks/tensor_cores.cu", "fragments_of_matrices", COUNT=2, TRANSPOSED=0, INDEX="int"),
            {"matrices": np.zeros(128, np.uint16)},
            {"out": np.empty(64, np.uint32)},
            block=31,
        )


@pytest.mark.parametrize("order", ORDERS)
def test_copies_land_group_by_group_and_zeros_where_there_is_no_source(order):
    x, out = numbers(384), np.empty(32, np.float32)
    run(
        kernel("checks/tensor_cores.cu", "pipeline", INDEX="int"),
        {"input": x},
        {"out": out},
        (np.int32(384),),
        block=32,
        order=order,
    )
    np.testing.assert_array_equal(out, x.reshape(3, 32, 4).sum((0, 2))[::-1])


def test_copies_do_not_land_before_their_group_is_waited_for():
    x, out = numbers(384), np.empty(32, np.float32)
    with pytest.raises(EmulationError, match=r"reads byte .* has not been waited for"):
        run(
            kernel("checks/tensor_cores.cu", "pipeline", PENDING=2, INDEX="int"),
            {"input": x},
            {"out": out},
            (np.int32(384),),
            block=32,
        )


# Sanitizers, fibres and builds ----------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import test_emulator as tests
x, out = tests.numbers(), tests.np.empty(tests.SIZE, tests.np.float32)
size = tests.np.int32(tests.SIZE)
tests.run(tests.kernel("faults/undeclared.cu", FAULT={fault}), dict(input=x), dict(out=out), (size,), grid=2)
assert (out == x).all()
"""


def sanitized_run(fault):
    return emulator.sanitized((sys.executable, "-c", PROGRAM.format(path=[str(Path(__file__).parent), *sys.path], fault=fault)))


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (1, "index 128 out of bounds"),
        (2, "heap-buffer-overflow"),
        (3, "use-after-poison"),
        (4, "signed integer overflow"),
    ],
    ids=["local array", "input", "shared array", "overflow"],
)
def test_sanitizers_find_what_no_accessor_sees(fault, finding):
    done = sanitized_run(fault)
    assert done.returncode != 0
    assert finding in done.stderr
    assert "undeclared.cu:" in done.stderr


@pytest.mark.sanitizer
def test_sanitizers_find_nothing_in_kernels_without_fault_and_errors_stay_errors():
    assert sanitized_run(0).returncode == 0
    done = emulator.run_sanitized(__file__, "-k", "without_fault_runs or removed_barrier or diverged or copies_land")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_fibres_run_on_processors_whose_switch_is_not_written_out():
    program = f"""
import sys, ctypes
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from emulator import build, launch
portable = ctypes.CDLL(str(build.machine(("-DFIBRE_UCONTEXT",))), mode=ctypes.RTLD_GLOBAL)
launch._machine = lambda: portable
import test_emulator as tests
for name, planted in tests.PLANTED.items():
    x, out = tests.run_planted(name, 0, "odd-even")
    assert (out == planted.answer(x)).all(), name
"""
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_built_is_not_built_again(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPYCORR_EMULATOR_CACHE", str(tmp_path))
    first = build.kernel(text("faults/two_writers.cu"), "two_writers", ())
    other = build.kernel(text("faults/two_writers.cu"), "two_writers", ("-DFAULT=1",))
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert build.kernel(text("faults/two_writers.cu"), "two_writers", ()) == first != other
    assert sorted(tmp_path.iterdir()) == sorted([first, other])


@pytest.mark.parametrize("required", ["CUPYCORR_REQUIRE_EMULATOR", "CUPYCORR_REQUIRE_SOFTWARE_CUDA"])
def test_without_a_compiler_tests_are_skipped_or_fail_as_asked(required, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    for name in build.REQUIRED:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs g"):
        emulator.require_compiler()
    monkeypatch.setenv(required, "1")
    with pytest.raises(pytest.fail.Exception, match="needs g"):
        emulator.require_compiler()
