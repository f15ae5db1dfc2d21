"""Tiles, groups, slabs, threads and crops: how the work is divided does not matter."""

from itertools import product

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, dots, matched, noise, some_slow
from match_oracle import answer, assert_answer

import cupycorr
from cupycorr._cpu import workers
from cupycorr._motion import costs

# Tiles and groups -------------------------------------------------------------------------------------------------------------

SEARCHES = {
    "both axes": ((-4, 5), (-3, 3)),
    "stereo": ((0, 0), (-9, 0)),
    "vertical": ((-5, 6), (0, 0)),
    "two rows": ((0, 1), (-2, 2)),
}
SHAPE = (34, 40)


# Dtypes, and whether pixels are missing.
PIXELS = some_slow(product(["uint8", "float32", "float64"], [False, True]), [("uint8", False), ("float64", True)])
NAMES_OF_PIXELS = [each.values[0][0] + (", missing" if each.values[0][1] else "") for each in PIXELS]


def frames_of(dtype, missing=False):
    """Return two frames, and the masks of their valid pixels."""
    frames = [noise(SHAPE, seed) for seed in (1, 2)]
    if dtype != "uint8":
        frames = [(f / 7 + 1000).astype(dtype) for f in frames]
    masks = {f"mask{number}": ~dots(SHAPE, 60, number) for number in (1, 2)} if missing else {}
    return frames, masks


def make_tasks_small(monkeypatch, size):
    """Divide the work into parts of few bytes."""
    monkeypatch.setattr(costs, "_FEWEST_SCORES", 1)
    for name in ("TASK_BYTES", "_CACHED", "_GROUP", "_SCORES"):
        monkeypatch.setattr(costs, name, size)


