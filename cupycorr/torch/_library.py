"""The library ``torch.ops.cupycorr``, in which every operator is registered. Knows no operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Kernels accept any strides, so torch.compile need not make inputs contiguous.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

LIBRARY = torch.library.Library("cupycorr", "DEF")  # lives as long as the registrations do


def define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an operator without derivatives and return it.

    Parameters
    ----------
    name
        Its name below ``torch.ops.cupycorr``.
    schema
        The arguments and the results in torch's notation.
    kernel
        Computes it for CPU and for CUDA tensors.
    fake
        Checks the arguments and returns results without data, for compilers; sizes may be symbols.
    """
    LIBRARY.define(name + schema, tags=_TAGS)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"cupycorr::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.cupycorr, name).default
