"""`CorrBlock` and `CorrBlock1D`: the lookups of RAFT and of RAFT-Stereo, made for a pair of feature maps.

A network of this family makes a block of two feature maps and calls it with better coordinates in every iteration. A block does
once what does not depend on the coordinates: it pools the second map into a pyramid, and copies both maps into the memory that
lookups read best. What it keeps beyond these maps is a choice (``keep``), because no single way is the best for every network.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional

from .._arguments import Pair, at_least, finite_number, pair, shown
from .._lookup.problem import DY_FIRST, ORDERS
from . import _tensors
from ._arguments import cast, dense, without_autocast
from ._deferred import DeferredMaps
from ._kept import Volumes, Windows
from ._maps import Maps

__all__ = ["CorrBlock", "CorrBlock1D"]

KEEPS = AUTO, MAPS, WINDOWS, VOLUME = ("auto", "maps", "windows", "volume")
VECTOR_BYTES = 64  # the CPU's kernels read whole vectors of channels


class _Block:
    """The parts that both blocks share: checks of the maps, their storage, and the choice of what is kept."""

    level_step: ClassVar[Pair]  # the factors (vertical, horizontal) by which a level is smaller than the one before
    has_rows: ClassVar[bool]  # False if every pixel looks into its own row

    def __init__(
        self, fmap1: torch.Tensor, fmap2: torch.Tensor, num_levels: int, radius: int, scale: float | None, order: str, keep: str
    ) -> None:
        self.num_levels, self.radius = at_least(1, "num_levels", num_levels), at_least(0, "radius", radius)
        self.order, asked = _one_of(ORDERS, "order", order), _one_of(KEEPS, "keep", keep)
        self._check_maps(dense("fmap1", fmap1), dense("fmap2", fmap2))
        self.shape1, self.shape2 = fmap1.shape, fmap2.shape
        self.scale = max(fmap1.shape[1], 1) ** -0.5 if scale is None else finite_number("scale", scale)
        self._maps = self._stored_maps(*cast(fmap1, fmap2))
        self._reasons = {VOLUME: Volumes.why_not(self._maps), WINDOWS: Windows.why_not(self._maps)}
        # The first that there is no reason against.
        self.keep = next((each for each in (WINDOWS, VOLUME) if self._reasons[each] is None), MAPS) if asked == AUTO else asked
        if self.keep == WINDOWS and self._reasons[WINDOWS] is not None:
            raise NotImplementedError(f"keep='windows' is not possible here: {self._reasons[WINDOWS]}")
        self._kept = self._made(is_free=asked == AUTO)

    def __repr__(self) -> str:
        shapes = f"fmap1={tuple(self.shape1)}, fmap2={tuple(self.shape2)}"
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("num_levels", "radius", "scale", "order", "keep"))
        return f"{type(self).__name__}({shapes}, {given}, dtype={self.dtype}, device={str(self.fmap1.device)!r})"

    def explain(self) -> str:
        """Return what the block keeps and why, as lines of text.

        Examples
        --------
        >>> import torch
        >>> from cupycorr.torch import CorrBlock
        >>> print(CorrBlock(*torch.randn(2, 1, 64, 24, 32), keep="maps").explain())
        keeps      maps, 0.437 MiB
        not kept   windows: it is possible, too
        not kept   volume: a pixel has 1020 dot products in volumes, more than 400
        """
        size = f"{self.kept_bytes / 2**20:.3g} MiB" + ("" if self.keep == MAPS else " with the maps")
        kept = [self.keep]
        if isinstance(self._kept, DeferredMaps) and self._kept.keeps_windows:
            kept.append(WINDOWS)  # for outputs
        lines = [f"keeps      {' and '.join(kept)}, {size}"]
        others = (each for each in (WINDOWS, VOLUME) if each not in kept)
        lines += [f"not kept   {each}: {self._reasons[each] or 'it is possible, too'}" for each in others]
        return "\n".join(lines)

    # Sizes ------------------------------------------------------------------------------------------------------------------

    @property
    def patch_size(self) -> Pair:
        """The number of displacements along each axis, (vertical, horizontal)."""
        size = 2 * self.radius + 1
        return (size, size) if self.has_rows else (1, size)

    @property
    def out_channels(self) -> int:
        """The number of channels of a result."""
        return self.num_levels * prod(self.patch_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of results."""
        return self._maps.dtype

    @property
    def fmap1(self) -> torch.Tensor:
        """The first map as it is stored."""
        return self._maps.fmap1

    @property
    def pyramid(self) -> tuple[torch.Tensor, ...]:
        """The levels of the second map as they are stored."""
        return self._maps.pyramid

    @property
    def kept_bytes(self) -> int:
        """The bytes of everything that is kept; maps that did not have to be copied are counted too."""
        return self._kept.nbytes

    # Making -----------------------------------------------------------------------------------------------------------------

    def _check_maps(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        for name, fmap in (("fmap1", fmap1), ("fmap2", fmap2)):
            _tensors.element(name, fmap.dtype)
            if fmap.ndim != 4:
                raise ValueError(f"{name} must have 4 dimensions (B, C, H, W), got {name}.shape={tuple(fmap.shape)}")
        if fmap1.dtype != fmap2.dtype:
            raise TypeError(f"fmap1 and fmap2 must have the same dtype, got {fmap1.dtype} and {fmap2.dtype}")
        _tensors.check_device("fmap1", fmap1, "fmap2", fmap2)
        got = f"got fmap1.shape={tuple(fmap1.shape)}, fmap2.shape={tuple(fmap2.shape)}"
        if fmap1.shape[:2] != fmap2.shape[:2]:
            raise ValueError(f"fmap1 and fmap2 must have the same batch size and the same channels, {got}")
        if min(fmap1.shape[2:]) < 1:
            raise ValueError(f"fmap1 must have a height and a width of at least 1, {got}")
        if not self.has_rows and fmap1.shape[2] != fmap2.shape[2]:
            raise ValueError(f"fmap1 and fmap2 must have the same height, because pixels look into their own rows, {got}")
        for level in range(self.num_levels):
            height, width = (size // step**level for size, step in zip(fmap2.shape[2:], self.level_step, strict=True))
            if height < 1 or width < 1:
                empty = f"level {level} of num_levels={self.num_levels} would have {height} x {width} pixels"
                raise ValueError(f"fmap2 must be large enough for every level, but {empty}, {got}")

    def _stored_maps(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> Maps:
        """Return the first map and the pyramid of the second: means of the level before, without an odd last row or column."""
        levels = [_stored(fmap2)]
        for _ in range(1, self.num_levels):
            levels.append(_halved(levels[-1], self.level_step))
        numbers: dict[str, Any] = dict(has_rows=self.has_rows, order=self.order, scale=self.scale, dtype=_sum_dtype(fmap1))
        return Maps(_stored(fmap1), tuple(levels), self.patch_size, self.level_step, **numbers)

    def _made(self, is_free: bool) -> Maps | DeferredMaps | Volumes | Windows:
        """Return what is kept."""
        with without_autocast(self.fmap1):
            if self.keep == MAPS:
                return self._maps if DeferredMaps.why_not(self._maps) else DeferredMaps(self._maps, keeps_windows=is_free)
            return Volumes(self._maps) if self.keep == VOLUME else Windows(self._maps, is_optional=is_free)

    # Lookups ----------------------------------------------------------------------------------------------------------------

    def _checked_coords(self, coords: torch.Tensor, channels: tuple[int, ...]) -> torch.Tensor:
        """Check the shape of coordinates, and return them in the dtype of the sums if theirs is narrower."""
        dense("coords", coords)
        _tensors.element("coords", coords.dtype)
        _tensors.check_device("coords", coords, "fmap1", self.fmap1)
        batch, _, height, width = self.shape1
        shape = coords.shape
        if len(shape) != 4 or shape[0] != batch or shape[1] not in channels or shape[2] != height or shape[3] != width:
            wanted = " or ".join(str((batch, count, height, width)) for count in channels)
            raise ValueError(f"coords must have the shape {wanted}, got coords.shape={tuple(shape)}")
        if coords.dtype.itemsize > self.dtype.itemsize:
            got = f"got coords.dtype={coords.dtype}, fmap1.dtype={self.fmap1.dtype}"
            raise TypeError(f"coords must not be wider than the sums of the maps, which are {self.dtype}, {got}")
        return coords.to(self.dtype) if coords.dtype.itemsize < self.dtype.itemsize else coords

    def _lookup(self, coords: torch.Tensor, step: Pair = (1, 1)) -> torch.Tensor:
        """Return the windows at all levels with displacements ``step`` pixels apart, (B, out_channels, H, W)."""
        with without_autocast(self.fmap1):
            return self._kept.lookup(coords, step).flatten(1, -3)


def _halved(level: torch.Tensor, step: Pair) -> torch.Tensor:
    """Return the means over windows of a level; torch refuses to pool maps without channels."""
    if level.shape[1]:
        return functional.avg_pool2d(level, step)
    return level.new_empty(*level.shape[:2], *(size // each for size, each in zip(level.shape[2:], step, strict=True)))


class CorrBlock(_Block):
    """The correlation of two feature maps in windows around coordinates, at all levels of a pyramid: RAFT's block.

    .. code-block:: text

        block = CorrBlock(fmap1, fmap2)      once for a pair of maps
        out = block(coords)                  in every iteration

        out[b, (l P + n) P + m, i, j] = scale * sum over c of fmap1[b, c, i, j] * fmap2_l[b, c, Y + m - r, X + n - r]
        with  (X, Y) = coords[b, :, i, j] / 2**l,   m, n = 0 ... 2 r,   P = 2 r + 1

    ``fmap2_l`` is ``fmap2`` after l times the mean over 2 x 2 pixels, interpolated bilinearly between pixels and 0 outside. No
    volume of all pairs is built, unless the maps are so small that it is the smaller part. The result is differentiable in both
    maps and in the coordinates. Levels of one pixel are finite, which they are not where coordinates are divided by W - 1.

    Parameters
    ----------
    fmap1 : Tensor of shape (B, C, H, W)
        float16, bfloat16, float32 or float64, on the CPU or on a CUDA device, of any strides. Under autocast, maps are cast to
        its dtype, and coordinates are not. Do not write to the maps afterwards: the block may use their memory.
    fmap2 : Tensor of shape (B, C, H2, W2)
        Same dtype and device as ``fmap1``.
    num_levels : int, default 4
        L: number of levels, of which each has half the height and width of the one before, rounded down.
    radius : int, default 4
        r: displacements before and after the centre of a window, in pixels of each level.
    scale : float, optional
        Finite factor of the sums, by default ``1 / sqrt(C)``.
    order : {"dx", "dy"}, default "dx"
        The displacement that is first in the channels of a level: "dx" as in RAFT, or "dy" as in `correlation_lookup`.
    keep : {"auto", "maps", "windows", "volume"}
        What the block keeps from one lookup to the next.

        - ``"maps"``: the maps alone.
        - ``"windows"``: also the dot products of the last lookup, so that windows that move a little compute only what enters
          them; on the CPU, where no gradient is needed. The results have the same bits as those of ``"maps"``.
        - ``"volume"``: also the dot products of all pairs of pixels, which take ``B H W`` times the pixels of all levels.
        - ``"auto"``: ``"windows"`` where possible, which take about as many bytes as a result. Else ``"volume"`` for maps so
          small that it has fewer dot products than the windows of one lookup or, with gradients on a CPU, than was measured to
          pay (`explain` shows the numbers). Else ``"maps"``, also in a graph of `torch.compile` or `torch.export`; in training
          on the CPU, outputs still come from kept windows.

    Attributes
    ----------
    num_levels, radius, scale, order, keep
        As above; ``keep`` is what was chosen.
    out_channels : int
        L P P: number of channels of a result.
    kept_bytes : int
        Bytes of all that is kept.

    Raises
    ------
    TypeError
        A map is no tensor of such a dtype, the dtypes differ, or a number is not an int.
    ValueError
        Shapes or devices do not fit, a level would have no pixels, or a number or a word is not legal.
    NotImplementedError
        ``keep="windows"`` is not possible; the message says why.

    See Also
    --------
    cupycorr.torch.CorrBlock1D : The block for rectified stereo.
    cupycorr.torch.correlation_lookup : One lookup as a function.

    Notes
    -----
    On the CPU the block keeps maps in the dtype of the sums and with channels of zeros up to whole vectors of 64 bytes; on a GPU
    it keeps their dtype. Both are channels-last. Maps that are so already are not copied.

    In training on the CPU, a backward pass computes the gradients of the maps once for all of its lookups. Until then it holds
    their cotangents, up to three times the bytes of the maps or 16 MiB, whichever is more; beyond, it computes some earlier. Code
    that runs within the pass, such as a hook, must not write to them or to the maps.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import CorrBlock
    >>> fmap1 = torch.randn(1, 64, 24, 32)
    >>> fmap2 = torch.roll(fmap1, (2, -1), dims=(2, 3))  # everything moved down 2 and left 1
    >>> block = CorrBlock(fmap1, fmap2)
    >>> y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    >>> coords = torch.stack((x, y))[None]
    >>> scores = block(coords)
    >>> scores.shape
    torch.Size([1, 324, 24, 32])
    >>> divmod(scores[0, :81, 12, 16].argmax().item(), 9)  # dx + 4, dy + 4 at level 0
    (3, 6)
    """

    level_step = (2, 2)
    has_rows = True

    def __init__(
        self,
        fmap1: torch.Tensor,
        fmap2: torch.Tensor,
        num_levels: int = 4,
        radius: int = 4,
        *,
        scale: float | None = None,
        order: Literal["dx", "dy"] = "dx",
        keep: Literal["auto", "maps", "windows", "volume"] = "auto",
    ) -> None:
        super().__init__(fmap1, fmap2, num_levels, radius, scale, order, keep)

    def __call__(self, coords: torch.Tensor, dilation: int | Pair | torch.Tensor | None = None) -> torch.Tensor:
        """Return the correlation in the windows around coordinates.

        Parameters
        ----------
        coords : Tensor of shape (B, 2, H, W)
            x, then y, in pixels of level 0; centres of pixels are whole numbers. float32, or float64 for maps of float64;
            16-bit coordinates are widened.
        dilation : int, (int, int) or Tensor of shape (B, 1, H, W), optional
            Pixels of a level between displacements, by default 1: an int or a (vertical, horizontal) pair for all windows, or any
            real number for the window of each pixel, as SEA-RAFT passes it. With a tensor, every displacement is a lookup of its
            own, of one pixel at exactly computed coordinates, because windows do not share pixels then: it takes 3 to 4 times as
            many dot products. So pass None or an int, not a tensor of ones. The result is differentiable in the tensor.

        Returns
        -------
        Tensor of shape (B, L P P, H, W)
            float32, float64 for maps of float64; levels in order, and in each the displacements dx-major (or dy-major).

        Raises
        ------
        TypeError, ValueError
            As `correlation_lookup`; also for a dilation of the wrong type or shape.
        NotImplementedError
            ``keep="windows"`` was passed, and a gradient of the coordinates is needed.
        """
        coords = self._checked_coords(coords, (2,))
        if dilation is None:
            return self._lookup(coords)
        if not isinstance(dilation, torch.Tensor):
            return self._lookup(coords, pair("dilation", dilation, 1))
        dense("dilation", dilation)
        _tensors.check_device("dilation", dilation, "fmap1", self.fmap1)
        if dilation.dtype == torch.bool or dilation.is_complex():
            raise TypeError(f"dilation must be of real numbers, got dilation.dtype={dilation.dtype}")
        wanted = (coords.shape[0], 1, *coords.shape[2:])
        if dilation.shape != wanted:
            raise ValueError(f"dilation must have the shape {wanted}, got dilation.shape={tuple(dilation.shape)}")
        with without_autocast(self.fmap1):
            return self._maps.lookup_apart(coords, dilation)


class CorrBlock1D(_Block):
    """The correlation of two rectified feature maps in windows along rows, at all levels of a pyramid: RAFT-Stereo's block.

    .. code-block:: text

        out[b, l P + n, i, j] = scale * sum over c of fmap1[b, c, i, j] * fmap2_l[b, c, i, X + n - r]
        with  X = coords[b, 0, i, j] / 2**l,   n = 0 ... 2 r,   P = 2 r + 1

    ``fmap2_l`` is ``fmap2`` after l times the mean over 1 x 2 pixels, interpolated linearly between pixels and 0 outside. Every
    pixel looks into its own row.

    Parameters
    ----------
    fmap1 : Tensor of shape (B, C, H, W)
        As for `CorrBlock`.
    fmap2 : Tensor of shape (B, C, H, W2)
        As for `CorrBlock`, of the height of ``fmap1``.
    num_levels : int, default 4
        As for `CorrBlock`; a level has half the width of the one before, rounded down.
    radius : int, default 4
        As for `CorrBlock`.
    scale : float, optional
        As for `CorrBlock`.
    keep : {"auto", "maps", "windows", "volume"}, default "auto"
        As for `CorrBlock`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `CorrBlock`.

    See Also
    --------
    cupycorr.torch.CorrBlock : The block for windows in both directions.
    cupycorr.torch.correlation_lookup : One lookup as a function.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import CorrBlock1D
    >>> left, right = torch.randn(2, 1, 64, 20, 48)
    >>> x = torch.arange(48.0).expand(1, 1, 20, 48)
    >>> CorrBlock1D(left, right)(x).shape
    torch.Size([1, 36, 20, 48])
    """

    level_step = (1, 2)
    has_rows = False

    def __init__(
        self,
        fmap1: torch.Tensor,
        fmap2: torch.Tensor,
        num_levels: int = 4,
        radius: int = 4,
        *,
        scale: float | None = None,
        keep: Literal["auto", "maps", "windows", "volume"] = "auto",
    ) -> None:
        super().__init__(fmap1, fmap2, num_levels, radius, scale, DY_FIRST, keep)

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        """Return the correlation in the windows around coordinates.

        Parameters
        ----------
        coords : Tensor of shape (B, 1, H, W) or (B, 2, H, W)
            x in pixels of level 0. A second channel, y, is ignored, as RAFT-Stereo passes it.

        Returns
        -------
        Tensor of shape (B, L P, H, W)
            float32, float64 for maps of float64.

        Raises
        ------
        TypeError, ValueError, NotImplementedError
            As `CorrBlock.__call__`.
        """
        return self._lookup(self._checked_coords(coords, (1, 2))[:, :1])


# Arguments ----------------------------------------------------------------------------------------------------------------------


def _one_of(words: tuple[str, ...], name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {name}={shown(value)}")
    return value


# Maps ---------------------------------------------------------------------------------------------------------------------------


def _sum_dtype(fmap: torch.Tensor) -> torch.dtype:
    """Return the dtype of the sums of a map's products, and of results."""
    return torch.float64 if fmap.dtype == torch.float64 else torch.float32


def _stored(fmap: torch.Tensor) -> torch.Tensor:
    """Return a map in the memory that lookups read without packing it first; it is copied only if it is not so already.

    On the CPU, that is the packed form of the kernels: channels-last, of the dtype of the sums, in whole vectors of channels.
    """
    is_on_cpu = fmap.device.type == "cpu"
    stored = fmap.movedim(1, -1).contiguous()
    if is_on_cpu:
        stored = stored.to(_sum_dtype(fmap))
        if rest := -stored.shape[-1] % (VECTOR_BYTES // stored.dtype.itemsize):
            stored = functional.pad(stored, (0, rest))
    stored = stored.movedim(-1, 1)
    # In no_grad, a leaf and its views still need gradients, but the levels above do not: lookups must not record one alone.
    return stored.clone() if stored.requires_grad and not torch.is_grad_enabled() else stored
