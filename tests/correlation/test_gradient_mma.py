"""The gradients on tensor cores equal the definition, and load, multiply and store little more than what it takes."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import cases
import gradients as helpers
import numpy as np
import nvrtc
import oracle
import pytest
from cases import Case, same
from emulated import BUSY, IDLE, asked, in_every_order
from emulator import Emulator, require_compiler, run_sanitized
from gradients import (
    IN_PHASES,
    assert_gradients,
    bytes_needed,
    dividing,
    in_phases,
    lines_of,
    operands_of,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, aligned, channels_last, far_apart, rows
from tilings import H200

from cupycorr._correlation.gpu import gradient_mma
from cupycorr._correlation.gpu.sums import Operand
from cupycorr._gpu import compiler, source
from cupycorr._gpu import layout as layouts
from cupycorr._gpu.call import NOWHERE

require_compiler()

planned, plan_for, gradients = (partial(each, gradient_mma) for each in (helpers.planned, helpers.plan_for, helpers.gradients))
DTYPES = {name: cases.DTYPES[name] for name in gradient_mma._TILES}
FRAGMENTS = 16 * 8 * 8  # multiply-adds of a product of them, or of half of it
ACCUMULATOR = {"float16": None, "bfloat16": None, "float32": "tf32"}


def multiplied(emulator, *arrays, **how):
    """Gradients of finite numbers, all made of products of fragments: no sum was NaN, and made again by single products."""
    got = gradients(emulator, *arrays, **how)
    assert all(account.multiply_adds % FRAGMENTS == 0 for account in emulator.accounts)
    return got


def check(case, lay=rows, **how):
    """The gradients of a case are the oracle's, the same bits in every order of threads."""
    x1, x2, g = case.arrays()
    x1, x2 = lay(x1), lay(x2)
    got = in_every_order(lambda emulator: multiplied(emulator, g, x1, x2, **how, **case.parameters))
    assert_gradients(got, g, x1, x2, ACCUMULATOR[case.dtype], **case.parameters)


def only(monkeypatch, chosen):
    """Leave those tiles in the table that are chosen."""
    tables = {dtype: tuple(filter(chosen, tiles)) for dtype, tiles in gradient_mma._TILES.items()}
    monkeypatch.setattr(gradient_mma, "_TILES", tables)


# Values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@pytest.mark.parametrize("which", [("bfloat16", BUSY), ("float32", IDLE)], ids=["bfloat16-busy", "float32-idle"])
@pytest.mark.parametrize("case", IN_PHASES.values(), ids=IN_PHASES.keys())
def test_named_cases_equal_the_oracle(case, which):
    dtype, device = which
    check(replace(case, dtype=dtype), device=device)


@pytest.mark.slow
@pytest.mark.parametrize("lay", FOR_KERNELS.values(), ids=FOR_KERNELS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(dtype, lay):
    for step, width in ((1, 12), (2, 16)):
        check(same((2, 19, 5, width), dtype, patch_size=(3, 4), dilation_patch=step, scale=0.25), lay)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2], ids=["one phase", "both phases"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_where_elements_lie(dtype, step):
    case = same((1, 9, 5, 64), dtype, patch_size=(3, 7), dilation_patch=step)
    x1, x2, g = case.arrays()
    want = gradients(Emulator(), g, aligned(x1), aligned(x2), **case.parameters)
    beyond = lambda x: aligned(np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0))))[..., 1:]  # noqa: E731
    within = lambda x: aligned(np.pad(x, ((0, 0), (0, 0), (0, 0), (2, 0))))[..., 2:]  # noqa: E731
    for lay in (*FOR_KERNELS.values(), beyond, within):
        got = gradients(Emulator(), g, lay(x1), lay(x2), lay=lay, **case.parameters)
        assert all(map(np.array_equal, got, want))


def name_of(dtype, tile):
    return f"{dtype}, {tile.phases} phases, {tile.channels} x {tile.rows} x {tile.columns}, {tile.most}, {tile.stages} stages"


