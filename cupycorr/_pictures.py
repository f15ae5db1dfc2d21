"""Pictures of displacement fields and cost volumes, for the commands ``match`` and ``demo`` and for `plot_channels`.

This module handles arrays, colours and layout. It must not depend on the command line, files or timing. matplotlib is imported
inside the functions, and never through pyplot, which keeps global state.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ._arguments import Pair
from ._motion.frames import LUMA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.quiver import Quiver

    from .motion import Match

Range = tuple[int, int]

NEUTRAL = (0.62, 0.62, 0.62)  # grey, which is neither in the wheel nor in the colour maps below
_NEUTRAL_RGB = tuple(round(255 * channel) for channel in NEUTRAL)

# The sections of the colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011). In each,
# one channel is 255 and another one rises or falls: (number of colours, channel at 255, channel that changes, +1 or -1).
_RED, _GREEN, _BLUE = range(3)
_WHEEL = (
    (15, _RED, _GREEN, +1),  # red to yellow
    (6, _GREEN, _RED, -1),  # yellow to green
    (4, _GREEN, _BLUE, +1),  # green to cyan
    (11, _BLUE, _GREEN, -1),  # cyan to blue
    (13, _BLUE, _RED, +1),  # blue to magenta
    (6, _RED, _BLUE, -1),  # magenta to red
)
_BEYOND = 0.75  # brightness of displacements longer than the scale


def colour_wheel() -> np.ndarray:
    """Return the 55 colours of Middlebury's flow wheel, (55, 3), 0 to 255: red, yellow, green, cyan, blue, magenta."""
    sections = []
    for count, full, moving, direction in _WHEEL:
        section = np.zeros((count, 3))
        ramp = np.floor(255 * np.arange(count) / count)
        section[:, full] = 255
        section[:, moving] = ramp if direction > 0 else 255 - ramp
        sections.append(section)
    return np.concatenate(sections)


def flow_colours(dx: np.ndarray, dy: np.ndarray, scale: float) -> np.ndarray:
    """Return the colour of each displacement, (..., 3) uint8.

    The hue is the direction (red to the right), white is no displacement, and full colour is ``scale`` pixels. Longer
    displacements are darker, unknown ones (NaN) are grey.
    """
    wheel = colour_wheel() / 255
    known = np.isfinite(dx) & np.isfinite(dy)
    u, v = (np.where(known, component, 0) / scale for component in (dx, dy))
    radius = np.hypot(u, v)[..., None]
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = np.floor(position).astype(int)
    after = (before + 1) % len(wheel)
    weight = (position - before)[..., None]
    hue = (1 - weight) * wheel[before] + weight * wheel[after]
    colours = np.where(radius <= 1, 1 - radius * (1 - hue), _BEYOND * hue)
    return np.where(known[..., None], np.floor(255 * colours), _NEUTRAL_RGB).astype(np.uint8)


def motion_scale(dx: np.ndarray, dy: np.ndarray) -> float:
    """Return the pixels at full colour: the 99th percentile of the lengths, rounded up to two digits, at least 0.1.

    The longest displacement may be an outlier, and the rest of the picture would be white.
    """
    motion = np.hypot(dx, dy)
    motion = motion[np.isfinite(motion)]
    longest = max(float(np.percentile(motion, 99)), 0.1) if motion.size else 0.1
    digit = 10.0 ** (math.floor(math.log10(longest)) - 1)
    return round(math.ceil(longest / digit - 1e-6) * digit, 6)


# The motion picture --------------------------------------------------------------------------------------------------

# Lengths in pixels of a picture whose field is at most _FIELD long. A larger field scales all of them, including the text.
_FIELD = 900
_LEFT, _TOP, _BOTTOM, _GAP, _PANEL, _RIGHT = 70, 50, 60, 30, 190, 20
_LEAST_WIDTH, _LEAST_HEIGHT = 380, 340  # for title and legend
_TICK_X, _TICK_Y = 60, 40  # room for one number
_DPI = 100


