"""The memory of a result is used again when no view of it is left, and never before."""

import gc
import os
import threading

import ml_dtypes
import numpy as np
import pytest

from cupycorr._cpu import result_memory
from cupycorr._cpu.result_memory import RETAINED, SMALLEST, empty

SIZE = 2 * SMALLEST // 4  # elements of float32
FLOAT32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(result_memory, "_kept", result_memory._Kept())


def address(array):
    return array.__array_interface__["data"][0]


def torch_tensor(array):
    return pytest.importorskip("torch").from_numpy(array)


VIEWS = {
    "a slice": lambda array: array[3:5],
    "a transpose": lambda array: array.T,
    "another dtype": lambda array: array.view(np.int32),
    "a slice of a slice": lambda array: array[1:][:, 2:],
    "an iterator": lambda array: array.flat,
    "a memoryview": memoryview,
    "an array of a memoryview": lambda array: np.frombuffer(memoryview(array).cast("B"), np.uint8),
    "an array by DLPack": np.from_dlpack,
    "a tensor": torch_tensor,
}


@pytest.mark.parametrize("view_of", VIEWS.values(), ids=VIEWS)
def test_memory_that_a_view_holds_is_not_used_again(view_of):
    result = empty((8, SIZE // 8), FLOAT32)
    place, view = address(result), view_of(result)
    del result
    gc.collect()
    others = [empty((8, SIZE // 8), FLOAT32) for _ in range(3)]
    assert place not in map(address, others)
    del view
    gc.collect()
    assert address(empty((8, SIZE // 8), FLOAT32)) == place


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64])
def test_a_result_is_an_array_like_any_other(dtype):
    for _ in range(2):  # new memory, and memory that was used before
        result = empty((3, 5, 7001), np.dtype(dtype))
        assert type(result) is np.ndarray
        assert (result.shape, result.dtype) == ((3, 5, 7001), np.dtype(dtype))
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert result.flags.aligned
        result[...] = 1


@pytest.mark.parametrize("bytes_", [SMALLEST - 4, RETAINED + 4])
def test_memory_of_small_and_of_very_large_results_is_not_kept(bytes_):
    empty((bytes_ // 4,), FLOAT32)
    assert result_memory._kept.nbytes == 0


def test_a_result_gets_little_more_memory_than_it_needs():
    place = address(empty((SIZE,), FLOAT32))
    assert address(empty((SIZE * 3 // 4,), FLOAT32)) != place
    result = empty((SIZE * 9 // 10,), FLOAT32)
    assert address(result) == place
    assert result.nbytes == SIZE * 9 // 10 * 4


def test_what_is_kept_is_bounded_and_the_latest():
    count = RETAINED // (4 * SIZE) + 3
    results = [empty((SIZE,), FLOAT32) for _ in range(count)]
    places = [address(result) for result in results]
    while results:
        results.pop(0)
    assert result_memory._kept.nbytes <= RETAINED
    reused = [empty((SIZE,), FLOAT32) for _ in range(count - 3)]
    assert set(map(address, reused)) == set(places[3:])


def test_an_owner_that_comes_back_to_life_has_no_memory():
    saved = []

    class Cycle:
        def __init__(self, owner):
            self.owner, self.itself = owner, self

        def __del__(self):
            saved.append(self.owner)

    Cycle(empty((8, SIZE // 8), FLOAT32).base.base)
    gc.collect()
    (owner,) = saved
    assert not hasattr(owner, "__array_interface__")


def test_a_result_that_dies_while_memory_is_taken_does_no_harm():
    result = empty((SIZE,), FLOAT32)
    with result_memory._kept._lock:
        del result
        assert result_memory._kept.take(4 * SIZE) is None
    assert result_memory._kept.nbytes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads in a process that forks
def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have():
    with result_memory._kept._lock:
        child = os.fork()
        if not child:
            place = address(empty((SIZE,), FLOAT32))
            os._exit(0 if address(empty((SIZE,), FLOAT32)) == place else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_never_share_memory():
    wrong = []

    def work(number):
        for step in range(200):
            result = empty((SIZE,), FLOAT32)
            result[...] = number
            other = empty((SIZE,), FLOAT32)
            other[...] = -number
            if (result != number).any() or (other != -number).any():
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
