"""The options that say how the pairs of a job are matched and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._arguments import Pair


@dataclass(frozen=True)
class Settings:
    """The options of a job that its results depend on; lengths are in pixels.

    Attributes
    ----------
    window
        Height and width.
    search
        The ranges of dy and of dx, both ends included.
    step
        Distance of neighbouring windows, along both axes.
    fit
        The curve of the refinement; None for whole pixels.
    nodata
        The value of missing pixels; None for the one that a file gives.
    mask1, mask2
        The files with the masks of all first and of all second frames.
    arrows
        Draw arrows over the first frame instead of colours.
    """

    window: Pair
    search: tuple[Pair, Pair]
    step: int = 1
    fit: str | None = None
    nodata: float | None = None
    mask1: Path | None = None
    mask2: Path | None = None
    arrows: bool = False

    def parameters(self) -> dict[str, Any]:
        """Return what numbers depend on, by the names of the options and in types of JSON, without options that are not given."""
        every = {
            "window": list(self.window),
            "search": [list(each) for each in self.search],
            "step": self.step,
            "subpixel": self.fit or "off",
            "nodata": self.nodata,
            "mask1": None if self.mask1 is None else str(self.mask1),
            "mask2": None if self.mask2 is None else str(self.mask2),
        }
        return {name: value for name, value in every.items() if value is not None}
