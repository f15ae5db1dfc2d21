"""An extension of Griffe, which reads the docstrings for the API reference: their reStructuredText becomes Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

MARKDOWN = (
    (re.compile(r"^ *\.\. code-block:: text\n\n", re.MULTILINE), ""),  # the indented block that follows is code in Markdown, too
    (re.compile(r"(?<![`\w])`(cupycorr(?:\.\w+)+)`(?!`)"), r"[`\1`][\1]"),  # a link to a public object
    (re.compile(r"^( *)(cupycorr(?:\.\w+)+) : ", re.MULTILINE), r"\1- [`\2`][\2]: "),  # an entry of See Also
    (re.compile(r"^( *)\.\. \[(\d+)\] ", re.MULTILINE), r"\1\2. "),  # a reference, and below its mention in the text
    (re.compile(r"\[(\d+)\]_"), r"[\1]"),
)


class Markdown(griffe.Extension):
    """The translation of the docstring of each object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            for pattern, replacement in MARKDOWN:
                obj.docstring.value = pattern.sub(replacement, obj.docstring.value)
