"""The cotangent of the one-pixel volume, as the kernel writes it, against loops over windows."""

import itertools
from math import gcd

import numpy as np
import pytest

from cupycorr._correlation.cpu import cotangent_kernel
from cupycorr._correlation.cpu.lattice import Window
from cupycorr._cpu import llvm

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))

WINDOWS = [
    Window(taps, dilation, stride)
    for taps, dilation, stride in itertools.product((1, 2, 3, 7, 8), (1, 2, 3), (1, 2, 3, 4))
    if gcd(dilation, stride) == 1 and cotangent_kernel.takes(Window(taps, dilation, stride))
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_terms_are_the_windows_that_have_an_index(window):
    outputs, begin, end = 5, -4, 40
    found = cotangent_kernel.terms(window, outputs, begin, end)
    listed = [list(range(first, first + count * found.step, found.step)) for first, count in found.table.tolist()]
    want = [
        [
            i
            for i in range(outputs)
            if t in range(i * window.stride, i * window.stride + window.taps * window.dilation, window.dilation)
        ]
        for t in range(begin, end)
    ]
    assert listed == want
    assert found.read == (0, outputs)


def volume_of(cotangent, windows, shape):
    """Return the cotangent of the one-pixel volume by loops over windows and taps."""
    found = np.zeros((*cotangent.shape[:2], *shape))
    for i, j in np.ndindex(cotangent.shape[2:]):
        for u, v in itertools.product(range(windows[0].taps), range(windows[1].taps)):
            t = i * windows[0].stride + u * windows[0].dilation
            x = j * windows[1].stride + v * windows[1].dilation
            found[:, :, t, x] += cotangent[:, :, i, j].astype(np.float64)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(("first", "second"), [(Window(8, 1, 4), Window(7, 1, 2)), (Window(3, 2, 3), Window(2, 3, 2))])
def test_rows_and_columns_of_the_volume_are_sums_over_windows(first, second, contiguous, dtype):
    rng = np.random.default_rng(0)
    ms, ns, height, width = 2, 3, 5, 21
    cotangent = rng.integers(-8, 8, (ms, ns, height, width)).astype(dtype)
    given = cotangent if contiguous else np.ascontiguousarray(cotangent.swapaxes(2, 3)).swapaxes(2, 3)
    shape = first.input_length(height), second.input_length(width)
    want = volume_of(cotangent, (first, second), shape)
    # The packed rows 1 to 6 are the volume's rows 3 + m to 8 + m, and the packed columns from 2 on its columns from 0 on.
    packed = np.full((ms, ns, 8, 40), 99, dtype)
    rows = np.array([(1, 7, m) for m in range(ms)], np.int64)
    columns = np.array([(2 + n, 38 - n) for n in range(ns)], np.int64)
    cotangent_kernel.write(
        given,
        cotangent_kernel.Rows(rows, 3, cotangent_kernel.terms(first, height, 3, 3 + 6 + ms - 1)),
        cotangent_kernel.Columns(columns, -2, cotangent_kernel.terms(second, width, -2, 38)),
        packed,
    )
    for m, n in np.ndindex(ms, ns):
        np.testing.assert_array_equal(packed[m, n, 1:7, 2 + n : 38 - n], want[m, n, 3 + m : 9 + m, n : 36 - n])
        assert not packed[m, n, 1:7, : 2 + n].any()
        assert not packed[m, n, 1:7, 38 - n :].any()
        assert (packed[m, n, [0, 7]] == 99).all()
