"""The check of a variant: its results on a table of small problems beside the definition.

The definition is the variant ``reference``, which is NumPy and shares nothing with the others. In float64 it gives the value, the
sum of magnitudes and the number of terms of every sum, and from these follows the error that a sum in the accumulator may have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .. import _dispatch
from .._arguments import HIGH, HIGHEST, Shape
from .._arrays import array_module
from .._correlation.api import spatial_correlation_sample, spatial_correlation_sample_vjp
from .._correlation.problem import Problem, parameters, problem
from .._dispatch import FORWARD, VJP, Request, Variant
from .._dtypes import ELEMENT_TYPES, element_type, named_dtype
from .._gpu.device import count, import_cupy
from .._gpu.layout import layout
from ._registry import row_of

# dtype -> the relative distance of neighbouring numbers, and the smallest number that does not count as zero
ROUNDING = {
    "float16": (2.0**-10, 2.0**-24),
    "bfloat16": (2.0**-7, 2.0**-126),
    "float32": (2.0**-23, 2.0**-126),
    "float64": (2.0**-52, 2.0**-1074),
}
SHOWN = 12  # messages of wrong findings that a report has
TF32_ERROR = 1e-3  # the error from rounding both factors to TF32, relative to the sum of magnitudes

Expected = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]  # name -> the exact numbers and their allowed errors


# Problems ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Small:
    """A problem that the reference computes in little time."""

    shape1: Shape
    keywords: dict[str, Any] = field(default_factory=dict)
    shape2: Shape | None = None

    @property
    def problem(self) -> Problem:
        """The checked problem with its geometry."""
        return problem(parameters(**self.keywords), self.shape1, self.shape2 or self.shape1)

    def arrays(self, dtype: np.dtype[Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """Return input1, input2 and a cotangent."""
        random = np.random.default_rng(0)
        shapes = (self.shape1, self.shape2 or self.shape1, self.problem.out_shape)
        return tuple(random.standard_normal(shape).astype(dtype) for shape in shapes)


SMALL = {
    "one pixel": Small((1, 1, 1, 1), {}),
    "flownetc": Small((2, 40, 10, 14), {"patch_size": 21, "dilation_patch": 2}),
    "pwcnet": Small((1, 131, 6, 34), {"patch_size": 9}),
    "one-sided": Small((1, 9, 4, 70), {"patch_size": (1, 33), "patch_offset": (0, -16)}),
    "template": Small(
        (1, 3, 5, 6), {"kernel_size": (5, 6), "patch_size": (16, 25), "patch_offset": (7, 12)}, shape2=(1, 3, 20, 30)
    ),
    "even patch": Small((1, 4, 9, 9), {"patch_size": (2, 4), "dilation_patch": 2}),
    "everything": Small((2, 3, 19, 23), {"kernel_size": 3, "patch_size": 5, "stride": 2, "padding": 1, "dilation": 2}),
    "many taps": Small((1, 1, 12, 44), {"kernel_size": (5, 16), "patch_size": (1, 3)}),
    "windows apart": Small((1, 5, 31, 33), {"kernel_size": 2, "patch_size": 3, "stride": 7}),
    "coprime": Small((1, 6, 25, 27), {"patch_size": 5, "stride": 2, "dilation_patch": 3}),
    "padded": Small((1, 6, 8, 9), {"patch_size": 3, "padding": (2, 1)}),
    "cropped": Small((1, 6, 12, 15), {"patch_size": 3, "padding": (-2, -4)}),
    "outside": Small((1, 6, 5, 6), {"patch_size": 3, "patch_offset": (9, -20)}),
    "scaled": Small((1, 6, 8, 9), {"patch_size": 3, "scale": -0.125}),
    "groups": Small((2, 12, 6, 11), {"patch_size": 3, "groups": 3}),
    "descending": Small((2, 6, 7, 12), {"patch_size": (4, 5), "dilation_patch": (-2, -1), "patch_offset": (1, -3)}),
    "no channels": Small((2, 0, 8, 9), {"patch_size": 3}),
    "empty batch": Small((0, 3, 8, 9), {"patch_size": 3}),
    "many channels": Small((1, 700, 5, 7), {"kernel_size": (1, 2), "patch_size": 3}),
}


# The definition ----------------------------------------------------------------------------------------------------------------


def expected(small: Small, arrays: Sequence[np.ndarray[Any, Any]], precision: str = HIGHEST) -> Expected:
    """Return the exact output and gradients and their allowed errors: a rounding, and 4 sqrt(terms) eps of the sum of magnitudes.

    Parameters
    ----------
    small
        The problem.
    arrays
        input1, input2 and the cotangent.
    precision
        That of float32 products.
    """
    element = element_type("input1", arrays[0].dtype)
    exact = [array.astype(np.float64) for array in arrays]
    scale = abs(small.keywords.get("scale", 1.0))
    values = _defined(small, exact)
    magnitudes = _defined(small, [abs(array) for array in exact], scale=scale)
    terms = _defined(small, [np.ones_like(array) for array in exact], scale=1.0)
    apart, smallest = ROUNDING[element.name]
    epsilon = ROUNDING[element.accumulator][0]
    sums = 2 if element.name == "float64" else 1  # in float64 the reference rounds as much as the variant
    factors = TF32_ERROR if precision == HIGH and element.name == "float32" else 0.0
    rounded = {name: factors + sums * 4 * np.sqrt(terms[name]) * epsilon for name in values}
    allowed = {
        name: np.maximum(abs(value) * apart, smallest) + rounded[name] * magnitudes[name] for name, value in values.items()
    }
    return {name: (value, allowed[name]) for name, value in values.items()}


def _defined(small: Small, arrays: Sequence[np.ndarray[Any, Any]], **changed: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the output and both gradients by the definition."""
    input1, input2, cotangent = arrays
    options = {**small.keywords, **changed, "variant": "reference"}
    gradient1, gradient2 = spatial_correlation_sample_vjp(cotangent, input1, input2, **options)
    return {"output": spatial_correlation_sample(input1, input2, **options), "g1": gradient1, "g2": gradient2}


