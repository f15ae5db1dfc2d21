"""A call reads the pixels of its windows and search areas, and holds a bounded number of bytes."""

import math

import memory
import numpy as np
import pytest
from match_cases import VARIANTS, matched, noise, some_slow

from cupycorr._cpu import workers
from cupycorr._motion.frames import Frame

LIMIT = 100 * memory.MEBIBYTE


@pytest.mark.parametrize("variant", [*VARIANTS, "auto"])
@pytest.mark.parametrize("step", [33, 40, 100])
def test_windows_far_apart_read_little_more_than_their_own_pixels(step, variant, monkeypatch):
    read = []
    rectangle, gather = Frame.rectangle, Frame.gather

    def read_rectangle(frame, first, shape):
        read.append(math.prod(shape))
        return rectangle(frame, first, shape)

    def read_rectangles(frame, tops, lefts, shape):
        read.append(len(tops) * math.prod(shape))
        return gather(frame, tops, lefts, shape)

    monkeypatch.setattr(Frame, "rectangle", read_rectangle)
    monkeypatch.setattr(Frame, "gather", read_rectangles)
    frames = noise((500, 500), 1), noise((500, 500), 2)
    found = matched(*frames, window=32, step=step, variant=variant)
    needed = found.dx.size * (32**2 + 40**2)
    assert needed / 2 < sum(read) <= 2.1 * needed


FRAMES = {
    "uint8": lambda seed: noise((3000, 3000), seed),
    "float32": lambda seed: noise((3000, 3000), seed, np.float32),
    "colour": lambda seed: noise((1500, 1500, 3), seed),
    "view": lambda seed: noise((3000, 6000), seed, np.float32)[:, ::2],
}
FAR = np.random.default_rng(0).uniform(0, 3000, (900, 2))
CALLS = {
    **{frames: (frames, {"step": 100}) for frames in FRAMES},
    "mask": ("uint8", {"step": 100, "mask": True}),
    "points": ("uint8", {"points": FAR}),
    "consistency": ("uint8", {"step": 100, "consistency": True}),
}


@pytest.mark.parametrize("variant", some_slow([*VARIANTS, "auto"], ["auto"]))
@pytest.mark.parametrize("call", some_slow(CALLS, ["uint8", "view", "points", "consistency"]))
def test_large_frames_with_few_windows_are_not_copied(call, variant):
    frames, options = CALLS[call]
    one, two = FRAMES[frames](1), FRAMES[frames](2)
    options = {"window": 32, "variant": variant, **options}
    if options.pop("mask", False):
        options |= {"mask1": one > 1, "mask2": two > 1}
    with workers.team_of(2):
        matched(
            one[:200, :200], two[:200, :200], window=32, step=100, variant=variant
        )  # what the first call loads does not count
        found, used = memory.peak(lambda: matched(one, two, **options))
    results = sum(getattr(found, name).nbytes for name in ("dx", "dy", "score", "at_edge", "peak_ratio", "count"))
    assert used - results < LIMIT
    assert used - results < 8 * one.size, "a float64 copy of a frame"
    assert frames != "view" or used - results < 4 * one.size, "a copy of a frame"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["operator", "simd", "auto"])
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_many_windows_with_large_searches_are_computed_in_bounded_memory(missing, variant):
    shape, radius, limit = (300, 400), 12, 192 * memory.MEBIBYTE
    frames = [noise(shape, seed) for seed in (1, 2)]
    masks = {"mask1": frames[1] > 1} if missing else {}
    volume = 8 * (2 * radius + 1) ** 2 * 297 * 397
    options = {"window": 4, "search": ((-radius, radius),) * 2, "variant": variant, **masks}
    with workers.team_of(2):
        found, used = memory.peak(lambda: matched(*frames, **options))
    assert used - 6 * found.dx.nbytes < limit
    assert volume > 2 * limit


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["operator", "fft", "auto"])
def test_one_window_with_a_huge_search_is_computed_in_bounded_memory(variant):
    image = noise((1800, 1900), 1)
    template = image[800:840, 900:950].copy()
    with workers.team_of(2):
        found, used = memory.peak(lambda: matched(template, image, window=(40, 50), search=None, variant=variant))
    assert (round(found.dy.item()), round(found.dx.item())) == (800, 900)
    assert used < LIMIT


@pytest.mark.parametrize("variant", some_slow([*VARIANTS, "auto"], ["fft", "auto"]))
def test_wide_frames_are_read_in_parts_at_any_step(variant):
    frames = [noise((1200, 8000), seed) for seed in (1, 2)]
    options = {"window": 32, "step": 16, "search": ((-2, 2), (-2, 2)), "variant": variant}
    with workers.team_of(2):
        matched(*(frame[:, :200] for frame in frames), **options)  # what the first call loads does not count
        _, used = memory.peak(lambda: matched(*frames, **options))
    assert used < LIMIT
