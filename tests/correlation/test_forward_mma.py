"""forward_mma.cu: every tile of the table is right wherever it fits, and multiplies and moves little beside what it must.

That the route as the dispatch takes it is right is in test_kernels_emulated.py; here tiles are chosen by the test.
"""

from dataclasses import replace
from itertools import product

import cases
import numpy as np
import oracle
import pytest
import tilings
from emulator import ORDERS, Emulator, require_compiler, run_sanitized
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import aligned, channels_last, every_other_column, far_apart
from tilings import H200

from cupycorr._correlation.gpu import forward_mma, one_pixel
from cupycorr._correlation.gpu.axes import line
from cupycorr._correlation.gpu.forward_mma import DTYPES, TILES
from cupycorr._correlation.gpu.forward_phases import CHANNELWISE, Arrays
from cupycorr._correlation.problem import parameters, problem
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._gpu import source
from cupycorr._gpu.call import kernel
from cupycorr._gpu.layout import dense_layout, layout

require_compiler()

SECTOR = 32
DEVICE = replace(H200, compute_capability=(9, 0))


class Asked(tilings.Asked):
    module = forward_mma

    def tilings(self, device=DEVICE):
        return forward_mma.tilings(*self.lines, self.arrays, device)

    def best(self, device=DEVICE):
        return super().best(device)

    def with_tile(self, number):
        """A tiling with that tile, channels whole and one pass."""
        return next(each for each in self.tilings() if each.tile is TILES[number])

    def check(self, tiling, order="forward"):
        accumulator = "tf32" if self.x1.dtype == np.float32 else None
        oracle.assert_close(self.run(tiling, Emulator(order)), self.want, accumulator, name=tiling.how)


def of_two_bytes_beyond(array):
    """An array whose rows of 16-bit numbers begin where no asynchronous copy can."""
    return aligned(array, 2 if array.itemsize == 2 else 4)


LAYS = {
    "rows": aligned,
    "channels last": channels_last,
    "beyond": of_two_bytes_beyond,
    "every other column": every_other_column,
}


# Tiles ------------------------------------------------------------------------------------------------------------------------


def dtype_of(number):
    """A dtype that there are builds of a tile for, not the same one for all of them."""
    return next(dtype for dtype in (*DTYPES[number % len(DTYPES) :], *DTYPES) if TILES[number].results(dtype))


def case_of(number, dtype):
    """A case with a tile and a bit more along every axis, and channels that fill every stage and a bit of the first again."""
    tile = TILES[number]
    step, channels = tile.phases, tile.stages * tile.stage_channels(cases.DTYPES[dtype].itemsize) + 3
    patch = (min(tile.pass_rows, 9) + 1 if tile.pass_rows > 1 else 1, tile.displacements - 2)
    shape = (2, channels, step * tile.tile_rows + 3, tile.columns[0] + 5)
    return cases.same(shape, dtype, patch_size=patch, dilation_patch=step, scale=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(TILES)))
def test_every_tile_equals_the_oracle_with_a_bit_more_than_a_tile_along_every_axis(number):
    dtype = dtype_of(number)
    case = case_of(number, dtype)
    given = Asked(case, channels_last if TILES[number].staging == CHANNELWISE else aligned, np.float32 if number % 2 else None)
    tiling = given.with_tile(number)
    bits = {given.run(tiling, Emulator(order)).tobytes() for order in ORDERS}
    assert len(bits) == 1, "the result depends on the order of threads"
    given.check(tiling)


@pytest.mark.slow
@settings(max_examples=40)
@given(case=cases.problems(most=13, dtypes=DTYPES).map(cases.ascending), lay=st.sampled_from(list(LAYS.values())), data=st.data())
def test_any_tile_that_fits_a_drawn_problem_equals_the_oracle(case, lay, data):
    one_pixel = replace(case, parameters=case.parameters | dict(kernel_size=1))
    given = Asked(one_pixel, lay)
    given.check(data.draw(st.sampled_from(list(given.tilings()))), data.draw(st.sampled_from(ORDERS)))


