"""How tests read what is shown: texts of tables, outline of a page; and text that attacks whoever shows it."""

from __future__ import annotations

from html.parser import HTMLParser

import nbformat
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>"
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
    "<!--><img src=https://example.org/x.png>-->",
    "<!-- --!><img src=https://example.org/x.png><!-- -->",
    "<![CDATA[<img src=https://example.org/x.png>]]>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript>",
    "<xmp><p title='</xmp><img src=x onerror=alert(1)>'></xmp>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<a href=' &#x6a;ava\tscript:alert(1)'>x</a> [x](vbscript:alert)",
    "<img src='data:image/svg+xml,<svg onload=alert(1)>'>",
    "![x](data:image/svg+xml;base64,PHN2Zz4=) <img src='data:text/html;base64,AA=='>",
    "\x1b[31mred\x1b]8;;https://example.org\x07link\x1b]8;;\x07 \x9b2J",
    "\u2066a\u200eb\u200bc\u2028d\ufeffe\u00adf\U000e0041g",
    "&#x202e;a &#8203;b &rlm;c &#27;[2Jd",
    "```mermaid\n</pre><script>alert(1)</script>\n```",
]


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


def tables(html: str) -> list[list[list[str]]]:
    """The texts of the cells, table by table, row by row."""
    found = BeautifulSoup(html, "html.parser").find_all("table")
    return [[[cell.get_text().strip() for cell in row(["td", "th"])] for row in table("tr")] for table in found]


def records(html: str) -> list[dict[str, str]]:
    """The rows of the only table, each as heading -> text."""
    ((headings, *rows),) = tables(html)
    return [dict(zip(headings, row, strict=True)) for row in rows]


def links(html: str) -> dict[str, str]:
    """Address -> text of every link."""
    return {link["href"]: link.get_text() for link in BeautifulSoup(html, "html.parser")("a", href=True)}


def hostile_notebook() -> nbformat.NotebookNode:
    """HOSTILE in every place that a notebook has for text."""
    cells = [new_markdown_cell(text) for text in HOSTILE]
    for text in HOSTILE:
        outputs = [
            new_output("display_data", data={"text/html": text, "text/plain": text}),
            new_output("display_data", data={"text/markdown": text}),
            new_output("display_data", data={"text/latex": text}),
            new_output("display_data", data={"image/svg+xml": text}),
            new_output("display_data", data={"image/png": text}),
            new_output("display_data", data={"text/vnd.mermaid": text}),
            new_output("display_data", data={"application/javascript": "alert(1)"}),
            new_output("stream", text=text),
            new_output("error", ename="ValueError", evalue=text, traceback=[f"\x1b[31mValueError\x1b[39m: {text}"]),
        ]
        cells.append(new_code_cell(f"print({text!r})", outputs=outputs))
    return new_notebook(cells=cells, metadata={"title": "<script>alert(1)</script>"})


def entries(html: str) -> dict[str, str]:
    """Title of an experiment -> what the page says of it."""
    soup = BeautifulSoup(html, "html.parser").select_one("dl.entries")
    said = [" ".join(part.get_text().split()) for part in soup(["dt", "dd"])]
    return dict(zip(said[::2], said[1::2], strict=True))
