"""forward_tiled.cu: every tile of the table is right wherever it fits, and moves no more than its tiles hold.

That the route as the dispatch takes it is right is in test_kernels_emulated.py; here tiles are chosen by the test.
"""

import math
from dataclasses import replace
from itertools import product

import cases
import emulated
import numpy as np
import oracle
import pytest
import tilings
from cases import DTYPES
from emulated import correlate, launched_by
from emulator import ORDERS, Emulator, require_compiler, run_sanitized
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import aligned, channels_last
from tilings import H200

from cupycorr._correlation.gpu import forward_tiled, one_pixel
from cupycorr._correlation.gpu.forward_tiled import CHANNELWISE, COLUMNWISE, COPIED, TILES
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._gpu import source
from cupycorr._gpu.call import Pointer
from cupycorr._gpu.layout import layout
from cupycorr._gpu.sum_parts import sum_parts

require_compiler()

SECTOR = 32
STAGINGS = {COPIED: "copied", COLUMNWISE: "columnwise", CHANNELWISE: "channelwise"}


class Asked(tilings.Asked):
    module = forward_tiled

    def tilings(self):
        return forward_tiled.tilings(*self.lines, self.arrays)


# Tiles ------------------------------------------------------------------------------------------------------------------------


def shapes(number, tile, staging):
    """A case with a tile and a bit more along every axis, for one of the dtypes that can be staged so."""
    steps = tile.phases if tile.phases > 1 else 1
    dtypes = [name for name in DTYPES if forward_tiled._is_built(tile, staging, name)]
    patch = (tile.patch_rows + 1 if tile.patch_rows > 1 else 1, tile.groups * tile.displacements + 2)
    columns = tile.phases * tile.lanes_x * 4
    shape = (2, 2 * tile.channels + 3, steps * tile.tile_rows + 3, columns + 5)
    return cases.same(shape, dtypes[number % len(dtypes)], patch_size=patch, dilation_patch=steps, scale=0.5)


EVERY = [(number, staging) for number, tile in enumerate(TILES) for staging in tile.stagings]
every_tile = pytest.mark.parametrize(("number", "staging"), EVERY, ids=[f"{number} {STAGINGS[way]}" for number, way in EVERY])


@pytest.mark.slow
@every_tile
def test_every_tile_equals_the_oracle_with_a_bit_more_than_a_tile_along_every_axis(number, staging):
    tile = TILES[number]
    case = shapes(number, tile, staging)
    lay = {COPIED: aligned, COLUMNWISE: aligned, CHANNELWISE: channels_last}[staging]
    if staging == COLUMNWISE and case.dtype in ("float32", "float64"):
        lay = lambda x: np.repeat(x, 2, axis=3)[..., ::2]  # noqa: E731 - columns that cannot be copied as they lie
    given = Asked(case, lay)
    tilings = [each for each in given.tilings() if each.tile is tile]
    assert {each.staging for each in tilings} == {staging}
    first, *_ = tilings
    bits = {given.run(first, Emulator(order)).tobytes() for order in ORDERS}
    assert len(bits) == 1, "the result depends on the order of threads"
    oracle.assert_close(given.out, given.want)


@pytest.mark.slow
@settings(max_examples=40)
@given(case=cases.problems(most=11).map(cases.ascending), lay=st.sampled_from([aligned, channels_last]), data=st.data())
def test_any_tile_that_fits_a_drawn_problem_equals_the_oracle(case, lay, data):
    given = Asked(case, lay)
    tilings = list(given.tilings())
    if tilings:
        given.check(data.draw(st.sampled_from(tilings)), data.draw(st.sampled_from(ORDERS)))


WINDOWS = {
    "window over two phases": dict(kernel_size=3, patch_size=(3, 5), dilation_patch=(1, 2)),
    "strided window over two phases": dict(
        kernel_size=(1, 3), patch_size=7, stride=(1, 3), dilation=(1, 3), dilation_patch=(2, 2)
    ),
    "taps as far apart as displacements": dict(kernel_size=3, patch_size=3, dilation=2, dilation_patch=2, stride=2, padding=1),
    "window along one axis": dict(kernel_size=(4, 1), patch_size=(2, 9), stride=(3, 1)),
    "coprime stride and step": dict(kernel_size=2, patch_size=3, stride=2, dilation=3, dilation_patch=3),
}