@pytest.mark.covering(2)
@pytest.mark.parametrize("search", some_slow(SEARCHES, ["both axes", "stereo"]))
@pytest.mark.parametrize("pixels", PIXELS, ids=NAMES_OF_PIXELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_answer_does_not_depend_on_tiles_and_groups(variant, pixels, search, monkeypatch):
    frames, masks = frames_of(*pixels)
    options = {"window": 5, "search": SEARCHES[search], "step": (2, 1), "variant": variant, **masks}
    few, many = [], []
    want = matched(*frames, **options, progress=few.append)
    for size in (100_000, 12_000):
        make_tasks_small(monkeypatch, size)
        got = matched(*frames, **options, progress=many.append)
        # Sums of whole numbers are exact; those of other numbers may round differently where a tile begins elsewhere.
        assert_same(got, want, atol=0 if pixels[0] == "uint8" else 1e-9)
    assert len(many) > 2 * len(few)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("variant", ["operator", "fft"])
def test_the_answer_at_points_does_not_depend_on_groups(variant, dtype, missing, monkeypatch):
    frames, masks = frames_of(dtype, missing)
    points = np.random.default_rng(0).uniform(-3, 40, (50, 2))
    options = {"window": 6, "points": points, "variant": variant, "consistency": True, **masks}
    want = cupycorr.match(*frames, **options)
    make_tasks_small(monkeypatch, 60_000)
    assert_same(cupycorr.match(*frames, **options), want, atol=0 if dtype == "uint8" else 1e-9)


# Slabs of displacements -------------------------------------------------------------------------------------------------------

IMAGE, TEMPLATE = (150, 172), (12, 10)  # 139 x 163 displacements


def slabbed(*frames, monkeypatch, variant, kept=True, **options):
    """Return a match of which the displacements are divided into slabs of 64 x 64 for transforms, of 23 x 23 for the operator.

    ``kept`` tells whether the scores of a window are kept, or computed again where they are needed.
    """
    shares = []
    with monkeypatch.context() as patched:
        patched.setattr(costs, "_LARGEST_AREA", 70**2)
        patched.setattr(costs, "TASK_BYTES", costs._ITEM * (costs._COPIES + costs._IMAGES) * 23**2)
        if not kept:
            patched.setattr(costs, "_KEPT", 0)
        found = cupycorr.match(*frames, search=None, variant=variant, progress=shares.append, **options)
    assert len(shares) >= 9
    return found


# Borders of slabs of both sizes are among these, on either side and at corners.
PEAKS = [
    (63, 64),
    (64, 63),
    (63, 63),
    (64, 64),
    (0, 64),
    (138, 63),
    (63, 0),
    (64, 162),
    (22, 23),
    (23, 22),
    (23, 100),
    (0, 0),
    (138, 162),
]


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("variant", ["operator", "fft"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("curve", some_slow(["gaussian", "parabola", False], ["gaussian"]), ids=str)
def test_peaks_at_the_borders_of_slabs_are_those_of_the_definition(curve, kept, variant, dtype, monkeypatch):
    scale = (lambda f: f) if dtype == "uint8" else (lambda f: f / 7 - 100)
    image = sum(
        np.kron(noise((IMAGE[0] // size, IMAGE[1] // size), size), np.ones((size, size), int))[:150, :170] for size in (1, 2, 5)
    )
    image = np.pad(image // 3, ((0, 0), (0, 2)), mode="edge").astype(np.uint8)
    for top, left in PEAKS[:: 1 if curve == "gaussian" else 4]:
        template = image[top : top + 12, left : left + 10] // 2 + noise(TEMPLATE, 9) // 16
        frames = scale(template), scale(image)
        found = slabbed(*frames, window=TEMPLATE, subpixel=curve, monkeypatch=monkeypatch, variant=variant, kept=kept)
        assert (np.rint(found.dy.item()), np.rint(found.dx.item())) == (top, left)
        whole = cupycorr.match(*frames, window=TEMPLATE, search=None, subpixel=curve, variant="fft")
        assert_same(found, whole, atol=1e-9)
        if (top, left) == PEAKS[0]:
            assert_answer(found, answer(*frames, window=TEMPLATE, search=None, subpixel=curve))


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", ["operator", "fft"])
@pytest.mark.parametrize(
    "places", [[(60, 90), (90, 60)], [(24, 104), (60, 60)], [(0, 70), (70, 0), (42, 56)], [(5, 5), (130, 150)]], ids=str
)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
def test_of_equal_scores_in_several_slabs_the_shortest_and_first_wins(kept, places, variant, monkeypatch):
    image, template = noise(IMAGE, 1), noise(TEMPLATE, 2)
    for top, left in places:
        image[top : top + 12, left : left + 10] = template
    sevenths = np.float32(template) / np.float32(7), np.float32(image) / np.float32(7)
    for frames in ((template, image), sevenths):
        found = slabbed(*frames, window=TEMPLATE, subpixel=False, monkeypatch=monkeypatch, variant=variant, kept=kept)
        assert (found.dy.item(), found.dx.item()) == min(places, key=lambda at: (at[0] ** 2 + at[1] ** 2, at))
        assert found.peak_ratio.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("variant", ["operator", "fft"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
def test_missing_pixels_several_windows_and_no_match_in_slabs(kept, variant, monkeypatch):
    image, lost = noise(IMAGE, 1, np.float64), dots(IMAGE, 20, 3)
    frame1 = noise((14, 20), 2, np.float64)
    frame1[:, :10][:12] = image[70:82, 100:110]
    image[lost] = np.nan
    frame1[3, 4] = np.nan
    frame1[:7, 10:] = frame1[0, 10]  # flat in the upper half, but not all
    options = {"window": TEMPLATE, "step": (1, 5), "subpixel": "gaussian"}
    given = {"monkeypatch": monkeypatch, "variant": variant, "kept": kept}
    found = slabbed(frame1, image, **given, **options)
    assert_same(found, cupycorr.match(frame1, image, search=None, variant="fft", **options), atol=1e-9)
    assert (found.count[0, 0] > 100) & (found.count[0, 0] < 120)
    flat = slabbed(np.full(TEMPLATE, 3), image, window=TEMPLATE, **given)
    assert np.isnan(flat.dx.item())
    assert (flat.score.item(), flat.count.item(), flat.at_edge.item()) == (0, 0, False)
    assert np.isnan(flat.peak_ratio.item())


# Threads ----------------------------------------------------------------------------------------------------------------------

CALLS = {
    "grid": {"window": 5},
    "far apart": {"window": 5, "step": 9},
    "points": {"window": 6, "points": np.random.default_rng(0).uniform(0, 34, (40, 2))},
    "offsets": {"window": 6, "step": 3, "offset": tuple(np.random.default_rng(0).integers(-3, 4, (2, 10, 12)))},
    "consistency": {"window": 7, "step": 2, "consistency": True},
    "template": {"window": (30, 36), "step": 4, "search": None},
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("pixels", PIXELS, ids=NAMES_OF_PIXELS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("variant", some_slow([*VARIANTS, "auto"], VARIANTS))
def test_the_bits_do_not_depend_on_the_number_of_threads(variant, call, pixels):
    frames, masks = frames_of(*pixels)
    found = []
    for threads in (1, 2, 3, 2):
        with workers.team_of(threads):
            found.append(matched(*frames, variant=variant, **CALLS[call], **masks))
    for other in found[1:]:
        assert_same(other, found[0])


# Parts of frames --------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(2)
@pytest.mark.parametrize("kind", ["uint8", "float32 + 3e4", "float64 with a far fill value", "colour"])
@pytest.mark.parametrize("step", [1, 4, 11])
@pytest.mark.parametrize("variant", [*VARIANTS, "auto"])
def test_a_crop_of_the_frames_gives_the_answers_of_the_whole(variant, step, kind):
    shape = (99, 121, 3) if kind == "colour" else (99, 121)
    frames = [noise(shape, seed) for seed in (1, 2)]
    if kind == "float32 + 3e4":
        frames = [np.float32(f) + np.float32(3e4) for f in frames]
    elif kind.startswith("float64"):
        frames = [f / 7 for f in frames]
        for frame in frames:
            frame[:20] = -1e30
    options = {"window": (7, 8), "search": ((-3, 2), (-4, 4)), "step": step, "variant": variant}
    whole = matched(*frames, **options)
    begin, end = (44, 44), (88, 110)
    part = matched(*(f[begin[0] : end[0], begin[1] : end[1]] for f in frames), **options)
    inside = tuple(
        slice(-(-low // step), (size - window - high) // step + 1)
        for (low, high), window, size in zip(((3, 2), (4, 4)), options["window"], (44, 66), strict=True)
    )
    at = tuple(slice(each.start + first // step, each.stop + first // step) for each, first in zip(inside, begin, strict=True))
    assert part.dx[inside].size
    for name in ("dx", "dy", "score", "at_edge", "peak_ratio", "count"):
        np.testing.assert_allclose(getattr(part, name)[inside], getattr(whole, name)[at], rtol=1e-9, atol=1e-9, err_msg=name)


# Progress ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(2)
@pytest.mark.parametrize("consistency", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("tasks", ["many", "few"])
@pytest.mark.parametrize(
    "options", [{}, {"step": 15}, {"points": [(20, 20), (30, 30), (40, 9)] * 9}], ids=["grid", "far", "points"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_progress_is_told_in_growing_shares_up_to_all(variant, options, tasks, consistency, monkeypatch):
    if tasks == "many":
        make_tasks_small(monkeypatch, 2**17)
    frame, shares = noise((60, 70)), []
    search = ((-5, 5), (-5, 5))
    matched(frame, frame, window=9, search=search, progress=shares.append, consistency=consistency, variant=variant, **options)
    assert shares == sorted(set(shares))
    assert shares[0] > 0
    assert shares[-1] == 1
    if tasks == "many":
        assert len(shares) > 3


def test_an_error_of_progress_ends_the_call():
    class StoppedError(Exception):
        pass

    def stop(fraction):
        raise StoppedError

    with pytest.raises(StoppedError):
        cupycorr.match(noise((60, 70)), noise((60, 70)), progress=stop)
