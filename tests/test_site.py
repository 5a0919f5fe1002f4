"""The site of the documentation: built strictly, it has every public name and no dead link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from urllib.parse import unquote, urlsplit

import griffe
import pytest
from bs4 import BeautifulSoup

import warp_nb
from scripts.docs_docstrings import EXAMPLE, fenced
from scripts.docs_pages import on_page_markdown, table
from warp_nb.config import ExperimentConfig, WarpConfig

ROOT = Path(__file__).resolve().parents[1]
Pages = dict[Path, BeautifulSoup]
DEFAULT = re.compile(r"`(\w+)` \(([\d.e-]+)\)")
"""A parameter and its default, if that is a number."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """All pages; a warning would have stopped the build."""
    site = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {name: value for name, value in os.environ.items() if name != "REPO"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in site.rglob("*.html")}


def test_every_page_of_the_folder_is_in_the_site(pages: Pages) -> None:
    assert {path.stem for path in pages} == {path.stem for path in (ROOT / "docs").glob("*.md")} | {"404"}


def test_every_public_name_is_documented(pages: Pages) -> None:
    headings = {tag["id"]: tag for page in pages.values() for tag in page(["h2", "h3"], id=True)}
    assert [name for name in warp_nb.__all__ if f"warp_nb.{name}" not in headings] == [], "add it to docs/reference.md"
    shown = {name: headings[f"warp_nb.{name}"].find_next_sibling("div") for name in warp_nb.__all__}
    assert all(body.get_text(strip=True) for body in shown.values())


def test_every_link_leads_to_a_page_and_a_heading(pages: Pages) -> None:
    headings = {path: {tag["id"] for tag in page(id=True)} for path, page in pages.items()}
    checked, dead = 0, []
    for path, page in pages.items():
        for link in page("a", href=True) if path.stem != "404" else []:  # its links start at the root of a server
            address = urlsplit(link["href"])
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not address.scheme:
                checked += 1
                if target not in pages or (address.fragment and unquote(address.fragment) not in headings[target]):
                    dead.append(f"{path.name}: {link['href']}")
    assert checked > 300 and dead == []


def test_a_page_loads_nothing_from_the_network(pages: Pages) -> None:
    loaded = [tag.get("src") or tag.get("href") for page in pages.values() for tag in page(["script", "img", "link"])]
    assert len(loaded) > 20 and not [one for one in loaded if one and urlsplit(one).netloc]


def test_the_tables_have_every_parameter_with_its_range() -> None:
    rows = {row.split("`")[1]: row for row in table(WarpConfig).splitlines()[2:]}
    assert rows.keys() == WarpConfig.model_fields.keys()
    assert rows["eta"] == "| `eta`, η | `0.5` | float, ≥ 0, ≤ 1 | LITI update rate (line 13) |"
    assert "| float, > 0, < 1 |" in rows["lr"] and "| `slerp`, `lerp`, `slerp_weights` |" in rows["merge"]
    added = {row.split("`")[1] for row in table(ExperimentConfig).splitlines()[2:]}
    assert added == ExperimentConfig.model_fields.keys() - WarpConfig.model_fields.keys() | {"dtype"}


@pytest.mark.parametrize(
    ("repo", "shown"),
    [
        ("", "See `merge` and [merging](merge.md#memory-and-time)."),
        (
            "octocat/warp",
            "See [`merge`](https://github.com/octocat/warp/blob/main/warp_nb/algorithm/merge.py#L51) and "
            "[merging](merge.md#memory-and-time).",
        ),
    ],
)
def test_links_that_leave_the_folder_lead_into_the_repository(
    repo: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPO", repo)
    text = "See [`merge`](../warp_nb/algorithm/merge.py#L51) and [merging](merge.md#memory-and-time)."
    assert on_page_markdown(text) == shown


def test_the_defaults_on_the_page_from_trl_are_those_of_the_classes() -> None:
    from trl import GRPOConfig, RLOOConfig

    text = (ROOT / "docs" / "from-trl.md").read_text(encoding="utf-8").partition("## Names")[2].partition("\n## ")[0]
    rows = [row.split(" | ")[:2] for row in text.splitlines() if row.startswith("| `")]
    theirs, ours = ([found for cell in cells for found in DEFAULT.findall(cell)] for cells in zip(*rows, strict=True))
    grpo, rloo = ({one.name: one.default for one in fields(config)} for config in (GRPOConfig, RLOOConfig))
    assert len(theirs) >= 6 and len(ours) >= 7
    assert [name for name, value in theirs if not grpo[name] == rloo[name] == float(value)] == []
    assert [name for name, value in ours if WarpConfig.model_fields[name].default != float(value)] == []
    assert f"`num_generations` ({grpo['num_generations']}, RLOO {rloo['num_generations']})" in text
    assert f"`beta` (GRPO {grpo['beta']}, RLOO {rloo['beta']})" in text


# Docstrings


def test_an_example_is_fenced_up_to_its_end() -> None:
    text = "Do.\n\nExample:\n    for one in two:\n\n        print(one)\n\nRaises:\n    ValueError: no."
    code = "    ```python\n    for one in two:\n\n        print(one)\n    ```"
    assert EXAMPLE.sub(fenced, text) == f"Do.\n\nExample:\n{code}\n\nRaises:\n    ValueError: no."


def test_docstrings_name_the_arguments_that_there_are() -> None:
    """An entry may name several; Griffe would warn of those, so its own check is off."""
    package = griffe.load("warp_nb", search_paths=[ROOT], docstring_parser="google")
    checked = 0
    for name in warp_nb.__all__:
        found = package[name]
        known = {one.name for one in found.parameters} | (set() if found.is_function else set(found.all_members))
        options = {"warn_unknown_params": False, "warn_missing_types": False}
        sections = found.docstring.parse("google", **options)
        for section in (one for one in sections if one.kind is griffe.DocstringSectionKind.parameters):
            named = {part.lstrip("*") for entry in section.value for part in entry.name.split(", ")}
            assert named <= known, f"{name}: {named - known}"
            checked += len(named)
    assert checked > 50
