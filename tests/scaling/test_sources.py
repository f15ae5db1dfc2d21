"""Inputs from Zarr, TIFF and memory maps are read chunk by chunk and never as a whole, on every scheduler."""

import threading

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from match_cases import assert_same, noise

import cupycorr
import cupycorr.dask

SHAPE = (240, 300)
FRAME1 = noise(SHAPE, 1, np.uint16) * 200
FRAME2 = np.roll(FRAME1, (2, -3), (0, 1))
OPTIONS = {"window": 16, "step": 8}
CHUNK = 60


def from_zarr(frame, path):
    stored = zarr.open(str(path), mode="w", shape=frame.shape, chunks=(CHUNK, CHUNK), dtype=frame.dtype)
    stored[:] = frame
    return da.from_zarr(str(path))


def from_memory_map(frame, path):
    stored = np.memmap(path, frame.dtype, "w+", shape=frame.shape)
    stored[:] = frame
    stored.flush()
    return da.from_array(np.memmap(path, frame.dtype, "r", shape=frame.shape), chunks=CHUNK)


def from_tiff(frame, path):
    tifffile.imwrite(path, frame)
    return da.from_array(tifffile.memmap(path, mode="r"), chunks=CHUNK)


SOURCES = {"Zarr": from_zarr, "memory map": from_memory_map, "TIFF": from_tiff}


@pytest.fixture(scope="module")
def whole():
    """The match of the whole frames."""
    return cupycorr.match(FRAME1, FRAME2, **OPTIONS)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_stored_frames_give_the_answers_of_the_whole(source, whole, tmp_path):
    frames = [source(frame, tmp_path / f"{number}.tif") for number, frame in enumerate((FRAME1, FRAME2))]
    (found,) = dask.compute(cupycorr.dask.match(*frames, **OPTIONS), scheduler="threads", num_workers=2)
    assert_same(found, whole)


@pytest.mark.slow  # starts processes
def test_processes_give_the_answers_of_the_whole(whole, tmp_path):
    frames = [from_zarr(frame, tmp_path / f"{number}.zarr") for number, frame in enumerate((FRAME1, FRAME2))]
    (found,) = dask.compute(cupycorr.dask.match(*frames, **OPTIONS), scheduler="processes", num_workers=2)
    assert_same(found, whole)


class Watched:
    """An array that notes the shapes of the parts that are read."""

    dtype, shape, ndim = FRAME1.dtype, SHAPE, 2

    def __init__(self, frame):
        self.frame, self.reads, self.lock = frame, [], threading.Lock()

    def __getitem__(self, at):
        part = self.frame[at].copy()
        if part.size:  # an array without elements is read to know its type
            with self.lock:
                self.reads.append(part.shape)
        return part


def test_nothing_is_read_before_it_is_computed_and_then_each_chunk_once(whole):
    sources = [Watched(frame) for frame in (FRAME1, FRAME2)]
    lazy = cupycorr.dask.match(*(da.from_array(each, chunks=CHUNK) for each in sources), **OPTIONS)
    lazy.valid(max_median_residual=2)
    assert not any(each.reads for each in sources)
    (found,) = dask.compute(lazy, scheduler="threads", num_workers=2)
    assert_same(found, whole)
    for each in sources:
        assert each.reads == [(CHUNK, CHUNK)] * 20


def test_a_part_of_a_field_reads_only_the_chunks_around_it():
    sources = [Watched(frame) for frame in (FRAME1, FRAME2)]
    lazy = cupycorr.dask.match(*(da.from_array(each, chunks=CHUNK) for each in sources), **OPTIONS)
    lazy.dx[0, 0].compute(scheduler="sync")
    for each in sources:
        assert len(each.reads) == 4
