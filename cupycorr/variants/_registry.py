"""Registration: a checked row at the end of the operator's table of variants, and its removal.

The caches of plans and of repeated calls compare the table that they were made from, so they notice every change.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._arguments import at_least, finite_number, shown
from .._correlation import groups
from .._correlation.variants import OPERATOR, VARIANTS
from .._dispatch import Request, Variant
from .._gpu.device import Device
from .._gpu.layout import dense_layout
from ._plans import PARAMETERS, FunctionPlan, Kernel, check_function, kernel_plan
from ._problem import Problem, problem_of

_NAME = re.compile(r"[A-Za-z][\w.+-]*", re.ASCII)
_WORDS = ("auto", "none")  # words in the place of names: those of `variant` and of the benchmark's options
_WITHOUT_PASS = {"forward": "it has no forward map", "vjp": "it has no gradients"}

_lock = threading.Lock()  # guards the table of variants


def register(
    name: str,
    *,
    forward: Kernel | Callable[..., None] | None = None,
    vjp: Kernel | Callable[..., None] | None = None,
    why_not: Callable[[Problem], str | None] | None = None,
    seconds: Callable[[Problem], float] | None = None,
    workspace: Callable[[Problem], int] | None = None,
) -> None:
    """Register a variant of `cupycorr.spatial_correlation_sample`, in this process.

    From then on ``variant=name`` runs it in NumPy, CuPy and torch, `cupycorr.explain` names it, and ``python -m benchmarks``
    times it.

    Parameters
    ----------
    name : str
        The name of the variant: letters, digits and ``_ . + -``.
    forward : Kernel or callable
        Computes the output. A function is for NumPy arrays. It is called as ``forward(problem, input1, input2, out)`` and writes
        every element of ``out``.
    vjp : Kernel or callable, optional
        Computes the gradients, as ``vjp(problem, cotangent, input1, input2, gradient1, gradient2)``; a gradient that is not
        needed is None. Without it the variant refuses gradients.
    why_not : callable, optional
        Takes a `Problem` and returns None, or the reason why the variant cannot compute it, in words that users read. It may
        depend on everything but the strides of arrays with gaps. By default the variant computes every problem.
    seconds : callable, optional
        Takes a `Problem` and returns an estimate of its time in seconds. With it, ``variant="auto"`` may choose the variant.
        Without it, the variant runs only where it is named.
    workspace : callable, optional
        Takes a `Problem` and returns the bytes of memory that the variant needs beside the arrays, by default 0. A `Kernel` gets
        so much as ``"workspace"``.

    Raises
    ------
    TypeError
        An argument is of the wrong type, or a function does not take these arguments.
    ValueError
        There is a variant of that name, it is no name, or there is neither ``forward`` nor ``vjp``.

    See Also
    --------
    unregister : Removes it.
    check : Compares it with the definition.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> def forward(problem, input1, input2, out):
    ...     out[:, 0, 0] = problem.scale * np.einsum("bcij,bcij->bij", input1, input2)
    >>> def why_not(problem):
    ...     plain = problem.kernel_size == problem.patch_size == problem.stride == (1, 1) and problem.padding == (0, 0)
    ...     return None if plain and problem.first_displacement == (0, 0) else "only the product of pixels at one position"
    >>> cupycorr.variants.register("einsum", forward=forward, why_not=why_not)
    >>> x = np.ones((1, 3, 4, 5), np.float32)
    >>> float(cupycorr.spatial_correlation_sample(x, x, variant="einsum")[0, 0, 0, 2, 2])
    3.0
    >>> print(cupycorr.explain(x, x, patch_size=3).reasons["einsum"])
    only the product of pixels at one position
    >>> cupycorr.variants.unregister("einsum")
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got name={shown(name)}")
    if not _NAME.fullmatch(name) or name in _WORDS:
        raise ValueError(f"name must be letters, digits and _ . + -, and none of {', '.join(_WORDS)}, got name={name!r}")
    passes = {"forward": forward, "vjp": vjp}
    computed = {which: each for which, each in passes.items() if each is not None}
    if not computed:
        raise ValueError(f"variant {name!r} must have forward or vjp, got neither")
    for which, each in computed.items():
        if not isinstance(each, Kernel):
            check_function(which, each, ("problem", *PARAMETERS[which]))
    if len({isinstance(each, Kernel) for each in computed.values()}) > 1:
        raise TypeError(f"forward and vjp must both be a Kernel, or both be functions of NumPy arrays, got {shown(passes)}")
    functions = {"why_not": why_not, "seconds": seconds, "workspace": workspace}
    for what, function in functions.items():
        if function is not None:
            check_function(what, function, ("problem",))
    row = _row(name, computed, why_not, seconds, workspace)
    with _lock:
        if name in (each.name for each in OPERATOR.variants):
            whose = "of the package" if name in (each.name for each in VARIANTS) else "registered; unregister it first"
            raise ValueError(f"name must be a new one, got name={name!r}, which is {whose}")
        OPERATOR.variants = (*OPERATOR.variants, row)


