"""Draws every picture of guide.md into the folder guide beside it: ``python docs/draw_guide.py``.

Which pixels an output reads is asked of the operator itself, by its gradients, so that no picture can contradict it. A diagram is
drawn at twice the size at which the page shows it. matplotlib is used without pyplot, which keeps state for a whole process.
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

PAGE = Path(__file__).with_name("guide.md")
FOLDER = PAGE.with_suffix("")

Pair = tuple[int, int]

# What the operator reads ---------------------------------------------------------------------------------------------


def asked(size: Pair, size2: Pair | None = None, **keywords: Any) -> Problem:
    """The geometry of one call on one-channel images."""
    return problem(parameters(**keywords), (1, 1, *size), (1, 1, *(size2 or size)))


def reads(
    size: Pair, output: Pair, displacement: Pair, size2: Pair | None = None, **keywords: Any
) -> tuple[list[Pair], list[Pair]]:
    """The pixels (y, x) of input1 and of input2 that make one output at one displacement (dy, dx): those it has a gradient in."""
    geometry = asked(size, size2, **keywords)
    cotangent = np.zeros(geometry.out_shape)
    patch = [axis.displacements.index(d) for axis, d in zip(axes_of(geometry), displacement, strict=True)]
    cotangent[(0, *patch, *output)] = 1
    images = np.ones(geometry.shape1), np.ones(geometry.shape2)
    gradients = cupycorr.spatial_correlation_sample_vjp(cotangent, *images, **keywords)
    one, other = ([(int(y), int(x)) for y, x in np.argwhere(gradient[0, 0])] for gradient in gradients)
    return one, other


def axes_of(geometry: Problem) -> tuple[Axis, Axis]:
    """The geometry along y and along x."""
    return geometry.vertical, geometry.horizontal


def read_anywhere(size: Pair, output: Pair, size2: Pair | None = None, **keywords: Any) -> list[Pair]:
    """The pixels (y, x) of input2 that one output reads at some displacement."""
    vertical, horizontal = (axis.displacements for axis in axes_of(asked(size, size2, **keywords)))
    patch = [(dy, dx) for dy in vertical for dx in horizontal]
    return sorted({pixel for each in patch for pixel in reads(size, output, each, size2, **keywords)[1]})


def positions(geometry: Problem) -> list[tuple[float, float]]:
    """The centre of every output's window, (y, x) in pixels of input1; it may lie outside the image."""
    centres = [[_centre(axis, i) for i in range(axis.out)] for axis in axes_of(geometry)]
    return [(y, x) for y in centres[0] for x in centres[1]]


def _centre(axis: Axis, i: int) -> float:
    return i * axis.stride - axis.padding + axis.dilation * (axis.kernel - 1) / 2


# How it is shown -----------------------------------------------------------------------------------------------------

CELL = 30  # pixels of the picture that a pixel of an image is wide
DPI = 200
TEXT, SMALL = 9.5, 8.5  # points
LINE, LETTER = 32, 13.6  # pixels that a line of text is high, and a letter wide
GAP, MARGIN, LEFT = 36, 18, 44  # pixels between two panels, around the picture, and to the left of a panel
TOP = 48  # pixels between a panel's title and its pixels
DESCENT = 6  # pixels that letters reach below their line, on which the titles of a row stand

ORANGE, SKY, BLUE, GREEN = "#e69f00", "#a6d5f2", "#0072b2", "#009e73"  # of Okabe and Ito's colours
INK, GRID = "#333333", "#c4c4c4"

# What a mark means is the same in every picture: name -> how a pixel of it is drawn, what the legend calls it.
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
}


@dataclass(frozen=True)
class Panel:
    """One grid of pixels: an image, or the outputs of one position.

    ``marks`` are pairs of a name of `MARKS` and the ``(y, x)`` where it is, in the order in which they are drawn; ``arrow`` goes
    from one pixel's centre to another's; ``frame`` is the width of the border of zeros; ``words`` are written into pixels.
    ``displacements``, of the rows and of the columns, number the pixels of a patch; an image has arrows along y and x instead.
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
        """Pixels of the picture that one of the grid's is wide: numbers need more room."""
        return CELL if self.displacements is None else 3 * CELL // 2

    @property
    def height(self) -> int:
        """Pixels of the picture from the first row to the last, or to the name below a patch's rows."""
        return self.cell * (self.size[0] + 2 * self.frame + (self.displacements is not None))

    @property
    def width(self) -> int:
        """Pixels from the first column to the last, to the name beside a patch's, or of the widest line of text."""
        longest = max(len(line) for line in (self.title + "\n" + self.note).split("\n"))
        return max(self.cell * (self.size[1] + 2 * self.frame + (self.displacements is not None)), round(LETTER * longest))


