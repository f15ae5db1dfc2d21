"""The promises of the benchmarks of block matching: particles are where they should be, all estimators see the same windows, and
the tables say what was found. No test asserts a time."""

import importlib.metadata
import json
from functools import partial

import numpy as np
import pytest

from benchmarks import match_accuracy, match_cliffs, match_rivals, match_speed, particles, report
from benchmarks.match_accuracy import Case, Errors
from benchmarks.match_rivals import Grid
from benchmarks.match_speed import Problem, Result
from benchmarks.particles import Particles
from benchmarks.timing import Timing

pytest.importorskip("scipy")

MODULES = {"OpenPIV": "openpiv", "OpenCV + gaussian": "cv2"}  # that an estimator needs


# Particles --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diameter", match_accuracy.DIAMETERS)
def test_the_centroid_of_a_particle_is_its_position_and_its_sum_is_that_of_the_gaussian(diameter):
    at = 11.3, 14.85
    image = particles.render(Particles(*(np.array([each]) for each in (*at, 100.0))), (24, 30), diameter)
    centroid = [(image * index).sum() / image.sum() for index in np.indices(image.shape)]
    sigma = diameter / 4
    aliasing = (
        np.exp(-2 * (np.pi * sigma) ** 2) / np.pi
    )  # of any spot on a grid of pixels: 0.006 for the smallest, 0.0005 for 2.3
    np.testing.assert_allclose(centroid, at, atol=aliasing + 1e-4)
    np.testing.assert_allclose(image.sum(), 100 * 2 * np.pi * sigma**2, rtol=1e-3)


def test_a_particle_beyond_the_border_reaches_into_the_image():
    large, small = (
        particles.render(Particles(np.array([5.0 - first]), np.array([5.0 - first]), np.array([100.0])), (size, size), 4.0)
        for first, size in ((0, 12), (6, 6))
    )
    np.testing.assert_array_equal(small, large[6:, 6:])
    assert small[0, 0] > 10


def test_particles_move_half_before_and_half_after():
    still = Particles(np.array([3.0]), np.array([4.0]), np.array([1.0]))
    before, after = (still.moved(particles.uniform(1.0, -0.5), share) for share in (-0.5, 0.5))
    assert (before.y[0], before.x[0], after.y[0], after.x[0]) == (2.5, 4.25, 3.5, 3.75)


def test_the_displacement_of_a_rotation_is_that_of_the_rotated_point():
    angle = np.radians(3.0)
    dy, dx = particles.displacement_from(particles.rotation(3.0, (21, 21)), np.array([10.0, 2.0]), np.array([18.0, 5.0]))
    y, x = np.array([0.0, -8.0]), np.array([8.0, -5.0])  # from the middle, which is at (10, 10)
    np.testing.assert_allclose(dy, np.sin(angle) * x + np.cos(angle) * y - y, atol=1e-12)
    np.testing.assert_allclose(dx, np.cos(angle) * x - np.sin(angle) * y - x, atol=1e-12)


def test_a_pair_is_the_same_for_the_same_seed_and_has_noise():
    motion = particles.uniform(0.3, 0.7)
    first, again, noisy = (particles.pair((40, 50), 2.3, motion, noise, 5)[0] for noise in (0.0, 0.0, 0.05))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.uint8
    assert first.shape == (40, 50)
    assert 5 < np.std(noisy.astype(float) - first) < 14


# Estimators -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [8, 12, 20])
@pytest.mark.parametrize("name", match_accuracy.ESTIMATORS)
def test_every_estimator_finds_the_displacement_of_the_same_windows(name, step):
    if name in MODULES:
        pytest.importorskip(MODULES[name])
    grid = Grid((100, 120), 16, 4, step)
    motion = particles.uniform(1.3, -2.2)
    field = match_accuracy.ESTIMATORS[name](*particles.pair(grid.shape, 2.8, motion, density=0.06), grid)
    inside = [each if each.shape == grid.centres()[0].shape else each[grid.inside] for each in field]
    for found, true in zip(inside, (1.3, -2.2), strict=True):
        assert found.shape == grid.centres()[0].shape
        assert abs(np.median(found) - true) < 0.1


@pytest.mark.parametrize("name", MODULES)
def test_a_rivals_windows_are_ours(name):
    pytest.importorskip(MODULES[name])
    grid = Grid((150, 130), 24, 5, 12)
    frames = particles.pair(grid.shape, 2.8, particles.shear(0.05, grid.shape), density=0.06)
    truth = particles.displacement_from(particles.shear(0.05, grid.shape), *grid.centres())
    errors = [found - true for found, true in zip(match_accuracy.ESTIMATORS[name](*frames, grid), truth, strict=True)]
    assert abs(np.nanmedian(errors[1])) < 0.05  # a window further down would be off by 0.6
    assert abs(np.nanmedian(errors[0])) < 0.05