def difference(name: str, got: np.ndarray[Any, Any], wanted: Expected) -> str | None:
    """Return where a result differs most from the definition, None where it does not."""
    value, allowed = wanted[name]
    if got.shape != value.shape:
        return f"{name} has shape {got.shape}, the reference {value.shape}"
    got = got.astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.nan_to_num(abs(got - value) / allowed, nan=np.inf)
    if not error.size or error.max() <= 1:
        return None
    worst = np.unravel_index(int(error.argmax()), error.shape)
    where = ", ".join(map(str, map(int, worst)))
    most = f"most at [{where}]: {got[worst]:.6g} instead of {value[worst]:.6g}, {error[worst]:.3g} times the allowed error"
    return f"{name} differs from the reference in {(error > 1).sum()} of {got.size} numbers, {most}"


# The check ---------------------------------------------------------------------------------------------------------------------

Lay = Callable[[Any], Any]
PLAIN_ROWS = "rows"
_RESULTS = {FORWARD: {"output": "out"}, VJP: {"g1": "gradient1", "g2": "gradient2"}}  # name in findings -> name in plans


def _channels_last(x: Any) -> Any:
    xp = array_module(x)
    return xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _every_other_column(x: Any) -> Any:
    return array_module(x).repeat(x, 2, axis=3)[..., ::2]


def _columns_reversed(x: Any) -> Any:
    return array_module(x).ascontiguousarray(x[..., ::-1])[..., ::-1]


