"""Failures between a call on CuPy arrays and its kernels.

After every failure there is one clear error, and the next call works.
"""

import re

import cases
import numpy as np
import pytest
from cases import GPU_VARIANTS
from fake_cupy import forget_plans
from on_device import Account, answer, assert_right, cupy, sent, wanted

import cupycorr
from cupycorr import _arrays, _dispatch
from cupycorr._gpu import plan as plans

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("able")]

WINDOWED = cases.same((2, 5, 9, 11), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1)
HALVES = cases.same((2, 20, 9, 17), "float16", patch_size=(3, 5))
EACH = {variant: HALVES if variant == "mma" else WINDOWED for variant in GPU_VARIANTS}
each = pytest.mark.parametrize(("variant", "case"), EACH.items(), ids=EACH)


@pytest.fixture(autouse=True)
def _without_plans():
    forget_plans()
    yield
    forget_plans()


def both(case, **options):
    """Return the output and both gradients of a case."""
    return answer(case, [sent(array) for array in case.arrays()], **options)


# Failures ---------------------------------------------------------------------------------------------------------------------


def fails_once(real, error):
    """Return a function that raises the error at its first call and is ``real`` from then on."""
    errors = [error]

    def function(*arguments, **options):
        if errors:
            raise errors.pop()
        return real(*arguments, **options)

    return function


def cannot_launch(*arguments):
    raise RuntimeError("cannot launch kernel")


@each
def test_a_kernel_that_cannot_be_compiled_is_one_error_and_the_next_call_works(monkeypatch, variant, case):
    told = "cannot compile kernel forward_direct of forward_direct.cu for sm_90"
    monkeypatch.setattr(plans, "bind", fails_once(plans.bind, RuntimeError(told)))
    with pytest.raises(RuntimeError, match=told):
        both(case, variant=variant)
    assert_right(both(case, variant=variant), wanted(case))


def test_a_kernel_that_cannot_be_compiled_takes_no_workspace(monkeypatch):
    monkeypatch.setattr(plans, "bind", fails_once(plans.bind, RuntimeError("cannot compile")))
    monkeypatch.setattr(plans, "allocate_from_cupy", lambda size: pytest.fail("allocated before it was compiled"))
    with pytest.raises(RuntimeError, match="cannot compile"):
        both(WINDOWED, variant="box")


@each
def test_a_launch_that_fails_is_one_error_and_the_next_call_works(monkeypatch, variant, case):
    with monkeypatch.context() as patched:
        patched.setattr(plans, "bind", lambda *arguments: cannot_launch)
        with pytest.raises(RuntimeError, match="cannot launch kernel"):
            both(case, variant=variant)
    forget_plans()  # the plan holds the launch that fails
    assert_right(both(case, variant=variant), wanted(case))


def test_a_launch_that_the_driver_refuses_says_which(monkeypatch):
    bind = plans.bind
    monkeypatch.setattr(plans, "bind", lambda kernel, device, grid, block, *rest: bind(kernel, device, grid, 4096, *rest))
    with pytest.raises(RuntimeError, match=r"cannot launch kernel forward_direct of .* \(grid \d+, block 4096, .*INVALID"):
        both(WINDOWED, variant="direct")


@pytest.mark.parametrize("number", [1, 2, 3], ids=["output", "gradient or workspace", "later"])
@each
def test_a_device_without_memory_is_one_error_and_the_next_call_works(monkeypatch, variant, case, number):
    arrays, made, malloc = [sent(array) for array in case.arrays()], [], cupy.get_default_memory_pool().malloc

    def runs_out(size):
        made.append(size)
        if len(made) == number:
            raise cupy.cuda.memory.OutOfMemoryError(size, 0, 0)
        return malloc(size)

    with cupy.cuda.using_allocator(runs_out), pytest.raises(MemoryError, match="Out of memory allocating"):
        answer(case, arrays, variant)
    assert_right(answer(case, arrays, variant), wanted(case))


