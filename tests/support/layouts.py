"""Memory layouts: each function of `LAYOUTS` returns the same values in memory that is laid out as its name says.

The functions take NumPy arrays, CuPy arrays and torch tensors of four axes. Torch has no negative strides, so the reversed
layouts are for arrays only. Memory of new NumPy arrays begins at a multiple of `LINE` bytes, as CuPy's does.
"""

import numpy as np

LINE = 256  # bytes


def aligned(array, beyond=0):
    """Return a copy of a NumPy array, in C order, that begins ``beyond`` bytes after a multiple of `LINE`."""
    memory = np.empty(array.nbytes + 2 * LINE, np.uint8)
    first = -memory.ctypes.data % LINE + beyond
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def rows(x):
    if is_tensor(x):
        return x.contiguous()
    return aligned(x) if isinstance(x, np.ndarray) else x.copy(order="C")


def channels_last(x):
    return _permuted(rows(_permuted(x, (0, 2, 3, 1))), (0, 3, 1, 2))


def channels_reversed(x):
    return channels_last(x[:, ::-1])[:, ::-1]


def columns_reversed(x):
    return rows(x[..., ::-1])[..., ::-1]


def every_other_column(x):
    return (x.repeat_interleave(2, 3) if is_tensor(x) else rows(x.repeat(2, axis=3)))[..., ::2]


def columns_before_rows(x):
    return _permuted(rows(_permuted(x, (0, 1, 3, 2))), (0, 1, 3, 2))


def one_image(x):
    """The first image is in the place of all images of the batch."""
    return x[:1].expand(x.shape) if is_tensor(x) else np.broadcast_to(rows(x[:1]), x.shape)


def one_element_beyond(x):
    """The first element is one element beyond the beginning of the memory."""
    if is_tensor(x):
        memory = x.new_zeros(x.numel() + 1)
        memory[1:] = x.flatten()
        return memory[1:].view(x.shape)
    return rows(np.concatenate((x.ravel()[:1], x.ravel())))[1:].reshape(x.shape)


def unaligned(x):
    """No element of the NumPy array is at a multiple of its size."""
    return np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)


def read_only(x):
    return np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)


LAYOUTS = {
    "rows": rows,
    "channels last": channels_last,
    "channels reversed": channels_reversed,
    "columns reversed": columns_reversed,
    "every other column": every_other_column,
    "columns before rows": columns_before_rows,
    "one image": one_image,
    "one element beyond": one_element_beyond,
    "unaligned": unaligned,
    "read-only": read_only,
}


def some(*names):
    """Return a part of the table."""
    return {name: LAYOUTS[name] for name in names}


FOR_KERNELS = some("rows", "channels last", "channels reversed", "columns reversed", "every other column")
FOR_TENSORS = some("channels last", "every other column", "columns before rows", "one image", "one element beyond")


def far_apart(array, axis):
    """Return the same elements with those along one axis more than 2^31 elements apart."""
    strides = [8 * stride for stride in array.strides]
    strides[axis] = array.itemsize * (2**31 + 7)
    copy = np.lib.stride_tricks.as_strided(np.zeros(2**31 + 4096, array.dtype), array.shape, strides)
    copy[...] = array
    return copy


def is_tensor(x):
    return hasattr(x, "is_contiguous")


def _permuted(x, axes):
    return x.permute(axes) if is_tensor(x) else x.transpose(axes)
