"""``python -m benchmarks.scaling``: displacements between frames that are larger than a worker, chunk by chunk on a Dask cluster.

Two frames of uint16 are written to a Zarr store and matched on a `LocalCluster` of two processes with 2 GiB each; the answers of
some windows are then compared with the formula in NumPy and, bit by bit, with `cupycorr.match` on the pixels around them. With
``--lose-a-worker``, the process that reads the chunk in the middle of frame 1 is killed there. With ``--graph``, one pair of
frames is matched in more and more chunks, which shows what a chunk costs.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

import cupycorr
import cupycorr.dask

WINDOW, STEP, REACH = 32, 16, 8
OPTIONS: dict[str, Any] = dict(window=WINDOW, step=STEP, search=((-REACH, REACH), (-REACH, REACH)))
MOTION = 3, -2  # pixels down and to the right; every window of a tile of the frames has one more, by where the tile is
NOISE = 2000  # the largest change of a value of uint16
SAMPLES = 200  # windows whose answers are checked
GRAPH_SIZE = 6400
GRAPH_CHUNKS = 1600, 640, 200, 64  # pixels: each but the last has about ten times as many chunks as the one before


def main() -> None:
    """Parse the arguments, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20000], help="height and width of the frames")
    parser.add_argument("--chunk", type=int, default=2000, help="height and width of their chunks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GiB", help="memory limit of each worker")
    parser.add_argument("--lose-a-worker", action="store_true", help="kill one worker in the middle")
    parser.add_argument("--graph", action="store_true", help="measure the overhead of chunks instead")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    rows = _graph_rows() if arguments.graph else _cluster_rows(arguments)
    _print(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def _cluster_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            paths = _write_frames(Path(folder), size, arguments.chunk)
            rows.append({"size": size, "chunk": arguments.chunk, **_on_cluster(paths, Path(folder), arguments)})
    return rows


def _write_frames(folder: Path, size: int, chunk: int) -> tuple[str, str]:
    """Write two frames of noise, the second moved by `MOTION`, chunk by chunk."""
    paths = str(folder / "frame1.zarr"), str(folder / "frame2.zarr")
    frames = [zarr.open(path, mode="w", shape=(size, size), chunks=(chunk, chunk), dtype="uint16") for path in paths]
    for top in range(0, size, chunk):
        for left in range(0, size, chunk):
            block = np.random.default_rng((top, left)).integers(0, 2**16 - NOISE, (chunk, chunk), dtype=np.uint16)
            at = slice(top, min(top + chunk, size)), slice(left, min(left + chunk, size))
            frames[0][at] = block[: at[0].stop - top, : at[1].stop - left]
    for top in range(0, size, chunk):
        for left in range(0, size, chunk):
            rows, columns = (np.arange(begin, min(begin + chunk, size)) for begin in (top, left))
            above, before = ((each - moved).clip(0, size - 1) for each, moved in zip((rows, columns), MOTION, strict=True))
            read = frames[0][above.min() : above.max() + 1, before.min() : before.max() + 1]
            moved = read[above - above.min()][:, before - before.min()]
            noise = np.random.default_rng((top, left, 2)).integers(0, NOISE, moved.shape, dtype=np.uint16)
            frames[1][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = moved + noise
    return paths


def _on_cluster(paths: tuple[str, str], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Match the frames on a cluster; return the times, the memory and the number of windows that are right."""
    options = dict(n_workers=arguments.workers, threads_per_worker=1, memory_limit=arguments.memory, dashboard_address=None)
    with dask.config.set({"temporary-directory": str(folder)}), LocalCluster(**options) as cluster, Client(cluster) as client:
        pids = set(client.run(os.getpid).values())
        frame1, frame2 = map(da.from_zarr, paths)
        if arguments.lose_a_worker:
            middle = tuple(number // 2 for number in frame1.numblocks)
            frame1 = frame1.map_blocks(kill_once, str(folder / "killed"), middle, meta=frame1._meta)
        begin = time.perf_counter()
        lazy = cupycorr.dask.match(frame1, frame2, **OPTIONS)
        built = time.perf_counter()
        (found,) = dask.compute(lazy)
        done = time.perf_counter()
        used = client.run(_usage)
        killed = len(pids - set(client.run(os.getpid).values()))
    return {
        "windows": int(found.dx.size),
        "chunks of the result": lazy.dx.npartitions,
        **_graph_size(lazy),
        "graph s": round(built - begin, 2),
        "s": round(done - built, 1),
        "CPU s of the workers": round(sum(seconds for seconds, _ in used.values()), 1),
        "peak GiB of a worker": round(max(peak for _, peak in used.values()) / 2**30, 2),
        "workers killed": killed,
        "missing": int(np.isnan(found.dx).sum()),
        **_checked(found, *(zarr.open(path, mode="r") for path in paths)),
    }


def kill_once(block: Any, marker: str, at: tuple[int, ...], block_info: Any = None) -> Any:
    """Return a block as it is, but the first time that it is the one ``at`` this place, kill the process."""
    if block_info and block_info[0]["chunk-location"] == at:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def _usage() -> tuple[float, int]:
    """Return the seconds of processors that this process has used, and the most bytes that it has had; Linux counts in KiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _graph_size(lazy: Any) -> dict[str, Any]:
    """Return the number of tasks of all fields, and their size without the data of arrays in memory."""
    layers: dict[str, Any] = {}
    for field in (lazy.dx, lazy.dy, lazy.score, lazy.at_edge, lazy.peak_ratio, lazy.count):
        layers.update(field.__dask_graph__().layers)
    tasks = sum(map(len, layers.values()))
    size = sum(len(pickle.dumps(dict(layer))) for name, layer in layers.items() if "match-" in name)
    return {"tasks": tasks, "graph MB": round(size / 1e6, 2)}


def _checked(found: Any, frame1: Any, frame2: Any) -> dict[str, int]:
    """Compare some windows with the formula and with the undivided call on the pixels around them."""
    rows, columns = (np.random.default_rng(axis).integers(0, found.dx.shape[axis], SAMPLES) for axis in (0, 1))
    right = equal = 0
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        top, left = row * STEP, column * STEP
        first = max(top - STEP, 0), max(left - STEP, 0)  # a whole number of steps, and more pixels than the search needs
        around = slice(first[0], top + WINDOW + STEP), slice(first[1], left + WINDOW + STEP)
        pixels1, pixels2 = frame1[around], frame2[around]
        at = (top - first[0]) // STEP, (left - first[1]) // STEP
        alone = cupycorr.match(pixels1, pixels2, **OPTIONS)
        fields = "dx", "dy", "score", "peak_ratio", "count", "at_edge"
        equal += int(all(getattr(found, each)[row, column] == getattr(alone, each)[at] for each in fields))
        best = _best(pixels1, pixels2, top - first[0], left - first[1])
        displacement = round(float(found.dy[row, column])), round(float(found.dx[row, column]))
        right += int(best[:2] == displacement and abs(best[2] - found.score[row, column]) < 1e-9)
    return {"sampled": SAMPLES, "right": right, "equal to the bit": equal}


def _best(pixels1: np.ndarray, pixels2: np.ndarray, top: int, left: int) -> tuple[int, int, float]:
    """Return the displacement with the highest correlation coefficient of one window, and the coefficient."""
    window = pixels1[top : top + WINDOW, left : left + WINDOW].astype(np.float64)
    best = (0, 0, -np.inf)
    for dy in range(-REACH, REACH + 1):
        for dx in range(-REACH, REACH + 1):
            y, x = top + dy, left + dx
            inside = slice(max(-y, 0), min(WINDOW, pixels2.shape[0] - y)), slice(max(-x, 0), min(WINDOW, pixels2.shape[1] - x))
            moved = pixels2[max(y, 0) : y + WINDOW, max(x, 0) : x + WINDOW].astype(np.float64)
            score = float(np.corrcoef(window[inside].ravel(), moved.ravel())[0, 1])
            best = max(best, (dy, dx, score), key=lambda each: each[2])
    return best


def _graph_rows() -> list[dict[str, Any]]:
    """Match one pair of frames in more and more chunks; return the graph's size and what the chunks cost."""
    rng = np.random.default_rng(0)
    frame1 = rng.integers(0, 2**16, (GRAPH_SIZE, GRAPH_SIZE), dtype=np.uint16)
    frame2 = np.roll(frame1, MOTION, (0, 1))
    rows: list[dict[str, Any]] = []
    for chunk in GRAPH_CHUNKS:
        names = [f"frame-{chunk}-{number}" for number in (1, 2)]
        chunked = [da.from_array(frame, chunks=chunk, name=name) for frame, name in zip((frame1, frame2), names, strict=True)]
        begin = time.perf_counter()
        lazy = cupycorr.dask.match(*chunked, **OPTIONS)
        built = time.perf_counter()
        begun, used = time.perf_counter(), time.process_time()
        dask.compute(lazy, scheduler="threads", num_workers=2)
        done, all_used = time.perf_counter(), time.process_time()
        rows.append(
            {
                "chunk": chunk,
                "chunks of the result": lazy.dx.npartitions,
                **_graph_size(lazy),
                "graph s": round(built - begin, 2),
                "s": round(done - begun, 1),
                "CPU s": round(all_used - used, 1),
            }
        )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
