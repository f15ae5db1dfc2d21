"""Reads arrays that NumPy saved: one frame (H, W), (H, W, 3) or (H, W, 4), or several, (T, H, W) or (T, H, W, 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .page import Page, native, shown_bits

_COLOURS = (3, 4)  # length of a last axis of colours, without and with alpha


class NpyFile:
    """A ``.npy`` file, mapped into memory: only the frames that are read are loaded."""

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its dtype must be bool, integer or floating, got {array.dtype}")
        coloured = array.ndim > 2 and array.shape[-1] in _COLOURS
        axes = array.ndim - coloured
        if axes not in (2, 3) or 0 in array.shape:
            raise ValueError(f"its shape must be (H, W), (H, W, 3), (T, H, W) or (T, H, W, 3) with pixels, got {array.shape}")
        self._frames = array if axes == 3 else array[None]
        self.count = len(self._frames)

    def close(self) -> None:
        del self._frames

    def read(self, index: int) -> Page:
        stored = np.asarray(native(self._frames[index]))
        if stored.ndim == 3 and stored.shape[2] == _COLOURS[1]:
            stored, alpha = stored[..., :3], stored[..., 3]
            return Page(shown_bits(stored), stored, np.equal(alpha, 0))
        return Page(shown_bits(stored), stored)