def test_whole_displacements_of_opencv_are_those_of_all_windows():
    pytest.importorskip("cv2")
    grid = Grid((60, 70), 16, 4, 11)
    frame = np.random.default_rng(0).integers(0, 256, grid.shape, dtype=np.uint8)
    dy, dx = match_rivals.opencv(frame, np.roll(frame, (2, -3), (0, 1)), grid)
    assert dy.shape == tuple(map(len, grid.origins()))
    assert (np.median(dy), np.median(dx)) == (2, -3)


def test_the_peak_of_a_gaussian_is_found_exactly_and_a_border_is_not_refined():
    y, x = np.indices((7, 8))
    scores = np.exp(-((y - 3.2) ** 2) / 3 - (x - 4.4) ** 2 / 5)
    np.testing.assert_allclose(match_rivals.gaussian_peak(scores[None]), [[3.2], [4.4]], atol=1e-12)
    np.testing.assert_allclose(match_rivals.gaussian_peak(scores[None, 4:]), [[0], [4.4]], atol=1e-12)
    parabola = 1 - (y - 3.2) ** 2 - (x - 4.4) ** 2  # negative next to the maximum
    np.testing.assert_allclose(match_rivals.gaussian_peak(parabola[None]), [[3.2], [4.4]], atol=1e-12)


# Accuracy ---------------------------------------------------------------------------------------------------------------------


def errors_of_sweep(name, offset, outliers=0):
    """Return measured errors of an estimator: those of dx grow along the sweep, and some windows are wrong."""
    found = []
    for number in range(len(match_accuracy.SWEEP)):
        errors = np.full((2, 8), offset)
        errors[1] += 0.001 * number
        errors[:, :outliers] = np.nan
        found.append({name: errors})
    return found


def test_bias_is_the_largest_mean_of_the_sweep_and_outliers_of_any_estimator_are_left_out():
    good, bad = errors_of_sweep("good", 0.0), errors_of_sweep("bad", 0.1, outliers=2)
    good[0]["good"][:, 0] = 0.4  # left out with the outliers of the other estimator
    rows = match_accuracy.errors_of_case(Case("uniform", 2.3, 0.0, 32), [a | b for a, b in zip(good, bad, strict=True)])
    first, second = rows
    assert first.estimator == "good"
    np.testing.assert_allclose((first.bias, second.bias), (0.01, 0.11))
    assert (first.outliers, second.outliers, first.windows) == (0, 0.25, 88)
    np.testing.assert_allclose(first.curve, [0.0005 * number for number in range(11)], atol=1e-12)
    np.testing.assert_allclose(first.rms, np.sqrt(np.mean([0.5 * (0.001 * number) ** 2 for number in range(11)])))


def test_promises_compare_with_limits_and_with_rivals():
    case = Case("uniform", 2.3, 0.0, 32)
    ours = Errors(case, match_accuracy.OURS, 0.008, 0.001, 0.02, 0.0, 100, ())
    rival = Errors(case, "OpenPIV", 0.002, 0.001, 0.03, 0.01, 100, ())
    found = {promise.text: promise for promise in match_accuracy.promises([ours, rival])}
    assert {text: promise.kept for text, promise in found.items()} == {
        "bias at window 32, diameter 2.3": True,
        "bias above that of OpenPIV": False,
        "rms above that of OpenPIV": True,
        "outliers above that of OpenPIV": True,
    }
    console = report.wide_console()
    with console.capture() as printed:
        console.print(match_accuracy.table_of([ours, rival]))
        match_accuracy.print_promises(console, [*found.values()])
    text = printed.get()
    assert "0.0080" in text
    assert "FAIL bias above that of OpenPIV: 0.0060, limit 0.002 (uniform, diameter 2.3, noise 0%, window 32)" in text
    assert json.loads(json.dumps(match_accuracy.record(ours)))["diameter"] == 2.3


