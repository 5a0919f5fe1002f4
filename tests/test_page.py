"""Pages of notebooks are safe and self-contained; equations are readable."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_notebook
from pages import HOSTILE, Outline, hostile_notebook

from warp_nb.report.page import mathml, notebook_html, safe_html, safe_markdown

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_hostile_text_neither_runs_nor_fetches() -> None:
    found = Outline(notebook_html(hostile_notebook(), "x"))
    assert "details" in found.tags
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(found.tags)
    assert not found.handlers
    assert found.addresses and all(address.startswith("data:") for address in found.addresses)


@pytest.mark.parametrize("make", [safe_html, safe_markdown])
@pytest.mark.parametrize("text", HOSTILE)
def test_every_hostile_text_is_tamed_alone(text: str, make: Callable[[str], str]) -> None:
    made = make(f"<p>до</p>\n\n{text}\n\n<p>после</p>")
    found = Outline(made)
    assert "до" in made and "после" in made
    assert not {"script", "style", "iframe", "svg"} & set(found.tags), made
    assert not found.handlers and not found.addresses, made
    assert "javascript:" not in made


def test_tables_and_pictures_survive_cleaning() -> None:
    source = '<table class="x"><tr><td colspan="2">да</td></tr></table><img src="data:image/png;base64,AA==">'
    assert Outline(safe_html(source)).tags == ["table", "tbody", "tr", "td", "img"]
    assert 'colspan="2"' in safe_html(source) and "data:image/png" in safe_html(source)


def test_equations_become_mathml() -> None:
    text = safe_markdown("Пусть $r_\\beta < 1$ и\n\n$$\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}$$")
    assert Outline(text).tags.count("math") == 2 and "mtable" in Outline(text).tags and "$" not in text
    assert "&#x0003C;" in text and "<code>" not in text


def test_an_unreadable_equation_is_shown_as_code() -> None:
    assert mathml("a & <b", True) == "<code>a &amp; &lt;b</code>"


def test_every_equation_of_the_notebooks_is_readable() -> None:
    cells = [cell for path in NOTEBOOKS.rglob("*.ipynb") for cell in nbformat.read(path, as_version=4).cells]
    prose = "\n\n".join(re.sub(r"`[^`]*`", "", cell.source) for cell in cells if cell.cell_type == "markdown")
    equations = re.findall(r"\$\$?([^$]+)\$\$?", prose)
    assert len(equations) > 50
    assert [one for one in equations if not mathml(one, False).startswith("<math")] == []


def test_a_page_is_russian_forbids_the_network_and_escapes_its_title() -> None:
    text = notebook_html(new_notebook(metadata={"title": "<b>Т</b>"}), "x", "<footer>низ</footer>")
    assert '<html lang="ru">' in text and "width=device-width" in text
    assert "<title>&lt;b&gt;Т&lt;/b&gt;</title>" in text and "<footer>низ</footer>" in text
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
