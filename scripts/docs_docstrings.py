"""An extension of Griffe: the code of an `Example:` in a docstring is rendered as code."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:\n((?: {4}.*(?:\n|\Z)|\n)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Fence the examples of all objects."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)


def fenced(found: re.Match[str]) -> str:
    """Return the section with its code between fences."""
    code = f"```python\n{dedent(found[1]).strip()}\n```"
    return f"Example:\n{indent(code, '    ')}\n\n"
