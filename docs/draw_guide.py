"""Draw every picture of the guide into its folder, docs/guide/: ``python docs/draw_guide.py``.

The operator's own gradients say which pixels an output reads, so that no picture can contradict the operator. A diagram is drawn
at twice the size at which the page shows it. matplotlib is used without pyplot, which keeps state for the whole process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import cupycorr
from cupycorr._correlation.problem import Axis, Problem, parameters, problem

FOLDER = Path(__file__).with_name("guide")

Pair = tuple[int, int]

# The pixels that the operator reads ----------------------------------------------------------------------------------


def geometry_of(size: Pair, size2: Pair | None = None, **keywords: Any) -> Problem:
    """Return the geometry of one call on one-channel images."""
    return problem(parameters(**keywords), (1, 1, *size), (1, 1, *(size2 or size)))


def reads(
    size: Pair, output: Pair, displacement: Pair, size2: Pair | None = None, **keywords: Any
) -> tuple[list[Pair], list[Pair]]:
    """Return the pixels (y, x) of input1 and of input2 that one output at one displacement (dy, dx) has a gradient for."""
    geometry = geometry_of(size, size2, **keywords)
    cotangent = np.zeros(geometry.out_shape)
    patch = [axis.displacements.index(d) for axis, d in zip(axes_of(geometry), displacement, strict=True)]
    cotangent[(0, *patch, *output)] = 1
    images = np.ones(geometry.shape1), np.ones(geometry.shape2)
    gradients = cupycorr.spatial_correlation_sample_vjp(cotangent, *images, **keywords)
    one, other = ([(int(y), int(x)) for y, x in np.argwhere(gradient[0, 0])] for gradient in gradients)
    return one, other


def axes_of(geometry: Problem) -> tuple[Axis, Axis]:
    """Return the geometry along y and along x."""
    return geometry.vertical, geometry.horizontal


def read_anywhere(size: Pair, output: Pair, size2: Pair | None = None, **keywords: Any) -> list[Pair]:
    """Return the pixels (y, x) of input2 that one output reads at any displacement."""
    vertical, horizontal = (axis.displacements for axis in axes_of(geometry_of(size, size2, **keywords)))
    patch = [(dy, dx) for dy in vertical for dx in horizontal]
    return sorted({pixel for each in patch for pixel in reads(size, output, each, size2, **keywords)[1]})


def positions(geometry: Problem) -> list[tuple[float, float]]:
    """Return the centre of every output's window, (y, x) in pixels of input1, which may be outside the image."""
    centres = [[_centre(axis, i) for i in range(axis.out)] for axis in axes_of(geometry)]
    return [(y, x) for y in centres[0] for x in centres[1]]


def _centre(axis: Axis, i: int) -> float:
    return i * axis.stride - axis.padding + axis.dilation * (axis.kernel - 1) / 2


