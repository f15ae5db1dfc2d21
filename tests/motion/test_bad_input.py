"""Bad input is refused before any work, with the value in the message."""

import math
import sys

import numpy as np
import pytest
from fake_cupy import H100, Fake, on_cupy
from match_cases import noise

import cupycorr
from cupycorr import motion

GOOD = noise((20, 30))
COLOUR = np.stack([GOOD] * 3, 2)
MASK = np.ones((20, 30), bool)
POINTS = [(5, 6), (7, 8)]
HUGE = 10**30


class Elsewhere(np.ndarray):
    """An array on another device."""

    device = "elsewhere"


def with_frames(one, two, **options):
    return (one, two), options


def with_options(**options):
    return (GOOD, GOOD), options


FRAMES = {
    "list": (*with_frames(GOOD.tolist(), GOOD), TypeError, "frame1 must be a NumPy or CuPy array"),
    "none": (*with_frames(GOOD, None), TypeError, "frame2 must be a NumPy or CuPy array"),
    "number": (*with_frames(3.0, GOOD), TypeError, "frame1 must be a NumPy or CuPy array"),
    "bool frame": (*with_frames(GOOD > 9, GOOD), TypeError, "frame1.dtype=bool"),
    "complex frame": (*with_frames(GOOD, GOOD * 1j), TypeError, "frame2.dtype=complex128"),
    "object frame": (*with_frames(GOOD, GOOD.astype(object)), TypeError, "frame2.dtype=object"),
    "string frame": (*with_frames(GOOD.astype(str), GOOD), TypeError, "frame1.dtype=str"),
    "time frame": (*with_frames(GOOD.astype("m8[s]"), GOOD), TypeError, "frame1.dtype=timedelta64"),
    "masked bool frame": (*with_frames(np.ma.array(GOOD > 9), GOOD), TypeError, "frame1.dtype=bool"),
    "grey and colour": (*with_frames(GOOD, COLOUR), ValueError, r"frame2.shape=\(20, 30, 3\)"),
    "four channels": (*with_frames(np.stack([GOOD] * 4, 2), GOOD), ValueError, r"frame1.shape=\(20, 30, 4\)"),
    "one channel": (*with_frames(GOOD, GOOD[..., None]), ValueError, r"frame2.shape=\(20, 30, 1\)"),
    "one row": (*with_frames(GOOD, GOOD[0]), ValueError, r"frame2.shape=\(30,\)"),
    "batch": (*with_frames(GOOD[None, None], GOOD), ValueError, r"frame1.shape=\(1, 1, 20, 30\)"),
    "devices differ": (*with_frames(GOOD, GOOD.view(Elsewhere)), ValueError, "same device, got cpu and elsewhere"),
    "kinds differ": (*with_frames(GOOD, on_cupy(GOOD)), TypeError, "frame1 on numpy, frame2 on cupy"),
    "no rows": (*with_frames(GOOD[:0], GOOD), ValueError, r"frame1 must have pixels, got frame1.shape=\(0, 30\)"),
    "no columns": (*with_frames(GOOD[:, :0], GOOD), ValueError, r"frame1 must have pixels, got frame1.shape=\(20, 0\)"),
}
SIZES = {
    "window too high": (*with_options(window=(21, 5)), ValueError, r"window must fit .* got window=\(21, 5\)"),
    "window too wide": (*with_options(window=(5, 31)), ValueError, r"window must fit .* got window=\(5, 31\)"),
    "window zero": (*with_options(window=0), ValueError, "window must be at least 1, got window=0"),
    "window negative": (*with_options(window=(3, -1)), ValueError, r"window must be at least 1, got window=\(3, -1\)"),
    "window float": (*with_options(window=5.0), TypeError, "window must be an int .* got window=5.0"),
    "window bool": (*with_options(window=True), TypeError, "window must be an int .* got window=True"),
    "window none": (*with_options(window=None), TypeError, "window must be an int .* got window=None"),
    "window triple": (*with_options(window=(3, 3, 3)), ValueError, r"window must be an int .* got window=\(3, 3, 3\)"),
    "window huge": (*with_options(window=HUGE), ValueError, f"window must .*{HUGE}"),
    "window huge for points": (*with_options(window=HUGE, points=POINTS), ValueError, f"window must .*{HUGE}"),
    "step zero": (*with_options(step=(1, 0)), ValueError, r"step must be at least 1, got step=\(1, 0\)"),
    "step float": (*with_options(step=(1, 2.5)), TypeError, r"step must be an int .* got step=\(1, 2.5\)"),
    "step none": (*with_options(step=None), TypeError, "step must be an int .* got step=None"),
    "step huge": (*with_options(step=HUGE), ValueError, f"step must .*{HUGE}"),
}
SEARCHES = {
    "search int": (*with_options(search=4), TypeError, "search must be .* got search=4"),
    "search text": (*with_options(search="all"), TypeError, "search must be .* got search='all'"),
    "search array": (*with_options(search=np.array(((-1, 1), (-1, 1)))), TypeError, "search must be"),
    "search flat": (*with_options(search=(-4, 4)), TypeError, r"search must be .* got search=\(-4, 4\)"),
    "search of one": (*with_options(search=((-4, 4),)), ValueError, r"search must be .* got search=\(\(-4, 4\),\)"),
    "search of three": (*with_options(search=((-4, 0, 4), (0, 1))), ValueError, r"search must be .*\(\(-4, 0, 4\)"),
    "search float": (*with_options(search=((-4, 4), (0, 1.5))), TypeError, r"whole pixels.* got .*\(0, 1.5\)"),
    "search bool": (*with_options(search=((-4, 4), (False, 1))), TypeError, "whole pixels.* got search="),
    "search none inside": (*with_options(search=((-4, 4), None)), TypeError, "search must be"),
    "search reversed": (*with_options(search=((4, -4), (0, 0))), ValueError, r"low to high, got search=\(\(4, -4\)"),
    "search too far up": (
        *with_options(search=((-20, 0), (0, 0))),
        ValueError,
        r"frames of 20 x 30 and 20 x 30 .*\(\(-20, 0\)",
    ),
    "search too far right": (*with_options(search=((0, 0), (25, 30))), ValueError, r"smaller than the frames .*\(25, 30\)"),
    "points far apart": (
        *with_options(search=None, points=[(0, 0), (1e6, 1e6)]),
        ValueError,
        "search=None needs windows near the frames, got windows 1000000 pixels apart",
    ),
    "search huge": (*with_options(search=((0, HUGE), (0, 0))), ValueError, f"search must .*{HUGE}"),
    "search huge both ways": (*with_options(search=((-HUGE, HUGE), (0, 0))), ValueError, f"search must .*{HUGE}"),
    "search huge with an offset": (*with_options(search=((-HUGE, HUGE), (0, 0)), offset=(0, 0)), ValueError, "search must"),
    "search far, points": (*with_options(search=((-20, 20), (0, 0)), points=POINTS), ValueError, "shorter than both frames"),
    "template too high": (*with_frames(GOOD, GOOD[:9], window=10, search=None), ValueError, "9 x 30 pixels, got 10 x 10"),
    "template too wide": (*with_frames(GOOD, GOOD[:, :9], window=10, search=None), ValueError, "20 x 9 pixels, got 10 x 10"),
    "template of points too high": (
        *with_frames(GOOD, GOOD[:9], window=10, search=None, points=POINTS),
        ValueError,
        "search=None needs windows that fit into frame2 of 9 x 30",
    ),
}
CHOICES = {
    "subpixel int": (*with_options(subpixel=1), TypeError, "subpixel must be a bool .* got subpixel=1"),
    "subpixel none": (*with_options(subpixel=None), TypeError, "subpixel must be a bool .* got subpixel=None"),
    "subpixel unknown": (*with_options(subpixel="spline"), ValueError, "'gaussian', 'parabola', got subpixel='spline'"),
    "subpixel capital": (*with_options(subpixel="Gaussian"), ValueError, "got subpixel='Gaussian'"),
    "consistency int": (*with_options(consistency=1), TypeError, "consistency must be a bool, got consistency=1"),
    "consistency none": (*with_options(consistency=None), TypeError, "consistency must be a bool, got consistency=None"),
    "variant unknown": (*with_options(variant="cuda"), ValueError, "'auto', 'operator', 'fft', 'simd', got variant='cuda'"),
    "variant none": (*with_options(variant=None), TypeError, "variant must be a string, got variant=None"),
    "variant bool": (*with_options(variant=True), TypeError, "variant must be a string, got variant=True"),
}


