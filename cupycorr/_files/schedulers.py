"""Matches two frames in memory chunk by chunk: in threads or processes of this machine, or on a cluster.

Dask is imported where it is used, because only the option ``--scheduler`` needs it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np

from .._cpu import workers
from ..motion import Match

THREADS, PROCESSES = "threads", "processes"
CHUNK = 1024  # pixels
_PATIENCE = 10  # seconds to wait for a scheduler at an address

MatchFrames = Callable[..., Match[np.ndarray]]  # takes the arguments of `cupycorr.match`


@contextmanager
def matching(scheduler: str) -> Iterator[MatchFrames]:
    """Return a context with a function that matches frames by a scheduler: `THREADS`, `PROCESSES`, or the one at an address.

    The function raises a ValueError where the cluster fails.

    Raises
    ------
    ValueError
        No scheduler answers at the address.
    """
    if scheduler == THREADS:
        yield partial(_matched, {"scheduler": THREADS, "num_workers": workers.thread_count()})
    elif scheduler == PROCESSES:
        with _processes() as pool:
            yield partial(_matched, {"scheduler": PROCESSES, "pool": pool})
    else:
        with _client(scheduler) as client:
            yield partial(_matched_on_cluster, client)


def _processes() -> AbstractContextManager[Any]:
    """Return a pool of processes for all pairs. They are not forked, since they would inherit locks that threads hold."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(workers.thread_count(), get_context("spawn"))


def _matched(
    scheduling: dict[str, Any],
    frame1: np.ndarray,
    frame2: np.ndarray,
    *arguments: Any,
    mask1: np.ndarray | None,
    mask2: np.ndarray | None,
    progress: Callable[[float], object],
) -> Match[np.ndarray]:
    from dask.base import compute

    from .. import dask as by_chunks

    masks: dict[str, Any] = {
        name: None if mask is None else _chunked(mask) for name, mask in (("mask1", mask1), ("mask2", mask2))
    }
    lazy = by_chunks.match(_chunked(frame1), _chunked(frame2), *arguments, **masks)
    with _reported(progress):
        (found,) = compute(lazy, **scheduling)
    progress(1.0)
    field: Match[np.ndarray] = found
    return field


def _chunked(frame: np.ndarray) -> Any:
    import dask.array as da

    return da.from_array(frame, chunks=(CHUNK, CHUNK, *frame.shape[2:]))


@contextmanager
def _reported(progress: Callable[[float], object]) -> Iterator[None]:
    """Return a context in which each task that this process has scheduled and that is finished is reported."""
    from dask.callbacks import Callback

    def finished(_key: Any, _result: Any, _graph: Any, state: dict[str, Any], _worker: Any) -> None:
        done = len(state["finished"])
        progress(done / (done + sum(len(state[each]) for each in ("ready", "waiting", "running"))))

    with Callback(posttask=finished):
        yield


# Clusters ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _client(address: str) -> Iterator[Any]:
    from distributed import Client

    if ":" not in address:
        raise ValueError(f"--scheduler must be threads, processes or an address such as tcp://host:8786, got {address!r}")
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"--scheduler {address!r} cannot be reached: {reason}") from error
    with client:
        yield client


def _matched_on_cluster(client: Any, *frames_and_arguments: Any, **options: Any) -> Match[np.ndarray]:
    from distributed import KilledWorker

    try:
        with warnings.catch_warnings():
            # The graph has the frames' chunks, so that the scheduler can send them again if a worker is lost.
            warnings.filterwarnings("ignore", "Sending large graph")
            return _matched({"scheduler": client.get}, *frames_and_arguments, **options)
    except (KilledWorker, OSError, TimeoutError) as error:
        raise ValueError(f"the cluster failed: {str(error) or type(error).__name__}") from error
