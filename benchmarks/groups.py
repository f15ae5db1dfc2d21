"""Group-wise correlation in training: `cupycorr.compat.gwc.build_gwc_volume` and the loop over disparities of stereo networks.

``python -m benchmarks.groups [--json FILE]``. The size is that of GwcNet's training crop at a quarter of its resolution. A step
of training is the volume and the gradients of both feature maps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from cupycorr._cpu import workers
from cupycorr.compat.gwc import build_gwc_volume

from . import report
from .timing import Timing, race

BUDGET = 20.0  # seconds for a pass
AGREES = 1e-5  # the largest difference relative to the largest value


class Size(NamedTuple):
    """The shape of the feature maps, the disparities and the groups."""

    shape: tuple[int, int, int, int]
    disparities: int
    groups: int


GWCNET = Size((1, 320, 64, 128), 48, 40)
Volume = Callable[[torch.Tensor, torch.Tensor, int, int], torch.Tensor]


def disparity_loop(left: torch.Tensor, right: torch.Tensor, disparities: int, groups: int) -> torch.Tensor:
    """Return the volume as stereo networks compute it: whole products for each disparity, then means over groups."""
    batch, channels, height, width = left.shape
    volume = left.new_zeros(batch, groups, disparities, height, width)
    for disparity in range(disparities):
        products = left[..., disparity:] * right[..., : width - disparity]
        means = products.view(batch, groups, channels // groups, height, width - disparity).mean(2)
        volume[:, :, disparity, :, disparity:] = means
    return volume


CONTESTANTS: dict[str, Volume] = {"build_gwc_volume": build_gwc_volume, "disparity loop": disparity_loop}
OURS = "build_gwc_volume"


def forward(volume: Volume, size: Size) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Return the work of one forward pass."""
    left, right = _maps(size)

    def work() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (volume(left, right, size.disparities, size.groups),)

    return work


def training(volume: Volume, size: Size) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Return the work of one step of training."""
    leaves = [each.requires_grad_() for each in _maps(size)]
    batch, _, height, width = size.shape
    cotangent = torch.randn(batch, size.groups, size.disparities, height, width)

    def work() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(volume(*leaves, size.disparities, size.groups), leaves, cotangent)

    return work


PASSES = {"forward": forward, "training": training}


def _maps(size: Size) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size.shape) for _ in range(2)]


def run(name: str, size: Size, budget: float) -> list[dict[str, Any]]:
    """Time a pass of every contestant, in turn, and return the rows of the file."""
    works, warm, differences = {}, {}, {}
    want: tuple[torch.Tensor, ...] = ()
    for contestant, volume in CONTESTANTS.items():
        work = works[contestant] = PASSES[name](volume, size)
        begin = time.perf_counter()
        found = work()
        warm[contestant] = (time.perf_counter() - begin,)
        want = want or found
        pairs = zip(found, want, strict=True)
        differences[contestant] = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
    with workers.prefer_threads(torch.get_num_threads()):
        timings = race(works, warm, budget)
    ours = timings[OURS].median
    return [_record(name, who, timings[who], timings[who].median / ours, differences[who]) for who in CONTESTANTS]


def _record(name: str, contestant: str, timing: Timing, ratio: float, difference: float) -> dict[str, Any]:
    return {
        "pass": name,
        "contestant": contestant,
        "ours": contestant == OURS,
        "median_s": timing.median,
        "minimum_s": timing.minimum,
        "runs_s": [round(seconds, 9) for seconds in timing.seconds],
        "ratio": ratio,
        "difference": difference,
        "agrees": difference <= AGREES,
    }


def main(arguments: Sequence[str] | None = None, size: Size = GWCNET) -> int:
    """Run both passes and print the table; return 1 where results differ."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser("python -m benchmarks.groups", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for a pass (default: {BUDGET:g})")
    options = parser.parse_args(arguments)
    header = report.cpu_header(arguments, ("float32",), "benchmarks.groups", ("torch", "llvmlite"))
    rows = [row for name in PASSES for row in run(name, size, options.budget)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("pass", "contestant", "ms", "x ours", "runs"):
        table.add_column(column, justify="left" if column in ("pass", "contestant") else "right")
    for row in rows:
        ratio, runs = f"{row['ratio']:.2f}", str(len(row["runs_s"]))
        table.add_row(row["pass"], row["contestant"], report.milliseconds(row["median_s"]), ratio, runs)
    console = report.wide_console()
    report.print_header(console, header)
    console.print(table)
    if options.json is not None:
        report.write_content(options.json, report.content(header, rows))
    return 0 if all(row["agrees"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
