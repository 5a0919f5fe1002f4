"""Pages of notebooks are safe and self-contained; equations are readable."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pages import HOSTILE, Outline, hostile_notebook, links

from warp_nb.notebook.prose import UNSEEN
from warp_nb.report.page import OUTCOME, mathml, notebook_html, outcome_first, safe_html, safe_markdown

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_hostile_text_neither_runs_nor_fetches() -> None:
    found = Outline(page := notebook_html(hostile_notebook(), "x"))
    assert "details" in found.tags
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(found.tags)
    assert not found.handlers
    assert found.addresses and all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert "red" in page and not UNSEEN.search(page)


@pytest.mark.parametrize("make", [safe_html, safe_markdown])
@pytest.mark.parametrize("text", HOSTILE)
def test_every_hostile_text_is_tamed_alone(text: str, make: Callable[[str], str]) -> None:
    made = make(f"<p>до</p>\n\n{text}\n\n<p>после</p>")
    found = Outline(made)
    assert "до" in made and "после" in made
    assert not {"script", "style", "iframe", "svg"} & set(found.tags), made
    assert not found.handlers and not found.addresses, made
    assert "javascript:" not in made
    assert not [address for address in links(made) if not address.startswith(("http:", "https:", "mailto:"))]
    assert not UNSEEN.search(made)


def test_tables_and_pictures_survive_cleaning() -> None:
    source = '<table class="x"><tr><td colspan="2">да</td></tr></table><img src="data:image/png;base64,AA==">'
    assert Outline(safe_html(source)).tags == ["table", "tr", "td", "img"]
    assert 'colspan="2"' in safe_html(source) and "data:image/png" in safe_html(source)


@pytest.mark.parametrize(
    "address", ["#a:b", "a/b:c", "?q=a:b", "//x.org", "HTTPS://x.org", "mailto:a@x.org", "exp1.html"]
)
def test_links_to_pages_survive_cleaning(address: str) -> None:
    assert links(safe_html(f"<a href='{address}'>x</a>")) == {address: "x"}


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "svg+xml", "webp"])
def test_pictures_of_three_kinds_survive_cleaning(kind: str) -> None:
    kept = safe_html(f"<img src='data:image/{kind};base64,AA=='><img src='data:image/{kind},AA'>")
    assert Outline(kept).tags == ["img"] * (kind in ("png", "jpeg", "gif"))


def test_what_is_written_is_read_again_as_it_is() -> None:
    """Cleaning what was cleaned changes nothing: no text becomes a tag."""
    for text in (*HOSTILE, "&lt;img src=x&gt; &amp;lt;b&amp;gt;", "<b><i></b></i>", "<td>x", "a<b>" * 2000):
        assert safe_html(once := safe_html(text)) == once


def test_colours_of_a_traceback_stay() -> None:
    error = new_output("error", ename="E", evalue="x", traceback=["\x1b[31mE\x1b[39m: \u202ex"])
    page = notebook_html(new_notebook(cells=[new_code_cell("x", outputs=[error])]), "x")
    assert '<span class="ansi-red-fg">E</span>: \\u202ex' in page


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


def test_a_page_opens_with_the_outcome_without_its_code_and_the_notebook_stays() -> None:
    title, run, found = new_markdown_cell("# T"), new_code_cell("run()"), new_code_cell("found()")
    words = new_markdown_cell("## Result")
    words.metadata["tags"] = found.metadata["tags"] = [OUTCOME]
    found.outputs = [new_output("display_data", {"text/markdown": "Награда выросла."})]
    notebook = new_notebook(cells=[title, run, words, found])
    page = notebook_html(notebook, "x")
    body = page[page.index("<main>") :]
    places = [body.index(text) for text in (">T<", ">Result<", "Награда выросла.", "run")]
    assert places == sorted(places) and "found" not in body
    assert [cell.source for cell in notebook.cells] == ["# T", "run()", "## Result", "found()"]
    assert not outcome_first(new_notebook()).cells


def test_a_page_is_russian_forbids_the_network_and_escapes_its_title() -> None:
    text = notebook_html(new_notebook(metadata={"title": "<b>Т</b>"}), "x", "<footer>низ</footer>")
    assert '<html lang="ru">' in text and "width=device-width" in text
    assert "<title>&lt;b&gt;Т&lt;/b&gt;</title>" in text and "<footer>низ</footer>" in text
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