# Refusals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input1", "input2", "out"])
def test_an_array_that_is_not_aligned_is_refused_before_a_launch(monkeypatch, name):
    monkeypatch.setattr(plans, "bind", lambda *_: cannot_launch)
    arrays = {"input1": cupy.ones((1, 1, 2, 2), np.float32), "input2": cupy.ones((1, 1, 2, 2), np.float32)}
    arrays["out"] = cupy.ones((1, 1, 1, 2, 2), np.float32)
    memory = cupy.zeros(18, np.uint8)
    arrays[name] = cupy.ndarray(arrays[name].shape, np.float32, memory.data + 2)
    with pytest.raises(ValueError, match=f"{name} must begin at a multiple of its 4 bytes"):
        cupycorr.spatial_correlation_sample(**arrays)


# What is not done -------------------------------------------------------------------------------------------------------------


def test_empty_problems_launch_nothing(monkeypatch):
    monkeypatch.setattr(plans, "bind", lambda *_: pytest.fail("a kernel was made"))
    out, g1, g2 = both(cases.same((0, 3, 8, 9), patch_size=3))
    assert (out.shape, g1.shape, g2.shape) == ((0, 3, 3, 8, 9), (0, 3, 8, 9), (0, 3, 8, 9))


def test_the_same_arguments_make_one_plan():
    for _ in range(3):
        both(WINDOWED, variant="box")
    assert _dispatch._planned.cache_info().misses == 2
    assert _dispatch._planned.cache_info().maxsize


OVERLAPS = {
    "the same": (slice(0, 8), slice(0, 8), True),
    "the last byte": (slice(0, 5), slice(4, 8), True),
    "neighbours": (slice(0, 4), slice(4, 8), False),
    "reversed, the last byte": (slice(4, None, -1), slice(4, 8), True),
    "reversed, neighbours": (slice(3, None, -1), slice(4, 8), False),
    "nothing within": (slice(0, 8), slice(4, 4), False),
}


@pytest.mark.parametrize(("first", "second", "shared"), OVERLAPS.values(), ids=OVERLAPS.keys())
def test_memory_is_shared_where_the_addresses_overlap_whoever_owns_them(first, second, shared):
    memory = cupy.zeros(8, np.float32)
    imported = cupy.from_dlpack(memory)
    arrays = memory[first], imported[second]
    assert _arrays.may_share_memory(*arrays) is shared
    assert _arrays.may_share_memory(*reversed(arrays)) is shared


def test_a_broadcast_array_for_the_output_is_refused():
    """CuPy has no read-only arrays."""
    x, out = cupy.ones((1, 2, 3, 4), np.float32), cupy.broadcast_to(cupy.zeros((3, 4), np.float32), (1, 1, 1, 3, 4))
    assert cupycorr.spatial_correlation_sample(x, x, out=out) is out  # every element is there once
    out = cupy.broadcast_to(cupy.zeros((3, 4), np.float32), (1, 3, 3, 3, 4))
    with pytest.raises(ValueError, match=re.escape("got out.shape=(1, 3, 3, 3, 4), out.strides=(0, 0, 0, 16, 4)")):
        cupycorr.spatial_correlation_sample(x, x, patch_size=3, out=out)
    assert not out.any()


def test_a_result_in_the_memory_of_an_input_is_kept_for_the_replays_of_a_graph():
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        x1, x2, _ = (sent(array) for array in cases.same((3, 1, 8, 9)).arrays())
        out = x2[:, :, None].reshape(3, 1, 1, 8, 9)
        cupycorr.spatial_correlation_sample(x1, x2.copy())  # compiles
        (x2.copy(), x1 * x2)
        side.synchronize()
        side.begin_capture()
        with Account() as account:
            cupycorr.spatial_correlation_sample(x1, x2, out=out)
        graph = side.end_capture()
        assert account.held >= out.nbytes
        want = (x1 * x2).get()
        graph.launch(side)
        assert np.allclose(x2.get(), want, rtol=1e-6)