@pytest.mark.slow
@pytest.mark.parametrize("lay", LAYS.values(), ids=LAYS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 7, 40])
def test_channels_that_end_within_a_stage_or_a_run_count_to_the_last(channels, dtype, lay):
    given = Asked(cases.same((1, channels, 3, 19), dtype, patch_size=(2, 5)), lay)
    for tiling in given.tilings():
        given.check(tiling)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "patch", "dtype"),
    # Where both phases share a block, elements of 32 bits are copied one by one, each to the plane of its phase.
    [(1, 7, "bfloat16"), (1, 7, "float32"), (1, 9, "float32"), (2, 7, "bfloat16")],
)
def test_rows_that_begin_where_16_bytes_do_are_loaded_16_bytes_at_a_time_whatever_their_phases(step, patch, dtype):
    # The halo of 9 displacements begins with the row, that of 7 a position later: there, where tiles may have leading columns.
    given = Asked(cases.same((1, 9, 5, 64), dtype, patch_size=(2, patch), dilation_patch=step, patch_offset=(0, 4 * step)))
    whole = [each for each in given.tilings() if each.tile.phases == step and each.vector_width * given.x1.itemsize == 16]
    assert whole
    assert all(each.leading_displacements for each in whole) == (patch == 7)
    for tiling in whole:
        given.check(tiling)
        given.run(tiling, emulator := Emulator())
        assert emulator.account.global_load_bytes == 16 * emulator.account.global_loads


def columns_apart(array, distance):
    """An array whose columns are so many elements apart, with rows that begin at a multiple of 16 bytes."""
    if distance > 0:
        return aligned(array.repeat(distance, axis=3))[..., ::distance]
    width = array.shape[3]
    return aligned(np.pad(array[..., ::-1], [(0, 0)] * 3 + [(1, 7)]))[..., width:0:-1]


