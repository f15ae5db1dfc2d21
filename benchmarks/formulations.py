"""How best to sum one row of a search on a CPU: the formulations that were weighed, timed against each other in one run.

Plain NumPy, windows of one pixel, stride 1: just enough to compare the arithmetic. The package's own variants run beside them,
so that the choice can be checked again on another machine: ``python -m benchmarks.formulations --json FILE``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided

import cupycorr
from cupycorr._cpu import workers
from cupycorr._cpu.blas_limits import with_one_blas_thread

from .cases import CASES, Case
from .report import cpu_header
from .timing import race

TILE, ROWS = 32, 4  # queries along a row, and rows of queries that share a copy of the searched rows

# One block of queries: rows (ROWS, channels, columns), padded searched rows (rows, channels, columns + patch - 1), and either the
# scores to fill in or the cotangent to read, both (patch, patch, ROWS, columns).
Block = Callable[[np.ndarray, np.ndarray, np.ndarray], "np.ndarray | None"]


def _band(products: np.ndarray, shape: tuple[int, int, int], strides: tuple[int, int, int], offset: int = 0) -> np.ndarray:
    """The band (m, n, column) of a product, as a view."""
    return as_strided(products.reshape(-1)[offset:], shape, strides)


def batched_scores(queries: np.ndarray, searched: np.ndarray, scores: np.ndarray) -> None:
    """One small product for each row of queries and each searched row."""
    patch, _, rows, columns = scores.shape
    for t in range(rows):
        products = queries[t].T @ searched[t : t + patch]
        along_m, along_x, along_n = products.strides
        scores[:, :, t] = _band(products, (patch, patch, columns), (along_m, along_n, along_x + along_n))


def row_block_scores(queries: np.ndarray, searched: np.ndarray, scores: np.ndarray) -> None:
    """One product for each row of queries, with all searched rows it meets side by side."""
    patch, _, rows, columns = scores.shape
    together = np.ascontiguousarray(searched.transpose(1, 0, 2))
    for t in range(rows):
        products = queries[t].T @ together[:, t : t + patch].reshape(len(together), -1)
        along_x, along_n = products.strides
        along_m = along_n * searched.shape[2]
        scores[:, :, t] = _band(products, (patch, patch, columns), (along_m, along_n, along_x + along_n))


def many_rows_scores(queries: np.ndarray, searched: np.ndarray, scores: np.ndarray) -> None:
    """One product for all rows of queries and all searched rows, of which a band of bands is kept."""
    patch, _, rows, columns = scores.shape
    left = np.ascontiguousarray(queries.transpose(1, 0, 2)).reshape(queries.shape[1], -1)
    products = left.T @ np.ascontiguousarray(searched.transpose(1, 0, 2)).reshape(searched.shape[1], -1)
    along_x, along_n = products.strides
    along_m = along_n * searched.shape[2]
    for t in range(rows):
        offset = t * columns * products.shape[1] + t * searched.shape[2]
        scores[:, :, t] = _band(products, (patch, patch, columns), (along_m, along_n, along_x + along_n), offset)


def _spread(cotangent: np.ndarray, t: int) -> np.ndarray:
    """One row's cotangent on the band of (m, searched column, query column), zeros beside it."""
    patch, _, _, columns = cotangent.shape
    spread = np.zeros((patch, columns + patch - 1, columns), cotangent.dtype)
    along_m, along_n, along_x = spread.strides
    _band(spread, (patch, patch, columns), (along_m, along_n, along_n + along_x))[...] = cotangent[:, :, t]
    return spread


