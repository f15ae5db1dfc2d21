"""The command ``python -m cupycorr.variants``: check registered variants, or show those that a file registers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import check, load

REFUSED = 2
_ABOUT = "Compare variants that you have written with the definition of the operator, on a table of small problems."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 where a variant is wrong, 2 where one cannot be checked."""
    options = _parser().parse_args(arguments)
    try:
        found = [name for source in options.load for name in load(source)]
    except ValueError as error:
        return _refuse(error)
    return max(map(_check, options.names or found))


def _check(name: str) -> int:
    """Print the report of a variant; return 0 where it passed, 1 where it is wrong, 2 where it cannot be checked."""
    try:
        report = check(name)
    except (ValueError, ImportError, RuntimeError) as error:
        return _refuse(f"{name} cannot be checked: {error}")
    print(report)
    return 0 if report.passed else 1


def _refuse(message: object) -> int:
    print(f"python -m cupycorr.variants: {message}", file=sys.stderr)
    return REFUSED


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
