"""Pictures of displacement fields and cost volumes: Middlebury's colour wheel, and what ``match``, ``demo`` and ``plot_channels``
draw.

Knows arrays, colours and layout; must not know the command line, files or timing. matplotlib is imported inside the functions
and never through pyplot, which keeps state for a whole process.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from .motion import Match

Range = tuple[int, int]

NEUTRAL = (0.62, 0.62, 0.62)  # grey is no colour of the wheel and of none of the colour maps below
_NEUTRAL_RGB = tuple(round(255 * part) for part in NEUTRAL)

# Colours between two neighbouring hues of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011):
# one channel is at 255 and another goes up or down, (number of colours, channel at 255, channel that moves, +1 up or -1 down).
_RED, _GREEN, _BLUE = range(3)
_WHEEL = (
    (15, _RED, _GREEN, +1),  # red to yellow
    (6, _GREEN, _RED, -1),  # yellow to green
    (4, _GREEN, _BLUE, +1),  # green to cyan
    (11, _BLUE, _GREEN, -1),  # cyan to blue
    (13, _BLUE, _RED, +1),  # blue to magenta
    (6, _RED, _BLUE, -1),  # magenta to red
)
_BEYOND = 0.75  # brightness of a motion longer than the scale


def colour_wheel() -> np.ndarray:
    """The 55 colours of Middlebury's flow wheel, from red over yellow, green, cyan, blue and magenta; (55, 3), 0 to 255."""
    spokes = []
    for count, full, moving, direction in _WHEEL:
        spoke = np.zeros((count, 3))
        ramp = np.floor(255 * np.arange(count) / count)
        spoke[:, full] = 255
        spoke[:, moving] = ramp if direction > 0 else 255 - ramp
        spokes.append(spoke)
    return np.concatenate(spokes)


def flow_colours(dx: np.ndarray, dy: np.ndarray, scale: float) -> np.ndarray:
    """The colour of each displacement, (..., 3) uint8.

    Hue is direction (red to the right), white is rest, full colour is ``scale`` pixels; longer displacements are darker,
    unknown ones (NaN) grey.
    """
    wheel = colour_wheel() / 255
    known = np.isfinite(dx) & np.isfinite(dy)
    u, v = (np.where(known, part, 0) / scale for part in (dx, dy))
    radius = np.hypot(u, v)[..., None]
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = np.floor(position).astype(int)
    after = (before + 1) % len(wheel)
    share = (position - before)[..., None]
    hue = (1 - share) * wheel[before] + share * wheel[after]
    colours = np.where(radius <= 1, 1 - radius * (1 - hue), _BEYOND * hue)
    return np.where(known[..., None], np.floor(255 * colours), _NEUTRAL_RGB).astype(np.uint8)


def motion_scale(dx: np.ndarray, dy: np.ndarray) -> float:
    """Pixels at full colour: the motion that 99 % of the field stays below, rounded up to two digits, at least 0.1.

    The largest one would be an outlier's, and the rest of the picture white.
    """
    motion = np.hypot(dx, dy)
    motion = motion[np.isfinite(motion)]
    longest = max(float(np.percentile(motion, 99)), 0.1) if motion.size else 0.1
    digit = 10.0 ** (math.floor(math.log10(longest)) - 1)
    return round(math.ceil(longest / digit - 1e-6) * digit, 6)


# The motion picture --------------------------------------------------------------------------------------------------

# Lengths in pixels of a picture whose field is at most _FIELD long; a larger field scales all of them, text included.
_FIELD = 900
_LEFT, _TOP, _BOTTOM, _GAP, _PANEL, _RIGHT = 70, 50, 60, 30, 190, 20
_LEAST_WIDTH, _LEAST_HEIGHT = 380, 340  # for title and legend
_TICK_X, _TICK_Y = 60, 40  # room for one number
_DPI = 100


