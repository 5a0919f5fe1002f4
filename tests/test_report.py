"""Reports: pages that are safe and self-contained, runs that fail loudly, tables that are recomputed."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic import result as synthetic

from warp_nb import report
from warp_nb.experiment import ExperimentResult
from warp_nb.original import ASSUMED_TASK, ROWS
from warp_nb.page import mathml, notebook_html, page, safe_html, safe_markdown
from warp_nb.weights import write_json

PARAMETERS = 'task: str = "small"  # x\nn_seeds: int = 1  # x\nout_dir: str = ""  # x\nresult_file: str = ""  # x\n'


def record() -> dict[str, Any]:
    """The JSON of an experiment that never ran."""
    made = synthetic()
    shared = {name: getattr(made, name) for name in ExperimentResult.__dataclass_fields__ if hasattr(made, name)}
    return ExperimentResult(**shared, seconds=12.0, peak_rss_mb=900.0).to_json()


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


@pytest.mark.parametrize("path", sorted((report.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_equation_of_the_notebooks_is_readable(path: Path) -> None:
    source = "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    plain = re.sub(r"`[^`]*`", "", source)
    unreadable = [e for e in re.findall(r"\$\$?([^$]+)\$\$?", plain) if not mathml(e, False).startswith("<math")]
    assert not unreadable


def test_pages_are_russian_and_forbid_the_network() -> None:
    for text in (page("Т", "<p>x</p>"), notebook_html(new_notebook(), "Т")):
        assert '<html lang="ru">' in text and "Content-Security-Policy" in text
        assert "default-src 'none'" in text and "width=device-width" in text


def write_notebook(folder: Path, name: str, last: str) -> None:
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell("import sys, tempfile\nprint(sys.prefix + '/lib', tempfile.gettempdir() + '/x')"),
        new_code_cell(last),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of one good, one raising, one silent and one dying notebook."""
    folder = tmp_path_factory.mktemp("made")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    good = folder / "good.json"
    write_json(good, record())
    write_notebook(notebooks, "exp1", f"import shutil\nshutil.copy({str(good)!r}, result_file)")
    write_notebook(notebooks, "exp2", "raise ValueError('<b>bad</b> lr')")
    write_notebook(notebooks, "exp3", "1 + 1")
    write_notebook(notebooks, "exp4", "import os\nos._exit(1)")
    out = folder / "reports"
    stale = out / "small" / "exp2.result.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(good.read_text())
    code = report.main(["--notebooks", str(notebooks), "--out", str(out), "--task", "small", "--seeds", "2"])
    assert code == 1
    return out / "small"


@pytest.mark.slow
def test_only_a_whole_run_counts(reports: Path) -> None:
    statuses = {name: report.read_result(reports / f"{name}.result.json")["status"] for name in report.EXPERIMENTS}
    assert statuses == {"exp1": "ok", "exp2": "failed", "exp3": "failed", "exp4": "failed"}
    assert json.loads((reports / "result.json").read_text())["status"] == "failed"
    index = (reports / "index.html").read_text()
    assert index.count("не закончен") >= 3 and "&lt;b&gt;bad&lt;/b&gt; lr" in index
    assert "exp1.html" in index and 'href="exp2.html"' not in index
    assert "Прогон не закончен: ValueError" in (reports / "exp2.html").read_text()
    assert "(ячейка [4]: raise ValueError(" in index and "(ячейка [4]: import os)" in index


@pytest.mark.slow
def test_a_notebook_that_hangs_is_ended_and_the_report_says_where(tmp_path: Path) -> None:
    write_notebook(tmp_path, "exp1", "import time\ntime.sleep(600)")
    started = time.monotonic()
    code = report.main(["exp1", "--notebooks", str(tmp_path), "--out", str(tmp_path), "--task", "x", "--timeout", "3"])
    assert code == 1 and time.monotonic() - started < 60
    index = (tmp_path / "x" / "index.html").read_text()
    assert "CellTimeoutError" in index and "(ячейка [4]: import time)" in index


@pytest.mark.slow
def test_what_is_kept_names_no_folder_of_this_machine(reports: Path) -> None:
    for path in reports.rglob("*.*"):
        if path.suffix in (".ipynb", ".html", ".json"):
            text = path.read_text()
            for folder in (report.sys.prefix, report.tempfile.gettempdir(), str(report.ROOT)):
                assert f"{folder}/" not in text, path.name
            assert 'result_file = "' not in text
    assert not list(reports.glob(".*"))


@pytest.mark.slow
def test_the_page_tells_how_to_repeat(reports: Path) -> None:
    text = (reports / "exp1.html").read_text()
    assert "python -m warp_nb.report exp1 --task small --seeds 2" in text
    for word in ("torch", "потоков", "seed", "Длительность", "Память процесса"):
        assert word in text


