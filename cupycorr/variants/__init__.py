"""Variants of the fixed-grid operator that users write, to be compared with those of the package.

A registered variant is a CUDA kernel with a function that says how it is launched, or a function of NumPy arrays. Like a variant
of the package, it is named by ``variant=``, `cupycorr.explain` says why it does not run, and it has rows in the benchmark's
table. The command ``python -m cupycorr.variants check NAME --load FILE`` compares it with the definition.
"""

from ._check import Finding, Report, check
from ._plans import Kernel, Launch
from ._problem import Problem
from ._registry import load, register, registered, unregister

__all__ = ["Finding", "Kernel", "Launch", "Problem", "Report", "check", "load", "register", "registered", "unregister"]
