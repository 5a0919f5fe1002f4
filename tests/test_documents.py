"""Links of the documents: one to code leads to the line that defines its name, any other to a file that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTICE.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
TO_CODE = re.compile(r"\[`(\w+)`\]\(\.\./(warp_nb/[\w/]+\.py)#L\d+\)")
NAMED_TEST = re.compile(r"(test_\w+\.py)(?:::(\w+))?")
TARGET = re.compile(r"\]\(([^)#\s]+)")


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [ast.unparse(target) for target in targets]


def line_of(name: str, path: str) -> int:
    """The line of a file of the project that defines `name`, at its top level or else in one of its classes."""
    top = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    inside = [node for one in top if isinstance(one, ast.ClassDef) for node in one.body]
    for node in [*top, *inside]:
        if name in names_of(node):
            return node.lineno
    raise LookupError(f"{path} defines no {name}")


def relinked(text: str) -> str:
    """The text of a page with today's line numbers in its links to code."""
    return TO_CODE.sub(lambda found: f"[`{found[1]}`](../{found[2]}#L{line_of(found[1], found[2])})", text)


def broken(text: str, folder: Path) -> list[str]:
    """Targets of links in a page of `folder` that are neither addresses nor files."""
    return [
        target
        for target in TARGET.findall(text)
        if not target.startswith(("http://", "https://", "mailto:")) and not (folder / target).exists()
    ]


@EACH_PAGE
def test_a_link_to_code_leads_to_the_line_that_defines_its_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    form = "a link to a line reads [`name`](../warp_nb/room/file.py#L1)"
    assert len(TO_CODE.findall(text)) == len(re.findall(r"#L\d", text)), form
    lines = enumerate(zip(text.splitlines(), relinked(text).splitlines(), strict=True), start=1)
    moved = [f"{number}: {now}" for number, (before, now) in lines if before != now]
    assert not moved, "\n".join([f"lines moved; write relinked(text) to {page.relative_to(ROOT)}:", *moved])


def test_implementation_details_are_numbered_in_order_and_lead_to_code() -> None:
    text = (ROOT / "docs" / "implementation.md").read_text(encoding="utf-8")
    numbers = [int(found) for found in re.findall(r"^(\d+)\. \*\*", text, re.MULTILINE)]
    assert len(numbers) > 30 and numbers == list(range(1, len(numbers) + 1))
    assert len(TO_CODE.findall(text)) > 30


@EACH_PAGE
def test_a_link_leads_to_a_file_that_is_there(page: Path) -> None:
    assert broken(page.read_text(encoding="utf-8"), page.parent) == []


@EACH_PAGE
def test_a_test_that_is_named_exists(page: Path) -> None:
    for file, name in NAMED_TEST.findall(page.read_text(encoding="utf-8")):
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in source, f"{file} has no {name}"


# planted faults


@pytest.mark.parametrize(
    ("name", "path", "defined"),
    [
        ("merge", "warp_nb/algorithm/merge.py", "def merge("),
        ("MERGES", "warp_nb/algorithm/merge.py", "MERGES: "),
        ("Weights", "warp_nb/algorithm/merge.py", "Weights = "),
        ("sample", "warp_nb/algorithm/objective.py", "def sample("),
        ("Task", "warp_nb/tasks/task.py", "class Task:"),
        ("loss_of", "warp_nb/runs/training.py", "    def loss_of("),
    ],
)
def test_a_line_that_moved_is_corrected(name: str, path: str, defined: str) -> None:
    page = relinked(f"See [`{name}`](../{path}#L99999).")
    number = int(page.rpartition("#L")[2].removesuffix(")."))
    assert (ROOT / path).read_text(encoding="utf-8").splitlines()[number - 1].startswith(defined)
    assert page == f"See [`{name}`](../{path}#L{number})." == relinked(page)


def test_a_name_that_is_gone_is_named() -> None:
    with pytest.raises(LookupError, match=r"warp_nb/algorithm/merge\.py defines no step_loss"):
        relinked("[`step_loss`](../warp_nb/algorithm/merge.py#L1)")


def test_a_link_to_nothing_is_found() -> None:
    text = "[a](gone.md#top) [b](implementation.md#x) [c](https://example.org/x) ![d](../gone.png) [e](#here)"
    assert broken(text, ROOT / "docs") == ["gone.md", "../gone.png"]
