"""The plans of registered variants: a function of NumPy arrays, or the launches of a kernel that the user has written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import at_least, shown
from .._dispatch import FORWARD, Request, array_names
from .._gpu import source
from .._gpu.call import NOWHERE, Call, Extents, Pointer
from .._gpu.device import Device
from .._gpu.plan import WORKSPACE
from .._gpu.plan import Plan as GpuPlan
from ._problem import Problem, problem_of

# pass -> the parameters of its function, after the problem
PARAMETERS = {"forward": ("input1", "input2", "out"), "vjp": ("cotangent", "input1", "input2", "gradient1", "gradient2")}


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of a kernel.

    Parameters
    ----------
    blocks : int or (int, int, int)
        The blocks of the grid along x, or along x, y and z. A launch without blocks is left out.
    threads : int or (int, int, int), default 256
        The threads of a block.
    scalars : sequence of NumPy scalars
        The arguments after the pointers, each of the width that the kernel takes, such as ``np.int32(5)``.
    macros : mapping of str to object
        The macros that the kernel is compiled with; each other set of them is another build.
    shared : int, default 0
        Bytes of dynamic shared memory of a block.
    pointers : sequence of str or of (str, int), optional
        The arguments before the scalars: names of arrays, or ``"workspace"``, each perhaps with an offset in bytes. By default,
        these are the arrays of the pass: ``input1``, ``input2`` and ``out``, or ``cotangent``, ``input1``, ``input2``,
        ``gradient1`` and ``gradient2``. The pointer of a gradient that is not needed is null.
    entry : str, optional
        The name of the kernel's function, by default that of the `Kernel`.

    See Also
    --------
    Kernel : The file and the function that returns launches.

    Examples
    --------
    >>> import numpy as np
    >>> from cupycorr import variants
    >>> variants.Launch((8, 4, 1), 128, [np.int32(7)], {"PATCH": 9}).threads
    128
    """

    blocks: Extents
    threads: Extents = 256
    scalars: Sequence[Any] = ()
    macros: Mapping[str, object] | None = None
    shared: int = 0
    pointers: Sequence[str | tuple[str, int]] | None = None
    entry: str | None = None


class Kernel:
    """A CUDA kernel in a ``.cu`` file, with the function that says how it is launched.

    It is compiled by NVRTC at its first use and launched on CuPy arrays and on torch's CUDA tensors. Its function must be
    declared ``extern "C" __global__``; the macro ``KERNEL(threads)`` of ``common/platform.cuh`` does so. A file may include the
    headers of cupycorr (``#include "common/platform.cuh"``) and files beside it. A kernel that accesses memory only through the
    functions of ``common/platform.cuh`` also runs in the emulator of cupycorr's tests.

    Parameters
    ----------
    code : path or str
        The path of the ``.cu`` file, or its text, if the string has several lines.
    launch : callable
        Takes a `Problem` and returns a `Launch` or a sequence of them, which run one after the other.
    entry : str, optional
        The name of the kernel's function, by default the name of the file without its suffix. A text needs it.
    strided : bool, default False
        True if the kernel takes arrays of any strides, which it finds in ``problem.strides``. Other kernels are given only arrays
        in C order without gaps, and refuse others.

    Raises
    ------
    TypeError
        An argument is of the wrong type, or ``launch`` does not take one argument.
    ValueError
        There is no such file, or ``entry`` is missing or no name.

    See Also
    --------
    register : Makes a variant of it.
    Launch : The grid and the arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from cupycorr import variants
    >>> text = '''#include "common/platform.cuh"
    ... KERNEL(256) fill(float* out, int count, float value) {
    ...     const int at = blockIdx.x * 256 + threadIdx.x;
    ...     if (at < count) store_global(out + at, value);
    ... }'''
    >>> def launch(problem):
    ...     count = int(np.prod(problem.out_shape))
    ...     return variants.Launch(-(-count // 256), scalars=[np.int32(count), np.float32(0)], pointers=["out"])
    >>> variants.Kernel(text, launch, entry="fill")
    Kernel('fill.cu', entry='fill')
    """

    def __init__(
        self,
        code: str | Path,
        launch: Callable[[Problem], Launch | Sequence[Launch]],
        entry: str | None = None,
        *,
        strided: bool = False,
    ) -> None:
        if not isinstance(code, (str, Path)):
            raise TypeError(f"code must be the path of a .cu file or its text, got {shown(code)}")
        if entry is not None and not isinstance(entry, str):
            raise TypeError(f"entry must be the name of a function, got entry={shown(entry)}")
        check_function("launch", launch, ("problem",))
        is_text = isinstance(code, str) and "\n" in code
        if is_text and entry is None:
            raise ValueError("entry must name the kernel's function where code is a text, got entry=None")
        if not is_text and not Path(code).is_file():
            raise ValueError(f"code must be the path of a .cu file or its text, got {shown(str(code))}, which is no file")
        self.file = f"{entry}.cu" if is_text else Path(code).name
        self.entry: str = entry or Path(code).stem
        if not self.entry.isidentifier():
            raise ValueError(f"entry must be the name of a function, got entry={shown(self.entry)}")
        self.launch, self.strided = launch, bool(strided)
        written, beside = (str(code), None) if is_text else (Path(code).read_text("utf-8"), Path(code).resolve().parent)
        self.text = source.user_text(written, self.file, beside)

    def __repr__(self) -> str:
        return f"Kernel({self.file!r}, entry={self.entry!r})"


