"""Pages are safe and self-contained; equations are readable."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from warp_nb.report.page import mathml, notebook_html, page, safe_html, safe_markdown
from warp_nb.report.results import ROOT


class Outline(HTMLParser):
    """Tags, addresses and event handlers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<a href='javascript:alert(1)'>x</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "$\\text{<script>alert(1)</script>}$",
    "$$\\text{</math><img src=x onerror=alert(1)>}$$",
    "<iframe src='https://example.org'></iframe>",
    "<style>@import 'https://example.org/x.css'</style>",
    "![x](https://example.org/x.png)",
    "</textarea></pre><script>alert(1)</script>",
    "`x` ``` ~~~ <script>alert(1)</script>",
    "\u202e<b onclick=alert(1)>gnp.exe",
    "nul \x00<script\x00>alert(1)</script>",
    "lone \ud800<script>alert(1)</script>",
    "```mermaid\n</pre><script>alert(1)</script>\n```",
]


def hostile_notebook() -> nbformat.NotebookNode:
    cells = [new_markdown_cell(text) for text in HOSTILE]
    for text in HOSTILE:
        outputs = [
            new_output("display_data", data={"text/html": text, "text/plain": text}),
            new_output("display_data", data={"text/markdown": text}),
            new_output("display_data", data={"text/latex": text}),
            new_output("display_data", data={"image/svg+xml": text}),
            new_output("display_data", data={"text/vnd.mermaid": text}),
            new_output("display_data", data={"application/javascript": "alert(1)"}),
            new_output("stream", text=text),
        ]
        cells.append(new_code_cell(f"print({text!r})", outputs=outputs))
    return new_notebook(cells=cells, metadata={"title": "<script>alert(1)</script>"})


def test_hostile_text_neither_runs_nor_fetches() -> None:
    found = Outline(notebook_html(hostile_notebook(), "x", ""))
    assert "details" in found.tags
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(found.tags)
    assert not found.handlers
    assert found.addresses and all(address.startswith("data:") for address in found.addresses)


@pytest.mark.parametrize("text", HOSTILE)
def test_every_hostile_text_is_tamed_alone(text: str) -> None:
    for made in (safe_html(text), safe_markdown(text)):
        found = Outline(made)
        assert not {"script", "style", "iframe", "svg"} & set(found.tags), made
        assert not found.handlers and not found.addresses, made
        assert "javascript:" not in made


def test_tables_and_pictures_survive_cleaning() -> None:
    source = '<table class="x"><tr><td colspan="2">да</td></tr></table><img src="data:image/png;base64,AA==">'
    assert Outline(safe_html(source)).tags == ["table", "tbody", "tr", "td", "img"]
    assert 'colspan="2"' in safe_html(source) and "data:image/png" in safe_html(source)


def test_equations_become_mathml() -> None:
    text = safe_markdown("Пусть $r_\\beta < 1$ и\n\n$$\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}$$")
    assert text.count("<math") == 2 and "<mtable" in text and "$" not in text
    assert "&#x0003C;" in text and "<code>" not in text


def test_an_unreadable_equation_is_shown_as_code() -> None:
    assert mathml("a & <b", True) == "<code>a &amp; &lt;b</code>"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_equation_of_the_notebooks_is_readable(path: Path) -> None:
    source = "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    plain = re.sub(r"`[^`]*`", "", source)
    unreadable = [e for e in re.findall(r"\$\$?([^$]+)\$\$?", plain) if not mathml(e, False).startswith("<math")]
    assert not unreadable


def test_pages_are_russian_and_forbid_the_network() -> None:
    for text in (page("Т", "<p>x</p>"), notebook_html(new_notebook(), "Т")):
        assert '<html lang="ru">' in text and "Content-Security-Policy" in text
        assert "default-src 'none'" in text and "width=device-width" in text