def motion_picture(file: BinaryIO, field: Match, window: tuple[int, int], search: tuple[Range, Range]) -> None:
    """Write the displacement field as a PNG, each window one square of whole pixels, axes in pixels of frame 1.

    A search along one axis is drawn with a colour bar, one along both with the colour wheel, its radius the scale.
    """
    rows, columns = field.score.shape
    zoom = max(1, round(_FIELD / 2 / max(rows, columns)))
    width, height = zoom * columns, zoom * rows
    size = max(1.0, max(width, height) / _FIELD)
    left, top, bottom, gap, panel, right = (round(size * length) for length in (_LEFT, _TOP, _BOTTOM, _GAP, _PANEL, _RIGHT))
    total_width = max(left + width + gap + panel + right, round(size * _LEAST_WIDTH))
    below = max(bottom, round(size * _LEAST_HEIGHT) - top - height)
    total_height = top + height + below

    figure = _figure(total_width, total_height, round(_DPI * size))
    axes = _axes_at(figure, left, top, width, height)
    panel_x = left + width + gap
    name = _only_axis(search)
    if name is None:
        wheel = _axes_at(figure, panel_x, top, panel, panel)
        image = _draw_flow(field, wheel)
        title = "displacement"
    else:
        bar = _axes_at(figure, panel_x, top, panel / 8, max(height, size * 170))
        image = _draw_component(getattr(field, name), bar, name)
        title = f"displacement {name}"
    axes.imshow(image, extent=_extent(field), aspect="auto", interpolation="nearest")
    axes.set_title(f"{title}, window {window[1]} x {window[0]} px", loc="left", fontsize=11)
    axes.set_xlabel("x (px)")
    axes.set_ylabel("y (px)")
    _set_ticks(axes.xaxis, field.x, width / (size * _TICK_X))
    _set_ticks(axes.yaxis, field.y, height / (size * _TICK_Y))
    if np.isnan(field.dx).any():
        figure.text(panel_x / total_width, bottom * 0.25 / total_height, "grey: no answer", color="0.3", fontsize=9)
    figure.savefig(file, format="png", dpi=figure.dpi)


def _only_axis(search: tuple[Range, Range]) -> str | None:
    """The name of the one component that can differ from window to window; None when both can."""
    free_y, free_x = (low != high for low, high in search)
    return None if free_x and free_y else "dy" if free_y else "dx"


