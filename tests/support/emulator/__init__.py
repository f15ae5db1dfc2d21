"""A CUDA machine on the CPU, for tests: builds ``kernels_cu`` with g++ and runs it, checking every access it makes.

Tests lend arrays to an `Emulator` and put its ``bind`` in the place of the launcher's. A launch that reads or writes what it must
not, races, or waits for threads that never come ends with an `EmulationError` that names the kernel, the thread and the line.
"""

from .build import EmulationError, require_compiler, run_sanitized, sanitized
from .launch import ORDERS, Account, Emulator, Traffic

__all__ = ["ORDERS", "Account", "EmulationError", "Emulator", "Traffic", "require_compiler", "run_sanitized", "sanitized"]
