"""The choice of a variant: which implementation answers a request, and why not the others.

An operator supplies a table of variants; this module does not depend on any operator. Each variant returns the reason why it
cannot answer, or a plan whose time the cost model estimates. The fastest plan runs, or on a GPU the plan of the variant that
was measured to be the fastest there. The same reasons are shown by the error of a named variant, by the error where no variant
can run, and by `explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import _tuning
from ._arguments import HIGHEST, Shape
from ._arrays import array_kind, array_module, current_device_of, may_share_memory
from ._cpu import result_memory, workers
from ._gpu.device import PIP_COMMAND, Device, facts
from ._gpu.layout import ROWS, Layout, dense_layout
from ._gpu.plan import keep_for_replays, memory_for_replays
from ._gpu.source import Kernel

FORWARD, VJP = "forward", "vjp"  # the passes

_KIND_NAMES = {"numpy": "NumPy array", "cupy": "CuPy array"}


# Requests ---------------------------------------------------------------------------------------------------------------------


class Input(NamedTuple):
    """An input of an operator.

    Attributes
    ----------
    name
        Its name among the arrays of a plan.
    shape
        Its shape.
    gradient
        The name of its gradient, None where it has none.
    dtype
        The name of its dtype, None where that is the request's.
    """

    name: str
    shape: Shape
    gradient: str | None
    dtype: str | None = None


class Problem(Protocol):
    """The geometry of a request, which only its operator understands."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs in the order in which a request has their layouts."""

    @property
    def out_shape(self) -> Shape:
        """The shape of the output."""

    @property
    def key(self) -> str:
        """Everything that takes time, in words; problems with the same key take the same time."""

    def __hash__(self) -> int:
        """Problems are keys of caches."""


class Request(NamedTuple):
    """A checked call of an operator: its geometry, dtypes, layouts and precision.

    Attributes
    ----------
    pass_name
        `FORWARD` or `VJP` (the gradients).
    problem
        The geometry.
    dtype, result_dtype
        Names of the inputs' dtype, and of the output's and the cotangent's.
    layouts
        On a GPU the layouts of the inputs and the output (forward), or of the cotangent, the inputs and the gradients, with None
        for a gradient that is not needed; nothing on the CPU.
    needs
        Whether the gradient of each input that has one is needed.
    precision
        The precision of products of float32 numbers, `HIGHEST` for every other dtype.
    """

    pass_name: str
    problem: Any
    dtype: str
    result_dtype: str
    layouts: tuple[Any, ...] = ()
    needs: tuple[bool, ...] = (True, True)
    precision: str = HIGHEST

    @property
    def inputs(self) -> tuple[Layout, ...]:
        """The layouts of the inputs."""
        count = len(self.problem.inputs)
        begin = 0 if self.pass_name == FORWARD else 1
        return tuple(layout for layout in self.layouts[begin : begin + count] if layout is not None)

    @property
    def orders(self) -> tuple[str, ...]:
        """The memory order of each input."""
        return tuple(layout.order for layout in self.inputs)

    def dense(self, *orders: str) -> Request:
        """Return the same request for arrays without gaps, the inputs in these memory orders; by default in those they are in."""
        inputs = self.problem.inputs
        orders = orders or self.orders or (ROWS,) * len(inputs)
        operands = [dense_layout(x.dtype or self.dtype, x.shape, order) for x, order in zip(inputs, orders, strict=True)]
        output = dense_layout(self.result_dtype, self.problem.out_shape)
        if self.pass_name == FORWARD:
            return self._replace(layouts=(*operands, output))
        return self._replace(layouts=(output, *operands, *self.gradient_layouts()))

    def gradient_layouts(self) -> tuple[Layout | None, ...]:
        """Return the layouts of new gradients, which have no gaps, with None for one that is not needed."""
        inputs = zip(with_gradients(self.problem.inputs), self.needs, strict=True)
        return tuple(dense_layout(x.dtype or self.dtype, x.shape) if needed else None for x, needed in inputs)


# Places -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """The kind of a call's arrays, and their device if they are on a GPU."""

    kind: str
    device: Device | None

    def __hash__(self) -> int:
        """Hash little: `lru_cache` calls it at every call."""
        return hash((self.kind, self.device and self.device.index))


CPU = Place("numpy", None)


def place(array: Any) -> Place:
    """Return the place of a NumPy or CuPy array."""
    return CPU if array_kind(array) == "numpy" else gpu(array.device.id)


