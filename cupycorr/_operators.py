"""The list of operators. A new operator is added here; CONTRIBUTING.md lists the few other places."""

from __future__ import annotations

from ._correlation.variants import OPERATOR as CORRELATION
from ._lookup.variants import OPERATOR as LOOKUP
from ._matching.variants import ARGMAX, SOFT_ARGMAX
from ._volume_lookup.variants import OPERATOR as VOLUME_LOOKUP

OPERATORS = (CORRELATION, LOOKUP, VOLUME_LOOKUP, ARGMAX, SOFT_ARGMAX)
