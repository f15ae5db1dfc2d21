"""``cupycorr match --scheduler`` writes what it writes without it."""

import builtins
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import distributed
import numpy as np
import pytest
import tifffile
from command_line import assert_done, assert_refused, run, spawn

from cupycorr._files import schedulers

OPTIONS = ("--window", "12", "--step", "6", "--search", "3")
FRAME = np.random.default_rng(0).integers(0, 2**16, (150, 130, 3), dtype=np.uint16)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with frames in grey and in colour, and a mask; chunks are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedulers, "CHUNK", 50)
    for index in range(3):
        moved = np.roll(FRAME, (index, -index), (0, 1))
        tifffile.imwrite(f"grey_{index}.tif", moved[..., 0])
        tifffile.imwrite(f"colour_{index}.tif", moved, photometric="rgb")
    tifffile.imwrite("mask.tif", np.uint8(FRAME[..., 1] > 9000))


@pytest.fixture(scope="module")
def address():
    """The address of a scheduler whose worker is a thread of this process."""
    options = dict(n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster:
        yield cluster.scheduler_address


def assert_same(path, other, tolerance=0):
    with np.load(path) as got, np.load(other) as want:
        assert set(got.files) == set(want.files)
        for name in ("dx", "dy", "score", "x", "y", "count", "at_edge", "peak_ratio"):
            np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


def by(scheduler, *frames, output, options=()):
    """Return what the command prints."""
    given = () if scheduler is None else ("--scheduler", scheduler)
    return assert_done(run("match", *frames, "-o", output, *OPTIONS, *options, *given))


@pytest.mark.parametrize("kind", ["threads", "address"])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_a_scheduler_writes_the_field_of_the_whole(kind, colour, address):
    name, tolerance = ("colour", 1e-9) if colour else ("grey", 0)
    frames, masks = (f"{name}_0.tif", f"{name}_1.tif"), ("--mask1", "mask.tif")
    by(None, *frames, output="whole.npz", options=masks)
    by(address if kind == "address" else kind, *frames, output="chunks.npz", options=masks)
    assert_same("chunks.npz", "whole.npz", tolerance)


def test_large_frames_are_sent_to_a_cluster_without_a_warning(address, monkeypatch):
    monkeypatch.setattr(schedulers, "CHUNK", 2000)
    large = np.tile(FRAME[..., 0], (20, 20))
    assert 2 * large.nbytes > 20e6
    for index in range(2):
        tifffile.imwrite(f"large_{index}.tif", np.roll(large, index, 1))
    sizes = ("--window", "64", "--step", "256", "--search", "1")
    assert_done(run("match", "large_0.tif", "large_1.tif", "-o", "out.npz", *sizes, "--scheduler", address))


@pytest.mark.slow  # starts processes
def test_processes_match_every_pair_of_a_folder():
    by(None, "grey_*.tif", output="whole/")
    done = spawn("match", "grey_*.tif", "-o", "chunks/", *OPTIONS, "--scheduler", "processes")
    assert done.returncode == 0, done.stderr
    for pair in ("grey_0-grey_1", "grey_1-grey_2"):
        assert_same(f"chunks/{pair}.npz", f"whole/{pair}.npz")


def test_the_scheduler_is_no_option_that_results_depend_on():
    by("threads", "grey_*.tif", output="out/")
    assert "scheduler" not in json.loads(Path("out/match.json").read_text())
    assert "0 pairs matched, 2 kept" in by(None, "grey_*.tif", output="out/", options=("--resume",))


@pytest.mark.parametrize("name", ["nonsense", "Threads"])
def test_a_scheduler_that_is_no_address_is_refused(name):
    result = run("match", "grey_0.tif", "grey_1.tif", "-o", "out.npz", "--scheduler", name)
    assert_refused(result, "--scheduler must be threads, processes or an address", name)


def test_an_address_that_nobody_answers_at_is_refused(monkeypatch):
    monkeypatch.setattr(schedulers, "_PATIENCE", 0.2)
    result = run("match", "grey_0.tif", "grey_1.tif", "-o", "out.npz", "--scheduler", "tcp://127.0.0.1:9")
    assert_refused(result, "tcp://127.0.0.1:9", "cannot be reached")


def test_a_cluster_that_fails_is_reported_in_one_line(address, monkeypatch):
    def fail(*_arguments, **_options):
        raise distributed.KilledWorker("match", SimpleNamespace(address="tcp://worker"), 2)

    monkeypatch.setattr(schedulers, "_matched", fail)
    result = run("match", "grey_0.tif", "grey_1.tif", "-o", "out.npz", *OPTIONS, "--scheduler", address)
    assert_refused(result, "the cluster failed")


def test_without_dask_the_remedy_is_named(monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "dask":
            raise ModuleNotFoundError("No module named 'dask'", name="dask")
        return imported(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "cupycorr.dask", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    result = run("match", "grey_0.tif", "grey_1.tif", "-o", "out.npz", "--scheduler", "threads")
    assert_refused(result, 'pip install "cupycorr[dask]"')