@pytest.mark.parametrize("parameters", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows_are_summed_within_tiles(parameters):
    given = Asked(cases.same((1, 6, 23, 71), **parameters))
    tilings = list(given.tilings())
    assert tilings
    for tiling in tilings:
        given.check(tiling)


@pytest.mark.parametrize("beyond", [4, 8, 16], ids="{} bytes beyond a line".format)
@pytest.mark.parametrize("patch", [7, 9], ids="P {}".format)
def test_rows_that_begin_anywhere_are_copied_in_pieces_that_fit(beyond, patch):
    given = Asked(cases.same((1, 9, 9, 44), patch_size=patch), lambda x: aligned(x, beyond))
    tiling = next(each for each in given.tilings() if each.staging == COPIED)
    emulator = Emulator()
    oracle.assert_close(given.run(tiling, emulator), given.want)
    # The halo of 9 displacements begins at a multiple of 16 bytes, that of 7 does not.
    assert (emulator.account.global_load_bytes == 16 * emulator.account.global_loads) == (beyond == 16 and patch == 9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("splits", [1, 3, 5])
def test_channels_in_parts_give_the_same_sums(splits, dtype):
    given = Asked(cases.same((2, 37, 6, 17), dtype, patch_size=9, scale=-0.5))
    tiling = replace(next(given.tilings()), splits=splits)
    given.check(tiling)


def test_more_channels_than_one_chain_of_sums_may_have_are_parted():
    given = Asked(cases.same((1, 3 * LONGEST_CHAIN.cuda, 3, 5), patch_size=3))
    for tiling in given.tilings():
        assert math.ceil(3 * LONGEST_CHAIN.cuda / tiling.splits) <= LONGEST_CHAIN.cuda * tiling.tile.warp_splits


def test_sums_of_parts_keep_to_their_room_whatever_the_problem(monkeypatch):
    case = cases.same((3, 2 * LONGEST_CHAIN.cuda, 5, 6), patch_size=(4, 3))
    x1, x2, _ = case.arrays()
    plans = []
    whole = 2 * math.prod(case.out_shape()) * 4
    monkeypatch.setattr(one_pixel, "PARTIAL_SUMS_BYTES", whole // 5)
    with launched_by(monkeypatch, emulator := Emulator()):
        planned = emulated.planned
        monkeypatch.setattr(emulated, "planned", lambda *request: plans.append(planned(*request)) or plans[-1])
        out = correlate(emulator, "tiled", x1, x2, **case.parameters)
    oracle.assert_close(out, oracle.forward(x1, x2, **case.parameters))
    assert 0 < plans[0].workspace <= whole // 5
    assert len(emulator.accounts) > 2


def test_what_no_tile_answers_has_a_reason():
    reasons = {
        "a window of 40 x 40 taps does not fit into any tile": dict(kernel_size=40),
        "a window's taps 1 pixels apart are not whole displacements of 3": dict(kernel_size=2, dilation_patch=3, patch_size=3),
        "positions of up to": dict(padding=2**31, stride=2**30, kernel_size=2),
    }
    for reason, parameters in reasons.items():
        given = Asked(cases.Case((1, 1, 50, 50), (1, 1, 50, 50), parameters))
        assert given.why_not().startswith(reason)
        assert given.best() is None


# What is chosen ---------------------------------------------------------------------------------------------------------------


def test_channels_are_split_over_blocks_where_positions_are_few():
    for shape in ((1, 512, 19, 34), (1, 196, 7, 16)):
        tiling = Asked(cases.same(shape, patch_size=9)).best()
        assert tiling.splits > 1
        assert H200.multiprocessors // 4 < tiling.blocks <= 2 * H200.multiprocessors


# Accounts ---------------------------------------------------------------------------------------------------------------------

FLOWNETC = cases.same((1, 32, 40, 64), patch_size=21, dilation_patch=2)
ACCOUNTS = {
    "FlowNetC": (FLOWNETC, aligned),
    "PWC-Net": (cases.same((1, 32, 32, 96), patch_size=9), aligned),
    "LiteFlowNet, strided": (cases.same((1, 16, 64, 128), patch_size=7, stride=2, dilation_patch=2), channels_last),
    "PWC-Net, channels last": (cases.same((1, 32, 32, 96), patch_size=9), channels_last),
    "PWC-Net in double": (cases.same((1, 16, 32, 64), "float64", patch_size=9), aligned),
    "local attention": (cases.same((1, 16, 40, 64), patch_size=15), aligned),
    "stereo": (cases.same((1, 16, 16, 320), patch_size=(1, 64), patch_offset=(0, -32)), aligned),
    "few positions": (cases.same((1, 64, 8, 16), patch_size=9), aligned),
}

# Faults that are known and not mended yet: a test that passes again fails.
TOO_MUCH = (
    "the tile that the cost model chooses for a patch of 15 loads twice the bytes of its tiles, in all it moves 1.58 times them"
)
KNOWN = {"local attention": pytest.mark.xfail(strict=True, raises=AssertionError, reason=TOO_MUCH)}


LINES = (source.folder() / "correlation/forward_tiled.cuh").read_text().splitlines()
MAIN_LOOP = {f"forward_tiled.cuh:{number}" for number, text in enumerate(LINES, 1) if "load_shared_vectors(" in text}


def spans(axis, size, positions, displacements, step):
    """For each tile along an axis of stride 1: its first position and how many there are, for each tile of displacements."""
    phases = step if positions[1] == 1 else 1
    for phase, first in product(range(phases), range(0, math.ceil(size / phases), positions[0])):
        at = [phase + phases * p for p in range(first, first + positions[0]) if phase + phases * p < size]
        for patch in range(0, axis.patch, displacements):
            moved = [axis.first_displacement + axis.step * n for n in range(patch, min(patch + displacements, axis.patch))]
            met = {p + d for p, d in product(at, moved)} & set(range(axis.size2))
            yield len(at), len(moved), len(met)


def ideal_bytes(given, tiling):
    """Each block's tile of input1, what of input2 that meets, and its outputs, once; blocks that meet nothing only store."""
    tile, itemsize = tiling.tile, given.x1.itemsize
    step_y, step_x = given.problem.vertical.step, given.problem.horizontal.step
    rows = list(spans(given.problem.vertical, given.x1.shape[2], (tile.tile_rows, 1), tile.patch_rows, step_y))
    width = tile.columns(given.arrays.sum_bytes)
    columns = list(
        spans(given.problem.horizontal, given.x1.shape[3], (width, tile.phases), tile.groups * tile.displacements, step_x)
    )
    channels, moved = given.x1.shape[1], 0
    for (height, patch_rows, met_rows), (across, patch_columns, met_columns) in product(rows, columns):
        if met_rows:
            moved += channels * (height * across + met_rows * met_columns)
        moved += height * patch_rows * across * patch_columns
    return moved * itemsize


def both_phases(given):
    return next(each for each in given.tilings() if each.tile.phases == 2)


def traced(given, tiling):
    emulator = Emulator(traced=True)
    given.run(tiling, emulator)
    oracle.assert_close(given.out, given.want)
    return emulator


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "lay"), [pytest.param(*each, id=name, marks=KNOWN.get(name, ())) for name, each in ACCOUNTS.items()]
)
def test_a_block_moves_its_tiles_in_whole_sectors_and_reads_shared_memory_without_conflicts(case, lay):
    given = Asked(case, lay)
    tiling = both_phases(given) if case is FLOWNETC else replace(given.best(), splits=1)
    traffic = traced(given, tiling).traffic
    if case.parameters.get("stride", 1) == 1:
        moved = SECTOR * sum(each.transactions for each in traffic if each.kind.startswith("global"))
        assert moved <= 1.3 * ideal_bytes(given, tiling)
    main_loop = [each for each in traffic if each.kind == "shared load" and set(each.lines) & MAIN_LOOP]
    assert len(main_loop) == 2
    for each in main_loop:
        assert each.bytes == 16 * each.accesses
        assert each.transactions == 4 * each.requests, "a quarter of a warp at a time, each in one pass over the banks"


def loaded(account):
    """Bytes for each multiply-add."""
    return (account.global_load_bytes + account.shared_load_bytes) / account.multiply_adds


@pytest.mark.slow
def test_flownetc_loads_an_eighth_of_what_the_direct_kernel_loads(monkeypatch):
    given = Asked(FLOWNETC)
    given.run(both_phases(given), tiled := Emulator())
    small = cases.same((1, 2, 8, 10), **FLOWNETC.parameters)
    with launched_by(monkeypatch, direct := Emulator()):
        correlate(direct, "direct", *small.arrays()[:2], **small.parameters)
    assert loaded(direct.account) == 2 * 4
    assert loaded(tiled.account) <= 1
    # Those that lie outside, in part of a warp's rows or of a row, are made although they are of no use.
    assert tiled.account.multiply_adds <= 1.5 * given.problem.flops_inside() / 2


# Beneath the accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
def test_the_kernel_runs_clean_under_address_and_undefined_behaviour_sanitizers():
    done = run_sanitized(__file__, "-k", "pieces or room or told_apart or summed_within_tiles")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(("patch", "dtype", "step"), [(9, "float16", 1), (9, "float16", 2), (9, "float32", 1), (7, "float32", 1)])
def test_rows_that_begin_where_16_bytes_do_are_loaded_16_bytes_at_a_time(patch, dtype, step):
    # The halo of 9 displacements begins with the row, that of 7 a position later: there, where tiles may have leading columns.
    given = Asked(cases.same((1, 5, 9, 64), dtype, patch_size=patch, dilation_patch=step, patch_offset=(0, 4 * step)))
    whole = [each for each in given.tilings() if each.tile.phases == step and each.vector_width * given.x1.itemsize == 16]
    assert whole
    assert all(each.leading_columns for each in whole) == (patch == 7)
    for tiling in whole:
        oracle.assert_close(given.run(tiling, emulator := Emulator()), given.want)
        assert emulator.account.global_load_bytes == 16 * emulator.account.global_loads


@pytest.mark.parametrize("start", [0, 1, 7], ids="{} columns in".format)
def test_copies_that_part_the_phases_load_little_more_than_each_number_inside_once_a_block(start):
    padding = ((0, 0), (0, 0), (0, 0), (start, 0))
    given = Asked(cases.same((1, 9, 16, 68), patch_size=7, dilation_patch=2), lambda x: aligned(np.pad(x, padding))[..., start:])
    parted = [replace(each, splits=1) for each in given.tilings() if each.tile.phases == 2 and each.tile.displacements == 7]
    assert {each.staging for each in parted} == {COPIED}
    for tiling in parted:
        oracle.assert_close(given.run(tiling, emulator := Emulator()), given.want)
        account = emulator.accounts[0]
        ideal = ideal_bytes(given, tiling)
        assert ideal <= account.global_load_bytes + account.global_store_bytes <= 1.02 * ideal


def test_phases_of_outputs_and_of_patch_indices_are_told_apart():
    given = Asked(cases.same((1, 3, 11, 13), patch_size=(33, 21), stride=(2, 3), dilation_patch=(3, 2)))
    for tiling in given.tilings():
        given.check(tiling)


OUTSIDE = {
    "one phase": dict(patch_size=9, padding=3),
    "both phases": dict(patch_size=9, dilation_patch=2, padding=3),
    "coprime stride and step": dict(patch_size=5, stride=2, dilation_patch=3, padding=2),
    "windows": dict(kernel_size=2, patch_size=3, padding=2),
}


@pytest.mark.parametrize("infinite", ["x1", "x2"])
@pytest.mark.parametrize("parameters", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_is_outside_an_image_is_not_multiplied_by_what_is_infinite_in_the_other(parameters, infinite):
    given = Asked(cases.same((1, 3, 10, 71), **parameters))  # rows that end, as they begin, between two of a thread
    getattr(given, infinite)[...] = np.inf
    with np.errstate(invalid="ignore"):
        want, *_ = oracle.forward(given.x1, given.x2, **parameters)
    for tiling in given.tilings():
        assert np.array_equal(np.isfinite(given.run(tiling, Emulator())), np.isfinite(want)), tiling.how


def test_blocks_whose_rows_meet_nothing_load_nothing():
    given = Asked(cases.same((1, 5, 9, 40), patch_size=3, patch_offset=(30, 0)))
    for tiling in given.tilings():
        given.run(tiling, emulator := Emulator())
        assert not given.out.any()
        assert emulator.accounts[0].global_loads == 0


def test_many_partial_sums_keep_the_error_bound():
    partial, out = aligned(np.full((20000, 4), 0.1, np.float32)), aligned(np.zeros(4, np.float32))
    call = sum_parts((layout("partial", partial), Pointer("partial")), (layout("out", out), Pointer("out")), 1.0)
    emulator = Emulator()
    with emulator.lending({"partial": partial}, {"out": out}):
        launch = emulator.bind(call.kernel, 0, call.blocks, call.threads, call.shared, call.scalars)
        launch((partial.ctypes.data, out.ctypes.data))
    want = partial.astype(np.float64).sum(axis=0)
    oracle.assert_close(out, (want, want, np.array(len(partial))))
