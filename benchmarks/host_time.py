"""``python -m benchmarks.host_time``: the time that our own Python takes of a repeated call on a GPU, for arrays and tensors.

CuPy's `empty` and the launches of kernels are replaced by functions that do nothing, and their time is subtracted. For tensors,
the time of torch's dispatcher and of `new_empty` is subtracted: that of an operator with the same schema whose function allocates
as much, which is printed too. Nothing is computed, so that no GPU is needed:

    python -m tests.software_cuda run -- python -m benchmarks.host_time

prints the figures on imagined devices, where tensors of the CPU pose as those of a GPU. Each figure is the minimum over many
rounds, in which the calls take turns, of the time that this thread runs on a processor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np

import cupycorr
from cupycorr import _dispatch, _repeats
from cupycorr._gpu import compiler
from cupycorr._gpu.device import import_cupy

ROUNDS = 100
CALLS = 500  # of each entrant in a round
SHAPE, PATCH = (1, 64, 16, 16), 9
VOLUME = (1, PATCH, PATCH, 16, 16)
ONE, PAIR, BOTH = (1, 1), (PATCH, PATCH), (True, True)

Call = Callable[[], Any]
Name = TypeVar("Name")


class Stubs:
    """Functions in the place of CuPy's `empty` and of a loaded kernel, which do nothing and count their calls."""

    def __init__(self, cupy: Any) -> None:
        self._empty, self._made = cupy.empty, {}
        self.empties = self.launches = 0

    def empty(self, shape: Any, dtype: Any) -> Any:
        """Return an array of the shape, the same at every call."""
        self.empties += 1
        found = self._made.get(shape)
        if found is None:
            found = self._made[shape] = self._empty(shape, dtype)
        return found

    def start(self, *_: Any) -> None:
        """Launch nothing."""
        self.launches += 1

    def seconds(self, call: Call, rounds: int) -> float:
        """Return the seconds that the stubs take of a call."""
        empties, launches = self.empties, self.launches
        call()
        empties, launches = self.empties - empties, self.launches - launches
        each = {"empty": lambda: self.empty(VOLUME, np.float32), "start": lambda: self.start((), (), (), 0, None)}
        taken = fastest(each, rounds)
        return empties * taken["empty"] + launches * taken["start"]


@contextmanager
def stubbed() -> Iterator[Stubs]:
    """Put stubs in the place of what CuPy does; plans are forgotten before and after, since they hold what launches them."""
    cupy = import_cupy()
    stubs = Stubs(cupy)
    with ExitStack() as stack:
        stack.enter_context(patch.object(cupy, "empty", stubs.empty))
        stack.enter_context(patch.object(compiler, "function", lambda *_: SimpleNamespace(kernel=stubs.start)))
        stack.callback(forget)
        forget()
        yield stubs


def forget() -> None:
    """Forget all plans."""
    _repeats.forget()
    _dispatch._planned.cache_clear()