def gpu(index: int) -> Place:
    """Return the place of arrays on the GPU of that number."""
    return Place("cupy", facts(index))


def array_names(pass_name: str, inputs: tuple[Input, ...]) -> tuple[str, ...]:
    """Return the names of the arrays of a pass, in the order of a request's layouts."""
    names = tuple(x.name for x in inputs)
    if pass_name == FORWARD:
        return (*names, "out")
    return ("cotangent", *names, *(str(x.gradient) for x in with_gradients(inputs)))


def with_gradients(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """Return the inputs that have gradients."""
    return tuple(x for x in inputs if x.gradient is not None)


# Operators --------------------------------------------------------------------------------------------------------------------


class Plan(Protocol):
    """The computation of a request by a variant, worked out and priced.

    Attributes
    ----------
    algorithm
        The algorithm that runs: the variant's own, or another one that the variant hands the request on to.
    description
        The algorithm in words.
    seconds
        The time by the cost model.
    workspace
        Bytes of memory beside the arrays, at most.
    """

    @property
    def algorithm(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    @property
    def workspace(self) -> int: ...

    def run(self, arrays: Mapping[str, Any]) -> None:
        """Read and write the named arrays."""


WhyNot = Callable[[Request, "Device | None"], "str | None"]  # without a device: what holds on every device


def always_available(request: Request, device: Device | None) -> str | None:
    """Return None: there is no reason why the variant cannot answer a request."""
    return None


def why_no_matrix_product(request: Request, device: Device | None) -> str | None:
    """Return None, or the reason why tensor cores cannot or may not multiply numbers of the request's dtype."""
    dtype = request.dtype
    if dtype == "float64":
        return "float64 has no tensor-core product here"
    if dtype == "float32" and request.precision == HIGHEST:
        return "precision is 'highest', tensor cores multiply float32 as TF32"
    if device is not None and not device.has_matrix_product(dtype):
        return "compute capability {}.{} has no tensor cores for {}".format(*device.compute_capability, dtype)
    return None


@dataclass(frozen=True, slots=True)
class Variant:
    """An implementation of an operator.

    Attributes
    ----------
    name
        The name that users ask for it by.
    kind
        The kind of array that it takes, ``"numpy"`` or ``"cupy"``.
    why_not
        Return None, or the reason why it cannot answer a request on arrays of that kind.
    plan
        Return the plan of a request that it can answer.
    automatic
        True if ``"auto"`` may choose it. A variant without an estimate of its time runs only where it is named.
    without_gaps
        True if it takes only arrays without gaps: its ``why_not`` depends on the strides of a request, not only on memory orders.
    digest
        Of a variant that users have registered, a text that changes when the variant does. Those of the package have none.
    """

    name: str
    kind: str
    why_not: WhyNot
    plan: Callable[[Request, Device | None], Plan]
    automatic: bool = True
    without_gaps: bool = False
    digest: str = ""

    def why_not_at(self, where: Place, request: Request) -> str | None:
        """Return None, or the reason why it cannot answer a request at a place."""
        if where.kind == self.kind:
            return self.why_not(request, where.device)
        remedy = f"; CuPy is not installed: {PIP_COMMAND}" if self.kind == "cupy" and not find_spec("cupy") else ""
        return f"input is a {_KIND_NAMES[where.kind]}, needs a {_KIND_NAMES[self.kind]}{remedy}"


class Work(NamedTuple):
    """The least work of a request: operations, those of them on elements inside the images, and bytes moved.

    ``flops_inside`` is None where it depends on the values of the inputs.
    """

    flops: int
    flops_inside: int | None
    bytes: int


@dataclass(eq=False)
class Operator:
    """An operator, as the dispatcher sees it.

    Attributes
    ----------
    name
        Its name.
    variants
        Its variants; the first of equally fast ones runs.
    work
        Return the work of a request.
    uses_matrix_units
        Return whether the multiply-adds of a request may run on the tensor cores of a device.
    builds
        Yield every kernel that a plan can launch, on any device or on this one, with words for it.
    example
        Return a typical request for NumPy arrays, which `cupycorr info` uses.
    typical_values
        Return typical values of the named array of a request, for measuring; None where random numbers will do.
    measured
        True if variants may be measured: their plans write one array, ``"out"``. Otherwise the cost model alone chooses.
    """

    name: str
    variants: tuple[Variant, ...]
    work: Callable[[Request], Work]
    uses_matrix_units: Callable[[Request, Device], bool]
    builds: Callable[[Device | None], Iterator[tuple[str, Kernel]]]
    example: Callable[[], Request]
    typical_values: Callable[[Request, str], np.ndarray | None] = lambda request, name: None
    measured: bool = True

    def named(self, variant: str) -> tuple[Variant, ...]:
        """Return the variant of that name, alone; for ``"auto"`` all of those that may be chosen.

        Raises
        ------
        ValueError
            There is no variant of that name.
        """
        found = tuple(row for row in self.variants if (row.automatic if variant == "auto" else row.name == variant))
        if not found:
            names = ", ".join(repr(row.name) for row in self.variants)
            raise ValueError(f"variant must be 'auto' or one of {names}, got variant={variant!r}")
        return found


# The choice -------------------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """The name of the variant that runs, and its plan.

    It is not settled while the variants are still to be measured, so that the next call may choose another one.
    """

    variant: str
    plan: Plan
    settled: bool = True


def choose(operator: Operator, request: Request, where: Place, variant: str = "auto") -> Choice:
    """Return the named variant and its plan; for ``"auto"``, the fastest of the variants that can run.

    Raises
    ------
    ValueError
        There is no variant of that name.
    NotImplementedError
        The named variant, or every variant, cannot run; the message says why.
    """
    candidates = _candidates(operator, request, where, variant)
    if candidates.workload is None:
        return candidates.choice(candidates.best)
    measured = _measured(candidates, where.device, measure=True)
    if measured is not None:
        return candidates.choice(measured)
    return candidates.choice(candidates.best)._replace(settled=not _tuning.at_first_use())


class Workload:
    """The request that is measured in place of another: the same one on dense arrays in the same memory orders.

    ``rows`` are the variants that are measured. An answer holds only beside the same registered ones.
    """

    def __init__(self, operator: Operator, request: Request, rows: Iterable[Variant] = ()) -> None:
        self.operator, self.request = operator, request.dense()
        inputs = zip(with_gradients(request.problem.inputs), request.needs, strict=True)
        gradients = [str(x.gradient) for x, needed in inputs if needed and request.pass_name == VJP]
        self.key = ", ".join(
            (
                " ".join([operator.name, request.pass_name, *gradients]),
                f"{request.dtype} -> {request.result_dtype}",
                f"precision={request.precision}",
                " and ".join(request.orders),
                request.problem.key,
                *(f"{row.name} {row.digest}" for row in rows if row.digest),
            )
        )

    def arrays(self) -> dict[str, Layout]:
        """Return the layout of each array by its name."""
        names = array_names(self.request.pass_name, self.request.problem.inputs)
        return {name: layout for name, layout in zip(names, self.request.layouts, strict=True) if layout is not None}

    def typical_values(self, name: str) -> np.ndarray | None:
        """Return typical values of an array; None where random numbers will do."""
        return self.operator.typical_values(self.request, name)

    def plans(self, names: Collection[str], device: Device) -> dict[str, Any]:
        """Return the plans of the named variants."""
        return {row.name: row.plan(self.request, device) for row in self.operator.variants if row.name in names}


class _Candidates:
    """The variants that can answer a request.

    Attributes
    ----------
    variants
        The operator's table of variants, from which they were taken.
    names
        Their names.
    best
        The name of the fastest by the cost model.
    workload
        The request that can be measured; None on the CPU or where all variants have the same plan.
    """

    def __init__(
        self,
        operator: Operator,
        request: Request,
        device: Device | None,
        names: tuple[str, ...],
        best: str,
        workload: Workload | None,
        plans: Mapping[str, Plan],
    ) -> None:
        self._operator, self._request, self._device = operator, request, device
        self.variants = operator.variants
        self.names, self.best, self.workload = names, best, workload
        self._choices = {name: Choice(name, plan) for name, plan in plans.items()}

    def choice(self, name: str) -> Choice:
        """Return one of the variants with its plan."""
        found = self._choices.get(name)
        if found is None:
            (row,) = self._operator.named(name)
            found = self._choices[name] = Choice(name, row.plan(self._request, self._device))
        return found

    def with_gaps(self, request: Request) -> _Candidates:
        """Return the same candidates for arrays with gaps, whose plans are made when they are needed."""
        return _Candidates(self._operator, request, self._device, self.names, self.best, self.workload, {})


def _candidates(operator: Operator, request: Request, where: Place, variant: str) -> _Candidates:
    """Return the candidates of a request from a cache: models make the same request again and again."""
    if type(variant) is not str:
        operator.named(variant)  # refuses it; the cache below takes hashable arguments only
    found = _planned(operator, request, where, variant)
    if found.variants is not operator.variants:
        _planned.cache_clear()
        found = _planned(operator, request, where, variant)
    return found


@lru_cache(1024)
def _planned(operator: Operator, request: Request, where: Place, variant: str) -> _Candidates:
    rows = operator.named(variant)
    by_orders = where.device is not None and not any(row.without_gaps for row in rows)
    if by_orders and request.layouts != (dense := request.dense()).layouts:
        # The choice is that for dense arrays: it depends on memory orders and on no stride, and only its plan is made.
        return _planned(operator, dense, where, variant).with_gaps(request)
    able = [row for row in rows if row.kind == where.kind and row.why_not(request, where.device) is None]
    plans = {row.name: row.plan(request, where.device) for row in able}
    if not plans:
        reasons = "; ".join(f"{row.name}: {row.why_not_at(where, request)}" for row in rows)
        raise NotImplementedError(f"no variant can run this, got variant={variant!r} ({reasons})")
    best = min(plans, key=lambda name: plans[name].seconds)
    differ = any(plan != plans[best] for plan in plans.values())
    measurable = operator.measured and where.device is not None and differ
    workload = Workload(operator, request, able) if measurable else None
    return _Candidates(operator, request, where.device, tuple(plans), best, workload, plans)


def _measured(candidates: _Candidates, device: Device | None, *, measure: bool) -> str | None:
    """Return the name of the fastest variant by measurement, or None if it is not known.

    With ``measure``, it is measured now if ``CUPYCORR_AUTOTUNE`` is 1.
    """
    workload = candidates.workload
    if device is None or workload is None:
        return None
    found = _tuning.known(workload, device)
    if found not in candidates.names and measure and _tuning.at_first_use():
        found = _tuning.measure(workload, device, workload.plans(candidates.names, device))
    return found if found in candidates.names else None


# Runs -------------------------------------------------------------------------------------------------------------------------


def target_of(written: Any, inputs: Mapping[str, Any]) -> Any:
    """Return the caller's array for the output, or None where a plan needs a new array.

    A caller's array that shares memory with an input may only be written once every sum is known.
    """
    return None if written is None or may_share_memory(written, *inputs.values()) else written


def run_forward(plan: Plan, inputs: Mapping[str, Any], written: Any, target: Any, shape: Shape, dtype: np.dtype) -> Any:
    """Run a plan of the forward map on NumPy or CuPy arrays and return the output.

    ``written`` is the caller's array for the output or None, ``target`` what `target_of` returns for it.
    """
    like = next(iter(inputs.values()))
    with current_device_of(like):
        computed = _new(like, shape, dtype) if target is None else target
        plan.run({**inputs, "out": computed})
        if written is None:
            return computed
        if target is None:
            written[...] = computed
            if array_kind(like) == "cupy":
                keep_for_replays(computed)
    return written


def _new(like: Any, shape: Shape, dtype: Any) -> Any:
    """Return a new array without values, of the kind and on the current device of an input."""
    module = array_module(like)
    return result_memory.empty(shape, np.dtype(dtype)) if module is np else module.empty(shape, dtype)


def temporaries_of(like: Any) -> AbstractContextManager[None]:
    """Return a context in which arrays of an input's kind may be made and dropped, also while a CUDA graph is captured."""
    return memory_for_replays() if array_kind(like) == "cupy" else nullcontext()


class New(NamedTuple):
    """An array that a call allocates for a result: its name among the arrays of a plan, its shape and its dtype."""

    name: str
    shape: Shape
    dtype: Any


def new_gradients(problem: Problem, inputs: Mapping[str, Any], needs: Collection[bool]) -> tuple[New | None, ...]:
    """Return the gradients to allocate, of inputs by their names, with None for one that is not needed.

    ``needs`` has a bool for each input with a gradient.
    """
    differentiable = zip(with_gradients(problem.inputs), needs, strict=True)
    return tuple(New(str(x.gradient), x.shape, inputs[x.name].dtype) if needed else None for x, needed in differentiable)


def run_vjp(plan: Plan, arrays: Mapping[str, Any], gradients: Collection[New | None]) -> list[Any]:
    """Run a plan of gradients on NumPy or CuPy arrays and return the gradients, None where one is not needed."""
    like = next(iter(arrays.values()))
    with current_device_of(like):
        results = [None if new is None else _new(like, new.shape, new.dtype) for new in gradients]
        named = {new.name: result for new, result in zip(gradients, results, strict=True) if new is not None}
        plan.run({**arrays, **named})
    return results


# Explanations -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `explain`; printing it shows all of it."""

    problem: Any
    variant: str
    how: str
    reasons: dict[str, str]
    flops: int
    flops_inside: int | None
    bytes: int
    workspace: int
    bound: float
    algorithm: str = ""
    pass_name: str = FORWARD
    bound_on: str = "this machine"
    repetitions: int = 1

    def repeated(self, times: int) -> Explanation:
        """Return the explanation of so many such requests, computed one after the other."""
        return replace(
            self,
            flops=times * self.flops,
            flops_inside=None if self.flops_inside is None else times * self.flops_inside,
            bytes=times * self.bytes,
            bound=times * self.bound,
            repetitions=times * self.repetitions,
        )

    def __str__(self) -> str:
        share = self.flops_inside / self.flops if self.flops and self.flops_inside is not None else 1.0
        inside = "" if self.flops_inside is None else f", {share:.0%} of it inside both images"
        shapes = " x ".join(str(x.shape) for x in self.problem.inputs)
        arrow = f"{shapes} -> {self.problem.out_shape}" if self.pass_name == FORWARD else f"{self.problem.out_shape} -> {shapes}"
        runs = self.variant if self.algorithm == self.variant else f"{self.variant} by {self.algorithm}"
        lines = [
            arrow if self.repetitions == 1 else f"{arrow}, {self.repetitions} times",
            f"runs       {runs}: {self.how}",
            *(f"not run    {name}: {reason}" for name, reason in self.reasons.items()),
            f"arithmetic {self.flops / 1e9:.4g} GFLOP{inside}",
            f"traffic    {self.bytes / 1e6:.4g} MB at least, workspace at most {self.workspace / 2**20:.3g} MiB",
            f"bound      {self.bound * 1e3:.3g} ms on {self.bound_on} (larger of traffic and arithmetic)",
        ]
        return "\n".join(lines)


class _Rates(Protocol):
    """The peak rates of a device or of the CPU, None where they are not known."""

    @property
    def float32_rate(self) -> float | None: ...

    @property
    def float64_rate(self) -> float | None: ...

    @property
    def bandwidth(self) -> float | None: ...


def explain(operator: Operator, request: Request, where: Place, variant: str, *, measure: bool = False) -> Explanation:
    """Explain a request without computing it; ``measure`` lets the CPU's peak rates be measured for the bound."""
    candidates = _candidates(operator, request, where, variant)
    measured = _measured(candidates, where.device, measure=False)
    chosen, plan, _ = candidates.choice(measured or candidates.best)
    (chosen_row,) = operator.named(chosen)
    work = operator.work(request)
    rates: Any = where.device or workers.peak_rates(measure=measure)

    def why_not(row: Variant) -> str:
        reason = row.why_not_at(where, request)
        if reason is not None:
            return reason
        if not row.automatic:
            return "it runs only where it is named, because it has no estimate of its time"
        if measured:
            return f"{chosen} was measured to be the fastest on this device"
        if not chosen_row.automatic:
            return f"{chosen} was named"
        mine, best = (each.plan(request, where.device).seconds for each in (row, chosen_row))
        return f"by the cost model it takes {mine * 1e3:.3g} ms, {chosen} {best * 1e3:.3g} ms"

    return Explanation(
        request.problem,
        chosen,
        plan.description,
        {row.name: why_not(row) for row in operator.variants if row.name != chosen},
        *work,
        plan.workspace,
        max(_seconds(work.bytes, rates.bandwidth), _seconds(work.flops, _peak_rate(operator, request, where, rates))),
        plan.algorithm,
        request.pass_name,
        "this machine" if where.device is not None or rates.measured else "a typical processor",
    )


def _seconds(count: int, rate: float | None) -> float:
    """Return the time of so many operations or bytes; NaN where the rate is not known."""
    return count / rate if rate else float("nan")


def _peak_rate(operator: Operator, request: Request, where: Place, rates: _Rates) -> float | None:
    """Return the operations per second of the fastest unit that may multiply the request's numbers."""
    device = where.device
    if device is not None and operator.uses_matrix_units(request, device):
        return device.matrix_rate(request.dtype)
    return rates.float64_rate if request.dtype == "float64" else rates.float32_rate