def results() -> dict[str, dict[str, Any]]:
    one = record() | {"run": {"command": "x", "seconds": 1.0, "cores": 2, "memory_gb": 8.0}}
    return {name: json.loads(json.dumps(one)) for name in report.EXPERIMENTS}


def test_the_index_says_whether_the_original_order_of_kl_is_kept() -> None:
    made = results()
    for name, value in zip(report.EXPERIMENTS, (1e-7, 1e-5, 9.0, 0.1), strict=True):
        made[name]["summary"]["kl_reference_policy"]["value"] = value
    assert "в том же порядке, что в исходном отчёте: 1, 2, 4, 3." in report.kl_order(made)
    made["exp4"]["summary"]["kl_reference_policy"]["value"] = 90.0
    assert "в другом порядке, чем в исходном отчёте: 1, 2, 3, 4, а там 1, 2, 4, 3." in report.kl_order(made)
    assert report.kl_order(made | {"exp1": {"status": "failed"}}) == ""


def test_a_merged_result_is_ok_only_when_all_are(tmp_path: Path) -> None:
    for name, one in results().items():
        write_json(tmp_path / f"{name}.result.json", one)
    assert report.summarise("small", tmp_path)["status"] == "ok"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "exp3.result.json").write_text('{"status": "ok"')
    assert report.summarise("small", tmp_path)["status"] == "failed"


def test_a_failed_check_is_named_in_the_index() -> None:
    one = results()["exp1"]
    one["checks"][0] |= {"passed": False, "applies": True}
    assert one["checks"][0]["title"] in report.index_row("exp1", one)
    assert "не пройдены" not in report.index_row("exp1", results()["exp1"])


def test_the_index_counts_the_checks_that_did_not_apply() -> None:
    checks = [{"title": "x", "passed": True, "applies": True}] * 21
    assert report.index_checks(checks) == "<td>пройдена 21</td>"
    silent = {"title": "y", "passed": True, "applies": False}
    assert report.index_checks([*checks[:14], silent]) == "<td>пройдено 14, неприменима 1</td>"
    assert report.index_checks([*checks[:2], silent, silent]) == "<td>пройдены 2, неприменимы 2</td>"


def test_the_index_tells_what_was_run_and_what_of_it_was_assumed() -> None:
    one = results()["exp1"]
    one["config"] |= {"lr": 2e-5, "warmup_steps": 3}
    assert "lr = 2·10⁻⁵, прогрев 3 шага; принято нами: длина прогрева" in report.index_row("exp1", one)
    row = report.index_row("exp2", one | {"config": one["config"] | {"warmup_steps": 0}})
    assert "без прогрева" in row and "принято нами" not in row
    page = report.index("small", results(), {})
    assert page.count("принята нами: задача, размер пакета") == 1


def test_what_was_assumed_of_single_experiments_stands_under_the_readme_table() -> None:
    own = {f"exp{n}" for n, row in ROWS.items() if set(row.assumed) != {ASSUMED_TASK}}
    assert own == report.ASSUMED_ENGLISH.keys() - {"all"}
    last = report.readme_table({"task": "small", "experiments": results()}).splitlines()[-1]
    assert "exp1 (100 steps" in last and "exp4 (0.0001," in last and "temperature" in last


def test_the_readme_table_holds_the_measured_numbers() -> None:
    merged = {"task": "small", "experiments": results()}
    merged["experiments"]["exp2"] = {"status": "failed"}
    merged["experiments"]["exp1"]["summary"]["reward_policy"] = {"value": 1.2345, "low": None, "high": 2.0}
    lines = report.readme_table(merged).splitlines()
    assert "1.23 [?, 2]" in lines[2] and "not finished" in lines[3]


def test_the_readme_table_equals_the_recomputed_one() -> None:
    readme = (report.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.README_MARKS.search(readme)
    assert report.filled(readme, report.ROOT / "reports") == readme, "run `make readme`"


@pytest.mark.parametrize("argv", [["exp9"], ["--task", "../x"], ["--task", ""]])
def test_wrong_arguments_are_refused_before_anything_runs(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main(argv)
    assert stopped.value.code == 2


def test_a_progress_bar_leaves_nothing_and_other_output_stays(tmp_path: Path) -> None:
    texts = ["\r 0%|  | 0/2", "\r50%|# | 1/2\r", "      \r"]
    bar = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in texts]
    said = nbformat.v4.new_output("stream", name="stdout", text="first\r\nhalf\rwhole\n")
    records = {"execution": {"iopub.status.busy": "2026"}, "papermill": {"status": "completed"}}
    cell = nbformat.v4.new_code_cell("work()", outputs=[*bar, said], metadata=records)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "exp.ipynb")
    assert report.main(["--scrub", "--notebooks", str(tmp_path)]) == 0
    (left,) = nbformat.read(tmp_path / "exp.ipynb", as_version=4).cells
    (kept,) = left.outputs
    assert kept.text == "first\r\nwhole\n" and not left.metadata