def fastest(calls: dict[Name, Call], rounds: int) -> dict[Name, float]:
    """Return the least seconds of each call over rounds in which they take turns."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.thread_time()
            for _ in range(CALLS):
                call()
            found[name] = min(found[name], (time.thread_time() - begin) / CALLS)
    return found


def array_calls() -> dict[str, Call]:
    """Return calls of the array functions, by name."""
    cupy = import_cupy()
    x, y = (cupy.ones(SHAPE, np.float32) for _ in range(2))
    g, coords = cupy.ones(VOLUME, np.float32), cupy.ones((1, 2, 16, 16), np.float32)
    out = cupy.ones(VOLUME, np.float32)
    return {
        "spatial_correlation_sample": lambda: cupycorr.spatial_correlation_sample(x, y, patch_size=PATCH),
        "spatial_correlation_sample, out=": lambda: cupycorr.spatial_correlation_sample(x, y, patch_size=PATCH, out=out),
        "spatial_correlation_sample, pairs": lambda: cupycorr.spatial_correlation_sample(x, y, patch_size=(PATCH, PATCH)),
        "spatial_correlation_sample_vjp": lambda: cupycorr.spatial_correlation_sample_vjp(g, x, y, patch_size=PATCH),
        "correlation_lookup": lambda: cupycorr.correlation_lookup(x, y, coords, PATCH),
        "correlation_lookup_vjp": lambda: cupycorr.correlation_lookup_vjp(g, x, y, coords, PATCH),
    }


@contextmanager
def tensor_calls() -> Iterator[dict[str, tuple[Call, Call]]]:
    """Return calls of the torch operators by name, each with a call of an operator that only returns new tensors."""
    import torch

    from cupycorr.torch import _correlation, spatial_correlation_sample

    def allocate(cotangent: Any, x: Any, y: Any, *_: Any) -> tuple[Any, Any]:
        memory = x.new_empty(workspace, dtype=torch.uint8)
        found = x.new_empty(x.shape), y.new_empty(y.shape)
        del memory
        return found

    library = torch.library.Library("cupycorr_host_time", "DEF")  # lives as long as the calls
    library.define("forward" + _correlation._FORWARD_SCHEMA)
    library.define("vjp" + _correlation._VJP_SCHEMA)
    for key in ("CPU", "CUDA"):
        library.impl("forward", lambda x, y, *_: x.new_empty(VOLUME, dtype=None), key)
        library.impl("vjp", allocate, key)
    forward, vjp = torch.ops.cupycorr_host_time.forward.default, torch.ops.cupycorr_host_time.vjp.default
    with tensors_on_gpu() as device, torch.no_grad():
        x, y, g = (torch.ones(shape, device=device) for shape in (SHAPE, SHAPE, VOLUME))
        forget()
        _correlation.correlate_vjp(g, x, y, BOTH, ONE, PAIR)
        (workspace,) = (repeat.plan.workspace for repeat in _repeats._calls.values())
        yield {
            "torch spatial_correlation_sample": (
                lambda: spatial_correlation_sample(x, y, patch_size=PATCH),
                lambda: forward(x, y, ONE, PAIR),
            ),
            "torch spatial_correlation_sample_vjp": (
                lambda: _correlation.correlate_vjp(g, x, y, BOTH, ONE, PAIR),
                lambda: vjp(g, x, y, BOTH, ONE, PAIR),
            ),
        }


@contextmanager
def tensors_on_gpu() -> Iterator[str]:
    """Yield the name of a device for tensors on the GPU; where torch has none, those of the CPU pose as such."""
    import torch

    from cupycorr.torch import _tensors

    if torch.cuda.is_available():
        yield "cuda"
        return
    place, stream = _dispatch.gpu(0), import_cupy().cuda.get_current_stream().ptr
    with ExitStack() as stack:
        stack.enter_context(patch.object(_tensors, "on_gpu", lambda tensor: True))
        stack.enter_context(patch.object(_tensors, "current_stream", lambda index: stream))
        stack.enter_context(patch.object(_dispatch, "gpu", lambda index: place))
        yield "cpu"


def seconds(rounds: int) -> dict[str, float]:
    """Return the seconds of our own Python in each call, and of torch in a call of an operator that only allocates, by name."""
    with stubbed() as stubs:
        calls = array_calls()
        found = {name: taken - stubs.seconds(calls[name], rounds) for name, taken in fastest(calls, rounds).items()}
        try:
            import torch  # noqa: F401
        except ImportError:
            return found
        with tensor_calls() as pairs:
            taken = fastest({(name, which): call for name, pair in pairs.items() for which, call in enumerate(pair)}, rounds)
            found |= {name: taken[name, 0] - taken[name, 1] for name in pairs}
            return found | {f"{name}: torch itself, for the same results": taken[name, 1] for name in pairs}


def main() -> int:
    """Print a line for each call; return 2 where there is no device."""
    try:
        found = seconds(ROUNDS)
    except (ImportError, RuntimeError) as error:
        print(f"python -m benchmarks.host_time: {error}", file=sys.stderr)
        return 2
    print("microseconds of our own Python in a repeated call, without the memory of results and the launches")
    for name, taken in found.items():
        print(f"{1e6 * taken:6.1f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