def motion_picture(file: BinaryIO, field: Match[np.ndarray], window: Pair, search: tuple[Range, Range]) -> None:
    """Write the displacement field as a PNG. Each window is a square of whole pixels, and the axes are in pixels of frame 1.

    A search along one axis is drawn with a colour bar, a search along both with the colour wheel, whose radius is the scale.
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
        figure.text(panel_x / total_width, bottom * 0.25 / total_height, "grey: no match", color="0.3", fontsize=9)
    figure.savefig(file, format="png", dpi=figure.dpi)


def _only_axis(search: tuple[Range, Range]) -> str | None:
    """Return the name of the only component that can vary; None if both can."""
    free_y, free_x = (low != high for low, high in search)
    return None if free_x and free_y else "dy" if free_y else "dx"


def _extent(field: Match[np.ndarray]) -> tuple[float, float, float, float]:
    """Return the edges of the field in pixels of frame 1: each window fills a square of one step around its centre."""
    sides = []
    for centres in (field.x, field.y):
        half = (centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
        sides.append((centres[0] - half, centres[-1] + half))
    (left, right), (top, bottom) = sides
    return left, right, bottom, top


def _set_ticks(axis: Axis, centres: np.ndarray, room: float) -> None:
    """Label as many round numbers as there is room for; without room, only the middle window."""
    from matplotlib.ticker import MaxNLocator

    if room < 2:
        axis.set_ticks([centres[len(centres) // 2]])
    else:
        axis.set_major_locator(MaxNLocator(min(9, int(room)), steps=[1, 2, 5, 10]))


def _draw_flow(field: Match[np.ndarray], axes: Axes) -> np.ndarray:
    """Return the field in colours, and draw the wheel, their key, in ``axes``."""
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
    """Return one component in colours, and draw its colour bar in ``axes``."""
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
    axes.figure.colorbar(mappable, cax=axes, label=f"{name} (px)", extend=_extend(values, low, high))
    return mappable.to_rgba(np.ma.masked_invalid(values), bytes=True)


# The picture of arrows -----------------------------------------------------------------------------------------------

_ACROSS = 660  # pixels of the picture: the longest side of the frame
_ARROWS_APART = 20  # pixels of the picture between two arrows, at least
# The ends of the grey scale, where the frame's range is 0 to 1: all of it is paler than `NEUTRAL`, and arrows stand out.
_DARKEST, _BRIGHTEST = -2.0, 1.1
_LONG = 99  # percentile of the lengths; longer arrows reach beyond the next one
_DIGITS_OF_FACTOR = (1, 1.5, 2, 3, 5, 7)


def arrow_picture(
    file: BinaryIO, field: Match[np.ndarray], frame: np.ndarray, valid: np.ndarray | None, window: Pair, step: int
) -> None:
    """Write a PNG of frame 1 in grey with an arrow at each window, from its centre on, in the colour of its length.

    Where windows are too close, only every second, third, ... arrow is drawn along each axis. All arrows are scaled alike by the
    factor in the title. Crosses are windows without a match.

    Parameters
    ----------
    file
        The file to write to.
    field
        The displacements of a grid of windows.
    frame
        Frame 1, (H, W) or (H, W, 3).
    valid
        The mask (H, W) of its valid pixels; None if all are.
    window, step
        The size of the windows and their distance, in pixels of the frame.
    """
    height, width = frame.shape[:2]
    zoom = _ACROSS / max(height, width)
    across, down = (max(_THIN, round(zoom * length)) for length in (width, height))
    high = max(down, _BAR_LEAST)
    figure = _figure(_LEFT + max(across + _GAP + _BAR + _BAR_NUMBERS, _TITLE), _TOP + high + _BOTTOM, _DPI)
    axes = _axes_at(figure, _LEFT, _TOP, across, down)
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)
    thinning = np.s_[:: max(1, max(height, width) // (2 * _ACROSS))]
    shown = _pale(frame[thinning, thinning], None if valid is None else valid[thinning, thinning])
    axes.imshow(shown, extent=edges, aspect="auto")
    every = math.ceil(_ARROWS_APART / (zoom * step))
    factor = _round_factor(every * step, np.hypot(field.dx, field.dy))
    thinned = [each[::every, ::every] for each in (*np.meshgrid(field.x, field.y), field.dx, field.dy)]
    arrows, complete = _draw_arrows(axes, thinned, factor)
    axes.set(xlim=edges[:2], ylim=edges[2:])
    longest = motion_scale(field.dx, field.dy)
    arrows.set_clim(0, longest)
    bar = _axes_at(figure, _LEFT + across + _GAP, _TOP, _BAR, high)
    figure.colorbar(arrows, cax=bar, label="displacement (px)", extend=_extend(np.hypot(*thinned[2:]), 0, longest))
    crosses = "" if complete else ", x: no match"
    axes.set_title(f"window {window[1]} x {window[0]} px, arrows {factor:g} times as long{crosses}", loc="left", fontsize=11)
    axes.set_xlabel("x (px)")
    axes.set_ylabel("y (px)")
    figure.savefig(file, format="png", dpi=figure.dpi)


# Sizes in pixels of the picture, and those of heads in widths of the shaft.
_ARROW: dict[str, Any] = {
    "units": "dots",
    "width": 2.4,
    "headwidth": 3.5,
    "headlength": 4,
    "headaxislength": 3.5,
    "minlength": 0.5,
}


def _draw_arrows(axes: Axes, thinned: list[np.ndarray], factor: float) -> tuple[Quiver, bool]:
    """Draw arrows where a displacement is known and crosses elsewhere; return the arrows, and whether there are no crosses."""
    x, y, dx, dy = thinned
    known = np.isfinite(dx) & np.isfinite(dy)
    x, y, crosses = x[known], y[known], (x[~known], y[~known])
    dx, dy = dx[known], dy[known]
    scaled: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1 / factor}
    arrows = axes.quiver(x, y, dx, dy, np.hypot(dx, dy), cmap=_colour_map("viridis_r"), **scaled, **_ARROW)
    axes.plot(*crosses, "x", color="0.3", markersize=4)
    return arrows, bool(known.all())


def _pale(frame: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return a frame as pale greys, (h, w, 3) from 0 to 1; missing pixels are neutral grey."""
    values = frame.astype(np.float64)
    grey = values if values.ndim == 2 else values @ (np.array(LUMA) / sum(LUMA))
    known = np.isfinite(grey) if valid is None else np.isfinite(grey) & valid
    low, high = np.percentile(grey[known], [1, 99]) if known.any() else (0.0, 0.0)
    level = (grey - low) / (high - low if high > low else 1.0)
    pale = ((level - _DARKEST) / (_BRIGHTEST - _DARKEST)).clip(0, 1)
    return np.where(known[..., None], pale[..., None], NEUTRAL)


