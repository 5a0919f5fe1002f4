"""What computes and measures speaks no Russian; what is shown does (`notebook`, `course`, `report`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import warp_nb

PACKAGE = Path(warp_nb.__file__).parent
ROOMS = ("algorithm", "fast", "tasks", "runs", "measure", "studies")


def cyrillic(path: Path) -> list[str]:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return [f"{path}:{number}" for number, line in lines if any("\u0400" <= letter <= "\u04ff" for letter in line)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_below_the_notebook_speaks_no_russian(room: str) -> None:
    sources = list((PACKAGE / room).rglob("*.py"))
    assert len(sources) > 3 and [line for path in sources for line in cyrillic(path)] == []


def test_so_do_the_modules_beside_the_rooms() -> None:
    assert [line for path in PACKAGE.glob("*.py") for line in cyrillic(path)] == []
