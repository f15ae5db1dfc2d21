"""reduce_tiled.cu, and the kernels that merge its partial results: every tile finds what is in the volume of the same tile."""

from dataclasses import replace

import cases
import matching_oracle
import numpy as np
import pytest
from cases import DTYPES, NAMED
from emulated import BUSY, in_every_order, launched_by
from emulator import Emulator, require_compiler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import aligned, channels_last
from matching_cases import OUTSIDE, SOME, drawn, inputs, volume_of
from matching_emulated import TEMPERATURE, Asked, check, reduced, request, run

from cupycorr._correlation.gpu.forward_tiled import CHANNELWISE, COLUMNWISE, COPIED, TILES, _is_built
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._matching.gpu import fused, planner, reductions
from cupycorr._matching.problem import Best, Mean

require_compiler()

STAGINGS = {COPIED: "copied", COLUMNWISE: "by columns", CHANNELWISE: "by channels"}
EVERY = [(number, staging) for number, tile in enumerate(TILES) for staging in tile.stagings]
FEW = ((2, COPIED), (8, CHANNELWISE), (12, COLUMNWISE))  # those that the default run takes: each builds kernels
every_tile = pytest.mark.parametrize(
    ("number", "staging"),
    [pytest.param(*each, marks=() if each in FEW else pytest.mark.slow, id=f"{each[0]} {STAGINGS[each[1]]}") for each in EVERY],
)
outsides = pytest.mark.parametrize("outside", OUTSIDE)


# Tiles ------------------------------------------------------------------------------------------------------------------------


def shapes(number, tile, staging):
    """Return a case with a tile and a bit more along every axis, for one of the dtypes that can be staged so."""
    steps = tile.phases if tile.phases > 1 else 1
    dtypes = [name for name in DTYPES if _is_built(tile, staging, name)]
    patch = (tile.patch_rows + 1 if tile.patch_rows > 1 else 1, tile.groups * tile.displacements + 2)
    shape = (1, tile.channels + 3, steps * tile.tile_rows + 3, tile.phases * tile.lanes_x * 4 + 5)
    return cases.same(shape, dtypes[number % len(dtypes)], patch_size=patch, dilation_patch=steps, scale=0.5)


@every_tile
def test_every_tile_finds_what_is_in_its_volume(number, staging, monkeypatch):
    tile, outside, kind = TILES[number], OUTSIDE[number % 2], ("values", "ties", "strange")[number % 3]
    case = shapes(number, tile, staging)
    lay = {COPIED: aligned, COLUMNWISE: aligned, CHANNELWISE: channels_last}[staging]
    if staging == COLUMNWISE and case.dtype in ("float32", "float64"):
        lay = lambda x: np.repeat(x, 2, axis=3)[..., ::2]  # noqa: E731 - columns that cannot be copied as they are
    asked = Asked("tiled", case, lay, inputs(case, kind))
    tiling = next(each for each in asked.tilings() if each.tile is tile)
    assert tiling.parts > 1
    check(monkeypatch, asked, tiling, outside, 1 + number % 5)


@pytest.mark.parametrize("number", [2, 8, 12], ids="tile {}".format)
@pytest.mark.parametrize("reduction", [Best(2), Mean(TEMPERATURE)], ids=["best", "mean"])
def test_results_do_not_depend_on_the_order_of_threads(number, reduction, monkeypatch):
    case = shapes(number, TILES[number], TILES[number].stagings[0])
    asked = Asked("tiled", case)
    tiling = next(each for each in asked.tilings() if each.tile is TILES[number])
    in_every_order(lambda emulator: tuple(run(monkeypatch, asked, tiling, reduction, "excluded", emulator).values()))


# Problems ---------------------------------------------------------------------------------------------------------------------

