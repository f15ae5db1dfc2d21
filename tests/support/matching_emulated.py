"""The kernels of matching on the CPU: the plans of the GPU path, launched by the emulator on NumPy arrays."""

from dataclasses import replace

import emulated
import matching_oracle
import numpy as np
import tilings
from emulator import Emulator
from layouts import aligned
from matching_cases import EPSILON

from cupycorr._correlation.gpu import forward_mma, forward_tiled
from cupycorr._correlation.problem import parameters
from cupycorr._correlation.problem import problem as correlation
from cupycorr._dispatch import FORWARD, Request
from cupycorr._dtypes import ELEMENT_TYPES
from cupycorr._gpu.layout import dense_layout, layout
from cupycorr._matching.gpu import fused, planner
from cupycorr._matching.problem import Best, Mean, Problem, check_outside

VOLUMES = {"tiled": forward_tiled, "mma": forward_mma}
BEST = Best()


def request(x1, x2, reduction, outside="zero", precision="highest", **given):
    """Return a request for arrays."""
    problem = Problem(correlation(parameters(**given), x1.shape, x2.shape), reduction, check_outside(outside))
    accumulator = ELEMENT_TYPES[x1.dtype.name].accumulator
    layouts = layout("input1", x1), layout("input2", x2), dense_layout(accumulator, problem.out_shape)
    return Request(FORWARD, problem, x1.dtype.name, accumulator, layouts, precision=precision)


def reduced(emulator, algorithm, x1, x2, reduction, outside="zero", **given):
    """Return the results of a reduction by their names: score and channel (B, k, oH, oW), or dy, dx and log_sum."""
    asked = request(x1, x2, reduction, outside, **given)
    plan = planner.plan(algorithm, asked, emulated.planned_for())
    assert plan.algorithm == algorithm
    layouts = fused.result_layouts(asked.problem, asked.result_dtype)
    results = {name: np.empty(each.shape, each.dtype) for name, each in layouts.items()}
    emulated.run(emulator, plan, {"input1": x1, "input2": x2}, results)
    return results


class Asked:
    """A case, its arrays, the tilings that reduce its scores, and its volume by the same tilings."""

    def __init__(self, algorithm, case, lay=aligned, arrays=None):
        self.algorithm, self.case = algorithm, case
        self.inputs = tuple(lay(x) for x in (case.arrays()[:2] if arrays is None else arrays))
        self.of_volume = type("Volume", (tilings.Asked,), {"module": VOLUMES[algorithm]})(
            case, lay, ELEMENT_TYPES[case.dtype].accumulator
        )
        self.of_volume.x1, self.of_volume.x2 = self.inputs

    def tilings(self, reduction=BEST, device=tilings.H200):
        """Return the tilings that reduce the scores."""
        asked = request(*self.inputs, reduction, **self.case.parameters)
        return fused.tilings(planner.FUSED[self.algorithm], asked, device)

    def volume(self, tiling, emulator):
        """Return the volume in the accumulator, whose sums are those of a tiling. The tilings have ascending displacements."""
        given = self.of_volume
        assert not any(given.problem.descends)
        if not given.out.size:
            return given.out
        same = next(each for each in self._of_volume() if each.tile is tiling.tile)
        return given.run(replace(same, splits=tiling.splits), emulator)

    def _of_volume(self):
        given = self.of_volume
        more = () if self.algorithm == "tiled" else (tilings.H200,)
        return given.module.tilings(*given.lines, given.arrays, *more)

    def reduced(self, emulator, reduction, outside="zero"):
        return reduced(emulator, self.algorithm, *self.inputs, reduction, outside, **self.case.parameters)


def only(monkeypatch, tiling):
    """Let plans use no other tiling."""
    monkeypatch.setattr(fused, "_best", lambda *given: tiling)


# Comparison with the volume ---------------------------------------------------------------------------------------------------

TEMPERATURE = 3.0


def assert_best(asked, tiling, found, top_k, outside):
    """Check the best displacements: they are exactly those of the volume by the same tiling."""
    volume = asked.volume(tiling, Emulator())
    _, _, score, channel = matching_oracle.best(volume, asked.case, top_k, outside)
    np.testing.assert_array_equal(found["channel"], channel)
    np.testing.assert_array_equal(found["score"], score.astype(volume.dtype))


def assert_mean(asked, tiling, found, outside, temperature=TEMPERATURE):
    """Check the means against float64 sums over the volume by the same tiling."""
    volume = asked.volume(tiling, Emulator())
    geometry = matching_oracle.Geometry(asked.case, outside)
    finite = np.abs(volume[np.isfinite(volume)])
    spread, terms = float(finite.max(initial=0)) / temperature, volume.shape[1] * volume.shape[2]
    relative = EPSILON[volume.dtype.name] * (8 + 4 * np.sqrt(terms) + 2 * spread)
    wanted = matching_oracle.mean(volume, asked.case, temperature, outside)
    for name, want, tried in zip(("dy", "dx"), wanted, (geometry.dys, geometry.dxs), strict=True):
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(want), name)
        errors = np.abs(np.nan_to_num(found[name]) - np.nan_to_num(want))
        assert errors.max(initial=0) <= relative * (1 + max(map(abs, tried)) + max(tried) - min(tried)), name
    logarithm = log_sum(volume, asked.case, temperature, outside)
    np.testing.assert_array_equal(np.isnan(found["log_sum"]), np.isnan(logarithm))
    kept = np.isfinite(logarithm)
    assert (np.abs(found["log_sum"][kept] - logarithm[kept]) <= relative + 1e-12 * np.abs(logarithm[kept])).all()


def log_sum(volume, case, temperature, outside):
    """Return the logarithm of the sum of exp(score / temperature) of the candidates, in float64."""
    geometry = matching_oracle.Geometry(case, outside)
    batch, *_, height, width = volume.shape
    found = np.full((batch, height, width), -np.inf)
    for b, i, j in np.ndindex(found.shape):
        scores = np.array([volume[b, m, n, i, j] for _, m, n, _, _ in geometry.candidates(i, j)], float) / temperature
        if len(scores):
            with np.errstate(all="ignore"):
                highest = scores.max()
                found[b, i, j] = highest + np.log(np.exp(scores - highest).sum()) if highest > -np.inf else highest
    return found


def run(monkeypatch, asked, tiling, reduction, outside, emulator=None):
    with emulated.launched_by(monkeypatch, emulator := emulator or Emulator()):
        only(monkeypatch, tiling)
        return asked.reduced(emulator, reduction, outside)


def check(monkeypatch, asked, tiling, outside, top_k):
    assert_best(asked, tiling, run(monkeypatch, asked, tiling, Best(top_k), outside), top_k, outside)
    found = run(monkeypatch, asked, tiling, Mean(TEMPERATURE, log_sum=True), outside)
    assert_mean(asked, tiling, found, outside)