TILES = {name_of(dtype, tile): (dtype, tile) for dtype, tiles in gradient_mma._TILES.items() for tile in tiles}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tile"), TILES.values(), ids=TILES.keys())
def test_every_tile_equals_the_oracle_across_its_seams(monkeypatch, dtype, tile):
    only(monkeypatch, lambda other: other == tile)
    parameters = dict(patch_size=(2, tile.most + 2), dilation_patch=(1, tile.phases))
    for beyond, lay in ((8, rows), (5, rows), (3, channels_last)):
        shape = (1, tile.channels + 3, tile.rows + 1, tile.columns + beyond)
        x1, x2, g = same(shape, dtype, **parameters).arrays()
        got = multiplied(Emulator(), g, lay(aligned(x1)), lay(aligned(x2)), lay=lay, **parameters)
        assert_gradients(got, g, x1, x2, ACCUMULATOR[dtype], **parameters)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    case=cases.problems(most=9, dtypes=tuple(DTYPES)).map(dividing),
    lay=st.sampled_from(list(FOR_KERNELS.values())),
    device=st.sampled_from([BUSY, IDLE]),
)
def test_drawn_problems_equal_the_oracle(case, lay, device):
    assume(min(case.out_shape()) > 0)
    assume(in_phases(case))
    check(case, lay, device=device)


@pytest.mark.slow
@settings(max_examples=12)
@given(case=cases.wide_problems().map(dividing), dtype=st.sampled_from(list(DTYPES)), device=st.sampled_from([BUSY, IDLE]))
def test_wide_problems_equal_the_oracle_across_every_seam(case, dtype, device):
    check(replace(case, dtype=dtype), device=device)


@pytest.mark.parametrize("step", [1, 2], ids=["one phase", "both phases"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_within_those_of_a_larger_image_equal_the_oracle(dtype, step):
    """Columns before them, and behind: rows begin or end where 16 bytes do not, all of them, or other ones in each row."""
    for before, width, behind, patch in ((1, 64, 0, 17), (2, 64, 0, 17), (4, 64, 4, 17), (4, 64, 4, 9), (0, 60, 4, 17)):
        case = same((1, 9, 5, width), dtype, patch_size=(2, patch), dilation_patch=step)
        larger = ((0, 0), (0, 0), (0, 0), (before, behind))
        columns = slice(before, before + width)
        check(case, lambda x, larger=larger, columns=columns: aligned(np.pad(x, larger))[..., columns])


def test_a_cotangent_may_have_any_strides():
    case = same((2, 5, 7, 8), "bfloat16", patch_size=3)
    x1, x2, g = case.arrays()
    want = gradients(Emulator(), g, x1, x2, **case.parameters)
    beyond = np.append(g[:1, 0, 0, 0, 0], g)[1:].reshape(g.shape)  # 16 bytes of it begin before its first element
    backwards = g[::-1, :, ::-1, :, ::-1].copy()[::-1, :, ::-1, :, ::-1]
    for laid in (g.T.copy().T, np.repeat(g, 2, axis=4)[..., ::2], backwards, beyond):
        assert all(map(np.array_equal, gradients(Emulator(), laid, x1, x2, **case.parameters), want))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradient_asked_for_is_computed_in_one_launch(needs):
    case = same((1, 8, 9, 10), "bfloat16", patch_size=3)
    x1, x2, g = case.arrays()
    both = gradients(Emulator(), g, x1, x2, **case.parameters)
    got = gradients(emulator := Emulator(), g, x1, x2, needs, **case.parameters)
    assert [gradient is not None for gradient in got] == list(needs)
    assert all(one is None or np.array_equal(one, other) for one, other in zip(got, both, strict=True))
    assert len(emulator.accounts) == 1


def test_both_gradients_take_one_launch():
    x1, x2, g = same((1, 8, 9, 10), "bfloat16", patch_size=3).arrays()
    gradients(emulator := Emulator(), g, x1, x2, patch_size=3)
    assert len(emulator.accounts) == 1


@pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
def test_a_grid_smaller_than_the_work_loops_over_the_rest(device):
    check(same((2, 70, 9, 40), "bfloat16", patch_size=3, dilation_patch=2), device=device, most_blocks=3)


@pytest.mark.parametrize("axis", range(3), ids=["batch", "patch rows", "patch columns"])
def test_cotangents_more_than_2_to_the_31_apart_are_reached(axis):
    case = same((2, 2, 2, 2), "float16", patch_size=2)
    x1, x2, g = case.arrays()
    assert_gradients(gradients(Emulator(), far_apart(g, axis), x1, x2, **case.parameters), g, x1, x2, **case.parameters)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "channels"])
