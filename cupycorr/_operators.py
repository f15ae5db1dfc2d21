"""The operators there are. A new operator is added here, and nowhere else outside of its own folder."""

from __future__ import annotations

from ._correlation.variants import OPERATOR as CORRELATION

OPERATORS = (CORRELATION,)
