"""Variants that users have written, as tests take them: loaded when tests are collected, registered while a test runs."""

from contextlib import contextmanager
from pathlib import Path

from cupycorr import variants
from cupycorr._correlation.variants import OPERATOR

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "own_variant.py"


@contextmanager
def as_before():
    """Remove what is registered meanwhile."""
    before = OPERATOR.variants
    try:
        yield
    finally:
        OPERATOR.variants = before


def rows_of(source):
    """Return the rows that a file registers, which are not registered any more."""
    with as_before():
        names = variants.load(source)
        return [row for row in OPERATOR.variants if row.name in names]


@contextmanager
def registered(*rows):
    """Register rows for the length of a block."""
    with as_before():
        OPERATOR.variants = (*OPERATOR.variants, *rows)
        yield
