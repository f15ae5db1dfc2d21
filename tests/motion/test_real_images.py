"""Real images with ground truth or a second opinion: a stereo pair, and particle images as OpenPIV measures them."""

from pathlib import Path

import numpy as np
import pytest
from match_cases import VARIANTS, matched

import cupycorr


def test_motorcycle_disparity_is_within_the_promise():
    data = pytest.importorskip("skimage.data")
    left, right, disparity = data.stereo_motorcycle()
    found = cupycorr.match(left, right, window=11, search=((0, 0), (-64, 0)))
    truth = disparity[5 : 5 + len(found.y), 5 : 5 + len(found.x)]
    known = np.isfinite(truth) & (found.x >= 80)
    error = np.abs(found.dx + truth)[known]  # the left image's (y, x) lies at (y, x - disparity) in the right one
    error[np.isnan(error)] = np.inf
    assert np.mean(error > 2) <= 0.16
    assert np.median(error) <= 0.25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_particle_images_agree_with_openpiv(variant):
    openpiv = pytest.importorskip("openpiv")
    io, pyprocess = pytest.importorskip("skimage.io"), pytest.importorskip("openpiv.pyprocess")
    folder = Path(openpiv.__path__[0]) / "data" / "test1"
    frame1, frame2 = (io.imread(folder / f"exp1_001_{letter}.bmp") for letter in "ab")
    found = matched(frame1, frame2, window=32, step=16, search=((-12, 12), (-12, 12)), variant=variant)
    arguments = {"window_size": 32, "overlap": 16, "search_area_size": 32}
    u, v, _ = pyprocess.extended_search_area_piv(frame1.astype(np.int32), frame2.astype(np.int32), **arguments)
    distance = np.hypot(found.dx - u, found.dy - v)  # both downwards
    assert np.median(distance) <= 0.1
    assert np.mean(distance <= 0.5) >= 0.97
