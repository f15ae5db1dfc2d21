"""Translate PTX, as NVRTC writes it, to C++ that runs one thread of a kernel (see ../kernel/translated.hpp).

`parser` reads the text into a tree of statements, `instructions` has a rule for each opcode, and `emitter` writes the module. An
instruction that no rule covers completely is an error that names it and its line.
"""

from __future__ import annotations

from .emitter import translate
from .errors import TranslationError

__all__ = ["TranslationError", "translate"]