def unregister(name: str) -> None:
    """Remove a registered variant.

    Parameters
    ----------
    name : str
        Its name.

    Raises
    ------
    ValueError
        No variant is registered by that name; those of the package stay.

    See Also
    --------
    register : Adds a variant.

    Examples
    --------
    >>> import cupycorr
    >>> cupycorr.variants.register("zeros", forward=lambda problem, input1, input2, out: out.fill(0))
    >>> cupycorr.variants.registered()
    ('zeros',)
    >>> cupycorr.variants.unregister("zeros")
    >>> cupycorr.variants.registered()
    ()
    """
    with _lock:
        if name not in registered():
            raise ValueError(f"name must be that of a registered variant, {_known()}, got name={shown(name)}")
        OPERATOR.variants = tuple(row for row in OPERATOR.variants if row.name != name)


def registered() -> tuple[str, ...]:
    """Return the names of the registered variants.

    Returns
    -------
    tuple of str
        In the order of registration.

    See Also
    --------
    register : Adds a variant.

    Examples
    --------
    >>> import cupycorr
    >>> cupycorr.variants.register("zeros", forward=lambda problem, input1, input2, out: out.fill(0))
    >>> cupycorr.variants.registered()
    ('zeros',)
    >>> cupycorr.variants.unregister("zeros")
    >>> cupycorr.variants.registered()
    ()
    """
    return tuple(row.name for row in OPERATOR.variants if row.digest)


def row_of(name: str) -> Variant:
    """Return the row of a registered variant.

    Raises
    ------
    ValueError
        No variant is registered by that name.
    """
    if name not in registered():
        raise ValueError(f"name must be that of a registered variant, {_known()}, got name={shown(name)}")
    (row,) = OPERATOR.named(name)
    return row


def _known() -> str:
    names = registered()
    return f"of which there is {', '.join(map(repr, names))}" if names else "of which there is none"