def bad_masks(number):
    """Return the cases of masks of one frame."""
    name, other = f"mask{number}", f"frame{number}"
    return {
        f"{name} of whole numbers": (*with_options(**{name: MASK.astype(np.uint8)}), TypeError, f"{name}.dtype=uint8"),
        f"{name} of floats": (*with_options(**{name: MASK.astype(float)}), TypeError, f"{name}.dtype=float64"),
        f"{name} smaller": (
            *with_options(**{name: MASK[1:]}),
            ValueError,
            rf"{name}.shape=\(19, 30\), {other}.shape=\(20, 30\)",
        ),
        f"{name} transposed": (*with_options(**{name: MASK.T}), ValueError, rf"{name}.shape=\(30, 20\)"),
        f"{name} of rank 1": (*with_options(**{name: MASK[0]}), ValueError, rf"{name}.shape=\(30,\)"),
        f"{name} with channels": (
            *with_frames(COLOUR, COLOUR, **{name: np.stack([MASK] * 3, 2)}),
            ValueError,
            rf"{name}.shape=\(20, 30, 3\)",
        ),
        f"{name} list": (*with_options(**{name: MASK.tolist()}), TypeError, f"{name} must be a NumPy or CuPy array"),
        f"{name} bool": (*with_options(**{name: True}), TypeError, f"{name} must be a NumPy or CuPy array"),
        f"{name} masked": (*with_options(**{name: np.ma.array(MASK)}), TypeError, f"{name} must not be a masked array"),
        f"{name} on a GPU": (*with_options(**{name: on_cupy(MASK)}), TypeError, f"same kind, got .*{name} on cupy"),
        f"{name} elsewhere": (*with_options(**{name: MASK.view(Elsewhere)}), ValueError, "same device"),
    }


