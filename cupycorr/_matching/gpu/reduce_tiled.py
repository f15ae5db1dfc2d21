"""The calls of ``reduce_tiled.cu``: the tiles of ``forward_tiled.cu`` with an epilogue that reduces the scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..._correlation.gpu import forward_phases, forward_tiled
from ..._correlation.gpu.axes import Line
from ..._correlation.gpu.forward_phases import Arrays
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Signature, kernel
from ..._gpu.device import Device
from ..._gpu.source import Kernel
from . import reductions

SIGNATURE = Signature("matching/reduce_tiled", ("input1", "input2", "partial"), {**forward_phases.SCALARS, **reductions.SCALARS})


def why_not(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """Return why no tile supports a problem, or None if one does."""
    reason = forward_tiled.why_not(vertical, horizontal, arrays)
    if reason is not None or next(_whole(vertical, horizontal, arrays), None):
        return reason
    return f"{arrays.input1.shape[1]} channels are too many for the sums of one thread, and scores need whole sums"


def tilings(vertical: Line, horizontal: Line, arrays: Arrays, device: Device) -> Iterator[forward_tiled.Tiling]:
    """Yield the plans whose blocks have whole sums; these go through shared memory."""
    return (tiling for tiling in _whole(vertical, horizontal, arrays) if tiling.shared <= device.shared_memory)


def _whole(vertical: Line, horizontal: Line, arrays: Arrays) -> Iterator[forward_tiled.Tiling]:
    every = forward_tiled.tilings(vertical, horizontal, arrays)
    return (replace(tiling, shared_epilogue=True) for tiling in every if tiling.splits == 1)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a tiling can call, with words for it."""
    for build in forward_tiled.variations(lambda tile: (True,)):
        stored = reductions.word(ELEMENT_TYPES[build.dtype].accumulator)
        for name, chosen in reductions.every():
            yield f"reduce_tiled {build.dtype} to {name}, {build.words}", kernel(SIGNATURE.name, build.macros(stored) | chosen)