PROBLEMS = {name: case for name, case in SOME.items() if name not in ("window of many taps", "windows apart")}
MORE = {
    "window over two phases": cases.same((1, 6, 11, 40), kernel_size=3, patch_size=(3, 5), dilation_patch=(1, 2)),
    "taps as far apart as displacements": cases.same(
        (1, 4, 11, 13), kernel_size=3, patch_size=3, dilation=2, dilation_patch=2, stride=2, padding=1
    ),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("name", [*PROBLEMS, *MORE])
@outsides
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_named_problems_find_what_is_in_their_volumes(name, outside, kind, top_k, monkeypatch):
    case = {**PROBLEMS, **MORE}[name]
    top_k = min(top_k, int(np.prod(case.out_shape()[1:3])))
    asked = Asked("tiled", case, arrays=inputs(case, kind))
    tiling = next(asked.tilings())
    check(monkeypatch, asked, tiling, outside, top_k)


@outsides
@pytest.mark.parametrize("steps", [(-2, -1), (-1, 2), (1, -2)], ids=str)
def test_displacements_may_descend(steps, outside, monkeypatch):
    case = cases.same((2, 5, 9, 12), patch_size=(3, 8), dilation_patch=steps)
    arrays = inputs(case, "ties")
    volume = volume_of(case, arrays, "reference")
    with launched_by(monkeypatch, emulator := Emulator()):
        best = reduced(emulator, "tiled", *arrays, Best(5), outside, **case.parameters)
        mean = reduced(emulator, "tiled", *arrays, Mean(TEMPERATURE), outside, **case.parameters)
    _, _, score, channel = matching_oracle.best(volume, case, 5, outside)
    np.testing.assert_array_equal(best["channel"], channel)
    np.testing.assert_array_equal(best["score"], score.astype(np.float32))
    for name, want in zip(("dy", "dx"), matching_oracle.mean(volume, case, TEMPERATURE, outside), strict=True):
        np.testing.assert_allclose(mean[name], want, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, monkeypatch):
    asked = Asked("tiled", replace(SOME["pwcnet-like"], dtype=dtype))
    check(monkeypatch, asked, next(asked.tilings()), "excluded", 2)


@pytest.mark.slow
@given(example=drawn(), data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_drawn_problems_find_what_is_in_their_volumes(example, data):
    case, kind, top_k, outside = example
    asked = Asked("tiled", case, arrays=inputs(case, kind))
    if planner.why_not("tiled", request(*asked.inputs, Best(top_k), outside, **case.parameters)) is None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            check(monkeypatch, asked, data.draw(st.sampled_from(list(asked.tilings()))), outside, top_k)


def test_samples_are_taken_some_at_a_time_where_the_workspace_is_small(monkeypatch):
    case = cases.same((5, 3, 6, 40), patch_size=9)
    x1, x2, _ = case.arrays()
    with launched_by(monkeypatch, emulator := Emulator()):
        whole = reduced(emulator, "tiled", x1, x2, Best(2), **case.parameters)
        launches = len(emulator.accounts)
        plan = planner.plan("tiled", request(x1, x2, Best(2), **case.parameters), BUSY)
        monkeypatch.setattr(fused, "WORKSPACE_BYTES", plan.workspace // 2)
        some = reduced(emulator, "tiled", x1, x2, Best(2), **case.parameters)
    assert (launches, len(emulator.accounts) - launches) == (2, 6)
    for name in whole:
        np.testing.assert_array_equal(some[name], whole[name])


# What is taken, and what it costs ---------------------------------------------------------------------------------------------


def test_what_the_kernels_do_not_take_has_a_reason():
    x = np.zeros((1, 4, 8, 30), np.float32)
    many = np.zeros((1, 4 * LONGEST_CHAIN.cuda + 1, 2, 2), np.float32)
    reasons = {
        "subpixel displacements need the scores around": (x, Best(1, around=True), {}),
        "top_k is 6, the kernels find at most 5": (x, Best(6), {}),
        "the inverse of a temperature of 1e-35 loses digits": (x, Mean(1e-35), {}),
        "excluded displacements of up to": (x, Best(), dict(dilation_patch=2**29, outside="excluded")),
        "2049 channels are too many for the sums of one thread": (many, Best(), {}),
        "a window of 40 x 40 taps does not fit": (np.zeros((1, 1, 50, 50), np.float32), Best(), dict(kernel_size=40)),
    }
    for reason, (array, reduction, parameters) in reasons.items():
        asked = request(array, array, reduction, **{"patch_size": 3, **parameters})
        assert planner.why_not("tiled", asked).startswith(reason)


@pytest.mark.parametrize("reduction", [Best(), Best(5), Mean()], ids=["best", "five best", "mean"])
def test_the_volume_is_not_stored(reduction, monkeypatch):
    case = cases.same((1, 4, 8, 64), patch_size=21, dilation_patch=2)
    asked = Asked("tiled", case)
    tiling = next(each for each in asked.tilings(reduction) if each.tile.phases == 2)
    run(monkeypatch, asked, tiling, reduction, "zero", emulator := Emulator())
    reducing, merging = emulator.accounts
    positions, words = 8 * 64, 4 if isinstance(reduction, Mean) else 2 * reduction.top_k
    assert tiling.parts == 3
    assert reducing.global_store_bytes == tiling.parts * words * 4 * positions
    assert merging.global_load_bytes == reducing.global_store_bytes
    results = 8 if isinstance(reduction, Mean) else 12 * reduction.top_k
    assert merging.global_store_bytes == results * positions
    asked.volume(tiling, volume := Emulator())
    assert volume.account.global_store_bytes == 441 * 4 * positions
    assert reducing.global_load_bytes == volume.account.global_load_bytes
    assert reducing.multiply_adds - volume.account.multiply_adds <= (0 if isinstance(reduction, Best) else 2 * 441 * positions)


def test_the_bound_of_sharpness_is_that_of_the_cpu():
    from cupycorr._matching.cpu import destination

    assert destination._SAFE == reductions.SAFE_SHARPNESS


def test_named_problems_are_those_of_the_suite():
    assert set(PROBLEMS) <= set(NAMED)
