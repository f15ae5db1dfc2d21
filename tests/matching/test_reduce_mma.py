"""reduce_mma.cu: every tile finds what is in the volume of the same tile on tensor cores."""

from dataclasses import replace

import cases
import numpy as np
import pytest
from cases import same
from emulated import in_every_order
from emulator import Emulator, require_compiler
from layouts import aligned, channels_last
from matching_cases import OUTSIDE, SOME, inputs
from matching_emulated import Asked, check, request, run

from cupycorr._correlation.gpu.forward_mma import CHANNELWISE, DTYPES, TILES
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._matching.gpu import planner, reduce_mma
from cupycorr._matching.problem import Best, Mean

require_compiler()

FEW = (8, 22)  # tiles that the default run takes, one of channels last and one of two phases: each builds kernels
REDUCING = [number for number, tile in enumerate(TILES) if any("float32" in tile.results(dtype) for dtype in DTYPES)]
every_tile = pytest.mark.parametrize(
    "number", [pytest.param(number, marks=() if number in FEW else pytest.mark.slow) for number in REDUCING]
)


def shapes(number, tile):
    """Return a case with a tile and a bit more along every axis, for one of the dtypes that the tile is built for."""
    dtypes = [dtype for dtype in DTYPES if "float32" in tile.results(dtype)]
    wide = tile.displacements > 21
    patch = (1 if wide else tile.pass_rows + 2, tile.displacements + 1)
    shape = (1, 16, tile.phases * tile.tile_rows + 1, tile.columns[0] + 7)
    return cases.same(shape, dtypes[number % len(dtypes)], patch_size=patch, dilation_patch=tile.phases, scale=0.5)


@every_tile
def test_every_tile_finds_what_is_in_its_volume(number, monkeypatch):
    tile, outside, kind = TILES[number], OUTSIDE[number % 2], ("values", "ties", "strange")[number % 3]
    case = shapes(number, tile)
    lay = channels_last if tile.staging == CHANNELWISE else aligned
    asked = Asked("mma", case, lay, inputs(case, kind))
    passes = [each for each in asked.tilings() if each.tile is tile]
    for tiling in (passes[0], passes[-1]):
        assert tiling.finished_tiles > 1
        check(monkeypatch, asked, tiling, outside, 1 + number % 5)


@pytest.mark.parametrize("reduction", [Best(2), Mean(3.0)], ids=["best", "mean"])
def test_results_do_not_depend_on_the_order_of_threads(reduction, monkeypatch):
    asked = Asked("mma", shapes(20, TILES[20]))
    tiling = next(each for each in asked.tilings() if each.tile is TILES[20])
    in_every_order(lambda emulator: tuple(run(monkeypatch, asked, tiling, reduction, "excluded", emulator).values()))


PROBLEMS = ("pwcnet-like", "one-sided stereo", "even patch", "negative padding", "stride and step coprime", "no channels")


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
def test_named_problems_find_what_is_in_their_volumes(name, outside, kind, monkeypatch):
    case = replace(SOME[name], dtype="float16")
    asked = Asked("mma", case, arrays=inputs(case, kind))
    check(monkeypatch, asked, next(asked.tilings()), outside, 1)


def test_what_the_kernels_do_not_take_has_a_reason():
    x, many = np.zeros((1, 4, 8, 30), np.float16), np.zeros((1, 16 * LONGEST_CHAIN.tensor_cores + 1, 2, 2), np.float16)
    reasons = {
        "tensor cores multiply float16, bfloat16, float32, not float64": (x.astype(np.float64), {}),
        "a window of 3 x 3 pixels": (x, dict(kernel_size=3)),
        "4097 channels are too many for the sums of one thread": (many, {}),
    }
    for reason, (array, parameters) in reasons.items():
        assert planner.why_not("mma", request(array, array, Best(), patch_size=3, **parameters)).startswith(reason)


def test_the_volume_is_not_stored(monkeypatch):
    asked = Asked("mma", same((1, 16, 8, 64), "float16", patch_size=9))
    tiling = next(asked.tilings())
    run(monkeypatch, asked, tiling, Best(), "zero", emulator := Emulator())
    reducing, merging = emulator.accounts
    assert reducing.global_store_bytes == tiling.finished_tiles * 8 * 8 * 64
    assert merging.global_store_bytes == 12 * 8 * 64
    asked.volume(tiling, volume := Emulator())
    assert volume.account.global_store_bytes == 81 * 4 * 8 * 64
    assert reducing.global_load_bytes == volume.account.global_load_bytes


def test_builds_are_those_of_the_tiles_that_store_sums():
    assert not any("tile 24" in name for name, _ in reduce_mma.builds())
