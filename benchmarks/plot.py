"""The picture of a run: how close each contestant comes to the bound, case by case.

matplotlib is imported inside the functions and never through pyplot, which keeps state for a whole process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil, floor, log10
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from .report import Header, Yardstick
from .running import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH, ROW_HEIGHT, MARGINS = 3.4, 0.24, (2.2, 1.5)  # inches; margins of all panels together
MARKERS = "osD^vP*X"  # for contestants, in the order of the run
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # for our variants, by Okabe and Ito
GREY = "0.55"  # for rivals
# The ring around the variant that auto chose.
RING = {"marker": "o", "facecolors": "none", "edgecolors": "black", "s": 110, "linewidths": 0.9, "zorder": 4}
DOTS_PER_INCH = 110


def write(path: Path, header: Header, rows: Sequence[Row], yardstick: Yardstick) -> None:
    """Draw the timed rows into a file, if there are any."""
    if any(row.timing is not None for row in rows):
        draw(header, rows, yardstick).savefig(path, dpi=DOTS_PER_INCH)


def check(path: Path) -> None:
    """Raise an error where the picture could not be written.

    Raises
    ------
    ImportError
        There is no matplotlib.
    ValueError
        matplotlib does not write this kind of file.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise ValueError(f"--plot must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}, got {str(path)!r}")


def draw(header: Header, rows: Sequence[Row], yardstick: Yardstick) -> Figure:
    """Return the picture: a panel for each pass and element type, its cases sorted by the result of auto's variant."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.timing is not None]
    passes, dtypes = ([*dict.fromkeys(names)] for names in ((row.which for row in timed), (row.dtype for row in timed)))
    orders = [_order([row for row in timed if row.which == which], yardstick) for which in passes]
    heights = [len(order) + 2 for order in orders]
    size = (MARGINS[0] + PANEL_WIDTH * len(dtypes), MARGINS[1] + ROW_HEIGHT * sum(heights))
    figure, styles = Figure(figsize=size, layout="constrained"), _styles(rows)
    shape = {"nrows": len(passes), "ncols": len(dtypes), "squeeze": False, "height_ratios": heights}
    panels = figure.subplots(**shape, sharex=True, sharey="row")
    for which, order, line in zip(passes, orders, panels, strict=True):
        for dtype, panel in zip(dtypes, line, strict=True):
            panel.set_title(f"{which}, {dtype}", fontsize="medium")
            _draw_panel(panel, order, styles, [row for row in timed if (row.which, row.dtype) == (which, dtype)], yardstick)
    _draw_shares(panels[0][0], [yardstick.share(row) for row in timed])
    shown = {text: handle for panel in panels.flat for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = [name for name in styles if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Share of the bound on {header.device['model']}, cupycorr {header.versions['cupycorr']}")
    return figure


def _order(rows: Sequence[Row], yardstick: Yardstick) -> list[str]:
    """Return the cases of one pass, best first, by auto's variant, or by the best contestant where that was not timed."""
    reached = {}
    for case in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == case]
        shares = [yardstick.share(row) for row in of_case if row.auto]
        reached[case] = geometric_mean(shares) if shares else max(map(yardstick.share, of_case))
    return sorted(reached, key=reached.__getitem__, reverse=True)


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the style of each contestant: ours filled and coloured, rivals hollow and grey, and a ring around auto's choice."""
    styles: dict[str, dict[str, Any]] = {}
    colours = cycle(COLOURS)
    for (name, ours), marker in zip(dict.fromkeys((row.contestant, row.ours) for row in rows), cycle(MARKERS), strict=False):
        colour = next(colours) if ours else GREY
        styles[name] = {"marker": marker, "edgecolors": colour, "facecolors": colour if ours else "none", "s": 34, "zorder": 3}
    return styles | {"auto": RING}


def _draw_panel(
    panel: Axes, order: Sequence[str], styles: Mapping[str, dict[str, Any]], rows: Sequence[Row], yardstick: Yardstick
) -> None:
    for name, style in styles.items():
        if group := [row for row in rows if name == row.contestant or (name == "auto" and row.auto)]:
            positions = [order.index(row.case) for row in group]
            panel.scatter([yardstick.share(row) for row in group], positions, label=name, **style)
    panel.axvline(1, color="black", linewidth=1)
    panel.set_yticks(range(len(order)), order)
    panel.set_ylim(len(order) - 0.5, -0.5)
    panel.grid(color="0.9", zorder=0)
    panel.tick_params(which="both", labelbottom=True, length=0)


def _draw_shares(panel: Axes, shares: Sequence[float]) -> None:
    """Draw the axis that all panels share: whole decades, labelled in per cent."""
    decades = range(floor(log10(min(shares))), ceil(log10(max(*shares, 1.0)) + 0.05) + 1)
    panel.set_xscale("log")
    panel.set_xlim(10.0 ** decades[0], 10.0 ** decades[-1])
    panel.set_xticks([10.0**k for k in decades], [f"{10.0 ** (k + 2):g} %" for k in decades])