def load(source: str | Path) -> tuple[str, ...]:
    """Run a Python file, or import a module, that registers variants.

    Parameters
    ----------
    source : path or str
        The path of a file that ends in ``.py``, or the name of a module. The file is not run as ``__main__``.

    Returns
    -------
    tuple of str
        The names of the variants that it has registered.

    Raises
    ------
    TypeError
        The source is neither a path nor a text.
    ValueError
        There is no such file or module, or it has registered no variant.

    See Also
    --------
    register : Called by the file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import cupycorr
    >>> written = "import cupycorr; cupycorr.variants.register('zeros', forward=lambda problem, x1, x2, out: out.fill(0))"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "own.py")
    ...     _ = file.write_text(written)
    ...     cupycorr.variants.load(file)
    ('zeros',)
    >>> cupycorr.variants.unregister("zeros")
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source must be a path or the name of a module, got source={shown(source)}")
    before, given = OPERATOR.variants, str(source)
    try:
        if given.lower().endswith(".py"):
            _run(Path(source))
        else:
            _import(given)
    except BaseException:
        OPERATOR.variants = before
        raise
    names = tuple(row.name for row in OPERATOR.variants if row not in before)
    if not names:
        raise ValueError(f"variants are loaded from a file or a module that registers some, got {given!r}, which registers none")
    return names


def _run(path: Path) -> None:
    """Run a file as a module whose name no other module has."""
    if not path.is_file():
        raise ValueError(f"variants are loaded from a .py file or a module, got {str(path)!r}, which is no file")
    name = f"_variants_of_{re.sub(r'[^A-Za-z0-9]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)


def _import(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"variants are loaded from a .py file or a module, got {name!r}, which is no name of a module")
    try:
        if name in sys.modules:
            importlib.reload(sys.modules[name])  # its variants may have been removed
        else:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module imports another one that is missing
        raise ValueError(f"variants are loaded from a .py file or a module, got {name!r}, and there is no such module") from None


# The row -----------------------------------------------------------------------------------------------------------------------


def _row(
    name: str,
    passes: Mapping[str, Any],
    why_not: Callable[[Problem], str | None] | None,
    seconds: Callable[[Problem], float] | None,
    workspace: Callable[[Problem], int] | None,
) -> Variant:
    """Return the row of a variant, for requests with any groups and displacements."""
    kernels = {which: each for which, each in passes.items() if isinstance(each, Kernel)}
    dense = {which for which, kernel in kernels.items() if not kernel.strided}

    def why_not_simple(request: Request, device: Device | None) -> str | None:
        reason = why_not(problem_of(request, device)) if why_not is not None else None
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"why_not of variant {name!r} must return None or a str, got {shown(reason)}")
        return reason

    def why_not_any(request: Request, device: Device | None) -> str | None:
        if request.pass_name not in passes:
            return _WITHOUT_PASS[request.pass_name]
        reason = _why_not_dense(request) if request.pass_name in dense else None
        return reason or groups.with_groups(why_not_simple)(request, device)

    def plan(request: Request, device: Any) -> Any:
        computes, problem = passes[request.pass_name], problem_of(request, device)
        estimate = math.inf if seconds is None else _number(f"seconds of variant {name!r}", seconds(problem))
        needed = 0 if workspace is None else at_least(0, f"workspace of variant {name!r}", workspace(problem))
        if isinstance(computes, Kernel):
            return kernel_plan(name, computes, request, device, estimate, needed)
        return FunctionPlan(request, name, computes, estimate, needed)

    functions: Sequence[Any] = (why_not, seconds, workspace, *passes.values())
    return Variant(
        name,
        "cupy" if kernels else "numpy",
        why_not_any,
        groups.on_gpu(plan) if kernels else groups.on_cpu(plan),
        automatic=seconds is not None,
        without_gaps=bool(dense),
        digest=hashlib.sha256("".join(map(_text, functions)).encode()).hexdigest()[:16],
    )


def _number(what: str, value: Any) -> float:
    number = finite_number(what, value)
    if number < 0:
        raise ValueError(f"{what} must be at least 0, got {number}")
    return number


def _why_not_dense(request: Request) -> str | None:
    """Return None, or the reason why the arrays of a request, or their views in ascending order, are not in C order."""
    layouts = [layout for layout in request.layouts if layout is not None and 0 not in layout.shape]
    if any(layout != dense_layout(layout.dtype, layout.shape) for layout in layouts):
        return "the kernel takes arrays in C order without gaps"
    return (
        "the kernel takes no output in reverse, as that of descending displacements is" if any(request.problem.descends) else None
    )


def _text(part: Any) -> str:
    """Return the text of a kernel and of its function, or of a function, as far as it can be read."""
    if isinstance(part, Kernel):
        return part.text + _text(part.launch)
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        return repr(part)
