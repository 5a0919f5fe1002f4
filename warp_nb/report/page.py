"""An executed notebook as one HTML file without scripts or downloads; text of models cannot inject HTML.

Equations become MathML and are readable offline. Raw HTML in Markdown cells and outputs passes an
allow-list; a content security policy also forbids scripts and every network address.
"""

from __future__ import annotations

import html
import re
import secrets
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from bs4.element import PreformattedString
from jinja2 import select_autoescape
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from warp_nb.notebook import prose
from warp_nb.notebook.prose import visible

_TEMPLATES = Path(__file__).parent / "templates"
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
DROPPED = ("script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "math", "form", "title")
TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s "
    "small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
COMMON_ATTRIBUTES = {"class", "id", "title"}
ATTRIBUTES = {
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
}
LINK = re.compile(r"(?:https?|mailto):.*|[^:]*(?:[/?#].*)?", re.IGNORECASE)
"""An address of one of these schemes, or one without a scheme."""
PICTURE = re.compile(r"data:image/(?:png|jpeg|gif);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE)
OUTCOME = "outcome"
"""Tag of the cells with which a page opens, behind its title; in the notebook they follow the run."""
COLOUR = re.compile(r"\x1b\[[\d;]*m")
MATHML_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
MATHML = frozenset(
    "math mrow mi mn mo ms mtext mspace msub msup msubsup mfrac msqrt mroot mover munder munderover mtable mtr mtd "
    "mstyle mpadded mphantom menclose".split()
)


def safe_html(source: str) -> str:
    """Reduce HTML to the allowed tags and attributes; scripts, styles and comments are removed with their content.

    A picture must be a PNG, JPEG or GIF in a data address; a link may be relative, http, https or mailto. The source is
    parsed once: what is returned is written from the tree that was cleaned, with all of its text escaped.
    """
    soup = BeautifulSoup(source, "html.parser")
    for note in [part for part in soup.descendants if isinstance(part, PreformattedString)]:
        note.extract()
    for element in soup(list(DROPPED)):
        element.decompose()
    for element in soup(True):
        if element.name == "img" and not PICTURE.fullmatch(str(element.get("src", ""))):
            element.decompose()
        elif element.name in TAGS:
            element.attrs = allowed_attributes(element)
        else:
            element.unwrap()
    return visible(str(soup))


def allowed_attributes(element: Tag) -> dict[str, Any]:
    """Return the attributes of an element that are allowed; a link to a place of another kind loses its address."""
    allowed = COMMON_ATTRIBUTES | ATTRIBUTES.get(element.name, set())
    kept = {name: value for name, value in element.attrs.items() if name in allowed}
    read_by_browsers = re.sub(r"[\x00-\x20\x7f-\xa0]", "", str(kept.get("href", "")))
    if not LINK.fullmatch(read_by_browsers):
        del kept["href"]
    return kept


def mathml(latex: str, block: bool) -> str:
    """Convert LaTeX to MathML, or to escaped code if it cannot be parsed or gives anything but MathML."""
    code = f"<code>{html.escape(latex)}</code>"
    source = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", latex)
    try:
        found = convert(source, display="block" if block else "inline")
        root = ElementTree.fromstring(found)
    except Exception:  # the converter documents no list of its errors
        return code
    named = {element.tag.removeprefix(MATHML_NAMESPACE) for element in root.iter()}
    attributes = {name for element in root.iter() for name in element.attrib}
    unsafe = any(name.startswith("on") or name in ("href", "style") for name in attributes)
    return found if named <= MATHML and not unsafe else code


class _Renderer(IPythonRenderer):
    """Puts a placeholder in the place of an equation, so that cleaning never sees MathML."""

    def __init__(self) -> None:
        super().__init__(escape=False, exclude_anchor_links=True)
        self.key = secrets.token_hex(8)
        self.equations: list[str] = []

    def _place(self, latex: str, block: bool) -> str:
        self.equations.append(mathml(latex, block))
        return f"{self.key}n{len(self.equations) - 1}n"

    def block_math(self, body: str) -> str:
        return self._place(body, True)

    def inline_math(self, body: str) -> str:
        return self._place(body, False)

    def latex_environment(self, name: str, body: str) -> str:
        return self._place(rf"\begin{{{name}}}{body}\end{{{name}}}", True)

    def block_mermaidjs(self, code: str) -> str:
        return f"<pre>{html.escape(code)}</pre>"


def safe_markdown(source: str) -> str:
    """Render Markdown with equations to clean HTML."""
    renderer = _Renderer()
    cleaned = safe_html(MarkdownWithMath(renderer=renderer).render(source))
    return re.sub(rf"{renderer.key}n(\d+)n", lambda found: renderer.equations[int(found[1])], cleaned)


def notebook_html(notebook: nbformat.NotebookNode, title: str, footer: str = "") -> str:
    """Render an executed notebook to one self-contained page; `footer` is trusted HTML."""
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(_TEMPLATES)],
        language_code="ru",
        filters={"safe_markdown": safe_markdown, "safe_html": safe_html},
    )
    resources: dict[str, Any] = {
        "metadata": {"name": title},
        "report_css": stylesheet(),
        "report_footer": footer,
        "content_policy": CONTENT_POLICY,
        "outcome": OUTCOME,
    }
    return str(exporter.from_notebook_node(outcome_first(readable(notebook)), resources=resources)[0])


def outcome_first(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Move the cells with the tag OUTCOME below the first cell, so that a page opens with what was found."""
    first, *others = notebook.cells or [None]
    moved = [cell for cell in others if OUTCOME in cell.metadata.get("tags", [])]
    if moved:
        notebook.cells = [first, *moved, *(cell for cell in others if cell not in moved)]
    return notebook


def readable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook with all of its text visible; only tracebacks keep their colours."""
    whole = nbformat.from_dict(each_string(notebook, visible))
    for cell, source in zip(whole.cells, notebook.cells, strict=True):
        for output, given in zip(cell.get("outputs", []), source.get("outputs", []), strict=True):
            if output.output_type == "error":
                output.traceback = [coloured(line) for line in given.traceback]
    return whole


def coloured(line: str) -> str:
    """Make a line of a traceback visible, but for the escape codes of colours."""
    return "".join(part if COLOUR.fullmatch(part) else visible(part) for part in re.split(rf"({COLOUR.pattern})", line))


def each_string(value: Any, change: Any) -> Any:
    """Apply `change` to every string in a nested value, but not to keys."""
    if isinstance(value, dict):
        return {key: each_string(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [each_string(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


PAGE_ENVIRONMENT = prose.environment(_TEMPLATES, autoescape=select_autoescape(["html.j2"]), keep_trailing_newline=True)
PAGE_ENVIRONMENT.filters["markdown"] = safe_markdown


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package; values that are not marked safe are escaped, and all text is visible."""
    return visible(PAGE_ENVIRONMENT.get_template(template).render(**values))


def footer(result: dict[str, Any]) -> str:
    """Render from a result file how to repeat the run and what it ran on, as HTML; a failure is stated first."""
    return rendered("footer.html.j2", result=result)


def stylesheet() -> str:
    """Return the one style sheet of all pages."""
    return (_TEMPLATES / "report.css").read_text(encoding="utf-8")