def looked_up(size2: Pair, coordinates: tuple[float, float], patch: Pair, displacement: Pair | None = None) -> list[Pair]:
    """Return the pixels (y, x) of input2 that the lookup of one query reads, at one displacement (dy, dx) or at any.

    ``coordinates`` are those of the query, (y, x).
    """
    cotangent = np.ones((1, *patch, 1, 1)) if displacement is None else np.zeros((1, *patch, 1, 1))
    if displacement is not None:
        m, n = ((size - 1) // 2 + moved for size, moved in zip(patch, displacement, strict=True))
        cotangent[0, m, n] = 1
    coords = np.array(coordinates[::-1], float).reshape(1, 2, 1, 1)
    images = np.ones((1, 1, 1, 1)), np.ones((1, 1, *size2))
    _, gradient, _ = cupycorr.correlation_lookup_vjp(cotangent, *images, coords, patch)
    return [(int(y), int(x)) for y, x in np.argwhere(gradient[0, 0])]


# How the pixels are drawn --------------------------------------------------------------------------------------------

CELL = 30  # width of an image's pixel, in pixels of the picture
DPI = 200
TEXT, SMALL = 9.5, 8.5  # points
LINE, LETTER = 32, 13.6  # height of a line of text and width of a letter, in pixels
GAP, MARGIN, LEFT = 36, 18, 44  # pixels between two panels, around the picture, and left of a panel
TOP = 48  # pixels between a panel's title and its pixels
DESCENT = 6  # pixels that letters reach below the baseline of the titles

ORANGE, SKY, BLUE, GREEN = "#e69f00", "#a6d5f2", "#0072b2", "#009e73"  # the palette of Okabe and Ito
INK, GRID = "#333333", "#c4c4c4"

# A mark has the same meaning in every picture: name -> (how its pixels are drawn, its text in the legend).
MARKS = {
    "zeros": (
        {"facecolor": "#f0f0f0", "edgecolor": "#aaaaaa", "hatch": "////", "linewidth": 0, "zorder": 0},
        "zeros around the image",
    ),
    "input1": ({"facecolor": ORANGE, "edgecolor": "white"}, "input1, read by one output"),
    "patch": ({"facecolor": SKY, "edgecolor": "white"}, "input2, read at some displacement"),
    "input2": ({"facecolor": BLUE, "edgecolor": "white"}, "input2, read at one displacement"),
    "place": ({"facecolor": "none", "edgecolor": ORANGE, "linewidth": 1.8, "linestyle": (0, (2, 1))}, "the place read in input1"),
    "output": ({"facecolor": "#a5d9c9", "edgecolor": "white"}, "outputs"),
    "one output": ({"facecolor": GREEN, "edgecolor": "white"}, "the output at that displacement"),
    "position": (
        {"color": GREEN, "marker": "o", "markersize": 4.4, "markeredgecolor": "white", "markeredgewidth": 0.4, "linewidth": 0},
        "an output, at its window's middle",
    ),
    "coordinates": (
        {"color": ORANGE, "marker": "X", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.5, "linewidth": 0},
        "the coordinates of the pixel",
    ),
    "displaced": (
        {"color": GREEN, "marker": "X", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.5, "linewidth": 0},
        "the coordinates plus one displacement",
    ),
}
POINTS = ("position", "coordinates", "displaced")  # marks that are drawn as points


@dataclass(frozen=True)
class Panel:
    """One grid of pixels: an image, or the outputs of one position.

    ``marks`` are pairs of a name in `MARKS` and its positions ``(y, x)``, in drawing order. ``arrow`` goes from the centre of one
    pixel to that of another, ``frame`` is the width of the border of zeros, and ``words`` are written into pixels.
    ``displacements`` label the rows and columns of a patch; an image has arrows along y and x instead.
    """

    title: str
    size: Pair
    marks: list[tuple[str, list[tuple[float, float]]]]
    note: str = ""
    displacements: tuple[range, range] | None = None
    frame: int = 0
    arrow: tuple[Pair, Pair] | None = None
    words: dict[Pair, str] = field(default_factory=dict)

    @property
    def cell(self) -> int:
        """The width of a grid pixel in pixels of the picture; a patch needs room for its numbers."""
        return CELL if self.displacements is None else 3 * CELL // 2

    @property
    def height(self) -> int:
        """The height of the grid in pixels of the picture, with the name of the axis below a patch's rows."""
        return self.cell * (self.size[0] + 2 * self.frame + (self.displacements is not None))

    @property
    def width(self) -> int:
        """The width of the grid with the name of a patch's axis, or of the longest line of text if that is wider."""
        longest = max(len(line) for line in (self.title + "\n" + self.note).split("\n"))
        return max(self.cell * (self.size[1] + 2 * self.frame + (self.displacements is not None)), round(LETTER * longest))


def sheet(*panels: Panel) -> Figure:
    """Draw the panels side by side, with the legend of their marks below in two columns."""
    columns = 2
    used = [name for name in MARKS if any(mark == name for each in panels for mark, _ in each.marks)]
    if any(each.frame for each in panels):
        used = ["zeros", *used]
    top = MARGIN + LINE * max(each.title.count("\n") + 1 for each in panels) + TOP
    bottom = top + max(each.height + (LINE * (each.note.count("\n") + 1) if each.note else 0) for each in panels) + LINE
    across = max(round(SMALL / TEXT * LETTER * len(MARKS[name][1])) for name in used) + 80  # width of a column of the legend
    width = 2 * MARGIN + max(sum(LEFT + each.width for each in panels) + GAP * (len(panels) - 1), across * columns)
    height = bottom + LINE * -(-len(used) // columns) + MARGIN

    # Agg rounds the size down: a hundredth of a pixel keeps 799.9999 at 800.
    figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    left = MARGIN
    for panel in panels:
        _draw_panel(axes, panel, left + LEFT, top)
        left += LEFT + panel.width + GAP
    _draw_legend(axes, used, columns, bottom, across)
    return figure


def _draw_panel(axes: Axes, panel: Panel, left: float, top: float) -> None:
    (rows, columns), cell, frame = panel.size, panel.cell, panel.frame

    def at(y: float, x: float) -> tuple[float, float]:
        """Return the centre of a pixel in the picture, horizontal first."""
        return left + cell * (frame + x + 0.5), top + cell * (frame + y + 0.5)

    for above, line in enumerate(reversed(panel.title.split("\n"))):  # all panels have the same baselines
        axes.text(left, top - TOP - DESCENT - above * LINE, line, fontsize=TEXT, color=INK, va="baseline")
    axes.text(left, top + panel.height + 10, panel.note, fontsize=SMALL, color=INK, va="top", linespacing=1.25)
    if frame:
        axes.add_patch(_rectangle("zeros", at(-frame, -frame), at(rows + frame - 1, columns + frame - 1), cell))
    for y in range(rows):
        for x in range(columns):
            axes.add_patch(Rectangle((at(y - 0.5, x - 0.5)), cell, cell, facecolor="white", edgecolor=GRID, linewidth=0.6))
    for name, pixels in panel.marks:
        _draw_mark(axes, name, [at(*pixel) for pixel in pixels], cell)
    if panel.arrow is not None:
        _draw_arrow(axes, at(*panel.arrow[0]), at(*panel.arrow[1]), 1.1)
    for pixel, word in panel.words.items():
        axes.text(*at(*pixel), word, fontsize=SMALL, ha="center", va="center_baseline", color=INK, zorder=6)
    if panel.displacements is None:
        _draw_directions(axes, left, top)
    else:
        _draw_displacements(axes, *panel.displacements, left, top, cell)


def _draw_mark(axes: Axes, name: str, centres: list[tuple[float, float]], cell: int) -> None:
    if name in POINTS:
        axes.plot(*zip(*centres, strict=True), **MARKS[name][0], zorder=4)
    elif name == "place":  # one outline around the whole window
        axes.add_patch(_rectangle(name, min(centres), max(centres), cell))
    else:
        for centre in centres:
            axes.add_patch(_rectangle(name, centre, centre, cell))


def _rectangle(name: str, first: tuple[float, float], last: tuple[float, float], cell: float) -> Rectangle:
    """Return a rectangle in the style of a mark, from the pixel with the first centre to the pixel with the last."""
    width, height = (b - a + cell for a, b in zip(first, last, strict=True))
    style = {"linewidth": 0.8, "zorder": 3 if name == "place" else 2} | MARKS[name][0]
    return Rectangle((first[0] - cell / 2, first[1] - cell / 2), width, height, **style)


def _draw_arrow(axes: Axes, tail: tuple[float, float], head: tuple[float, float], width: float) -> None:
    shape = f"-|>,head_width={0.2 * width},head_length={0.4 * width}"
    axes.annotate(
        "", head, tail, arrowprops={"arrowstyle": shape, "color": INK, "lw": width, "shrinkA": 0, "shrinkB": 0}, zorder=5
    )


_CENTRED = {"fontsize": SMALL, "color": INK, "ha": "center", "va": "center"}


def _draw_directions(axes: Axes, left: float, top: float) -> None:
    """Draw arrows along the image's axes; y points down."""
    _draw_arrow(axes, (left, top - 18), (left + 46, top - 18), 0.9)
    axes.text(left + 62, top - 18, "x", **_CENTRED)
    _draw_arrow(axes, (left - 18, top), (left - 18, top + 46), 0.9)
    axes.text(left - 18, top + 64, "y", **_CENTRED)


def _draw_displacements(axes: Axes, rows: range, columns: range, left: float, top: float, cell: int) -> None:
    """Write the displacement of every row and column of a patch."""
    for index, number in enumerate((*map(_number, columns), "dx")):
        axes.text(left + cell * (index + 0.5), top - 18, number, **_CENTRED)
    for index, number in enumerate((*map(_number, rows), "dy")):
        axes.text(left - 24, top + cell * (index + 0.5), number, **_CENTRED)


def _number(value: int) -> str:
    return f"{value}".replace("-", "\N{MINUS SIGN}")


def _draw_legend(axes: Axes, used: list[str], columns: int, top: float, across: float) -> None:
    """Draw each mark with its meaning, row by row."""
    for index, name in enumerate(used):
        row, column = divmod(index, columns)
        x, y = 2 * MARGIN + column * across, top + (row + 0.5) * LINE
        _draw_mark(axes, name, [(x, y)], 22)
        axes.text(x + 24, y, MARKS[name][1], fontsize=SMALL, color=INK, va="center_baseline")


# The pictures --------------------------------------------------------------------------------------------------------


def draw_operator() -> Figure:
    """Draw one output position: the pixels that it reads, and its values in the output."""
    size, output, shown, keywords = (9, 9), (4, 4), (1, 2), {"patch_size": 5}
    one, other = reads(size, output, shown, **keywords)
    marks = [("patch", read_anywhere(size, output, **keywords)), ("input2", other), ("place", one)]
    patch = tuple(axis.displacements for axis in axes_of(geometry_of(size, **keywords)))
    scores = [(m, n) for m in range(len(patch[0])) for n in range(len(patch[1]))]
    chosen = tuple(values.index(d) for values, d in zip(patch, shown, strict=True))
    return sheet(
        Panel("input1\nat (y, x)", size, [("input1", one)]),
        Panel("input2\nat (y + dy, x + dx)", size, marks, arrow=(*one, *other)),
        Panel("out[b, :, :, y, x]", (5, 5), [("output", scores), ("one output", [chosen])], displacements=patch),
    )


def draw_kernel_size() -> Figure:
    """Draw a window in both images, and the positions of the outputs."""
    size, output, shown, keywords = (8, 8), (2, 1), (1, 3), {"kernel_size": 3, "patch_size": 7}
    one, other = reads(size, output, shown, **keywords)
    middles = one[4], other[4]
    geometry = geometry_of(size, **keywords)
    return sheet(
        Panel("input1,\nkernel_size=3", size, [("input1", one)]),
        Panel("input2,\nthe window moved", size, [("input2", other), ("place", one)], arrow=middles),
        Panel("input1,\nwhere outputs lie", size, [("position", positions(geometry))], note=_outputs(geometry)),
    )


def draw_patch_size() -> Figure:
    """Draw patches of several sizes around the same pixel."""
    return sheet(*(_patch((7, 7), (3, 3), patch_size=patch) for patch in (3, 4, 5, (1, 7))))


def draw_dilation_patch() -> Figure:
    """Draw the same number of displacements with larger steps."""
    return sheet(*(_patch((9, 9), (4, 4), patch_size=5, dilation_patch=apart) for apart in (1, 2, (1, 2))))


def _patch(size: Pair, output: Pair, **keywords: Any) -> Panel:
    """Return a panel of input2 with the pixels that one output reads at any displacement."""
    one, _ = reads(size, output, (0, 0), **keywords)
    marks = [("patch", read_anywhere(size, output, **keywords)), ("place", one)]
    return Panel(_call("input2", keywords), size, marks, note=_reach(geometry_of(size, **keywords)))


def draw_stride() -> Figure:
    """Draw the positions of the outputs for several strides."""
    return sheet(*(_positions((8, 9), stride=stride) for stride in (1, 2, (4, 3))))


def draw_padding() -> Figure:
    """Draw the positions of the outputs with no padding, with a frame, cropped, and with the frame that keeps the size."""
    plain = [_positions((5, 6), padding=padding) for padding in (0, 1, -1)]
    return sheet(*plain, _positions((5, 6), (0, 0), kernel_size=3, padding=1))


def draw_dilation() -> Figure:
    """Draw the taps of a window of three by three for several dilations, and the positions of the outputs."""
    return sheet(*(_positions((8, 9), (0, 0), kernel_size=3, dilation=dilation) for dilation in (1, 2, (1, 3))))


def _positions(size: Pair, output: Pair | None = None, **keywords: Any) -> Panel:
    """Return a panel of input1 with the positions of its outputs, and the pixels that ``output`` reads if it is given."""
    geometry = geometry_of(size, **keywords)
    marks = [("position", positions(geometry))]
    if output is not None:
        marks.insert(0, ("input1", reads(size, output, (0, 0), **keywords)[0]))
    return Panel(_call("input1", keywords), size, marks, note=_outputs(geometry), frame=max(0, keywords.get("padding", 0)))


def draw_patch_offset() -> Figure:
    """Draw a search to one side, and a template that is compared with every position of a larger image."""
    template, image, shown = (3, 3), (7, 9), (3, 5)
    keywords = {"kernel_size": 3, "patch_size": (5, 7), "patch_offset": (2, 3)}
    one, other = reads(template, (0, 0), shown, image, **keywords)
    marks = [("patch", read_anywhere(template, (0, 0), image, **keywords)), ("input2", other), ("place", one)]
    reach = _reach(geometry_of(template, image, **keywords))
    return sheet(
        _patch((7, 9), (3, 7), patch_size=(1, 6), patch_offset=(0, -3)),
        Panel("input1,\na template", template, [("input1", one)]),
        Panel(_call("input2", keywords), image, marks, note=reach, arrow=(one[4], other[4])),
    )


def draw_channels() -> Figure:
    """Draw the channel number of each displacement, in both orders."""
    size = (3, 5)
    rows, columns = (axis.displacements for axis in axes_of(geometry_of((9, 9), patch_size=size)))
    panels = []
    for order, name in (("dy", "dy-major"), ("dx", "dx-major")):
        listed = cupycorr.displacements(size, order=order)
        words = {(rows.index(dy), columns.index(dx)): str(channel) for channel, (dy, dx) in enumerate(listed.tolist())}
        panels.append(
            Panel(f'order="{order}"\n{name}', size, [("output", list(words))], displacements=(rows, columns), words=words)
        )
    return sheet(*panels)


def draw_scores() -> Figure:
    """Run the example of `cupycorr.plot_channels` in channels.md and return its figure."""
    page = (FOLDER / "channels.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (example,) = (code for code in others if "plot_channels" in code)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(None):
        exec(first + example, names)
    return names["figure"]


LOOKUP, DISPLACED = (3.3, 4.6), (1, -1)  # the coordinates (y, x) of a query, and a displacement (dy, dx)


def draw_lookup() -> Figure:
    """Draw the window of one query: the pixels that it reads, those of one displacement, and its outputs."""
    patch, size = (3, 3), (8, 9)
    moved = tuple(at + by for at, by in zip(LOOKUP, DISPLACED, strict=True))
    marks = [("patch", looked_up(size, LOOKUP, patch)), ("input2", looked_up(size, LOOKUP, patch, DISPLACED))]
    points = [("coordinates", [LOOKUP]), ("displaced", [moved])]
    scores = [(m, n) for m in range(3) for n in range(3)]
    chosen = [(1 + DISPLACED[0], 1 + DISPLACED[1])]
    axes = range(-1, 2), range(-1, 2)
    return sheet(
        Panel("input1\nat (i, j)", (5, 5), [("input1", [(2, 3)])]),
        Panel("input2, the window around\n(x, y) = coords[e, :, i, j]", size, [*marks, *points]),
        Panel("out[e, :, :, i, j],\npatch_size=3", patch, [("output", scores), ("one output", chosen)], displacements=axes),
    )


def draw_pyramid() -> Figure:
    """Draw the windows of one query in a pyramid of three levels."""
    coordinates, patch, size = (9.4, 12.8), (3, 3), (16, 20)
    panels = []
    for level in range(3):
        place, smaller = tuple(each / 2**level for each in coordinates), (size[0] >> level, size[1] >> level)
        marks = [("patch", looked_up(smaller, place, patch)), ("coordinates", [place])]
        named = ", ".join(f"{each:g}" for each in place[::-1])
        panels.append(Panel(f"input2[{level}],\n(x, y) = ({named})", smaller, marks))
    return sheet(*panels)


def draw_stereo_lookup() -> Figure:
    """Draw a one-dimensional window, which stays in the pixel's own row."""
    size, row, place = (5, 14), 2, 5.4
    marks = [("patch", looked_up(size, (row, place), (1, 5))), ("coordinates", [(row, place)])]
    return sheet(
        Panel("left\n", size, [("input1", [(row, 9)])]),
        Panel("right,\npatch_size=(1, 5)", size, marks),
    )


def draw_edges() -> Figure:
    """Draw an edge list: a patch of three by three pixels, and the windows of its middle pixel in two frames."""
    patch, size = (3, 3), (7, 8)
    places = {0: (2.2, 2.7), 1: (3.6, 4.4)}
    frames = [
        Panel(
            f"input2[{frame}],\nindex2[{frame}]={frame}",
            size,
            [("patch", looked_up(size, place, patch)), ("coordinates", [place])],
        )
        for frame, place in places.items()
    ]
    return sheet(Panel("input1[0],\na patch", patch, [("input1", [(1, 1)])]), *frames)


def _call(image: str, keywords: dict[str, Any]) -> str:
    """Return the name of the image and the parameters, in two lines."""
    *before, last = [image, *(f"{name}={value}" for name, value in keywords.items())]
    return ", ".join(before) + ",\n" + last


def _outputs(geometry: Problem) -> str:
    return f"{geometry.vertical.out} x {geometry.horizontal.out} outputs"


def _reach(geometry: Problem) -> str:
    """Return the range of displacements of both axes, one per line."""
    return "\n".join(f"{name} {_range(axis)}" for name, axis in zip(("dy", "dx"), axes_of(geometry), strict=True))


def _range(axis: Axis) -> str:
    first, last = axis.displacements[0], axis.displacements[-1]
    step = f" by {axis.step}" if axis.step > 1 else ""
    return _number(first) if first == last else f"{_number(first)} to {_number(last)}{step}"


PICTURES: dict[str, Callable[[], Figure]] = {
    "operator": draw_operator,
    "kernel_size": draw_kernel_size,
    "patch_size": draw_patch_size,
    "stride": draw_stride,
    "padding": draw_padding,
    "dilation": draw_dilation,
    "dilation_patch": draw_dilation_patch,
    "patch_offset": draw_patch_offset,
    "channels": draw_channels,
    "scores": draw_scores,
    "lookup": draw_lookup,
    "pyramid": draw_pyramid,
    "stereo_lookup": draw_stereo_lookup,
    "edges": draw_edges,
}


def draw(folder: Path = FOLDER) -> None:
    """Write every picture into a folder."""
    folder.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        with matplotlib.style.context("default"):  # ignores the settings of the user
            write(picture(), folder / f"{name}.png")


def write(figure: Figure, path: Path) -> None:
    """Write a picture as a PNG without transparency, with the version of matplotlib: others draw letters a little differently."""
    figure.canvas.draw()
    drawn_by = PngInfo()
    drawn_by.add_text("Software", f"matplotlib {matplotlib.__version__}")
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").save(path, optimize=True, pnginfo=drawn_by)


if __name__ == "__main__":
    draw()