# How the inputs are laid out in memory; the others are tried on some problems only.
LAYOUTS: dict[str, Lay] = {
    PLAIN_ROWS: lambda x: x,
    "channels last": _channels_last,
    "columns reversed": _columns_reversed,
    "every other column": _every_other_column,
}
LAID_OUT = ("pwcnet", "everything")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one problem, dtype and pass.

    Attributes
    ----------
    what : str
        The problem, the dtype and the pass.
    wrong : str or None
        What is wrong, None where nothing is.
    refused : str or None
        The reason why the variant does not compute it, None where it does.

    See Also
    --------
    check : Returns a report with findings.

    Examples
    --------
    >>> from cupycorr import variants
    >>> variants.Finding("one pixel, float32, forward").wrong is None
    True
    """

    what: str
    wrong: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of `check`; printing it shows what is wrong and what was refused.

    Attributes
    ----------
    variant : str
        The name of the variant.
    findings : tuple of Finding
        One for each problem, dtype, layout and pass of the table.

    See Also
    --------
    check : Returns a report.

    Examples
    --------
    >>> from cupycorr import variants
    >>> print(variants.Report("mine", (variants.Finding("one pixel, float32, forward"),)))
    mine: 1 right, 0 wrong, 0 refused
    """

    variant: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings that are wrong."""
        return tuple(each for each in self.findings if each.wrong is not None)

    @property
    def right(self) -> tuple[Finding, ...]:
        """The findings whose results are those of the definition."""
        return tuple(each for each in self.findings if each.wrong is None and each.refused is None)

    @property
    def passed(self) -> bool:
        """True if nothing is wrong and at least one problem was computed."""
        return bool(self.right) and not self.wrong

    def __str__(self) -> str:
        reasons = Counter(each.refused for each in self.findings if each.refused is not None)
        wrong: dict[str | None, list[str]] = {}
        for each in self.wrong:
            wrong.setdefault(each.wrong, []).append(each.what)
        lines = [f"{self.variant}: {len(self.right)} right, {len(self.wrong)} wrong, {sum(reasons.values())} refused"]
        for message, (first, *others) in list(wrong.items())[:SHOWN]:
            lines.append(f"wrong: {first}{f' and {len(others)} others' if others else ''}: {message}")
        lines += [f"... {len(wrong) - SHOWN} more messages"] if len(wrong) > SHOWN else []
        lines += [f"refused {times} times: {reason}" for reason, times in reasons.most_common()]
        if not self.right and not self.wrong:
            lines.append(f"{self.variant} refuses every problem of the table, so that nothing is known of it")
        return "\n".join(lines)


def check(name: str) -> Report:
    """Compare a registered variant with the definition on a table of small problems.

    The table has windows, strides, padding, dilation, one-sided and even patches, groups, descending displacements, inputs
    without elements, each in every dtype and both passes, and some of them with other strides. Problems that the variant's
    ``why_not`` refuses are left out. A kernel runs on the current device.

    Parameters
    ----------
    name : str
        The name that it was registered by.

    Returns
    -------
    Report
        Print it. ``report.passed`` is True if all results are right: an output may be off by its rounding and by
        ``4 sqrt(n) eps`` times the sum of the magnitudes of its n terms, with the eps of the accumulator; with
        ``precision="high"`` also by 1e-3 of that sum.

    Raises
    ------
    ValueError
        No variant is registered by that name.
    ImportError, RuntimeError
        The variant is a kernel, and there is no CuPy or no device.

    See Also
    --------
    register : Registers a variant.

    Examples
    --------
    >>> import cupycorr
    >>> def forward(problem, input1, input2, out):
    ...     out[...] = 0  # wrong
    >>> def why_not(problem):
    ...     return None if problem.dtype == "float64" and problem.kernel_size == (1, 1) else "only float64, windows of one pixel"
    >>> cupycorr.variants.register("zeros", forward=forward, why_not=why_not)
    >>> report = cupycorr.variants.check("zeros")
    >>> report.passed
    False
    >>> cupycorr.variants.unregister("zeros")
    """
    row = row_of(name)
    if row.kind == "cupy":
        count()
    findings: list[Finding] = []
    for trial in _trials():
        findings.append(found := _finding(row, trial))
        if found.wrong is not None and not _is_usable(row.kind):
            findings[-1] = replace(
                found, wrong=f"{found.wrong}; the device cannot be used after this error, and the check ends here"
            )
            break
    return Report(name, tuple(findings))


class _Trial(NamedTuple):
    """A row of the check: a problem of the table, the dtype and the layout of its inputs, the precision and the pass."""

    small: str
    dtype: np.dtype[Any]
    precision: str
    order: str
    pass_name: str

    def __str__(self) -> str:
        words = (self.small, self.dtype.name, f"precision {self.precision}", self.order, self.pass_name)
        return ", ".join(word for word in words if word not in (f"precision {HIGHEST}", PLAIN_ROWS))


def _trials() -> Iterator[_Trial]:
    for small, (dtype, precision), order, pass_name in product(SMALL, _dtypes(), LAYOUTS, (FORWARD, VJP)):
        if order == PLAIN_ROWS or small in LAID_OUT:
            yield _Trial(small, dtype, precision, order, pass_name)


@lru_cache(1)
def _wanted(small: str, dtype: np.dtype[Any], precision: str) -> Expected:
    """Return `expected` of a problem; the trials of a problem come one after the other."""
    return expected(SMALL[small], SMALL[small].arrays(dtype), precision)


def _finding(row: Variant, trial: _Trial) -> Finding:
    """Return the result of a trial; any error of the variant is a finding."""
    try:
        return _compared(row, trial)
    except Exception as error:
        return Finding(str(trial), wrong=f"{type(error).__name__}: {error}")


def _compared(row: Variant, trial: _Trial) -> Finding:
    """Run a variant on a problem, unless it refuses, and compare the results with the definition."""
    small, lay = SMALL[trial.small], LAYOUTS[trial.order]
    input1, input2, cotangent = (_placed(array, row.kind) for array in small.arrays(trial.dtype))
    where, named = _dispatch.place(input1), _arrays(trial.pass_name, lay(input1), lay(input2), cotangent)
    layouts = () if where.device is None else tuple(layout(name, array) for name, array in named.items())
    dtype = trial.dtype.name
    request = Request(trial.pass_name, small.problem, dtype, dtype, layouts, precision=trial.precision)
    reason = row.why_not_at(where, request)
    if reason is not None:
        return Finding(str(trial), refused=reason)
    row.plan(request, where.device).run(named)
    results = {part: _back(named[name]) for part, name in _RESULTS[trial.pass_name].items()}
    wanted = _wanted(trial.small, trial.dtype, trial.precision)
    differences = (difference(part, got, wanted) for part, got in results.items())
    return Finding(str(trial), wrong=next(filter(None, differences), None))


def _dtypes() -> Iterator[tuple[np.dtype[Any], str]]:
    """Yield the dtypes that there are, each with a precision; bfloat16 needs ml_dtypes."""
    for name in ELEMENT_TYPES:
        try:
            yield named_dtype(name), HIGHEST
        except ImportError:
            continue
    yield np.dtype(np.float32), HIGH


def _placed(array: np.ndarray[Any, Any], kind: str) -> Any:
    return import_cupy().asarray(array) if kind == "cupy" else array


def _arrays(pass_name: str, input1: Any, input2: Any, cotangent: Any) -> dict[str, Any]:
    """Return the arrays of a pass by name. Results are NaN, so that an element that nobody writes is wrong."""
    xp, inputs = array_module(input1), {"input1": input1, "input2": input2}
    if pass_name == FORWARD:
        return {**inputs, "out": xp.full_like(cotangent, np.nan)}
    gradients = {f"gradient{number}": xp.full(x.shape, np.nan, x.dtype) for number, x in enumerate((input1, input2), 1)}
    return {"cotangent": cotangent, **inputs, **gradients}


def _is_usable(kind: str) -> bool:
    """Return whether the device of the variant still runs kernels: after some errors it refuses everything."""
    if kind != "cupy":
        return True
    try:
        import_cupy().cuda.get_current_stream().synchronize()
    except RuntimeError:
        return False
    return True


def _back(array: Any) -> np.ndarray[Any, Any]:
    back: np.ndarray[Any, Any] = array if isinstance(array, np.ndarray) else import_cupy().asnumpy(array)
    return back