def test_a_picture_has_a_panel_for_each_window_noise_and_diameter():
    pytest.importorskip("matplotlib")
    curve = tuple(0.01 * np.sin(np.linspace(0, 6, len(match_accuracy.SWEEP))))
    rows = [
        Errors(Case("uniform", diameter, 0.0, window), name, 0.01, 0.001, 0.02, 0.0, 100, curve)
        for diameter in (1.8, 2.3)
        for window in (16, 32)
        for name in match_accuracy.ESTIMATORS
    ]
    header = report.Header("", "", (), {}, {"cupycorr": importlib.metadata.version("cupycorr")})
    figure = match_accuracy.draw(header, rows)
    assert [len(panel.lines) for panel in figure.axes] == [1 + len(match_accuracy.ESTIMATORS)] * 4


# Speed ------------------------------------------------------------------------------------------------------------------------


def test_a_faster_rival_is_marked_and_so_is_another_answer():
    field = np.ones((2, 3, 4))
    works = {"auto": lambda: field, "whole": lambda: np.rint(field), "other": lambda: field + 1}
    found = match_speed.run(Problem("small", "uint8", works, whole=("whole",)), rounds=2, budget=1.0)
    rows = {row.contestant: row for row in found}
    assert [row.agrees for row in rows.values()] == [True, True, False]
    assert rows["other"].difference == pytest.approx(2**0.5)
    assert rows["other"].different == 1
    assert all(len(row.timing.seconds) <= 2 for row in rows.values())
    fast = Result("small", "uint8", "rival", Timing((0.001,)), ratio=0.5)
    chosen = Result("small", "uint8", "fft", Timing((0.001,)), ratio=0.5)
    missing = Result("small", "uint8", "operator", reason="not for this [dtype]")
    console = report.wide_console()
    with console.capture() as printed:
        console.print(match_speed.table_of([fast, chosen, missing, *rows.values()]))
    lines = [line.rstrip() for line in printed.get().splitlines()]
    assert lines[1].endswith("LOST")
    assert lines[2].endswith("AUTO REGRETS")
    assert lines[3].endswith("not run: not for this [dtype]")
    assert lines[-1].endswith("DIFFERS")


def test_a_variant_that_cannot_run_is_reported_with_its_reason():
    def refuse():
        raise NotImplementedError("needs a GPU")

    rows = match_speed.run(Problem("small", "uint8", {"auto": lambda: np.ones((2, 1, 1)), "fft": refuse}), rounds=1, budget=1.0)
    assert [row.reason for row in rows] == [None, "needs a GPU"]
    assert json.dumps([match_speed.record(row) for row in rows])


def test_contestants_of_a_grid_agree():
    pytest.importorskip("cv2")
    pytest.importorskip("openpiv")
    motion = particles.uniform(1.2, -2.3)
    problem = match_speed.windows("small", "float32", partial(particles.pair, (80, 90), 2.8, motion, density=0.06), 16, 4, 12)
    want = problem.compared(problem.works["auto"]())
    for name, work in problem.works.items():
        try:
            found = problem.compared(work())
        except NotImplementedError:  # a forced variant
            continue
        assert match_speed.comparison(found, want, name in problem.whole, problem.agreed)["agrees"], name


def test_a_template_is_found_where_it_was_cut_out():
    pytest.importorskip("cv2")
    works = match_speed.template((20, 24), (60, 72)).works
    for name in ("auto", "matchTemplate"):
        dy, dx = works[name]()
        assert dy.shape == (1, 1)
        np.testing.assert_allclose((dy[0, 0], dx[0, 0]), (26, 32), atol=0.5)


# Cliffs -----------------------------------------------------------------------------------------------------------------------


def test_drawn_problems_are_valid_and_small_enough():
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = match_cliffs.draw(rng)
        assert drawn.products <= match_cliffs.MOST_PRODUCTS
        assert all(w <= one <= two for w, one, two in zip(drawn.window, drawn.shape1, drawn.shape2, strict=True))
        assert min(drawn.step) >= 1
        assert drawn.search is None or drawn.shape1 == drawn.shape2
        assert drawn.tried >= 1
        assert drawn.reaches


def test_a_drawn_problem_is_measured():
    rng = np.random.default_rng(1)
    drawn = match_cliffs.draw(rng, most_products=10_000)
    found = match_cliffs.measure(drawn)
    assert 0 < found.seconds < match_cliffs.LONGEST
    assert str(drawn.shape1) in str(found)


def test_a_cliff_is_a_call_that_takes_over_three_times_the_fastest_variant_and_the_slack():
    drawn = match_cliffs.draw(np.random.default_rng(0))
    assert match_cliffs.Finding(drawn, 0.036, {"fft": 0.01}).is_cliff
    assert not match_cliffs.Finding(drawn, 0.034, {"fft": 0.01}).is_cliff
    assert not match_cliffs.Finding(drawn, 0.036, {}).is_cliff
