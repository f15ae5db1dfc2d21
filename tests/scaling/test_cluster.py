"""A cluster of processes computes what one process does, also where one of them is killed in the middle."""

import os
import signal

import dask
import dask.array as da
import numpy as np
import pytest
from match_cases import assert_same, noise

import cupycorr
import cupycorr.dask

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.slow  # starts processes

FRAME1 = noise((400, 360), 1, np.uint16) * 200
FRAME2 = np.roll(FRAME1, (2, -3), (0, 1))
OPTIONS = {"window": 16, "step": 8, "consistency": True}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A cluster of two processes of one thread each."""
    options = dict(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=None)
    folder = str(tmp_path_factory.mktemp("workers"))
    with (
        dask.config.set({"temporary-directory": folder}),
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def killing(block, marker, block_info=None):
    """Return a block as it is; in the middle of a frame, kill the process the first time."""
    if block_info and block_info[0]["chunk-location"] == (3, 2):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def test_a_cluster_gives_the_answers_of_the_whole_after_the_loss_of_a_process(client, tmp_path):
    marker, before = tmp_path / "killed", set(client.run(os.getpid).values())
    frames = [da.from_array(frame, chunks=60) for frame in (FRAME1, FRAME2)]
    frames[0] = frames[0].map_blocks(killing, str(marker), meta=np.zeros((0, 0), np.uint16))
    (found,) = dask.compute(cupycorr.dask.match(*frames, **OPTIONS))
    assert marker.exists()
    client.wait_for_workers(2)
    assert len(before - set(client.run(os.getpid).values())) == 1
    assert_same(found, cupycorr.match(FRAME1, FRAME2, **OPTIONS))


def test_a_cluster_correlates_feature_maps(client):
    features = np.random.default_rng(0).integers(-4, 5, (2, 1, 8, 60, 70)).astype(np.float32)
    chunked = [da.from_array(each, chunks=(1, 4, 25, 30)) for each in features]
    found = cupycorr.dask.spatial_correlation_sample(*chunked, kernel_size=3, patch_size=5, padding=1)
    want = cupycorr.spatial_correlation_sample(*features, kernel_size=3, patch_size=5, padding=1)
    np.testing.assert_array_equal(found.compute(), want)
