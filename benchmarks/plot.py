"""The picture of a run: the share of the bound that each contestant reaches, case by case.

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
MARKS = "osD^vP*X"  # of contestants, in the order of the run
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # of ours: Okabe and Ito's
GREY = "0.55"  # of rivals
RING = {"marker": "o", "facecolors": "none", "edgecolors": "black", "s": 110, "linewidths": 0.9, "zorder": 4}  # of auto
DOTS = 110  # an inch


def write(path: Path, header: Header, rows: Sequence[Row], yardstick: Yardstick) -> None:
    """Draw what was timed, if anything was, into a file."""
    if any(row.timing is not None for row in rows):
        draw(header, rows, yardstick).savefig(path, dpi=DOTS)


def check(path: Path) -> None:
    """Refuse a picture that cannot be written.

    Raises
    ------
    ImportError
        There is no matplotlib.
    ValueError
        It does not write this kind of file.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise ValueError(f"--plot must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}, got {str(path)!r}")


def draw(header: Header, rows: Sequence[Row], yardstick: Yardstick) -> Figure:
    """The picture: a panel for each pass and element type; cases sorted by the share of the variant auto runs."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.timing is not None]
    passes, dtypes = ([*dict.fromkeys(names)] for names in ((row.which for row in timed), (row.dtype for row in timed)))
    orders = [_order([row for row in timed if row.which == which], yardstick) for which in passes]
    heights = [len(order) + 2 for order in orders]
    size = (MARGINS[0] + PANEL_WIDTH * len(dtypes), MARGINS[1] + ROW_HEIGHT * sum(heights))
    figure, marks = Figure(figsize=size, layout="constrained"), _marks(rows)
    shape = {"nrows": len(passes), "ncols": len(dtypes), "squeeze": False, "height_ratios": heights}
    panels = figure.subplots(**shape, sharex=True, sharey="row")
    for which, order, line in zip(passes, orders, panels, strict=True):
        for dtype, panel in zip(dtypes, line, strict=True):
            panel.set_title(f"{which}, {dtype}", fontsize="medium")
            _draw_panel(panel, order, marks, [row for row in timed if (row.which, row.dtype) == (which, dtype)], yardstick)
    _draw_shares(panels[0][0], [yardstick.share(row) for row in timed])
    shown = {text: mark for panel in panels.flat for mark, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = [name for name in marks if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Share of the bound on {header.device['model']}, cupycorr {header.versions['cupycorr']}")
    return figure


def _order(rows: Sequence[Row], yardstick: Yardstick) -> list[str]:
    """The cases of one pass, best first: by the variant auto runs, or by the best there is where that was not timed."""
    reached = {}
    for case in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == case]
        shares = [yardstick.share(row) for row in of_case if row.auto]
        reached[case] = geometric_mean(shares) if shares else max(map(yardstick.share, of_case))
    return sorted(reached, key=reached.__getitem__, reverse=True)


def _marks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """How each contestant is drawn: ours filled, each in a colour of its own, rivals hollow and grey; a ring is round auto's."""
    found: dict[str, dict[str, Any]] = {}
    colours = cycle(COLOURS)
    for (name, ours), marker in zip(dict.fromkeys((row.contestant, row.ours) for row in rows), cycle(MARKS), strict=False):
        colour = next(colours) if ours else GREY
        found[name] = {"marker": marker, "edgecolors": colour, "facecolors": colour if ours else "none", "s": 34, "zorder": 3}
    return found | {"auto": RING}


def _draw_panel(
    panel: Axes, order: Sequence[str], marks: Mapping[str, dict[str, Any]], rows: Sequence[Row], yardstick: Yardstick
) -> None:
    for name, style in marks.items():
        if group := [row for row in rows if name == row.contestant or (name == "auto" and row.auto)]:
            places = [order.index(row.case) for row in group]
            panel.scatter([yardstick.share(row) for row in group], places, label=name, **style)
    panel.axvline(1, color="black", linewidth=1)
    panel.set_yticks(range(len(order)), order)
    panel.set_ylim(len(order) - 0.5, -0.5)
    panel.grid(color="0.9", zorder=0)
    panel.tick_params(which="both", labelbottom=True, length=0)


def _draw_shares(panel: Axes, shares: Sequence[float]) -> None:
    """The axis all panels share: whole decades, each with its share in per cent."""
    decades = range(floor(log10(min(shares))), ceil(log10(max(*shares, 1.0)) + 0.05) + 1)
    panel.set_xscale("log")
    panel.set_xlim(10.0 ** decades[0], 10.0 ** decades[-1])
    panel.set_xticks([10.0**k for k in decades], [f"{10.0 ** (k + 2):g} %" for k in decades])