def sheet(*panels: Panel) -> Figure:
    """The panels side by side, the legend of their marks below in two columns."""
    columns = 2
    used = [name for name in MARKS if any(mark == name for each in panels for mark, _ in each.marks)]
    if any(each.frame for each in panels):
        used = ["zeros", *used]
    top = MARGIN + LINE * max(each.title.count("\n") + 1 for each in panels) + TOP
    bottom = top + max(each.height + (LINE * (each.note.count("\n") + 1) if each.note else 0) for each in panels) + LINE
    across = max(round(SMALL / TEXT * LETTER * len(MARKS[name][1])) for name in used) + 80  # of the legend's columns
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
        """The centre of a pixel in the picture, horizontal first."""
        return left + cell * (frame + x + 0.5), top + cell * (frame + y + 0.5)

    for above, line in enumerate(reversed(panel.title.split("\n"))):  # each on a baseline that all panels have in common
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
    if name == "position":
        axes.plot(*zip(*centres, strict=True), **MARKS[name][0], zorder=4)
    elif name == "place":  # one outline round the whole window
        axes.add_patch(_rectangle(name, min(centres), max(centres), cell))
    else:
        for centre in centres:
            axes.add_patch(_rectangle(name, centre, centre, cell))


def _rectangle(name: str, first: tuple[float, float], last: tuple[float, float], cell: float) -> Rectangle:
    """From the pixel with one centre to the one with the other, as a mark is drawn."""
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
    """Arrows along the image's axes: y goes down."""
    _draw_arrow(axes, (left, top - 18), (left + 46, top - 18), 0.9)
    axes.text(left + 62, top - 18, "x", **_CENTRED)
    _draw_arrow(axes, (left - 18, top), (left - 18, top + 46), 0.9)
    axes.text(left - 18, top + 64, "y", **_CENTRED)


def _draw_displacements(axes: Axes, rows: range, columns: range, left: float, top: float, cell: int) -> None:
    """The displacement of every row and column of a patch."""
    for index, number in enumerate((*map(_number, columns), "dx")):
        axes.text(left + cell * (index + 0.5), top - 18, number, **_CENTRED)
    for index, number in enumerate((*map(_number, rows), "dy")):
        axes.text(left - 24, top + cell * (index + 0.5), number, **_CENTRED)


def _number(value: int) -> str:
    return f"{value}".replace("-", "\N{MINUS SIGN}")


def _draw_legend(axes: Axes, used: list[str], columns: int, top: float, across: float) -> None:
    """Each mark as it is drawn, and what it means; filled row by row."""
    for index, name in enumerate(used):
        row, column = divmod(index, columns)
        x, y = 2 * MARGIN + column * across, top + (row + 0.5) * LINE
        _draw_mark(axes, name, [(x, y)], 22)
        axes.text(x + 24, y, MARKS[name][1], fontsize=SMALL, color=INK, va="center_baseline")


# The pictures --------------------------------------------------------------------------------------------------------


def draw_operator() -> Figure:
    """One output at every displacement: where it reads, and where its numbers go."""
    size, output, shown, keywords = (9, 9), (4, 4), (1, 2), {"patch_size": 5}
    one, other = reads(size, output, shown, **keywords)
    marks = [("patch", read_anywhere(size, output, **keywords)), ("input2", other), ("place", one)]
    patch = tuple(axis.displacements for axis in axes_of(asked(size, **keywords)))
    scores = [(m, n) for m in range(len(patch[0])) for n in range(len(patch[1]))]
    chosen = tuple(values.index(d) for values, d in zip(patch, shown, strict=True))
    return sheet(
        Panel("input1\nat (y, x)", size, [("input1", one)]),
        Panel("input2\nat (y + dy, x + dx)", size, marks, arrow=(*one, *other)),
        Panel("out[b, :, :, y, x]", (5, 5), [("output", scores), ("one output", [chosen])], displacements=patch),
    )


def draw_kernel_size() -> Figure:
    """A window in both images, and the outputs that are left."""
    size, output, shown, keywords = (8, 8), (2, 1), (1, 3), {"kernel_size": 3, "patch_size": 7}
    one, other = reads(size, output, shown, **keywords)
    middles = one[4], other[4]
    geometry = asked(size, **keywords)
    return sheet(
        Panel("input1,\nkernel_size=3", size, [("input1", one)]),
        Panel("input2,\nthe window moved", size, [("input2", other), ("place", one)], arrow=middles),
        Panel("input1,\nwhere outputs lie", size, [("position", positions(geometry))], note=_outputs(geometry)),
    )


def draw_patch_size() -> Figure:
    """Patches of several sizes round the same pixel."""
    return sheet(*(_patch((7, 7), (3, 3), patch_size=patch) for patch in (3, 4, 5, (1, 7))))