def _extent(field: Match) -> tuple[float, float, float, float]:
    """Edges of the field in pixels of frame 1: each window fills the square of one step round its centre."""
    sides = []
    for centres in (field.x, field.y):
        half = (centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
        sides.append((centres[0] - half, centres[-1] + half))
    (left, right), (top, bottom) = sides
    return left, right, bottom, top


def _set_ticks(axis: Axis, centres: np.ndarray, room: float) -> None:
    """As many round numbers as there is room for; the middle window's place where there is none."""
    from matplotlib.ticker import MaxNLocator

    if room < 2:
        axis.set_ticks([centres[len(centres) // 2]])
    else:
        axis.set_major_locator(MaxNLocator(min(9, int(room)), steps=[1, 2, 5, 10]))


def _draw_flow(field: Match, axes: Axes) -> np.ndarray:
    """The field in colours; the wheel that reads them goes to ``axes``."""
    scale = motion_scale(field.dx, field.dy)
    line = np.linspace(-1, 1, 301)
    u, v = np.meshgrid(line, line)
    inside = np.hypot(u, v) <= 1
    disc = np.dstack([flow_colours(u, v, 1.0), np.where(inside, 255, 0).astype(np.uint8)])
    axes.imshow(disc, extent=(-1, 1, 1, -1))
    axes.set_axis_off()
    axes.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "->", "color": "0.2", "lw": 1})
    axes.text(0.5, -0.06, f"{scale:g} px", ha="center", va="bottom", fontsize=10)
    axes.text(0, 1.08, "full colour: the scale\ndarker: longer motion", ha="center", va="top", fontsize=9, color="0.3")
    return flow_colours(field.dx, field.dy, scale)


def _draw_component(values: np.ndarray, axes: Axes, name: str) -> np.ndarray:
    """One component in colours; its colour bar goes to ``axes``."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [1, 99]) if known.size else (0.0, 0.0)
    signed = low < 0 < high
    if signed:
        high = max(-low, high)
        low = -high
    if high - low < 0.1:
        low, high = low - 0.05, high + 0.05
    mappable = ScalarMappable(Normalize(low, high), _colour_map("RdBu_r" if signed else "viridis"))
    axes.figure.colorbar(mappable, cax=axes, label=f"{name} (px)", extend=_extend(known, low, high))
    return mappable.to_rgba(np.ma.masked_invalid(values), bytes=True)


# The stereo picture --------------------------------------------------------------------------------------------------


def stereo_picture(
    file: BinaryIO,
    left: np.ndarray,
    right: np.ndarray,
    disparity: np.ndarray,
    truth: np.ndarray,
    counted_from: int,
    summary: list[str],
) -> None:
    """Write both frames, the disparity, the ground truth and the absolute error as one PNG.

    Parameters
    ----------
    file
        Where the PNG goes.
    left, right
        The frames, (H, W, 3).
    disparity, truth
        In pixels, (H, W), NaN where unknown; the two share a colour bar.
    counted_from
        The first column that the numbers in ``summary`` count.
    summary
        Lines for the picture's sixth field.
    """
    figure = _figure(1760, 800, _DPI)
    edges = {"left": 0.012, "right": 0.95, "top": 0.955, "bottom": 0.015, "wspace": 0.03, "hspace": 0.1}
    grid = figure.add_gridspec(2, 5, width_ratios=(40, 40, 5, 40, 1), **edges)
    panels = {name: figure.add_subplot(grid[place]) for name, place in _STEREO_PANELS.items()}
    for name, axes in panels.items():
        axes.set(xticks=[], yticks=[], title=name)
    panels["left frame"].imshow(left)
    panels["right frame"].imshow(right)

    known = truth[np.isfinite(truth)]
    low, high = math.floor(known.min()), math.ceil(known.max())
    colours = {"vmin": low, "vmax": high, "cmap": _colour_map("viridis"), "interpolation": "nearest"}
    shared = panels["disparity by cupycorr.match"].imshow(disparity, **colours)
    panels["ground truth"].imshow(truth, **colours)
    beyond = _extend(disparity[np.isfinite(disparity)], low, high)
    _bar_beside(panels["ground truth"], shared, "disparity, both pictures (px)", beyond)

    panel = panels["error"]
    error = panel.imshow(abs(disparity - truth), vmin=0, vmax=4, cmap=_colour_map("magma"), interpolation="nearest")
    panel.axvline(counted_from - 0.5, **_DASHED)
    _bar_beside(panel, error, "|disparity - ground truth| (px)", "max")
    _write_summary(figure.add_subplot(grid[0, 3:]), summary, counted_from)
    figure.savefig(file, format="png", dpi=figure.dpi)


# Title -> row and column; the third column leaves room for the colour bar of the two disparity pictures.
_STEREO_PANELS = {
    "left frame": (0, 0),
    "right frame": (0, 1),
    "disparity by cupycorr.match": (1, 0),
    "ground truth": (1, 1),
    "error": (1, 3),
}
_DASHED = {"color": "deepskyblue", "linewidth": 1.5, "linestyle": "--"}


def _bar_beside(axes: Axes, mappable: ScalarMappable, label: str, extend: str) -> None:
    """A colour bar of the axes' own height, which leaves the axes their size."""
    bar = axes.inset_axes((1.015, 0, 0.025, 1))
    axes.figure.colorbar(mappable, cax=bar, label=label, extend=extend, extendfrac=0.03)


def _write_summary(axes: Axes, summary: list[str], counted_from: int) -> None:
    """The numbers, and what the grey and the dashed line mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_axis_off()
    axes.text(0.02, 0.98, "\n".join(summary), va="top", fontsize=14, linespacing=1.7, transform=axes.transAxes)
    handles = [
        Line2D([], [], label=f"columns from {counted_from} on are counted", **_DASHED),
        Patch(color=NEUTRAL, label="unknown: no ground truth, no answer,\nor no whole window (frame's edge)"),
    ]
    axes.legend(handles=handles, loc="lower left", frameon=False, fontsize=12, labelspacing=0.8)


# The channels of a cost volume ---------------------------------------------------------------------------------------

_PATCH, _CELL, _THIN = 560, 60, 48  # pixels: longest side of a patch, largest square of a score, shortest side of a strip
_SHEET = (1100, 1600)  # (height, width) in pixels that the maps of a contact sheet share
_SHEET_GAP = 4  # pixels between two maps, even: half of it lies on either side of each
_BAR, _BAR_LEAST, _BAR_NUMBERS = 18, 170, 100  # pixels: width and least height of the colour bar, room for its numbers
_DIGIT, _LINE = 9, 18  # pixels of a tick's label: width of a digit, height
_DIGITS = 3  # of a dy for which there is room on the left
_TITLE = 400  # pixels of a long title


def patch_picture(scores: np.ndarray, dys: range, dxs: range, position: tuple[int, int]) -> Figure:
    """The scores (PH, PW) of all displacements at one output position, the highest finite one marked."""
    cell = min(_PATCH // max(scores.shape), _CELL) or 1
    height, width = (max(cell * n, _THIN) for n in scores.shape)
    figure, axes, bar = _channel_axes(width, height, dys)
    colours = _score_colours(scores)
    axes.imshow(scores, extent=(*_ends(dxs), *_ends(dys)[::-1]), aspect="auto", interpolation="nearest", **colours)
    _finish_channels(axes, bar, dys, dxs)
    y, x = position
    axes.set_title(f"scores at y={y}, x={x}: {_mark_best(axes, scores, dys, dxs)}", loc="left", fontsize=11)
    return figure


def _mark_best(axes: Axes, scores: np.ndarray, dys: range, dxs: range) -> str:
    """Mark the highest finite score; what there is to say of it."""
    known = np.isfinite(scores)
    if not known.any():
        return "none is finite"
    m, n = np.unravel_index(np.argmax(np.where(known, scores, -np.inf)), scores.shape)
    axes.plot([dxs[n]], [dys[m]], **_CROSS)
    return f"best dy={dys[m]}, dx={dxs[n]}"


_CROSS = {"marker": "x", "color": "red", "markersize": 9, "markeredgewidth": 2, "clip_on": False}


def contact_sheet(maps: np.ndarray, dys: range, dxs: range) -> Figure:
    """The map (oH, oW) of each displacement out of (PH, PW, oH, oW), laid out as the patch, in one colour scale."""
    counts, sizes = maps.shape[:2], maps.shape[2:]
    every = max(math.ceil(n * size / room) for n, size, room in zip(counts, sizes, _SHEET, strict=True))
    thinned = maps[:, :, ::every, ::every]
    sizes = thinned.shape[2:]
    zoom = min(room // (n * size) for n, size, room in zip(counts, sizes, _SHEET, strict=True))
    zoom = min(max(zoom, 1), _CELL)
    tile_height, tile_width = (zoom * size + _SHEET_GAP for size in sizes)
    figure, axes, bar = _channel_axes(tile_width * counts[1], tile_height * counts[0], dys)
    colours = _score_colours(maps)
    for m, n in np.ndindex(counts):
        top, bottom = _within_gap(dys, m, tile_height)
        left, right = _within_gap(dxs, n, tile_width)
        axes.imshow(thinned[m, n], extent=(left, right, bottom, top), aspect="auto", interpolation="nearest", **colours)
    axes.set(xlim=_ends(dxs), ylim=_ends(dys)[::-1])
    _finish_channels(axes, bar, dys, dxs)
    axes.set_title("scores by displacement" + (f", position step {every}" if every > 1 else ""), loc="left", fontsize=11)
    return figure


def _channel_axes(width: int, height: int, dys: range) -> tuple[Figure, Axes, Axes]:
    """A figure with axes of so many pixels, left of them room for the labels of ``dys``, and those of its colour bar."""
    bar_height = max(height, _BAR_LEAST)
    left = _LEFT + _DIGIT * max(_longest(dys) - _DIGITS, 0)
    beside = left + width + _GAP
    total_width = max(beside + _BAR + _BAR_NUMBERS, left + _TITLE)
    figure = _figure(total_width, _TOP + bar_height + _BOTTOM, _DPI)
    return figure, _axes_at(figure, left, _TOP, width, height), _axes_at(figure, beside, _TOP, _BAR, bar_height)


def _score_colours(scores: np.ndarray) -> dict[str, Any]:
    """One scale from the lowest to the highest finite score."""
    known = scores[np.isfinite(scores)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    return {"vmin": low, "vmax": high if high > low else low + 1, "cmap": _colour_map("viridis")}


def _ends(tried: range) -> tuple[float, float]:
    """Where the first displacement's cell begins and the last one's ends."""
    return tried[0] - tried.step / 2, tried[-1] + tried.step / 2


def _within_gap(tried: range, index: int, pixels: int) -> tuple[float, float]:
    """The ends of one displacement's map, of a cell of so many pixels half a gap on either side."""
    half = tried.step / 2 * (1 - _SHEET_GAP / pixels)
    return tried[index] - half, tried[index] + half


def _finish_channels(axes: Axes, bar: Axes, dys: range, dxs: range) -> None:
    # A factor common to all numbers would stand above the bar, where the title is.
    axes.figure.colorbar(axes.images[0], cax=bar, label="score", format="%.6g")
    axes.set_xlabel("dx (px)")
    axes.set_ylabel("dy (px)")
    across, down = axes.get_window_extent().size
    axes.set_xticks(_labelled(dxs, across, _DIGIT * (_longest(dxs) + 1)))
    axes.set_yticks(_labelled(dys, down, _LINE))


def _longest(tried: range) -> int:
    """Characters of the longest displacement."""
    return max(len(str(end)) for end in (tried[0], tried[-1]))


def _labelled(tried: range, pixels: float, room: int) -> list[int]:
    """The displacements whose labels find room, so many pixels each, 0 among them where it is tried."""
    least = room * len(tried) / pixels
    every = next(n for n in (digit * 10**power for power in itertools.count() for digit in (1, 2, 5)) if n >= least)
    begin = tried.index(0) % every if 0 in tried else 0
    return list(tried[begin::every])


# All -----------------------------------------------------------------------------------------------------------------


def _axes_at(figure: Figure, x: float, y: float, across: float, down: float) -> Axes:
    """Axes in a rectangle in pixels from the top left."""
    width, height = (int(length) for length in figure.bbox.size)
    return figure.add_axes((x / width, 1 - (y + down) / height, across / width, down / height))


def _figure(width: int, height: int, dpi: int) -> Figure:
    """A white figure of so many pixels on the Agg canvas.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('pictures need matplotlib: pip install "cupycorr[demo]"', name=error.name) from error

    # Agg rounds the size down: a hundredth of a pixel keeps 799.9999 at 800.
    figure = Figure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _colour_map(name: str) -> Colormap:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=NEUTRAL)


def _extend(known: np.ndarray, low: float, high: float) -> str:
    """Which ends of a colour bar stand for values beyond it, in matplotlib's words."""
    below, above = known.size > 0 and known.min() < low, known.size > 0 and known.max() > high
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[bool(below), bool(above)]
