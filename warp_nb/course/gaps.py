"""The gaps of the lessons: what the reader writes, the cases that check it, and common mistakes.

They are listed in `gaps.toml`. The solution of a gap is a function of the package. A mistake is an edit of the
solution's source, so it follows the code; a reader whose function behaves in the same way gets its explanation.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import Any

from warp_nb.course import cases
from warp_nb.course.cases import Arguments

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """`edits` (old, new) of the solution's source, where each old text occurs once; `says` explains the mistake."""

    says: str
    edits: list[tuple[str, str]]


@dataclass(frozen=True)
class Gap:
    """A function that the reader writes; its solution is in `module`, and `asks` is the docstring of its stub.

    `difficulty` is 1 to 3, `minutes` is a reader's usual time, and `hint` is shown before the solution.
    """

    name: str
    module: str
    lesson: int
    difficulty: int
    minutes: int
    asks: str
    hint: str
    mistakes: list[Mistake]

    @property
    def solution(self) -> Function:
        """The package's function."""
        return self.namespace[self.name]

    @property
    def namespace(self) -> dict[str, Any]:
        """The namespace of the solution's module."""
        return dict(vars(import_module(self.module)))

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that the reader's function has: those without a default."""
        found = inspect.signature(self.solution).parameters.values()
        return [parameter.name for parameter in found if parameter.default is parameter.empty]

    def cases(self) -> list[Arguments]:
        """Return the inputs that it is tested on."""
        return vars(cases)[f"{self.name.rstrip('_')}_cases"]()


def call(function: Function, parameters: Sequence[str], arguments: Arguments) -> Any:
    """Call with the arguments in order; keyword-only ones are passed by name."""
    given = dict(zip(parameters, arguments, strict=True))
    takes = inspect.signature(function).parameters.values()
    named = {one.name: given.pop(one.name) for one in takes if one.kind is one.KEYWORD_ONLY and one.name in given}
    return function(*given.values(), **named)


def mistaken(gap: Gap, mistake: Mistake) -> Function:
    """Return the solution with the mistake in it; raise ValueError for an edit that does not fit the source."""
    source = inspect.getsource(gap.solution)
    for old, new in mistake.edits:
        if source.count(old) != 1:
            raise ValueError(f"{gap.name}: {old!r} must occur once in the solution, found {source.count(old)} times")
        source = source.replace(old, new)
    return defined(source, gap.name, gap.namespace)


def defined(source: str, name: str, namespace: dict[str, Any]) -> Function:
    """Execute `source` in `namespace` and return the function `name` that it defines."""
    code = compile("from __future__ import annotations\n" + source, f"<{name}>", "exec")
    exec(code, namespace)
    return namespace[name]


def read_gaps() -> dict[str, Gap]:
    """Read the gaps of `gaps.toml` by name, in the order of the lessons."""
    found = tomllib.loads(files("warp_nb.course").joinpath("gaps.toml").read_text(encoding="utf-8"))
    return {
        name: Gap(name, **gap | {"mistakes": [Mistake(**mistake) for mistake in gap["mistakes"]]})
        for name, gap in found.items()
    }


GAPS = read_gaps()
