"""The pages in headless Chromium: they fit, read, fetch nothing and run no foreign script.

A page is shown in a frame as wide as the screen, under its own content security policy; the page around
it measures. What the page asked for is read from its own resource timing; Chromium's proxy is the test's
own server, so a request to any host ends here, those that Chromium makes for itself among them.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chromium import CHROMIUM
from fronts import DOUBLE, LINE, comparison
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pages import HOSTILE, hostile_notebook
from synthetic import diagnosis_record, results

from warp_nb.files import write_json
from warp_nb.report.command import write_document
from warp_nb.report.page import CONTENT_POLICY, notebook_html, stylesheet
from warp_nb.report.printing import print_pdf

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
WIDTHS = [1280, 390]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1400,1000"
).split()
PLANTED = {
    "http://planted.invalid/x.png": "<img src='http://planted.invalid/x.png'>",
    "https://planted.invalid/x.js": "<script src='https://planted.invalid/x.js'></script>",
    "http://planted.invalid/x.css": "<link rel='stylesheet' href='http://planted.invalid/x.css'>",
    "http://planted.invalid/x.woff": "<style>@font-face{font-family:f;src:url(http://planted.invalid/x.woff)}"
    "b{font-family:f}</style><b>x</b>",
    "http://planted.invalid/frame": "<iframe src='http://planted.invalid/frame'></iframe>",
}
"""Addresses that a page may ask for, with the markup that does it."""
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe src="/page" style="border:0;width:%dpx;height:900px" onload="measure(this)"></iframe><pre id="out"></pre>
<script>
function glyph(character, font) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  pen.font = "32px " + font; pen.fillText(character, 8, 40);
  return canvas.toDataURL();
}
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const scrolls = e => ["auto", "scroll"].includes(view.getComputedStyle(e).overflowX);
  const inside = e => { for (let p = e.parentElement; p; p = p.parentElement) if (scrolls(p)) return true; };
  const wide = [...page.body.querySelectorAll("*")].filter(
    e => e.getBoundingClientRect().right > root.clientWidth + 1 && !inside(e)).map(e => e.tagName);
  const blocks = [...page.querySelector("main").children].map(e => e.getBoundingClientRect()).filter(r => r.height);
  const overlaps = blocks.slice(1).filter((r, i) => r.top < blocks[i].bottom - 1).length;
  const font = view.getComputedStyle(page.body).fontFamily;
  const missing = glyph("\\u{10FFFD}", font);
  document.getElementById("out").textContent = JSON.stringify({
    scroll: root.scrollWidth - root.clientWidth, width: root.clientWidth, wide, overlaps,
    executed: "executed" in view || "executed" in window, text: page.body.innerText.length,
    missing: [..."ЖЯёщθΩ"].filter(c => glyph(c, font) === missing),
    fetched: view.performance.getEntriesByType("resource").map(e => e.name),
    broken: [...page.images].filter(i => !i.naturalWidth).length,
    equations: [...page.querySelectorAll("math")].map(e => e.getBoundingClientRect().height)});
}
</script>"""


