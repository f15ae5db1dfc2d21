"""An extension of Griffe, which reads the docstrings for the API reference: their reStructuredText becomes Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

DIRECTIVE = re.compile(r"^( *)\.\. code-block:: text\n\n", re.MULTILINE)  # an indented block follows, which is code in Markdown too
NAME = re.compile(r"(?<![`\w])`(cupycorr(?:\.\w+)+)`(?!`)")


class Markdown(griffe.Extension):
    """Code blocks without their directive, and links where single backticks hold the full name of a public object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = NAME.sub(r"[`\1`][\1]", DIRECTIVE.sub("", obj.docstring.value))
