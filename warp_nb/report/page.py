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

import bleach
import nbformat
from bs4 import BeautifulSoup
from jinja2 import select_autoescape
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from warp_nb.notebook import prose

_TEMPLATES = Path(__file__).parent / "templates"
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
DROPPED = ("script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "math", "form", "title")
TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s "
    "small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
ATTRIBUTES = {
    "*": ["class", "id", "title"],
    "a": ["href"],
    "img": ["src", "alt", "width", "height"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan", "scope"],
}
MATHML_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
MATHML = frozenset(
    "math mrow mi mn mo ms mtext mspace msub msup msubsup mfrac msqrt mroot mover munder munderover mtable mtr mtd "
    "mstyle mpadded mphantom menclose".split()
)


def safe_html(source: str) -> str:
    """Reduce HTML to the allowed tags and attributes; scripts and styles are removed with their content.

    An image must be a data address; a link may be relative, http, https or mailto.
    """
    soup = BeautifulSoup(source, "html.parser")
    for element in soup(list(DROPPED)):
        element.decompose()
    for image in soup("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.decompose()
    return bleach.clean(
        str(soup), tags=TAGS, attributes=ATTRIBUTES, protocols={"http", "https", "mailto", "data"}, strip=True
    )


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
    }
    whole = nbformat.from_dict(each_string(notebook, encodable))
    return encodable(exporter.from_notebook_node(whole, resources=resources)[0])


def each_string(value: Any, change: Any) -> Any:
    """Apply `change` to every string in a nested value, but not to keys."""
    if isinstance(value, dict):
        return {key: each_string(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [each_string(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def encodable(text: str) -> str:
    """Replace every lone surrogate, which UTF-8 cannot encode, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


PAGE_ENVIRONMENT = prose.environment(_TEMPLATES, autoescape=select_autoescape(["html.j2"]), keep_trailing_newline=True)
PAGE_ENVIRONMENT.filters["markdown"] = safe_markdown


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package; values that are not marked safe are escaped."""
    return encodable(PAGE_ENVIRONMENT.get_template(template).render(**values))


def footer(result: dict[str, Any]) -> str:
    """Render from a result file how to repeat the run and what it ran on, as HTML; a failure is stated first."""
    return rendered("footer.html.j2", result=result)


def stylesheet() -> str:
    """Return the one style sheet of all pages."""
    return (_TEMPLATES / "report.css").read_text(encoding="utf-8")
