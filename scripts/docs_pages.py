"""A hook of mkdocs: links that leave `docs/`, and tables of parameters.

A link to a file of the project leads into the repository that the environment variable `REPO` names (owner/name);
without it only the link's text stays. `<!-- parameters CLASS -->` becomes the table of a configuration's own fields.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from warp_nb import config

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")
TABLE = re.compile(r"<!-- parameters (\w+) -->")
SYMBOLS = {"beta": "β", "mu": "μ", "eta": "η", "lam": "λ"}
"""Symbols of the paper that are no Latin letters."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the text of a page as mkdocs shall render it."""
    markdown = TABLE.sub(lambda found: table(getattr(config, found[1])), markdown)
    repo = os.environ.get("REPO")
    return OUTSIDE.sub(rf"[\1](https://github.com/{repo}/blob/main/\2)" if repo else r"\1", markdown)


def table(model: type[BaseModel]) -> str:
    """Return the Markdown table of the fields that a configuration adds to the one it is made from."""
    rows = ["| parameter | default | values | meaning |", "|---|---|---|---|"]
    for name in model.__annotations__:
        if name in model.model_fields:
            field = model.model_fields[name]
            symbol = f", {SYMBOLS[name]}" if name in SYMBOLS else ""
            rows.append(f"| `{name}`{symbol} | `{field.default!r}` | {values(field)} | {field.description} |")
    return "\n".join(rows)


def values(field: FieldInfo) -> str:
    """Describe the values that a field takes: `int, ≥ 1, ≤ 10000`, or those of a Literal."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(field.annotation))
    signs = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
    found = [getattr(field.annotation, "__name__", str(field.annotation))]
    for rule in field.metadata:
        if type(rule) in signs:
            attribute, sign = signs[type(rule)]
            found.append(f"{sign} {getattr(rule, attribute)}")
        elif isinstance(rule, MinLen):
            found.append("not empty")
    return ", ".join(found)
