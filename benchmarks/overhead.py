"""``python -m benchmarks.overhead``: the host overhead of a call of the array function and of the torch operator.

Calls without gradients are timed in turn, next to `torch.add`: on an empty batch, which leaves nothing but the overhead, and on
images so small that the overhead is most of the time. A call that computes evicts torch's code from the processor's caches, so
that torch costs more than in a loop of its own; `torch.add` after the array function shows by how much.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import cupycorr
from cupycorr.torch import spatial_correlation_sample

ROUNDS = 60
CALLS = 100  # of each entrant in a round

SHAPES = {"empty batch": (0, 8, 8, 8), "one small pair": (1, 8, 8, 8)}
PATCH = 3


def entrants(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Return the calls that are timed on one shape, by name."""
    tensor = torch.ones(shape)
    array = tensor.numpy()

    def array_function() -> object:
        return cupycorr.spatial_correlation_sample(array, array, patch_size=PATCH)

    return {
        "array function": array_function,
        "array function and torch.add": lambda: (array_function(), torch.add(tensor, tensor)),
        "torch operator": lambda: spatial_correlation_sample(tensor, tensor, patch_size=PATCH),
        "torch.add": lambda: torch.add(tensor, tensor),
    }


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds per call, over rounds in shuffled order."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(ROUNDS):
        random.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            for _ in range(CALLS):
                calls[name]()
            taken[name].append((time.perf_counter() - begin) / CALLS)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    """Print a line for each shape, with the times of all entrants."""
    print(f"numpy {np.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads; microseconds per call, medians")
    with torch.no_grad():
        for name, shape in SHAPES.items():
            found = medians(entrants(shape))
            told = ", ".join(f"{who} {1e6 * seconds:.1f}" for who, seconds in found.items())
            operator, add = (found[who] - found["array function"] for who in ("torch operator", "array function and torch.add"))
            print(f"{name} {shape}: {told}; the operator adds {1e6 * operator:.1f}, torch.add {1e6 * add:.1f}")


if __name__ == "__main__":
    main()