def test_elements_more_than_2_to_the_31_apart_are_reached(axis):
    case = same((2, 2, 2, 2), "float16", patch_size=2)
    x1, x2, g = case.arrays()
    _, g2 = gradients(Emulator(), g, far_apart(x1, axis), x2, needs=(False, True), **case.parameters)
    oracle.assert_close(g2, oracle.vjp(g, x1, x2, **case.parameters)[1], name="g2")


# Numbers ----------------------------------------------------------------------------------------------------------------------


def test_factors_of_32_bits_are_rounded_to_the_nearest_that_the_unit_reads():
    x, g = np.full((1, 1, 1, 1), 1 + 2**-11, np.float32), np.full((1, 1, 1, 1, 1), 1 + 2**-11 + 2**-20, np.float32)
    nearest = 1 + 2**-10
    for gradient in gradients(Emulator(), g, x, x):
        assert gradient == nearest**2


@pytest.mark.parametrize(
    ("patch", "least"), [((1, 5000), 2), ((5000, 1), 20), ((70, 72), 2)], ids=["one row", "one column", "both"]
)
def test_no_more_than_256_products_of_fragments_are_added_one_after_the_other(patch, least):
    x1, x2 = np.ones((1, 1, 1, 1), np.float16), np.ones((1, 1, *patch), np.float16)
    slow = replace(BUSY, bandwidth=1.0)  # parts of a sum cost more than anything else, so there are no more than must be
    offset = tuple((size - 1) // 2 for size in patch)
    g = np.full((1, *patch, 1, 1), 1 + 2**-10, np.float16)
    plan = planned(g, (x1, x2), (x1, None), slow, patch_size=patch, patch_offset=offset)
    assert int(re.search(r"split in (\d+)", plan.description)[1]) >= least
    g1, _ = gradients(Emulator(), g, x1, x2, (True, False), slow, patch_size=patch, patch_offset=offset)
    oracle.assert_close(g1, oracle.vjp(g, x1, x2, patch_size=patch, patch_offset=offset)[0], name="g1")


NOT_NUMBERS = [("bfloat16", np.inf), ("float16", -np.inf), ("float32", np.inf), ("bfloat16", np.nan)]
NOT_FINITE = {
    "one phase": dict(patch_size=(3, 5), padding=1),
    "exact": dict(patch_size=(2, 9)),
    "two steps": dict(patch_size=(2, 27)),
    "cropped": dict(patch_size=3, padding=-2),
    "strided": dict(patch_size=3, stride=2, dilation_patch=2, padding=1),
    "both phases": dict(patch_size=3, dilation_patch=2, padding=1),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize(("dtype", "value"), NOT_NUMBERS)
@pytest.mark.parametrize("parameters", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_what_is_not_finite_stays_where_the_definition_puts_it(dtype, value, parameters):
    x1, x2, g = same((1, 9, 11, 14), dtype, **parameters).arrays()
    rng = np.random.default_rng(3)
    for x in (x1, x2, g):
        x[rng.random(x.shape) < 0.004] = value
    x1[0, 1, 0, 3] = x2[0, 8, -1, -1] = g[0, 1, 2, 1, -1] = g[0, 0, 0, 0, 0] = value
    with np.errstate(invalid="ignore"):
        want = oracle.vjp(g, x1, x2, **parameters)
    for device in (BUSY, IDLE):
        got = gradients(Emulator(), g, x1, x2, device=device, **parameters)
        for name, triple, gradient in zip(("g1", "g2"), want, got, strict=True):
            finite = np.isfinite(triple[0])
            assert not finite.all(), name
            assert np.array_equal(np.isnan(triple[0]), np.isnan(gradient)), name
            assert np.array_equal(triple[0][~finite], gradient[~finite].astype(np.float64), equal_nan=True), name
            kept = tuple(np.where(finite, each, 0) for each in triple)
            oracle.assert_close(np.where(finite, gradient, gradient.dtype.type(0)), kept, ACCUMULATOR[dtype], name)


def test_sums_made_again_take_factors_rounded_as_the_unit_takes_them():
    x1, x2 = (np.full((1, 1, 1, 4), 1 + 2**-12, np.float32) for _ in range(2))
    g = np.full((1, 1, 2, 1, 4), 1 + 2**-12, np.float32)
    x2[..., 3] = np.inf  # not met by the first column, but multiplied by what is off its band
    g1, _ = gradients(Emulator(), g, x1, x2, (True, False), patch_size=(1, 2))
    assert g1.tolist() == [[[[2, 2, np.inf, np.inf]]]]


def test_every_sum_that_an_infinite_column_does_not_reach_is_finite():
    g, x1 = np.ones((1, 1, 9, 1, 16), np.float16), np.ones((1, 1, 1, 16), np.float16)
    for column in range(16):
        x2 = np.ones_like(x1)
        x2[..., column] = np.inf
        g1, _ = gradients(Emulator(), g, x1, x2, (True, False), patch_size=(1, 9), patch_offset=(0, 4))
        met = [range(first, min(first + 9, 16)) for first in range(16)]
        assert g1.ravel().tolist() == [np.inf if column in columns else len(columns) for columns in met]


@pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
def test_gradients_are_scaled_before_rounding_so_that_halves_do_not_overflow(device):
    x = np.full((1, 1, 1, 80), 100, np.float16)
    g = np.full((1, 1, 21, 1, 80), 100, np.float16)
    for gradient in gradients(Emulator(), g, x, x, device=device, patch_size=(1, 21), scale=1 / 64):
        assert gradient[0, 0, 0, 40] == np.float16(21 * 1e4 / 64)


def test_gradients_that_are_stored_in_runs_of_channels_are_scaled():
    x1, x2, g = same((1, 16, 3, 8), "bfloat16", patch_size=3, scale=0.25).arrays()
    lay = channels_last
    got = gradients(Emulator(), g, lay(x1), lay(x2), lay=lay, patch_size=3, scale=0.25)
    assert_gradients(got, g, x1, x2, patch_size=3, scale=0.25)


# Reasons ----------------------------------------------------------------------------------------------------------------------

REASONS = {
    "a window": (dict(kernel_size=(1, 2)), "window of 1 x 2 pixels, tensor cores"),
    "a stride": (dict(patch_size=2, stride=(1, 3), dilation_patch=2), "stride 3 does not divide dilation_patch 2"),
    "far positions": (dict(patch_size=3, padding=2**29, stride=2**31), "positions"),
}


@pytest.mark.parametrize(("parameters", "said"), REASONS.values(), ids=REASONS.keys())
def test_what_tiles_cannot_answer_has_a_reason(parameters, said):
    x = np.zeros((1, 2, 5, 6), np.float16)
    g = np.zeros(asked(x, x, **parameters).out_shape, np.float16)
    assert said in planned(g, (x, x), (x, x), BUSY, **parameters)


@pytest.mark.parametrize(
    ("dtype", "cotangent", "said"),
    [
        ("float64", "float64", "product of float64"),
        ("float16", "float32", "cotangent in float32 would be rounded"),
        ("bfloat16", "float16", "cotangent in float16"),
    ],
)
def test_what_tensor_cores_cannot_multiply_has_a_reason(dtype, cotangent, said):
    x = np.zeros((1, 2, 5, 6), cases.DTYPES[dtype])
    g = np.zeros((1, 1, 1, 5, 6), cases.DTYPES[cotangent])
    assert said in planned(g, (x, x), (x, x), BUSY)


def test_more_blocks_than_a_grid_can_count_have_a_reason():
    x = np.broadcast_to(np.float16(0), (2**27, 1, 2, 2))
    g = layouts.new_layout("float16", (2**27, 9, 9, 2, 2))
    why = gradient_mma.why_not(*lines_of(asked(x, x, patch_size=9)), g, operands_of((x, x), (x, x)))
    assert "blocks" in why


# Plans ------------------------------------------------------------------------------------------------------------------------


def test_a_problem_that_fills_the_device_is_not_cut_and_a_small_one_is():
    assert plan_for((8, 256, 48, 64), H200, "float16", patch_size=21, dilation_patch=2).workspace == 0
    assert plan_for((1, 64, 40, 8), replace(H200, bandwidth=1e15), "float16", patch_size=51).workspace > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameters", [dict(patch_size=21, dilation_patch=2), dict(patch_size=9), dict(patch_size=64)], ids=str)
def test_every_plan_keeps_to_the_shared_memory_of_the_device(dtype, parameters):
    for shared in (64, 99, 227):
        device = replace(H200, shared_memory=shared * 1024)
        assert plan_for((4, 256, 48, 64), device, DTYPES[dtype], **parameters).calls[0].shared <= shared * 1024


def test_more_work_is_expected_to_take_longer():
    few, many = (plan_for((size, 256, 48, 64), H200, "float16", patch_size=21, dilation_patch=2).seconds for size in (8, 32))
    assert 3 < many / few < 5


def test_every_plan_is_of_a_build_that_is_listed():
    listed = {kernel for _, kernel in gradient_mma.builds()}
    assert len(listed) == len(list(gradient_mma.builds()))
    for dtype in DTYPES.values():
        for device in (BUSY, IDLE):
            for parameters in (dict(patch_size=21, dilation_patch=2), dict(patch_size=9), dict(patch_size=14)):
                assert plan_for((1, 64, 12, 16), device, dtype, **parameters).calls[0].kernel in listed


# Accesses ---------------------------------------------------------------------------------------------------------------------


def largest(tile):
    """Return whether the tile loads least of the tiles with such a band."""
    rivals = [other for tiles in (gradient_mma._16_BITS, gradient_mma._32_BITS) if tile in tiles for other in tiles]
    return all(
        tile.channels * tile.rows >= other.channels * other.rows
        for other in rivals
        if (tile.phases, tile.depths) == (other.phases, other.depths)
    )


MODELS = {
    "flownet-like": (dict(patch_size=21, dilation_patch=2), (1, 128, 8, 64)),
    "pwcnet-like": (dict(patch_size=9), (1, 32, 8, 32)),
}


def traced(case, needs, lay, patched):
    """The emulator after a launch for one operand through the largest tile for the case, and the tile."""
    step, patch = case.parameters.get("dilation_patch", 1), case.parameters["patch_size"]
    only(patched, lambda tile: largest(tile) and tile.phases == step and tile.displacements_at_once(patch) == patch)
    x1, x2, g = (lay(aligned(x)) if x.ndim == 4 else aligned(x) for x in case.arrays())
    tile = min(gradient_mma._TILES[case.dtype], key=lambda tile: tile.depths)
    only(patched, lambda other: other == tile)
    emulator = Emulator(traced=True)
    gradients(emulator, g, x1, x2, needs, lay=lambda x: lay(aligned(x)), **case.parameters)
    return emulator, tile


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("operand", [1, 2])
def test_most_products_of_fragments_are_the_gradients(monkeypatch, name, operand):
    parameters, shape = MODELS[name]
    patch, step = parameters["patch_size"], parameters.get("dilation_patch", 1)
    beyond = (patch - 1) * step  # the other image is met at every displacement of y
    tall = (*shape[:2], shape[2] + beyond, shape[3])
    offset = (beyond // 2 if operand == 1 else -beyond // 2, 0)
    shapes = (shape, tall) if operand == 1 else (tall, shape)
    case = Case(*shapes, parameters | dict(patch_offset=offset), "bfloat16")
    emulator, tile = traced(case, (operand == 1, operand == 2), rows, monkeypatch)
    share = patch**2 * np.prod(shape) / emulator.account.multiply_adds
    streamed = patch + tile.warp_rows - 1  # rows of the other image, with which all rows of a warp are multiplied
    assert share == pytest.approx(patch / tile.band * patch / streamed)
    assert share >= {9: 0.5, 21: 0.41}[patch]


def lines_with(*texts):
    """The lines of gradient_mma.cu that have one of these texts."""
    lines = (source.folder() / "correlation/gradient_mma.cu").read_text("utf-8").splitlines()
    return {f"gradient_mma.cu:{number}" for number, line in enumerate(lines, 1) if any(text in line for text in texts)}


@pytest.mark.slow
@pytest.mark.parametrize("lay", ["rows", "channels last"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_fragments_are_loaded_without_bank_conflicts(monkeypatch, name, dtype, lay):
    parameters, shape = MODELS[name]
    emulator, _ = traced(same((*shape[:2], 4, shape[3]), dtype, **parameters), (True, False), FOR_KERNELS[lay], monkeypatch)
    of_fragments = lines_with("load_matrices<", "load_shared(reinterpret_cast<const uint32*>(from))", "load_shared(bits")
    loads = [place for place in emulator.traffic if place.kind == "shared load" and of_fragments & set(place.lines)]
    assert sum(place.requests for place in loads) > 100
    for place in loads:
        assert place.transactions == place.least, place.lines


@pytest.mark.slow
@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["g1", "g2"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_sectors_moved_are_little_more_than_what_the_tiles_hold(monkeypatch, name, needs):
    parameters, shape = MODELS[name]
    case = same(shape, "bfloat16", **parameters)
    emulator, tile = traced(case, needs, rows, monkeypatch)
    moved = 32 * sum(place.transactions for place in emulator.traffic if place.kind.startswith("global"))
    problem = shape, parameters["patch_size"], parameters.get("dilation_patch", 1)
    needed = bytes_needed(tile.rows, tile.columns, *problem, itemsize=2)
    assert needed <= moved <= 1.3 * needed


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bytes_are_counted_as_the_tiles_hold_them(monkeypatch, name):
    parameters, shape = MODELS[name]
    only(monkeypatch, largest)
    x = np.zeros(shape, np.float16)
    vertical, horizontal = map(gradient_mma.normal, lines_of(asked(x, x, **parameters)))
    for operand in operands_of((x, x), (x, x)):
        tiling = next(gradient_mma.tilings(vertical, horizontal, [operand]))
        problem = shape, parameters["patch_size"], parameters.get("dilation_patch", 1)
        needed = bytes_needed(tiling.tile.rows, tiling.columns, *problem, itemsize=2)
        assert tiling.loaded() == needed - x.nbytes


def test_flownets_blocks_load_no_more_than_is_budgeted():
    x = np.broadcast_to(np.float16(0), (8, 256, 48, 64))
    image = layouts.dense_layout("bfloat16", x.shape)
    operands = [Operand(k, (image, NOWHERE), (image, NOWHERE)) for k in (1, 2)]
    lines = map(gradient_mma.normal, lines_of(asked(x, x, patch_size=21, dilation_patch=2)))
    best = min(gradient_mma.tilings(*lines, operands), key=lambda tiling: tiling.seconds(H200))
    assert best.loaded() < 172e6


@pytest.mark.slow
@pytest.mark.parametrize("lay", [aligned, channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("step", "patch"), [(1, 15), (2, 13)], ids=["one phase", "both phases"])
def test_everything_is_loaded_and_stored_16_bytes_at_a_time_where_it_can_be(dtype, lay, step, patch):
    """Although the first displacement of either patch is no multiple of 16 bytes: the band has room to begin earlier."""
    case = same((1, 64, 4, 64), dtype, patch_size=patch, dilation_patch=step)
    x1, x2, g = case.arrays()
    emulator = Emulator(traced=True)
    gradients(emulator, aligned(g), lay(x1), lay(x2), lay=lay, **case.parameters)
    for kind in ("global load", "global store"):
        moved = [place for place in emulator.traffic if place.kind == kind]
        assert all(place.bytes == 16 * place.accesses for place in moved), [place.lines for place in moved]


# Beneath the accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
def test_the_kernel_runs_clean_under_address_and_undefined_behaviour_sanitizers():
    done = run_sanitized(__file__, "-k", "(named and bfloat16 and (flownet or elsewhere)) or (not_finite and both and float16)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


@pytest.mark.every_build
@nvrtc.needed
def test_every_build_multiplies_fragments_and_moves_16_bytes_at_a_time():
    builds = [kernel for _, kernel in gradient_mma.builds()][::6]
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda kernel: compiler.ptx(kernel, "sm_80"), builds))
    wanted = (r"mma\.sync", r"cp\.async\.cg\.shared\.global \[%r\d+\], \[%rd\d+\], 16", r"st\.global\.(v4\.[uf]32|v4\.b32)")
    lacking = [
        (kernel.macros, one) for kernel, text in zip(builds, texts, strict=True) for one in wanted if not re.search(one, text)
    ]
    assert not lacking
