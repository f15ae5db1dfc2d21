"""The calls of ``reduce_mma.cu``: the tiles of ``forward_mma.cu`` with an epilogue that reduces the scores."""

from __future__ import annotations

from collections.abc import Iterator

from ..._correlation.gpu import forward_mma
from ..._correlation.gpu.axes import Line
from ..._correlation.gpu.forward_phases import Arrays
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Signature, kernel
from ..._gpu.device import Device
from ..._gpu.source import Kernel
from . import reductions

SIGNATURE = Signature("matching/reduce_mma", ("input1", "input2", "partial"), {**forward_mma.SCALARS, **reductions.SCALARS})


def why_not(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """Return why no tile supports a problem, or None if one does."""
    reason = forward_mma.why_not(vertical, horizontal, arrays)
    if reason is None and forward_mma.needed_splits(arrays.input1, arrays.out) > 1:
        return f"{arrays.input1.shape[1]} channels are too many for the sums of one thread, and scores need whole sums"
    return reason


def tilings(vertical: Line, horizontal: Line, arrays: Arrays, device: Device) -> Iterator[forward_mma.Tiling]:
    """Yield the plans whose blocks have whole sums."""
    return (tiling for tiling in forward_mma.tilings(vertical, horizontal, arrays, device) if tiling.splits == 1)


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a tiling can call, on any device or on this one, with words for it.

    The tiles are those that are built for results in the accumulator.
    """
    for dtype, tile, words in forward_mma.variations(device):
        accumulator = ELEMENT_TYPES[dtype].accumulator
        for name, chosen in reductions.every() if accumulator in tile.results(dtype) else ():
            macros = tile.macros(dtype, reductions.word(accumulator)) | chosen
            yield f"reduce_mma {dtype} to {name}, {words}", kernel(SIGNATURE.name, macros)