def _round_factor(room: float, lengths: np.ndarray) -> float:
    """Return the largest round factor by which the long ones of these lengths still fit into the room."""
    lengths = lengths[np.isfinite(lengths)]
    longest = float(np.percentile(lengths, _LONG)) if lengths.size else 0.0
    if longest == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(room / longest))
    return max((digit * power for digit in _DIGITS_OF_FACTOR if digit * power * longest <= room), default=power)


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
        The file to write the PNG to.
    left, right
        The frames, (H, W, 3).
    disparity, truth
        In pixels, (H, W), NaN where unknown. They share a colour bar.
    counted_from
        The first column that the numbers in ``summary`` include.
    summary
        Lines of text for the sixth panel.
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
    beyond = _extend(disparity, low, high)
    _bar_beside(panels["ground truth"], shared, "disparity, both pictures (px)", beyond)

    panel = panels["error"]
    error = panel.imshow(abs(disparity - truth), vmin=0, vmax=4, cmap=_colour_map("magma"), interpolation="nearest")
    panel.axvline(counted_from - 0.5, color=_LINE_COLOUR, linewidth=_LINE_WIDTH, linestyle="--")
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
_LINE_COLOUR, _LINE_WIDTH = "deepskyblue", 1.5  # of the dashed line at the first column that is counted


def _bar_beside(axes: Axes, mappable: ScalarMappable, label: str, extend: str) -> None:
    """Draw a colour bar of the height of the axes beside them, without changing their size."""
    bar = axes.inset_axes((1.015, 0, 0.025, 1))
    axes.figure.colorbar(mappable, cax=bar, label=label, extend=extend, extendfrac=0.03)


