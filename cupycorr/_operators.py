"""The list of operators. A new operator is added here; CONTRIBUTING.md lists the few other places."""

from __future__ import annotations

from collections.abc import Iterator

from ._correlation.variants import OPERATOR as CORRELATION
from ._gpu.device import Device
from ._gpu.source import Kernel
from ._lookup.variants import OPERATOR as LOOKUP
from ._matching.variants import ARGMAX, SOFT_ARGMAX
from ._volume_lookup.variants import OPERATOR as VOLUME_LOOKUP

OPERATORS = (CORRELATION, LOOKUP, VOLUME_LOOKUP, ARGMAX, SOFT_ARGMAX)


def builds(there: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield the kernels of every operator, on any device or on this one, each once: some are common to several."""
    yield from {name: kernel for operator in OPERATORS for name, kernel in operator.builds(there)}.items()