@pytest.mark.parametrize("number", [0, 20], ids=["one split", "splits of warps"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("distance", [3, 5, -1])
def test_columns_that_are_not_neighbours_are_moved_one_by_one(distance, dtype, number):
    # Distances that are 1 more than a multiple of a vector, as that of neighbours is.
    given = Asked(cases.same((1, 9, 3, 64), dtype, patch_size=(2, 9)), lambda x: columns_apart(x, distance))
    given.check(given.with_tile(number))


@pytest.mark.parametrize("number", [0, 23], ids=["one phase", "both phases"])
@pytest.mark.parametrize("beyond", [2, 4, 8], ids="{} bytes beyond a line".format)
def test_images_that_begin_anywhere_are_moved_in_pieces_that_fit(beyond, number):
    for both in ((beyond, 0), (0, beyond)):
        each = iter(both)
        case = cases.same((1, 9, 3, 64), "bfloat16", patch_size=(2, 9), dilation_patch=TILES[number].phases)
        given = Asked(case, lambda x, each=each: aligned(x, next(each)))
        given.check(given.with_tile(number))


APART = {
    "rows": (aligned, every_other_column),
    "channels last": (channels_last, lambda x: channels_last(np.repeat(x, 2, axis=3))[..., ::2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("step", [1, 2], ids=["one phase", "both phases"])
@pytest.mark.parametrize("lays", APART.values(), ids=APART.keys())
def test_images_of_two_sizes_that_lie_each_its_own_way_equal_the_oracle(lays, step, dtype):
    parameters = dict(patch_size=(4, 7), patch_offset=(step, 6 * step), dilation_patch=step)
    lay = iter(lays)
    given = Asked(cases.Case((2, 35, 4, 12), (2, 35, 9, 30), parameters, dtype), lambda x: next(lay)(x))
    for tiling in given.tilings():
        if tiling.splits == tiling.passes == 1:
            given.check(tiling)


@pytest.mark.slow
def test_phases_of_outputs_and_of_patch_indices_are_told_apart_in_every_pass():
    parameters = dict(patch_size=(33, 21), stride=(2, 3), dilation_patch=(3, 2), padding=4)
    given = Asked(cases.same((1, 3, 7, 9), "float16", **parameters))
    assert {each.passes for each in given.tilings()} >= {1, 2, 3}
    for tiling in given.tilings():
        given.check(tiling)


def test_columns_of_a_phase_are_brought_from_as_far_apart_as_they_lie():
    given = Asked(cases.same((1, 3, 3, 60), "float16", patch_size=(2, 5), stride=(1, 3), dilation_patch=(1, 2)))
    given.check(given.best())


@pytest.mark.parametrize("number", range(len(TILES)))
def test_a_block_only_whose_last_row_of_input2_is_inside_the_image_has_its_products(number):
    tile, width = TILES[number], TILES[number].columns[0]
    parameters = dict(patch_size=(tile.pass_rows, 1), patch_offset=((tile.pass_rows - 1) // 2 - tile.tile_rows2 + 1, 0))
    if tile.phases > 1:
        parameters |= dict(patch_size=(tile.pass_rows, 2), dilation_patch=(1, 2))
    case = cases.Case((1, 8, tile.tile_rows, width), (1, 8, 1, width), parameters, dtype_of(number))
    given = Asked(case, channels_last if tile.staging == CHANNELWISE else aligned)
    assert given.want[0].any()
    given.check(given.with_tile(number))


def test_rows_of_outputs_within_wider_ones_are_stored_to_the_last_column_and_no_further():
    given = Asked(cases.same((1, 5, 3, 13), "bfloat16", patch_size=3))
    wide = aligned(np.full((*given.out.shape[:-1], 16), 7, given.out.dtype))
    given.out = wide[..., :13]
    given.arrays = replace(given.arrays, out=layout("out", given.out))
    given.check(given.best())
    assert (wide[..., 13:] == 7).all()


@pytest.mark.parametrize("lay", [aligned, channels_last])
def test_wide_patches_are_cut_into_pieces_that_leave_nothing_out(lay):
    given = Asked(cases.same((1, 5, 3, 60), "bfloat16", patch_size=(2, 77), patch_offset=(0, -10)), lay)
    for tiling in given.tilings():
        given.check(tiling)


@pytest.mark.slow
def test_passes_over_input2_keep_input1_and_give_the_same_bits():
    given = Asked(cases.same((1, 72, 30, 33), "bfloat16", patch_size=21, dilation_patch=2))
    ways = [each for each in given.tilings() if each.tile is TILES[22] and each.splits == 1]
    assert {each.passes for each in ways} == {1, 2, 3, 4, 6}
    results = {each.passes: given.run(each, Emulator()).tobytes() for each in ways}
    assert len(set(results.values())) == 1
    given.check(ways[-1])
    assert ways[-1].loaded < 0.75 * ways[0].loaded


def test_a_block_makes_no_more_passes_than_it_has_threads(monkeypatch):
    """Each thread computes the tile of a pass, before the first."""
    monkeypatch.setattr(forward_mma, "_PASSES", (2, 130))
    shape = (1, 8, 4, 64)
    asked = problem(parameters(patch_size=(1200, 9)), shape, shape)
    image, out = dense_layout("bfloat16", shape), dense_layout("bfloat16", asked.out_shape)
    plans = list(forward_mma.tilings(line(asked.vertical), line(asked.horizontal), Arrays(image, image, out), DEVICE))
    assert any(plan.passes == 130 for plan in plans)
    assert all(plan.passes <= plan.threads for plan in plans)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_stages_have_a_power_of_two_channels_so_that_threads_share_them_evenly(itemsize):
    assert all((tile.stage_channels(itemsize) & (tile.stage_channels(itemsize) - 1)) == 0 for tile in TILES)


def test_a_block_that_takes_several_tiles_leaves_out_those_without_outputs():
    given = Asked(cases.same((1, 3, 9, 65), "bfloat16", patch_size=2, dilation_patch=2))
    tiling = given.with_tile(3)
    assert tiling.tile.phases == 1
    # The second phase has a position less than the first one, so that its last tile is empty.
    assert (tiling.tile.tile_rows, tiling.tile.columns[0]) == (9 // 2, 65 // 2)
    for order in ORDERS:
        oracle.assert_close(given.run(tiling, Emulator(order), largest_grid=1), given.want)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "channels"])
def test_elements_more_than_2_to_the_31_apart_are_reached(axis):
    for far in ("x1", "x2"):
        case = cases.same((2, 2, 2, 2), "float16", patch_size=2)
        lays = iter((far == "x1", far == "x2"))
        given = Asked(case, lambda x, lays=lays: far_apart(x, axis) if next(lays) else aligned(x))
        given.check(given.best())


@pytest.mark.parametrize(
    ("capability", "dtype", "offered"),
    [((9, 0), "bfloat16", True), ((9, 0), "float32", False), ((8, 0), "bfloat16", False), ((10, 0), "bfloat16", False)],
)
def test_a_tile_whose_builds_spill_registers_is_neither_planned_nor_listed(capability, dtype, offered):
    device, tile = replace(DEVICE, compute_capability=capability), TILES[24]
    given = Asked(cases.same((1, 64, 6, 64), "bfloat16", patch_size=21, dilation_patch=2), dtype=dtype)
    assert (tile in {each.tile for each in given.tilings(device)}) == offered
    listed = {build for _, build in forward_mma.builds(device)}
    assert (kernel(forward_mma.SIGNATURE.name, tile.macros("bfloat16", dtype)) in listed) == offered


def test_long_sums_keep_their_error_bound():
    channels = 16 * (LONGEST_CHAIN.tensor_cores + 9)
    given = Asked(cases.same((1, channels, 2, 3), "bfloat16", patch_size=3))
    given.x1[...] = given.x2[...] = 0.1
    given.want = oracle.forward(given.x1, given.x2, patch_size=3)
    assert min(each.splits for each in given.tilings()) == 2
    given.check(next(given.tilings()))


def test_factors_of_single_precision_are_rounded_to_the_nearest_tf32():
    given = Asked(cases.same((1, 8, 1, 2)))
    given.x1[...], given.x2[...] = [[[[1 + 2**-11, 1 + 2**-12]]]], 3
    assert given.run(given.best(), Emulator()).ravel().tolist() == [24 * (1 + 2**-10), 24]


# What is not finite -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("infinite", ["x1", "x2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 2])
def test_what_is_not_finite_stays_where_the_definition_puts_it(step, dtype, infinite):
    given = Asked(cases.same((1, 3, 10, 71), dtype, patch_size=9, dilation_patch=step, padding=2))
    array = getattr(given, infinite)
    array[0, 0, 0, 0], array[0, 1, 4, 35], array[0, 2, 9, 70] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        want, *_ = oracle.forward(given.x1, given.x2, **given_parameters(step))
    for tiling in given.tilings():
        got = given.run(tiling, Emulator())
        assert np.array_equal(np.isnan(got), np.isnan(want)), tiling.how
        assert np.array_equal(np.isinf(got), np.isinf(want)), tiling.how


def given_parameters(step):
    return dict(patch_size=9, dilation_patch=step, padding=2)


@pytest.mark.parametrize("infinite", ["x1", "x2"])
def test_what_is_outside_an_image_is_not_multiplied_by_what_is_infinite_in_the_other(infinite):
    given = Asked(cases.same((1, 3, 10, 71), "bfloat16", **given_parameters(1)))
    getattr(given, infinite)[...] = np.inf
    with np.errstate(invalid="ignore"):
        want, *_ = oracle.forward(given.x1, given.x2, **given_parameters(1))
    for tiling in given.tilings():
        assert np.array_equal(np.isfinite(given.run(tiling, Emulator())), np.isfinite(want)), tiling.how


def test_blocks_whose_rows_meet_nothing_load_nothing():
    given = Asked(cases.same((1, 5, 9, 40), "float16", patch_size=3, patch_offset=(30, 0)))
    for tiling in given.tilings():
        given.run(tiling, emulator := Emulator())
        assert not given.out.any()
        assert emulator.accounts[0].global_loads == 0


# Accounts ---------------------------------------------------------------------------------------------------------------------


def inside(shape, patch, step=1):
    """A case all of whose products count: input2 is larger than input1 by what the displacements reach."""
    batch, channels, height, width = shape
    reach = [step * (each - 1) for each in patch]
    offset = tuple(step * ((each - 1) // 2) for each in patch)
    larger = (batch, channels, height + reach[0], width + reach[1])
    return cases.Case(shape, larger, dict(patch_size=patch, dilation_patch=step, patch_offset=offset), "bfloat16")


# Of the products that a tile makes, those of the band: 8 columns meet 16 or 32 of input2, of which each of them wants a patch.
BANDS = {
    "P 9": ((9, 9), aligned, (0, 1, 2, 20), 9 / 16),
    "P 9, channels last": ((9, 9), channels_last, (8, 9, 10, 21), 9 / 16),
    "P 9, both phases": ((9, 9), aligned, (23,), 9 / 32),
    "P 9, both phases as TF32": ((9, 9), aligned, (19,), 9 / 16),
    "P 21": ((21, 21), aligned, (5, 6), 21 / 32),
    "P 21, channels last": ((21, 21), channels_last, (13, 14), 21 / 32),
    "P 21, both phases": ((21, 21), aligned, (22, 24), 21 / 48),
    "P 21, both phases as TF32": ((21, 21), aligned, (17, 18), 21 / 32),
    "P 21, both phases, channels last": ((21, 21), channels_last, (16,), 21 / 32),
    "stereo": ((1, 64), aligned, (7,), 64 / 80),
    "stereo, channels last": ((1, 64), channels_last, (15,), 64 / 80),
}


def share_in_patch(tile, rows, patch):
    """The share of the pairs of rows that are displaced within the patch, of those that warps with any such pair multiply."""
    wanted = multiplied = 0
    warps2 = -(-(patch + (0 if tile.skewed else tile.tile_rows - 1)) // tile.rows2)
    for first, warp1, warp2 in product(range(0, rows, tile.tile_rows), range(tile.row_warps1), range(warps2)):
        pairs = product(range(warp1 * tile.rows1, (warp1 + 1) * tile.rows1), range(warp2 * tile.rows2, (warp2 + 1) * tile.rows2))
        found = sum(first + row < rows and 0 <= (row2 if tile.skewed else row2 - row) < patch for row, row2 in pairs)
        wanted += found
        multiplied += tile.rows1 * tile.rows2 if found else 0
    return wanted / multiplied


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "lay", "numbers", "share"), BANDS.values(), ids=BANDS.keys())
def test_the_band_has_its_share_of_what_is_multiplied(patch, lay, numbers, share):
    for number in numbers:
        tile = TILES[number]
        case = inside((1, 64, 4 * tile.phases, tile.columns[0]), patch, tile.phases)
        given = Asked(replace(case, dtype="bfloat16" if tile.results("bfloat16") else "float32"), lay)
        given.run(given.with_tile(number), emulator := Emulator())
        kept = given.problem.flops_inside() / 2 / emulator.accounts[0].multiply_adds
        assert kept == pytest.approx(share * share_in_patch(tile, 4, patch[0]), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("patch", "lay", "numbers", "share"), BANDS.values(), ids=BANDS.keys())
def test_loads_of_fragments_have_no_bank_conflicts_and_those_of_the_band_few(patch, lay, numbers, share, dtype):
    for number in numbers:
        step = TILES[number].phases
        if not TILES[number].results(dtype):
            continue
        case = replace(inside((1, 64, 4 * step, 32 * step), patch, step), dtype=dtype)
        given = Asked(case, lay)
        given.run(given.with_tile(number), emulator := Emulator(traced=True))
        reads = [each for each in emulator.traffic if each.kind == "shared load"]
        fragments = [
            each for each in reads if set(each.lines) & lines("load_matrices<", "load_shared(reinterpret_cast<const uint32*>")
        ]
        assert len(fragments) >= 2
        assert all(each.transactions == each.least for each in fragments)
        (band,) = (each for each in reads if set(each.lines) & lines("load_shared(reinterpret_cast<const Neighbours*>"))
        assert band.transactions <= 1.4 * band.least


def lines(*words):
    """The places of the kernel that have some words."""
    texts = {file: (source.folder() / "correlation" / file).read_text() for file in ("forward_mma.cu", "forward_mma.cuh")}
    return {
        f"{file}:{number}"
        for file, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if any(each in line for each in words)
    }


def sectors(given, tiling):
    """Bytes of the whole sectors that hold what each block's rows take of both images, where rows begin with a sector."""
    each, width = SECTOR // given.x1.itemsize, given.x1.shape[3]
    columns, columns2 = tiling.tile.columns
    leading = tiling.horizontal.origin2 - tiling.leading_displacements * tiling.horizontal.shift

    def touched(first, count):
        begin, end = max(first, 0), min(first + count, width)
        return max(-(-end // each) - begin // each, 0)

    first, second = 0, 0
    for x in range(0, width, columns):
        for patch in range(0, given.problem.horizontal.patch, tiling.patch_columns):
            first += touched(x, columns)
            second += touched(x + leading + patch * tiling.horizontal.shift, columns2)
    rows = tiling._loads_y
    return SECTOR * given.x1.shape[1] * (rows.first * first + rows.second * second) * tiling._phases


MOVED = {
    "FlowNetC": (cases.same((1, 16, 48, 64), "bfloat16", patch_size=21, dilation_patch=2), aligned),
    "FlowNetC as TF32": (cases.same((1, 16, 48, 64), "float32", patch_size=21, dilation_patch=2), aligned),
    "PWC-Net": (cases.same((1, 32, 32, 96), "bfloat16", patch_size=9), aligned),
    "PWC-Net as TF32": (cases.same((1, 32, 32, 96), "float32", patch_size=9), aligned),
    "stereo": (cases.same((1, 16, 16, 320), "bfloat16", patch_size=(1, 64), patch_offset=(0, -32)), aligned),
    "FlowNetC, channels last": (cases.same((1, 16, 48, 64), "bfloat16", patch_size=21, dilation_patch=2), channels_last),
    "PWC-Net, channels last": (cases.same((1, 32, 32, 96), "float16", patch_size=9), channels_last),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "lay"), MOVED.values(), ids=MOVED.keys())
def test_a_block_moves_its_tiles_in_whole_sectors(case, lay):
    given = Asked(case, lay)
    both_phases = lay is channels_last and case.parameters.get("dilation_patch") == 2
    tiling = given.with_tile(16) if both_phases else replace(given.best(), splits=1)
    given.run(tiling, emulator := Emulator(traced=True))
    ideal = (tiling.loaded if lay is channels_last else sectors(given, tiling)) + given.out.nbytes
    assert SECTOR * sum(each.transactions for each in emulator.traffic if each.kind.startswith("global")) <= 1.3 * ideal


@pytest.mark.slow
@pytest.mark.parametrize("lay", [aligned, channels_last])
@pytest.mark.parametrize("patch", [9, 21])
def test_what_is_counted_to_be_loaded_is_loaded(patch, lay):
    given = Asked(cases.same((2, 32, 14, 64), "bfloat16", patch_size=patch), lay)
    for tiling in given.tilings():
        if tiling.splits == 1:
            given.run(tiling, emulator := Emulator())
            assert emulator.account.global_load_bytes == tiling.loaded, tiling.how


def test_a_large_flownetc_loads_little_through_the_second_cache():
    # Sixty percent of the time that it may take, two and a half times its bound by bytes, at 5.5 TB/s: 90 MB.
    shape = (8, 256, 48, 64)
    asked = problem(parameters(patch_size=21, dilation_patch=2), shape, shape)
    image, out = dense_layout("bfloat16", shape), dense_layout("bfloat16", asked.out_shape)
    best = forward_mma.best(
        line(asked.vertical), line(asked.horizontal), Arrays(image, image, out), DEVICE, one_pixel.PARTIAL_SUMS_BYTES
    )
    assert best.loaded <= 90.5e6


FLOWNETC, PWCNET = dict(patch_size=21, dilation_patch=2), dict(patch_size=9)
# Problems, the tile that a simulation of an H200 found to be the fastest or within 1 % of it, and its passes and splits.
FASTEST = {
    "FlowNetC, 8 samples": ((8, 256, 48, 64), "bfloat16", FLOWNETC, (9, 0), (24, 6, 1)),
    "FlowNetC, 4 samples": ((4, 256, 48, 64), "bfloat16", FLOWNETC, (9, 0), (24, 3, 1)),
    "FlowNetC where the tile of 384 threads spills": ((8, 256, 48, 64), "bfloat16", FLOWNETC, (10, 0), (22, 4, 1)),
    "FlowNetC as TF32": ((8, 256, 48, 64), "float32", FLOWNETC, (9, 0), (17, 1, 1)),
    "MM-Tracker as TF32": ((1, 512, 19, 34), "float32", PWCNET, (9, 0), (20, 1, 4)),
    "PWC-Net": ((8, 32, 96, 112), "bfloat16", PWCNET, (9, 0), (1, 1, 1)),
}


@pytest.mark.parametrize(("shape", "dtype", "search", "capability", "fastest"), FASTEST.values(), ids=FASTEST)
def test_the_cost_model_chooses_the_tile_that_a_simulation_found_to_be_the_fastest(shape, dtype, search, capability, fastest):
    asked = problem(parameters(**search), shape, shape)
    image, out = dense_layout(dtype, shape), dense_layout(dtype, asked.out_shape)
    device = replace(DEVICE, compute_capability=capability)
    axes = line(asked.vertical), line(asked.horizontal)
    best = forward_mma.best(*axes, Arrays(image, image, out), device, one_pixel.PARTIAL_SUMS_BYTES)
    assert (TILES.index(best.tile), best.passes, best.splits) == fastest


# Beneath the accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
def test_the_kernel_runs_clean_under_address_and_undefined_behaviour_sanitizers():
    done = run_sanitized(__file__, "-k", "tile_equals and (0 or 6 or 7 or 17) or meet_nothing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
