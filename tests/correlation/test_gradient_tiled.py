"""The gradients through tiles equal the definition, and read and write what their tiles hold, in whole sectors."""

import re
from dataclasses import replace
from functools import partial

import cases
import gradients as helpers
import numpy as np
import oracle
import pytest
from cases import DTYPES, same
from emulated import BUSY, IDLE, asked, in_every_order
from emulator import Emulator, require_compiler, run_sanitized
from fake_cupy import FACTS
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

from cupycorr._correlation.gpu import gradient_tiled
from cupycorr._gpu import layout as layouts

require_compiler()

planned, plan_for, gradients = (partial(each, gradient_tiled) for each in (helpers.planned, helpers.plan_for, helpers.gradients))


def check(case, lay=rows, **how):
    """The gradients of a case are the oracle's, the same bits in every order of threads."""
    x1, x2, g = case.arrays()
    x1, x2 = lay(x1), lay(x2)
    got = in_every_order(lambda emulator: gradients(emulator, g, x1, x2, **how, **case.parameters))
    assert_gradients(got, g, x1, x2, **case.parameters)


# Values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
@pytest.mark.parametrize("case", IN_PHASES.values(), ids=IN_PHASES.keys())
def test_named_cases_equal_the_oracle(case, device):
    check(case, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("lay", FOR_KERNELS.values(), ids=FOR_KERNELS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(dtype, lay):
    for step, width in ((1, 12), (2, 16)):
        case = same((2, 19, 5, width), dtype, patch_size=(3, 4), dilation_patch=step, scale=0.25)
        check(case, lay, device=BUSY)


@pytest.mark.parametrize("lay", FOR_KERNELS.values(), ids=FOR_KERNELS.keys())
def test_gradients_are_written_in_any_memory_order(lay):
    case = same((2, 9, 5, 11), patch_size=3)
    x1, x2, g = case.arrays()
    got = gradients(Emulator(), g, x1, x2, lay=lay, **case.parameters)
    want = gradients(Emulator(), g, x1, x2, **case.parameters)
    assert all(map(np.array_equal, got, want))


def name_of(tile):
    return f"{tile.phases} phases, {tile.channels} x {tile.rows} x {tile.columns(4)}, {'' if tile.exact else 'any '}{tile.width}"


@pytest.mark.slow
@pytest.mark.parametrize("tile", gradient_tiled._TILES["float32"], ids=name_of)
def test_every_tile_equals_the_oracle_across_its_seams(monkeypatch, tile):
    monkeypatch.setattr(gradient_tiled, "_TILES", {"float32": (tile,)})
    parameters = dict(patch_size=(3, tile.width + 3 * (not tile.exact)), dilation_patch=(1, tile.phases))
    for beyond in (4, 5):  # rows that 16 bytes fit into, and others
        shape = (1, tile.channels + 3, tile.rows + 1, tile.phases * tile.columns(4) + beyond)
        x1, x2, g = same(shape, **parameters).arrays()
        got = gradients(Emulator(), g, x1, x2, **parameters)
        assert_gradients(got, g, x1, x2, **parameters)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    case=cases.problems(most=9).map(dividing),
    lay=st.sampled_from(list(FOR_KERNELS.values())),
    device=st.sampled_from([BUSY, IDLE]),
)
def test_drawn_problems_equal_the_oracle(case, lay, device):
    assume(min(case.out_shape()) > 0)
    assume(in_phases(case))
    check(case, lay, device=device)


@pytest.mark.slow
@settings(max_examples=15)
@given(case=cases.wide_problems().map(dividing), device=st.sampled_from([BUSY, IDLE]))
def test_wide_problems_equal_the_oracle_across_every_seam(case, device):
    check(case, device=device)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
def test_a_cotangent_of_the_accumulators_dtype_is_not_rounded(dtype, device):
    case = same((1, 20, 5, 7), dtype, patch_size=3)
    x1, x2, _ = case.arrays()
    g = np.random.default_rng(0).standard_normal(case.out_shape()).astype(np.float32)
    got = gradients(Emulator(), g, x1, x2, device=device, **case.parameters)
    assert_gradients(got, g, x1, x2, "float32", **case.parameters)


def test_a_cotangent_may_have_any_strides():
    case = same((2, 5, 7, 8), patch_size=3)
    x1, x2, g = case.arrays()
    want = gradients(Emulator(), g, x1, x2, **case.parameters)
    for laid in (g.T.copy().T, np.repeat(g, 2, axis=4)[..., ::2], g[::-1, :, ::-1, :, ::-1].copy()[::-1, :, ::-1, :, ::-1]):
        assert all(map(np.array_equal, gradients(Emulator(), laid, x1, x2, **case.parameters), want))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradient_asked_for_is_computed_in_one_launch(needs):
    case = same((1, 8, 9, 10), patch_size=3)
    x1, x2, g = case.arrays()
    both = gradients(Emulator(), g, x1, x2, **case.parameters)
    got = gradients(emulator := Emulator(), g, x1, x2, needs, **case.parameters)
    assert [gradient is not None for gradient in got] == list(needs)
    assert all(one is None or np.array_equal(one, other) for one, other in zip(got, both, strict=True))
    assert len(emulator.accounts) == 1


def test_both_gradients_take_one_launch():
    x1, x2, g = same((1, 8, 9, 10), patch_size=3).arrays()
    gradients(emulator := Emulator(), g, x1, x2, patch_size=3)
    assert len(emulator.accounts) == 1


@pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
def test_a_grid_smaller_than_the_work_loops_over_the_rest(device):
    check(same((2, 70, 9, 40), patch_size=3, dilation_patch=2), device=device, most_blocks=3)


# Numbers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(1, 5000), (5000, 1), (70, 72)], ids=["one row", "one column", "both"])
def test_sums_over_many_displacements_keep_the_error_bound(patch):
    x1, x2 = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, *patch), np.float32)
    parameters = dict(patch_size=patch, patch_offset=tuple((size - 1) // 2 for size in patch))
    value = 1 + 0.49 / 2**13  # a plain sum beyond 1024 loses nearly half a unit of its last place each time
    g = np.full((1, *patch, 1, 1), value, np.float32)
    slow = replace(BUSY, bandwidth=1.0)  # parts of a sum cost more than anything else
    g1, _ = gradients(Emulator(), g, x1, x2, needs=(True, False), device=slow, **parameters)
    oracle.assert_close(g1, oracle.vjp(g, x1, x2, **parameters)[0], name="g1")


NOT_FINITE = {
    "one phase": dict(patch_size=(3, 5), padding=1),
    "exact": dict(patch_size=(2, 9)),
    "cropped": dict(patch_size=3, padding=-2),
    "strided": dict(patch_size=3, stride=2, dilation_patch=2, padding=1),
    "both phases": dict(patch_size=3, dilation_patch=2, padding=1),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("parameters", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_what_is_not_finite_stays_where_the_definition_puts_it(value, parameters):
    x1, x2, g = same((1, 9, 11, 14), **parameters).arrays()
    rng = np.random.default_rng(3)
    for x in (x1, x2, g):
        x[rng.random(x.shape) < 0.004] = value
    x1[0, 1, 0, 3] = x2[0, 8, -1, -1] = g[0, 1, 2, 1, -1] = g[0, 0, 0, 0, 0] = value
    with np.errstate(invalid="ignore"):
        want = [triple[0] for triple in oracle.vjp(g, x1, x2, **parameters)]
    for device in (BUSY, IDLE):
        got = gradients(Emulator(), g, x1, x2, device=device, **parameters)
        for name, w, o in zip(("g1", "g2"), want, got, strict=True):
            assert np.array_equal(np.isfinite(w), np.isfinite(o)), name


@pytest.mark.parametrize("device", [BUSY, IDLE], ids=["busy", "idle"])
def test_gradients_are_scaled_before_rounding_so_that_halves_do_not_overflow(device):
    x = np.full((1, 1, 1, 80), 100, np.float16)
    g = np.full((1, 1, 21, 1, 80), 100, np.float16)
    for gradient in gradients(Emulator(), g, x, x, device=device, patch_size=(1, 21), scale=1 / 64):
        assert gradient[0, 0, 0, 40] == np.float16(21 * 1e4 / 64)


# Reasons ----------------------------------------------------------------------------------------------------------------------

REASONS = {
    "a window": (dict(kernel_size=(1, 2)), "window of 1 x 2 pixels"),
    "a stride": (dict(patch_size=2, stride=(1, 3), dilation_patch=2), "stride 3 does not divide dilation_patch 2"),
    "far positions": (dict(patch_size=3, padding=2**29, stride=2**31), "positions"),
}


@pytest.mark.parametrize(("parameters", "said"), REASONS.values(), ids=REASONS.keys())
def test_what_tiles_cannot_answer_has_a_reason(parameters, said):
    x = np.zeros((1, 2, 5, 6), np.float32)
    g = np.zeros(asked(x, x, **parameters).out_shape, np.float32)
    assert said in planned(g, (x, x), (x, x), BUSY, **parameters)


@pytest.mark.parametrize(("dtype", "cotangent"), [("float32", "float16"), ("float32", "float64"), ("float16", "bfloat16")])
def test_a_cotangent_of_a_foreign_dtype_has_a_reason(dtype, cotangent):
    x = np.zeros((1, 2, 5, 6), dtype)
    g = np.zeros((1, 1, 1, 5, 6), DTYPES[cotangent])
    assert f"cotangent in {cotangent}" in planned(g, (x, x), (x, x), BUSY)


def test_planes_beyond_32_bits_have_a_reason():
    x = np.zeros((1, 1, 2, 2), np.float32)
    far = np.lib.stride_tricks.as_strided(x, x.shape, (4, 4, 2**32, 4))
    g = np.zeros((1, 1, 1, 2, 2), np.float32)
    assert "plane" in planned(g, (far, x), (x, x), BUSY)


def test_more_blocks_than_a_grid_can_count_have_a_reason():
    x = np.broadcast_to(np.float32(0), (2**27, 1, 2, 2))
    g = layouts.new_layout("float32", (2**27, 9, 9, 2, 2))
    why = gradient_tiled.why_not(*lines_of(asked(x, x, patch_size=9)), g, operands_of((x, x), (x, x)))
    assert "blocks" in why


@pytest.mark.parametrize("axis", range(3), ids=["batch", "patch rows", "patch columns"])
def test_cotangents_more_than_2_to_the_31_apart_are_reached(axis):
    case = same((2, 2, 2, 2), "float16", patch_size=2)
    x1, x2, g = case.arrays()
    got = gradients(Emulator(), far_apart(g, axis), x1, x2, **case.parameters)
    assert_gradients(got, g, x1, x2, **case.parameters)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "channels"])
def test_elements_more_than_2_to_the_31_apart_are_reached(axis):
    case = same((2, 2, 2, 2), "float16", patch_size=2)
    x1, x2, g = case.arrays()
    _, g2 = gradients(Emulator(), g, far_apart(x1, axis), x2, needs=(False, True), **case.parameters)
    oracle.assert_close(g2, oracle.vjp(g, x1, x2, **case.parameters)[1], name="g2")


# Plans ------------------------------------------------------------------------------------------------------------------------


def test_a_problem_that_fills_the_device_is_not_cut_and_a_small_one_is():
    assert plan_for((8, 256, 48, 64), FACTS, patch_size=21, dilation_patch=2).workspace == 0
    many = replace(FACTS, multiprocessors=100)
    assert plan_for((1, 64, 6, 8), many, patch_size=9).workspace > 0
    assert "split in" in plan_for((1, 64, 6, 8), many, patch_size=9).description


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameters", [dict(patch_size=21, dilation_patch=2), dict(patch_size=9), dict(patch_size=64)], ids=str)
def test_every_plan_keeps_to_the_shared_memory_of_the_device(dtype, parameters):
    for shared in (64, 96, 227):
        device = replace(FACTS, shared_memory=shared * 1024)
        assert plan_for((4, 256, 48, 64), device, dtype, **parameters).calls[0].shared <= shared * 1024


def test_more_work_is_expected_to_take_longer():
    small, large = (plan_for((size, 256, 48, 64), FACTS, patch_size=21, dilation_patch=2).seconds for size in (2, 8))
    assert 3 < large / small < 5


def test_every_plan_is_of_a_build_that_is_listed():
    listed = {kernel for _, kernel in gradient_tiled.builds()}
    assert len(listed) == len(list(gradient_tiled.builds()))
    for dtype in DTYPES:
        for device in (BUSY, IDLE):
            for parameters in (dict(patch_size=21, dilation_patch=2), dict(patch_size=9), dict(patch_size=4)):
                assert plan_for((1, 64, 12, 16), device, dtype, **parameters).calls[0].kernel in listed


# Accesses ---------------------------------------------------------------------------------------------------------------------


MODELS = {"flownet-like": ((1, 64, 10, 64), 21, 2), "pwcnet-like": ((1, 64, 10, 64), 9, 1)}


@pytest.fixture(params=MODELS, scope="module")
def traced(request):
    """Tile, problem and traffic of a launch for each operand, through the largest tile."""
    shape, patch, step = MODELS[request.param]
    tiles = gradient_tiled._TILES["float32"]
    tile = next(tile for tile in tiles if tile.exact and (tile.phases, tile.width, tile.row_warps) == (step, patch, 2))
    x1, x2, g = map(aligned, same(shape, patch_size=patch, dilation_patch=step).arrays())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gradient_tiled, "_TILES", {"float32": (tile,)})
        traffics = []
        for needs in ((True, False), (False, True)):
            gradients(emulator := Emulator(traced=True), g, x1, x2, needs, lay=aligned, patch_size=patch, dilation_patch=step)
            traffics.append(emulator.traffic)
    return tile, (shape, patch, step), traffics


@pytest.mark.slow
def test_whole_sectors_moved_are_little_more_than_what_the_tiles_hold(traced):
    tile, problem, traffics = traced
    for traffic in traffics:
        moved = 32 * sum(place.transactions for place in traffic if place.kind.startswith("global"))
        needed = bytes_needed(tile.rows, tile.phases * tile.columns(4), *problem, itemsize=4)
        assert needed <= moved <= 1.3 * needed


@pytest.mark.slow
def test_rows_of_the_other_image_are_loaded_16_bytes_at_a_time(traced):
    _, (*_, step), traffics = traced
    if step > 1:
        pytest.skip("copies part the phases element by element")
    for traffic in traffics:
        wide = [place for place in traffic if place.kind == "global load" and place.bytes == 16 * place.accesses]
        assert sum(place.bytes for place in wide) > sum(place.bytes for place in traffic if place.kind == "global load") / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_channels_are_loaded_16_bytes_at_a_time(dtype):
    x1, x2, g = same((1, 64, 5, 9), dtype, patch_size=3).arrays()
    x1, x2 = map(channels_last, (x1, x2))
    gradients(emulator := Emulator(traced=True), g, x1, x2, patch_size=3)
    single = sum(
        place.accesses for place in emulator.traffic if place.kind == "global load" and place.bytes < 16 * place.accesses
    )
    wide = sum(place.accesses for place in emulator.traffic if place.kind == "global load" and place.bytes == 16 * place.accesses)
    channel_tiles = sum(place.bytes for place in emulator.traffic if place.kind == "global store") // x1.nbytes
    assert channel_tiles == 2  # both gradients, once
    assert wide * 16 >= 2 * x1.nbytes
    assert single <= 2 * 2 * g.size  # the cotangents, for each of two tiles of channels at most


@pytest.mark.slow
def test_sums_read_shared_memory_without_bank_conflicts(traced):
    """16 bytes a lane are served in four quarters of a warp: one pass for each."""
    for traffic in traced[2]:
        read = [place for place in traffic if place.kind == "shared load" and place.bytes == 16 * place.accesses]
        assert sum(place.requests for place in read) > 1000
        for place in read:
            assert place.transactions == 4 * place.requests, place.lines
            assert place.accesses == 32 * place.requests, place.lines


# Beneath the accesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
def test_the_kernel_runs_clean_under_address_and_undefined_behaviour_sanitizers():
    done = run_sanitized(
        __file__, "-k", "(named and ((busy and runs) or (idle and cropped))) or (memory_order and float16 and last)"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("step", [1, 2], ids=["one phase", "both phases"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_begin_where_16_bytes_do_equal_the_oracle(dtype, step):
    case = same((1, 9, 3, 64), dtype, patch_size=(2, 17), dilation_patch=step)
    x1, x2, g = case.arrays()
    got = gradients(emulator := Emulator(), g, aligned(x1), aligned(x2), **case.parameters)
    assert_gradients(got, g, x1, x2, **case.parameters)
    # Copies to shared memory part the phases element by element; numbers of 16 bits go through registers.
    together = step == 1 or x1.itemsize == 2
    assert (emulator.account.global_load_bytes > x1.itemsize * emulator.account.global_loads) == together


@pytest.mark.parametrize("step", [1, 2], ids=["one phase", "both phases"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_within_those_of_a_larger_image_equal_the_oracle(dtype, step):
    """Some of them begin where 16 bytes do; those of the next channel do too in an image of 4 rows, and do not in one of 5."""
    for height in (4, 5):
        case = same((1, 9, height, 64), dtype, patch_size=(2, 17), dilation_patch=step)
        check(case, lambda x: aligned(np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0))))[..., 1:])


@pytest.mark.parametrize(("width", "cropped"), [(66, 2), (62, 4)], ids=["begins", "ends"])
def test_what_no_output_reads_of_a_run_of_columns_may_be_infinite_where_that_part(width, cropped):
    case = same((1, 4, 10, width), patch_size=(3, 21), dilation_patch=2, padding=(0, -cropped))
    x1, x2, g = case.arrays()
    x1[..., :cropped] = x1[..., -cropped:] = np.inf
    _, g2 = gradients(Emulator(), g, aligned(x1), x2, needs=(False, True), **case.parameters)
    x1[..., :cropped] = x1[..., -cropped:] = 0
    oracle.assert_close(g2, oracle.vjp(g, x1, x2, **case.parameters)[1], name="g2")


def test_wide_rows_of_neighbouring_channels_equal_the_oracle():
    check(same((1, 9, 3, 140), patch_size=(1, 5), dilation_patch=2), channels_last)


def test_gradients_of_neighbouring_channels_are_stored_in_whole_sectors():
    case = same((1, 64, 4, 32), patch_size=3)
    x1, x2, g = case.arrays()
    gradients(emulator := Emulator(traced=True), g, x1, x2, lay=channels_last, **case.parameters)
    stored = [place for place in emulator.traffic if place.kind == "global store"]
    assert 32 * sum(place.transactions for place in stored) == sum(place.bytes for place in stored) == 2 * x1.nbytes