def _calls(kernel: Kernel, problem: Problem, arrays: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the calls of a problem; ``arrays`` has the names of the arrays that there are."""
    returned = kernel.launch(problem)
    launches = [returned] if isinstance(returned, Launch) else returned
    if not isinstance(launches, Sequence) or not all(isinstance(each, Launch) for each in launches):
        raise TypeError(f"launch of {kernel.file} must return a Launch or a sequence of them, got {shown(returned)}")
    for each in launches:
        yield _call(kernel, each, PARAMETERS[problem.pass_name], arrays)


def _call(kernel: Kernel, launch: Launch, names: Sequence[str], arrays: Mapping[str, Any]) -> Call:
    macros = tuple((name, str(value)) for name, value in (launch.macros or {}).items())
    pointers = names if launch.pointers is None else launch.pointers
    return Call(
        source.Kernel(kernel.file, launch.entry or kernel.entry, macros, kernel.text),
        tuple(_pointer(kernel.file, each, (*names, WORKSPACE), arrays) for each in pointers),
        tuple(_scalar(kernel.file, each) for each in launch.scalars),
        _extents(kernel.file, "blocks", launch.blocks, 0),
        _extents(kernel.file, "threads", launch.threads, 1),
        at_least(0, "shared", launch.shared),
    )


def _pointer(file: str, given: Any, names: Sequence[str], arrays: Mapping[str, Any]) -> Pointer:
    name, offset = given if isinstance(given, tuple) and len(given) == 2 else (given, 0)
    if name not in names or not isinstance(offset, int):
        raise ValueError(f"pointers of a launch of {file} must be of {', '.join(names)}, got {shown(given)}")
    return Pointer(name, offset) if name in arrays or name == WORKSPACE else NOWHERE


def _scalar(file: str, value: Any) -> np.generic:
    if not isinstance(value, np.generic):
        raise TypeError(f"scalars of a launch of {file} must be NumPy scalars, such as np.int32(5), got {shown(value)}")
    return value


def _extents(file: str, name: str, given: Any, least: int) -> Extents:
    counts = given if isinstance(given, tuple) else (given,)
    whole = all(isinstance(each, (int, np.integer)) and not isinstance(each, bool) and each >= least for each in counts)
    if not whole or len(counts) not in (1, 3):
        what = f"{name} of a launch of {file} must be an int of at least {least} or three of them"
        raise ValueError(f"{what}, got {name}={shown(given)}")
    x, y, z = (*map(int, counts), 1, 1)[:3]
    return (x, y, z) if isinstance(given, tuple) else x


def check_function(name: str, function: Any, parameters: Sequence[str]) -> None:
    """Refuse an argument that is no function of these parameters."""
    if not callable(function):
        raise TypeError(f"{name} must be a function of ({', '.join(parameters)}), got {shown(function)}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        raise TypeError(f"{name} must be a function of ({', '.join(parameters)}), got one of {signature}") from None


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """The call of a user's function of NumPy arrays, as the plan of a request."""

    request: Request
    algorithm: str
    function: Callable[..., Any]
    seconds: float
    workspace: int
    description: str = "a registered function of NumPy arrays"

    def run(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Call the function with the arrays of its pass, None in place of a gradient that is not needed."""
        names = PARAMETERS[self.request.pass_name]
        returned = self.function(problem_of(self.request, None), *(arrays.get(name) for name in names))
        if returned is not None:
            written = "out" if self.request.pass_name == FORWARD else "gradient1 and gradient2"
            raise TypeError(
                f"the function of variant {self.algorithm!r} must write into {written} and return None, got {shown(returned)}"
            )


def kernel_plan(name: str, kernel: Kernel, request: Request, device: Device, seconds: float, workspace: int) -> GpuPlan:
    """Return the plan that launches a kernel."""
    named = zip(array_names(request.pass_name, request.problem.inputs), request.layouts, strict=True)
    sizes = {array: layout.itemsize for array, layout in named if layout is not None}
    problem = problem_of(request, device)
    description = f"the registered kernel {kernel.entry} of {kernel.file}"
    return GpuPlan(name, description, seconds, workspace, lambda: _calls(kernel, problem, sizes), device.index, sizes)