PLACES = {
    "points of rank 1": (*with_options(points=[1, 2]), ValueError, r"points must be .* got points.shape=\(2,\)"),
    "points of three": (*with_options(points=[(1, 2, 3)]), ValueError, r"points.shape=\(1, 3\)"),
    "points of rank 3": (*with_options(points=[[(1, 2)]]), ValueError, r"points.shape=\(1, 1, 2\)"),
    "points NaN": (*with_options(points=[(1, math.nan)]), ValueError, "points must be finite .* got nan"),
    "points infinite": (*with_options(points=[(1, 2), (-math.inf, 3)]), ValueError, "points must be finite .* got -inf"),
    "points far": (*with_options(points=[(1, 2.0**40)]), ValueError, "points must be finite and below"),
    "points of huge ints": (*with_options(points=[(1, HUGE)]), (TypeError, ValueError), "points must be"),
    "points bool": (*with_options(points=[(True, False)]), TypeError, "points must be an array of real numbers"),
    "points complex": (*with_options(points=[(1j, 2)]), TypeError, "points must be an array of real numbers"),
    "points text": (*with_options(points=[("1", "2")]), TypeError, "points must be an array of real numbers"),
    "points ragged": (*with_options(points=[(1, 2), (3,)]), (TypeError, ValueError), "points"),
    "points masked": (*with_options(points=np.ma.array([(1, 2)])), TypeError, "points must be an array of real numbers"),
    "points and a step": (*with_options(points=POINTS, step=2), ValueError, "step must be 1 for points, got step=2"),
    "points and a pair of steps": (*with_options(points=POINTS, step=(1, 3)), ValueError, r"got step=\(1, 3\)"),
    "points and a bad step": (*with_options(points=POINTS, step=0), ValueError, "step must be at least 1"),
}
FIELD = np.zeros((10, 20))
OFFSETS = {
    "offset int": (*with_options(offset=3), TypeError, r"offset must be a pair \(dy, dx\)"),
    "offset text": (*with_options(offset="up"), TypeError, r"offset must be a pair \(dy, dx\)"),
    "progress is no function": (*with_options(progress=5), TypeError, "progress must be callable, got progress=5"),
    "offset of three": (*with_options(offset=(1, 2, 3)), ValueError, r"offset must be a pair \(dy, dx\)"),
    "offset of one": (*with_options(offset=(1,)), ValueError, r"offset must be a pair \(dy, dx\)"),
    "offset array of three": (*with_options(offset=np.zeros((3, 10, 20))), TypeError, r"offset must be a pair \(dy, dx\)"),
    "offset field alone": (*with_options(offset=FIELD), TypeError, r"offset must be a pair \(dy, dx\)"),
    "offset dictionary": (*with_options(offset={"dy": 1, "dx": 2}), TypeError, r"offset must be a pair \(dy, dx\)"),
    "offset of another shape": (*with_options(offset=(FIELD[1:], FIELD)), ValueError, r"\(10, 20\), got \(9, 20\) and"),
    "offset of points": (*with_options(points=POINTS, offset=(FIELD, FIELD)), ValueError, r"\(2,\), got \(10, 20\)"),
    "offset of rank 1": (*with_options(offset=(np.zeros(20), 0)), ValueError, r"\(10, 20\), got \(20,\)"),
    "offset fraction": (*with_options(offset=(0.5, 1)), ValueError, "offset must be in whole pixels"),
    "offset field of fractions": (*with_options(offset=(FIELD, FIELD + 0.25)), ValueError, "offset must be in whole pixels"),
    "offset NaN": (*with_options(offset=(math.nan, 1)), ValueError, "offset must be finite"),
    "offset infinite": (*with_options(offset=(1, math.inf)), ValueError, "offset must be finite"),
    "offset far": (*with_options(offset=(2**40, 0)), ValueError, "offset must be finite and below"),
    "offset huge": (*with_options(offset=(HUGE, 0)), (TypeError, ValueError), "offset must be"),
    "offset bool": (*with_options(offset=(True, 0)), TypeError, "offset must be an array of real numbers"),
    "offset complex": (*with_options(offset=(1j, 0)), TypeError, "offset must be an array of real numbers"),
    "offset none inside": (*with_options(offset=(None, 0)), TypeError, "offset must be an array of real numbers"),
}
BAD = FRAMES | SIZES | SEARCHES | CHOICES | bad_masks(1) | bad_masks(2) | PLACES | OFFSETS


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    def begun(*arguments):
        pytest.fail("work has begun")

    monkeypatch.setattr(motion, "Matcher", begun)
    monkeypatch.setitem(sys.modules, "cupy", Fake(H100))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case):
    frames, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        cupycorr.match(*frames, **({"window": 11, "search": ((-4, 4), (-4, 4))} | options))


def test_good_input_reaches_the_work():
    with pytest.raises(pytest.fail.Exception, match="work has begun"):
        cupycorr.match(GOOD, GOOD, mask1=MASK, mask2=MASK, offset=(FIELD, FIELD), consistency=np.True_)


@pytest.mark.parametrize("which", [0, 1])
def test_a_torch_tensor_is_refused(which):
    torch = pytest.importorskip("torch")
    frames = [GOOD, GOOD]
    frames[which] = torch.zeros(20, 30)
    with pytest.raises(TypeError, match=f"frame{which + 1} must be a NumPy or CuPy array, got a torch tensor"):
        cupycorr.match(*frames)
    with pytest.raises(TypeError, match="mask1 must be a NumPy or CuPy array, got a torch tensor"):
        cupycorr.match(GOOD, GOOD, mask1=torch.ones(20, 30, dtype=torch.bool))


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="radius"):
        cupycorr.match(GOOD, GOOD, radius=3)
    with pytest.raises(TypeError, match="positional"):
        cupycorr.match(GOOD, GOOD, 11, ((-4, 4), (-4, 4)), 1, True, MASK)
