"""Facts about the memory of arrays, held against the address of every byte."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from cupycorr._arrays import elements_overlap

MEMORY = np.zeros(512, np.uint8)
MIDDLE = 256


def placed(shape, strides, dtype):
    """Return an array whose first element is in the middle of the memory."""
    return as_strided(MEMORY[MIDDLE : MIDDLE + np.dtype(dtype).itemsize].view(dtype), shape, strides)


@given(
    axes=st.lists(st.tuples(st.integers(0, 4), st.integers(-20, 20)), max_size=4),
    dtype=st.sampled_from([np.uint8, np.uint16, np.uint32]),
)
@example(axes=[(3, 2), (2, 3)], dtype=np.uint8)  # they interleave: 0, 2, 4 and 3, 5, 7
@example(axes=[(4, 2), (2, 3)], dtype=np.uint8)  # 3 steps of the first axis are 2 of the second one, which has no such step
@example(axes=[(4, 2), (3, 3)], dtype=np.uint8)  # here it has
@example(axes=[(4, 4), (4, -4)], dtype=np.uint32)
@example(axes=[(0, 0), (4, 0)], dtype=np.uint8)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_elements_overlap_where_two_of_them_have_a_byte_at_the_same_address(axes, dtype):
    array = placed(*zip(*axes, strict=True), dtype) if axes else placed((), (), dtype)
    first = [sum(at * stride for at, (_, stride) in zip(index, axes, strict=True)) for index in np.ndindex(array.shape)]
    addresses = [begin + byte for begin in first for byte in range(array.itemsize)]
    assert elements_overlap(array) is (len(set(addresses)) < len(addresses))
