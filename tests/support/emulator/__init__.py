"""A CUDA machine on the CPU, for tests: it builds ``kernels_cu`` with g++, runs it and checks every access.

Tests lend arrays to an `Emulator` and put its ``bind`` in the place of the launcher's. A launch that accesses other memory, has a
race, or waits for threads that never come ends with an `EmulationError`, which names the kernel, the thread and the line.
"""

from .build import EmulationError, require_compiler, run_sanitized, sanitized
from .launch import ORDERS, Account, Emulator, Traffic

__all__ = ["ORDERS", "Account", "EmulationError", "Emulator", "Traffic", "require_compiler", "run_sanitized", "sanitized"]
