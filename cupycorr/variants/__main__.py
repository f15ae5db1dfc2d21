"""The command ``python -m cupycorr.variants``: check registered variants, or show those that a file registers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import check, load

REFUSED = 2
_ABOUT = "Compare variants that you have written with the definition of the operator, on a table of small problems."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 where a variant is wrong, 2 where the command or the machine is."""
    options = _parser().parse_args(arguments)
    try:
        found = [name for source in options.load for name in load(source)]
        reports = [check(name) for name in options.names or found]
    except (ValueError, ImportError, RuntimeError) as error:
        print(f"python -m cupycorr.variants: {error}", file=sys.stderr)
        return REFUSED
    for report in reports:
        print(report)
    return 0 if all(report.passed for report in reports) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cupycorr.variants", description=_ABOUT)
    parser.add_argument("command", choices=["check"], help="the only command")
    parser.add_argument("names", nargs="*", metavar="NAME", help="variants to check; by default all that are loaded")
    parser.add_argument(
        "--load",
        action="append",
        required=True,
        metavar="FILE",
        help="the .py file, or the module, that registers them; may be repeated",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
