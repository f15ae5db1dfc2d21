"""The tests of the definition notice the mistakes that are easily made: each mutant fails on a named lookup."""

import numpy as np
import pytest
from lookup_cases import CPU_VARIANTS, NAMED, check_forward, check_vjp

from cupycorr import _dispatch
from cupycorr._lookup import api, reference, windows
from cupycorr._lookup.cpu import blas, dot_kernel, gather_gradients, simd, simd_forward, window_kernel
from cupycorr._lookup.problem import Problem


@pytest.fixture(autouse=True)
def no_problem_outlives_its_mutant():
    """Forget all problems before and after a test: they keep what they have computed."""
    _forget_problems()
    yield
    _forget_problems()


def _forget_problems():
    """Forget problems, plans, and kernels that a mutant may have written."""
    api._problem_once.cache_clear()
    _dispatch._planned.cache_clear()
    for module in (window_kernel, dot_kernel):
        module._compiled.cache_clear()


def truncation_for_floor(patch):
    def corners(coordinate):
        low = np.trunc(coordinate)
        upper = coordinate - low
        return low, np.stack((1 - upper, upper))

    patch.setattr(windows, "_corners", corners)
    original = window_kernel._WindowWriter.intrinsic
    truncated = {"floor": "trunc"}
    patch.setattr(window_kernel._WindowWriter, "intrinsic", lambda self, name, of: original(self, truncated.get(name, name), of))


def x_and_y_swapped(patch):
    original = windows.coords_of

    def swapped(*arguments):
        coords, own_rows = original(*arguments)
        return coords[::-1], own_rows

    _everywhere(patch, "coords_of", swapped)
    of_kernels = simd_forward.Forward._coords
    patch.setattr(simd_forward.Forward, "_coords", lambda *of: of_kernels(*of)._replace(array=of_kernels(*of).array[:, :, ::-1]))


def dx_first_for_dy_first(patch):
    original = windows.Arrays.full

    def exchanged(self, output):
        view = original(self, output)
        return view.swapaxes(3, 4) if view.shape[3] == view.shape[4] else view

    patch.setattr(windows.Arrays, "full", exchanged)


def centres_of_pixels_at_halves(patch):
    original = windows.Windows.__init__

    def shifted(self, problem, level, coords, *arguments):
        scale = np.array(problem.level_scales[level][::-1])[: len(coords), None]
        original(self, problem, level, ((coords + 0.5) * scale - 0.5) / scale, *arguments)

    patch.setattr(windows.Windows, "__init__", shifted)
    of_kernels = window_kernel._WindowWriter._corners

    def corners(self, coordinate, along):
        half = self.ir.Constant(coordinate.type, [0.5] * coordinate.type.count)
        scaled = self.builder.fmul(self.builder.fadd(coordinate, half), self.vector_of(along, coordinate.type))
        return of_kernels(self, self.builder.fsub(scaled, half), self.ir.Constant(self.element, 1.0))

    patch.setattr(window_kernel._WindowWriter, "_corners", corners)


def the_wrong_corner_at_the_border(patch):
    original = windows._positions

    def clamped(axis, low, weights, finite, inside):
        found = original(axis, low, weights, finite, inside)
        return windows.Positions(
            found.at.clip(0, inside.stop - inside.start - 1),
            np.zeros_like(found.begin),
            np.full_like(found.end, axis.taps),
            weights,
        )

    patch.setattr(windows, "_positions", clamped)
    patch.setattr(dot_kernel._DotWriter, "masked", lambda self, sums, first: sums)


def one_levels_gradient_in_the_next(patch):
    for plan in (reference.ReferencePlan, blas.BlasPlan, simd.SimdPlan):

        def run(self, arrays, original=plan.run):
            names = [name for name in arrays if name.startswith("gradient2[")]
            if len({arrays[name].shape for name in names}) == 1:  # otherwise NumPy refuses it
                arrays = {**arrays, **{name: arrays[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}}
            original(self, arrays)

        patch.setattr(plan, "run", run)


def a_level_scaled_like_the_one_before(patch):
    def scales(self):
        vertical, horizontal = map(float, self.parameters.level_step)
        return tuple((vertical ** -max(level - 1, 0), horizontal ** -max(level - 1, 0)) for level in range(self.levels))

    patch.setattr(Problem, "level_scales", property(scales))


def the_left_difference_at_whole_numbers(patch):
    def corners(coordinate):
        low = np.ceil(coordinate) - 1
        upper = coordinate - low
        return low, np.stack((1 - upper, upper))

    patch.setattr(windows, "_corners", corners)

    def of_kernels(self, coordinate, along):
        b, one = self.builder, self.ir.Constant(coordinate.type, [1.0] * coordinate.type.count)
        scaled = b.fmul(coordinate, self.vector_of(along, coordinate.type))
        low = b.fsub(b.call(self.intrinsic("ceil", coordinate.type), [scaled]), one)
        upper = b.fsub(scaled, low)
        return low, (b.fsub(one, upper), upper)

    patch.setattr(window_kernel._WindowWriter, "_corners", of_kernels)


def no_factor_of_the_level_in_the_slopes(patch):
    original = windows.Windows.__init__

    def plain(self, *arguments):
        original(self, *arguments)
        self.factors = (1.0, 1.0)

    patch.setattr(windows.Windows, "__init__", plain)
    of_kernels = gather_gradients.Gather._slopes

    def slopes(self, queries, band, pixels, found):
        of_kernels(self, queries, band, pixels, found)
        for of_channel, scale in zip(found, self.problem.level_scales[band.level][::-1], strict=False):
            of_channel /= scale

    patch.setattr(gather_gradients.Gather, "_slopes", slopes)


def _everywhere(patch, name, function):
    for module in (windows, reference, blas):
        patch.setattr(module, name, function)


MUTANTS = (
    truncation_for_floor,
    x_and_y_swapped,
    dx_first_for_dy_first,
    centres_of_pixels_at_halves,
    the_wrong_corner_at_the_border,
    one_levels_gradient_in_the_next,
    a_level_scaled_like_the_one_before,
    the_left_difference_at_whole_numbers,
    no_factor_of_the_level_in_the_slopes,
)


SOME = ("a single map", "RAFT's order", "levels of one size", "whole numbers")  # small ones that see all mutants together


def fails(case, variant):
    try:
        check_forward(case, variant)
        check_vjp(case, variant)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("variant", CPU_VARIANTS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_named_lookup_fails_where_the_definition_is_changed(monkeypatch, mutant, variant):
    mutant(monkeypatch)
    assert any(fails(NAMED[name], variant) for name in SOME)