class Site:
    """One page and its measuring frame on localhost; `foreign` lists every other request."""

    def __init__(self) -> None:
        self.page, self.frame, self.foreign = b"", b"", list[str]()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = {"/page": site.page, "/": site.frame}.get(self.path)
                if content is None and self.path != "/favicon.ico":
                    site.foreign.append(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(content or b"")

            def do_CONNECT(self) -> None:
                site.foreign.append(self.path)
                self.send_error(403)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def measure(self, content: str, width: int, profile: Path, frame: str = MEASURE) -> dict:
        """What Chromium found in `content`, by the script of `frame`, shown `width` pixels wide."""
        assert CHROMIUM, "Chromium is missing: apt-get install chromium"
        self.page, self.frame = content.encode(), frame.replace("%d", str(width)).encode()
        self.foreign.clear()
        address = f"127.0.0.1:{self.server.server_port}"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--proxy-server=http://{address}"]
        done = subprocess.run(
            [*command, "--dump-dom", f"http://{address}/"], capture_output=True, text=True, check=True, timeout=120
        )
        found = re.search(r'<pre id="out">(.+?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()


def faults(found: dict) -> list[str]:
    """What is wrong with a measured page, in words."""
    wrong = [f"{key}: {found[key]}" for key in ("wide", "overlaps", "executed", "missing", "broken") if found[key]]
    if found["scroll"] > 0:
        wrong.append(f"sideways scroll of {found['scroll']} px")
    if not found["text"]:
        wrong.append("no text")
    if any(height < 5 for height in found["equations"]):
        wrong.append("an equation without height")
    return wrong + [f"fetched {address}" for address in found["fetched"] if not address.startswith("data:")]


def sample() -> str:
    """A page with everything the notebooks show, each too wide for a telephone."""
    table = "<table>" + "<tr>" + "".join(f"<td>значение_{i}</td>" for i in range(30)) + "</tr></table>"
    wide = '<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="200"><rect width="2000" height="200"/></svg>'
    cells = [
        new_markdown_cell("# Заголовок\n\n$$r_\\beta(y) = r(x,y) - \\beta \\log\\frac{\\pi_\\theta}{\\pi_{ema}}$$"),
        new_markdown_cell("| " + " | ".join(["столбец"] * 20) + " |\n|" + "-|" * 20 + "\n"),
        new_code_cell("x = " + "1 + " * 100 + "1", outputs=[new_output("stream", text="длинная_строка " * 40)]),
        new_code_cell("t", outputs=[new_output("display_data", data={"text/html": table})]),
        new_code_cell("p", outputs=[new_output("display_data", data={"image/svg+xml": wide})]),
    ]
    return notebook_html(new_notebook(cells=cells), "Проба", "<footer>" + "слово" * 60 + "</footer>")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_wide_page_fits(site: Site, width: int, tmp_path: Path) -> None:
    found = site.measure(sample(), width, tmp_path)
    assert found["width"] == width and len(found["equations"]) == 1
    assert not faults(found)


def test_hostile_text_does_nothing(site: Site, tmp_path: Path) -> None:
    found = site.measure(notebook_html(hostile_notebook(), "x").replace("alert(1)", "top.executed=1"), 390, tmp_path)
    assert found["text"] and not found["executed"] and not found["scroll"]
    assert not [address for address in site.foreign if "example.org" in address or address.endswith("/x")]


def test_the_measurement_sees_planted_faults(site: Site, tmp_path: Path) -> None:
    body = "<div style='width:600px'>широко</div>" + "".join(PLANTED.values())
    body += "<p style='margin-top:-3em'>x</p>"
    text = f"<!DOCTYPE html><style>{stylesheet()}</style><main>{body}</main><script>executed = 1</script>{HOSTILE[0]}"
    wrong = " ".join(faults(site.measure(text.replace("alert(1)", ""), 390, tmp_path)))
    for word in ("sideways", "wide", "overlaps", "executed", "broken", *(f"fetched {address}" for address in PLANTED)):
        assert word in wrong
    assert {address for address in PLANTED if address.startswith("http:")} <= set(site.foreign)
    assert "planted.invalid:443" in site.foreign


@pytest.mark.parametrize("width", WIDTHS)
def test_the_policy_stops_scripts_that_cleaning_would_miss(site: Site, width: int, tmp_path: Path) -> None:
    head = f'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
    body = "<p>текст</p><script>executed = 1</script><img src='http://planted.invalid/x.png'>"
    text = f"{head}<style>{stylesheet()}</style><main>{body}</main>"
    found = site.measure(text, width, tmp_path)
    assert not found["executed"] and found["broken"] == 1
    assert "http://planted.invalid/x.png" not in site.foreign


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", sorted((ROOT / "reports").rglob("*.html")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_report_fits(site: Site, path: Path, width: int, tmp_path: Path) -> None:
    found = site.measure(path.read_text(encoding="utf-8"), width, tmp_path)
    assert not faults(found)


ANCHORS = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe src="/page" style="border:0;width:%dpx;height:900px" onload="measure(this)"></iframe><pre id="out"></pre>
<script>
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, missed = [];
  for (const link of page.querySelectorAll("nav.contents a")) {
    link.click();
    const top = page.getElementById(link.hash.slice(1)).getBoundingClientRect().top;
    const end = view.scrollY + view.innerHeight >= page.documentElement.scrollHeight - 1;
    if (Math.abs(top) > 2 && !end) missed.push(link.hash + " at " + top);
  }
  const links = page.querySelectorAll("nav.contents a").length;
  document.getElementById("out").textContent = JSON.stringify({missed, links});
}
</script>"""
"""A frame that follows every link of the contents and says which did not land at its heading."""


@pytest.fixture(scope="module")
def document_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document of synthetic results, all but experiment 2."""
    folder = tmp_path_factory.mktemp("document")
    found = results() | {"diagnosis": diagnosis_record()}
    fifth = comparison([DOUBLE], [LINE], [LINE]).to_json() | {"conclusion": []}
    found["exp5"] = fifth | {"run": found["exp1"]["run"]}
    del found["exp2"]
    for name, one in found.items():
        write_json(folder / f"{name}.result.json", one)
    write_document(folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_document_fits(site: Site, document_page: Path, width: int, tmp_path: Path) -> None:
    found = site.measure(document_page.read_text(encoding="utf-8"), width, tmp_path)
    assert found["width"] == width and not faults(found)


def test_the_links_of_the_contents_land(site: Site, document_page: Path, tmp_path: Path) -> None:
    found = site.measure(document_page.read_text(encoding="utf-8"), 390, tmp_path, frame=ANCHORS)
    assert found["links"] == 27 and not found["missed"]


def test_the_document_is_printed_on_a_page_per_experiment_or_more(document_page: Path) -> None:
    pdf = document_page.with_suffix(".pdf")
    print_pdf(document_page, pdf)
    pages = re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())
    assert 7 <= len(pages) <= 20, "the first page, five experiments, the diagnosis, the appendices"