def batched_gradient(_: np.ndarray, searched: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """One small product for each row of queries and each searched row, added up."""
    patch, _, rows, _ = cotangent.shape
    return np.stack([(searched[t : t + patch] @ _spread(cotangent, t)).sum(0) for t in range(rows)])


def row_block_gradient(_: np.ndarray, searched: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """One product for each row of queries: channels by all searched pixels, times all searched pixels by queries."""
    patch, _, rows, columns = cotangent.shape
    together = np.ascontiguousarray(searched.transpose(1, 0, 2))
    blocks = (together[:, t : t + patch].reshape(len(together), -1) for t in range(rows))
    return np.stack([block @ _spread(cotangent, t).reshape(-1, columns) for t, block in enumerate(blocks)])


def _blocks(query: np.ndarray, other: np.ndarray, patch: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """One phase of one sample, in blocks: where they begin, their queries and the padded rows they search."""
    radius = (patch - 1) // 2
    padded = np.pad(other.transpose(1, 0, 2), ((radius, radius), (0, 0), (radius, radius)))
    rows = query.transpose(1, 0, 2)
    for y in range(0, rows.shape[0], ROWS):
        for x in range(0, rows.shape[2], TILE):
            queries = rows[y : y + ROWS, :, x : x + TILE]
            reach = queries.shape[0] + patch - 1, queries.shape[2] + patch - 1
            yield y, x, queries, padded[y : y + reach[0], :, x : x + reach[1]]


def _phases(case: Case) -> Iterator[tuple[int, slice, slice]]:
    step = case.problem.horizontal.step
    for sample in range(case.shape[0]):
        for phase in np.ndindex(step, step):
            yield sample, slice(phase[0], None, step), slice(phase[1], None, step)


def forward(score: Block, case: Case, pool: ThreadPoolExecutor, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """All scores, phase by phase, blocks shared between threads."""
    patch = case.problem.horizontal.patch
    out = np.empty(case.problem.out_shape, x1.dtype)
    tasks = []
    for b, ys, xs in _phases(case):
        for y, x, queries, searched in _blocks(x1[b, :, ys, xs], x2[b, :, ys, xs], patch):
            target = out[b, :, :, ys, xs][:, :, y : y + ROWS, x : x + TILE]
            tasks.append(pool.submit(score, queries, searched, target))
    for task in tasks:
        task.result()
    return out


def vjp(
    gradient: Block, case: Case, pool: ThreadPoolExecutor, x1: np.ndarray, x2: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both gradients; the second is the first with the images exchanged and the cotangent turned round."""

    def one(query: np.ndarray, other: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        patch, result, tasks = case.problem.horizontal.patch, np.empty_like(query), []
        for b, ys, xs in _phases(case):
            for y, x, queries, searched in _blocks(query[b, :, ys, xs], other[b, :, ys, xs], patch):
                block = cotangent[b, :, :, ys, xs][:, :, y : y + ROWS, x : x + TILE]
                target = result[b, :, ys, xs][:, y : y + ROWS, x : x + TILE]
                tasks.append((target, pool.submit(gradient, queries, searched, block)))
        for target, task in tasks:
            target[...] = task.result().transpose(1, 0, 2)
        return result

    return one(x1, x2, g), one(x2, x1, _turned(g, case.problem.horizontal.step))


def _turned(g: np.ndarray, step: int) -> np.ndarray:
    """``turned[-dy, -dx] at y + dy, x + dx = g[dy, dx] at y, x``."""
    turned = np.zeros_like(g)
    _, patch, _, height, width = g.shape
    for m, n in np.ndindex(patch, patch):
        (y, y2), (x, x2) = (_overlapping(step * (i - (patch - 1) // 2), size) for i, size in ((m, height), (n, width)))
        turned[:, patch - 1 - m, patch - 1 - n, y2, x2] = g[:, m, n, y, x]
    return turned


def _overlapping(shift: int, size: int) -> tuple[slice, slice]:
    return slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift))


FORWARD = {
    "batched small products": batched_scores,
    "one product per row": row_block_scores,
    "one product per rows": many_rows_scores,
}
GRADIENT = {"batched small products": batched_gradient, "one product per row": row_block_gradient}
VARIANTS = {"variant blas": "blas", "register tiles (variant simd)": "simd"}


def compare(case: Case, pool: ThreadPoolExecutor, budget: float) -> list[dict]:
    """Race all formulations on one case, after checking that they compute the same."""
    inputs = case.inputs("float32", "vjp")
    x1, x2, g = inputs.input1, inputs.input2, inputs.cotangent
    works: dict[str, dict[str, Callable]] = {"forward": {}, "vjp": {}}
    for name, score in FORWARD.items():
        works["forward"][name] = partial(forward, score, case, pool, x1, x2)
    for name, gradient in GRADIENT.items():
        works["vjp"][name] = partial(vjp, gradient, case, pool, x1, x2, g)
    for name, variant in VARIANTS.items():
        keywords = {**case.keywords, "variant": variant}
        works["forward"][name] = partial(cupycorr.spatial_correlation_sample, x1, x2, **keywords)
        works["vjp"][name] = partial(cupycorr.spatial_correlation_sample_vjp, g, x1, x2, **keywords)
    rows = []
    for which, contestants in works.items():
        results = [work() for work in contestants.values()]
        for name, result in zip(contestants, results, strict=True):
            for got, want in zip(np.atleast_1d(result) if which == "forward" else result, results[-1], strict=True):
                if not np.allclose(got, want, rtol=1e-4, atol=1e-2):
                    raise ValueError(f"{name} computes something else on {case.name} ({which})")
        del results
        timings = with_one_blas_thread(race, contestants, dict.fromkeys(contestants, (0.01,)), budget)
        for name, timing in timings.items():
            rate = case.useful_flops(which) / timing.median / 1e9
            rows.append(
                {"case": case.name, "pass": which, "formulation": name, "median_ms": timing.median * 1e3, "useful_gflops": rate}
            )
            print(f"{case.name:22} {which:8} {name:32} {timing.median * 1e3:9.2f} ms {rate:8.1f} GFLOP/s")
    return rows


def main(arguments: Sequence[str]) -> None:
    """Race the formulations on the acceptance cases with windows of one pixel and stride 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formulations", description=main.__doc__)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each case and pass")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    asked = parser.parse_args(arguments)
    cases = [case for case in CASES if case.acceptance and "kernel_size" not in case.keywords]
    with ThreadPoolExecutor(workers.thread_count()) as pool:
        rows = [row for case in cases for row in compare(case, pool, asked.budget)]
    if asked.json:
        header = {**asdict(cpu_header(arguments, ["float32"])), "tile": TILE, "rows": ROWS}
        header["command"] = header["command"].replace("-m benchmarks", "-m benchmarks.formulations")
        asked.json.write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
