"""The error of PTX that cannot be translated."""

from __future__ import annotations


class TranslationError(Exception):
    """The error of PTX that cannot be translated; the text names the statement and its line."""


class UntranslatableError(Exception):
    """The reason why one statement cannot be translated, raised where its line is not known."""