def _write_summary(axes: Axes, summary: list[str], counted_from: int) -> None:
    """Write the numbers and a legend of the grey areas and the dashed line."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_axis_off()
    axes.text(0.02, 0.98, "\n".join(summary), va="top", fontsize=14, linespacing=1.7, transform=axes.transAxes)
    handles = [
        Line2D(
            [], [], color=_LINE_COLOUR, linewidth=_LINE_WIDTH, linestyle="--", label=f"columns from {counted_from} on are counted"
        ),
        Patch(color=NEUTRAL, label="unknown: no ground truth, no match,\nor no whole window (edge of the frame)"),
    ]
    axes.legend(handles=handles, loc="lower left", frameon=False, fontsize=12, labelspacing=0.8)


# The channels of a cost volume ---------------------------------------------------------------------------------------

_PATCH, _CELL, _THIN = 560, 60, 48  # pixels: longest side of a patch, largest square of a score, shortest side of a strip
_SHEET = (1100, 1600)  # (height, width) in pixels that the maps of a contact sheet share
_SHEET_GAP = 4  # pixels between two maps; even, because half of it is on either side of a map
_BAR, _BAR_LEAST, _BAR_NUMBERS = 18, 170, 100  # pixels: width and least height of the colour bar, room for its numbers
_DIGIT, _LINE = 9, 18  # pixels of a tick's label: width of a digit, height
_DIGITS = 3  # digits of dy that fit into the left margin
_TITLE = 400  # pixels of a long title


def patch_picture(scores: np.ndarray, dys: range, dxs: range, position: Pair) -> Figure:
    """Draw the scores (PH, PW) of all displacements at one output position, and mark the highest finite one."""
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
    """Mark the highest finite score, and return its description for the title."""
    known = np.isfinite(scores)
    if not known.any():
        return "none is finite"
    m, n = np.unravel_index(np.argmax(np.where(known, scores, -np.inf)), scores.shape)
    axes.plot([dxs[n]], [dys[m]], marker="x", color="red", markersize=9, markeredgewidth=2, clip_on=False)
    return f"best dy={dys[m]}, dx={dxs[n]}"


def contact_sheet(maps: np.ndarray, dys: range, dxs: range) -> Figure:
    """Draw the map (oH, oW) of each displacement out of (PH, PW, oH, oW), arranged as the patch, in one colour scale."""
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
    """Return a figure, axes of this size in pixels with room for the labels of ``dys`` on their left, and colour bar axes."""
    bar_height = max(height, _BAR_LEAST)
    left = _LEFT + _DIGIT * max(_longest(dys) - _DIGITS, 0)
    beside = left + width + _GAP
    total_width = max(beside + _BAR + _BAR_NUMBERS, left + _TITLE)
    figure = _figure(total_width, _TOP + bar_height + _BOTTOM, _DPI)
    return figure, _axes_at(figure, left, _TOP, width, height), _axes_at(figure, beside, _TOP, _BAR, bar_height)


def _score_colours(scores: np.ndarray) -> dict[str, Any]:
    """Return the colour scale from the lowest to the highest finite score, as matplotlib's keyword arguments."""
    known = scores[np.isfinite(scores)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    return {"vmin": low, "vmax": high if high > low else low + 1, "cmap": _colour_map("viridis")}


def _ends(tried: range) -> tuple[float, float]:
    """Return the outer edges of the cells of the first and the last displacement."""
    return tried[0] - tried.step / 2, tried[-1] + tried.step / 2


def _within_gap(tried: range, index: int, pixels: int) -> tuple[float, float]:
    """Return the edges of one displacement's map: those of its cell of ``pixels`` pixels, less half a gap on either side."""
    half = tried.step / 2 * (1 - _SHEET_GAP / pixels)
    return tried[index] - half, tried[index] + half


def _finish_channels(axes: Axes, bar: Axes, dys: range, dxs: range) -> None:
    """Draw the colour bar, the labels of the axes and the ticks."""
    # matplotlib would write a factor common to all numbers above the bar, where the title is.
    axes.figure.colorbar(axes.images[0], cax=bar, label="score", format="%.6g")
    axes.set_xlabel("dx (px)")
    axes.set_ylabel("dy (px)")
    across, down = axes.get_window_extent().size
    axes.set_xticks(_labelled(dxs, across, _DIGIT * (_longest(dxs) + 1)))
    axes.set_yticks(_labelled(dys, down, _LINE))


def _longest(tried: range) -> int:
    """Return the number of characters of the longest displacement."""
    return max(len(str(end)) for end in (tried[0], tried[-1]))


def _labelled(tried: range, pixels: float, room: int) -> list[int]:
    """Return the displacements to label: as many as have room for their labels, 0 among them if it is in the search range."""
    least = room * len(tried) / pixels
    every = next(n for n in (digit * 10**power for power in itertools.count() for digit in (1, 2, 5)) if n >= least)
    begin = tried.index(0) % every if 0 in tried else 0
    return list(tried[begin::every])


# All -----------------------------------------------------------------------------------------------------------------


def _axes_at(figure: Figure, x: float, y: float, across: float, down: float) -> Axes:
    """Add axes in a rectangle, in pixels from the top left corner."""
    width, height = (int(length) for length in figure.bbox.size)
    return figure.add_axes((x / width, 1 - (y + down) / height, across / width, down / height))


def _figure(width: int, height: int, dpi: int) -> Figure:
    """Return a white figure of this size in pixels, on the Agg canvas.

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

    # Agg rounds the size down. A hundredth of a pixel more makes 799.9999 round to 800.
    figure = Figure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _colour_map(name: str) -> Colormap:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=NEUTRAL)


def _extend(values: np.ndarray, low: float, high: float) -> str:
    """Return matplotlib's word for the ends of a colour bar beyond which there are finite values."""
    known = values[np.isfinite(values)]
    below, above = known.size > 0 and known.min() < low, known.size > 0 and known.max() > high
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[bool(below), bool(above)]
