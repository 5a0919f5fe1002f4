"""Prose from templates: the text is in `templates/`, what it depends on is decided in Python."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook import numbers

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = {
    "number": numbers.format_number,
    "fixed": numbers.fixed,
    "reported": numbers.reported,
    "share": numbers.format_share,
    "duration": numbers.format_duration,
    "estimate": numbers.format_estimate,
    "interval": lambda estimate: numbers.format_interval(Estimate(**estimate)),
    "rate": lambda estimate: numbers.format_estimate(Estimate(**estimate), signed=True),
    "range": numbers.format_range,
    "counted": numbers.counted,
    "plural": numbers.plural,
}
"""Filters of the templates; `interval` and `rate` take the JSON of an estimate."""


def environment(folder: Path, **settings: Any) -> jinja2.Environment:
    """Return the environment of a folder's templates, with FILTERS; an undefined name raises UndefinedError."""
    loader, strict = jinja2.FileSystemLoader(folder), jinja2.StrictUndefined
    made = jinja2.Environment(loader=loader, undefined=strict, trim_blocks=True, lstrip_blocks=True, **settings)
    made.filters |= FILTERS
    return made


ENVIRONMENT = environment(TEMPLATES)
_compiled = cache(ENVIRONMENT.from_string)


def words(name: str) -> dict[str, Any]:
    """Read `templates/<name>.toml`."""
    return tomllib.loads((TEMPLATES / f"{name}.toml").read_text(encoding="utf-8"))


def filled(text: str, facts: Mapping[str, Any]) -> str:
    """Render a template of one line with the facts."""
    return _compiled(text).render(facts)


def paragraphs(template: str, **facts: Any) -> list[str]:
    """Render a template to paragraphs: text between empty lines becomes one line, but a list item starts a new one."""
    text = ENVIRONMENT.get_template(f"{template}.md.j2").render(facts)
    parts = (part.strip() for part in re.split(r"\n[ \t]*\n", text))
    return [re.sub(r"[ \t]*+\n[ \t]*+(?!- )", " ", part) for part in parts if part]
