"""Prose from templates: the text is in `templates/`, what it depends on is decided in Python. Text of models is shown
whole, with what a reader would not see.
"""

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
    "brief": numbers.format_brief,
    "bracketed": numbers.format_bracketed,
    "interval": lambda estimate: numbers.format_interval(Estimate(**estimate)),
    "rate": lambda estimate: numbers.format_estimate(Estimate(**estimate), signed=True),
    "range": numbers.format_range,
    "counted": numbers.counted,
    "plural": numbers.plural,
    "nats": numbers.nats,
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
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline: escape codes begin with one
    r"\xad\u061c\u180e\u200b-\u200f\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # of no width
    r"\u2028-\u202e\ud800-\udfff]"  # separators of lines, directions of writing, half characters
)
"""Characters that change how the text around them is shown, or are not shown themselves."""


def visible(text: str) -> str:
    """Show what a reader would not see: escape codes as ␛, marks of direction and the like as their code."""
    return UNSEEN.sub(lambda found: picture_of(found[0]), text)


def picture_of(sign: str) -> str:
    """Return the picture of a control character of ASCII, or the code of another character."""
    if sign == "\x7f":
        return "␡"
    return chr(0x2400 + ord(sign)) if sign < " " else sign.encode("ascii", "backslashreplace").decode()


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