def draw_dilation_patch() -> Figure:
    """The same number of displacements, further apart."""
    return sheet(*(_patch((9, 9), (4, 4), patch_size=5, dilation_patch=apart) for apart in (1, 2, (1, 2))))


def _patch(size: Pair, output: Pair, **keywords: Any) -> Panel:
    """input2 with the pixels that one output reads at any displacement."""
    one, _ = reads(size, output, (0, 0), **keywords)
    marks = [("patch", read_anywhere(size, output, **keywords)), ("place", one)]
    return Panel(_call("input2", keywords), size, marks, note=_reach(asked(size, **keywords)))


def draw_stride() -> Figure:
    """Where the outputs lie."""
    return sheet(*(_positions((8, 9), stride=stride) for stride in (1, 2, (4, 3))))


def draw_padding() -> Figure:
    """Where the outputs lie with a frame of zeros, cropped, and for a window with the frame that keeps the size."""
    plain = [_positions((5, 6), padding=padding) for padding in (0, 1, -1)]
    return sheet(*plain, _positions((5, 6), (0, 0), kernel_size=3, padding=1))


def draw_dilation() -> Figure:
    """The taps of a window of three by three, close together and apart, and the outputs that are left."""
    return sheet(*(_positions((8, 9), (0, 0), kernel_size=3, dilation=dilation) for dilation in (1, 2, (1, 3))))


def _positions(size: Pair, output: Pair | None = None, **keywords: Any) -> Panel:
    """input1 with its outputs, and the pixels that one of them reads where one is given."""
    geometry = asked(size, **keywords)
    marks = [("position", positions(geometry))]
    if output is not None:
        marks.insert(0, ("input1", reads(size, output, (0, 0), **keywords)[0]))
    return Panel(_call("input1", keywords), size, marks, note=_outputs(geometry), frame=max(0, keywords.get("padding", 0)))


def draw_patch_offset() -> Figure:
    """A search to one side, and a template tried at every place of a larger image."""
    template, image, shown = (3, 3), (7, 9), (3, 5)
    keywords = {"kernel_size": 3, "patch_size": (5, 7), "patch_offset": (2, 3)}
    one, other = reads(template, (0, 0), shown, image, **keywords)
    marks = [("patch", read_anywhere(template, (0, 0), image, **keywords)), ("input2", other), ("place", one)]
    reach = _reach(asked(template, image, **keywords))
    return sheet(
        _patch((7, 9), (3, 7), patch_size=(1, 6), patch_offset=(0, -3)),
        Panel("input1,\na template", template, [("input1", one)]),
        Panel(_call("input2", keywords), image, marks, note=reach, arrow=(one[4], other[4])),
    )


def draw_channels() -> Figure:
    """The number of each displacement's channel, in both orders."""
    size = (3, 5)
    rows, columns = (axis.displacements for axis in axes_of(asked((9, 9), patch_size=size)))
    panels = []
    for order, name in (("dy", "dy-major"), ("dx", "dx-major")):
        listed = cupycorr.displacements(size, order=order)
        words = {(rows.index(dy), columns.index(dx)): str(channel) for channel, (dy, dx) in enumerate(listed.tolist())}
        panels.append(
            Panel(f'order="{order}"\n{name}', size, [("output", list(words))], displacements=(rows, columns), words=words)
        )
    return sheet(*panels)


def draw_scores() -> Figure:
    """What the page's own example of `cupycorr.plot_channels` draws."""
    first, *others = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (example,) = (code for code in others if "plot_channels" in code)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(None):
        exec(first + example, names)
    return names["figure"]


def _call(image: str, keywords: dict[str, Any]) -> str:
    """The image and the parameters, in two lines."""
    *before, last = [image, *(f"{name}={value}" for name, value in keywords.items())]
    return ", ".join(before) + ",\n" + last


def _outputs(geometry: Problem) -> str:
    return f"{geometry.vertical.out} x {geometry.horizontal.out} outputs"


def _reach(geometry: Problem) -> str:
    """The displacements of both axes, one a line."""
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
}


def draw(folder: Path = FOLDER) -> None:
    """Write every picture into a folder."""
    folder.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        with matplotlib.style.context("default"):  # whatever the reader's own settings are
            write(picture(), folder / f"{name}.png")


def write(figure: Figure, path: Path) -> None:
    """Write a picture as a PNG without transparency, and which matplotlib drew it: another draws letters a little differently."""
    figure.canvas.draw()
    drawn_by = PngInfo()
    drawn_by.add_text("Software", f"matplotlib {matplotlib.__version__}")
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").save(path, optimize=True, pnginfo=drawn_by)


if __name__ == "__main__":
    draw()
