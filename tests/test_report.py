"""Runs fail loudly, only a whole one counts, and what is kept can be repeated."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from synthetic import record, results

from warp_nb.report import command as report
from warp_nb.report.execution import link_back_
from warp_nb.report.results import EXPERIMENTS, ROOT, read_result
from warp_nb.runs.weights import write_json

PARAMETERS = 'task: str = "small"  # x\nn_seeds: int = 1  # x\nout_dir: str = ""  # x\nresult_file: str = ""  # x\n'


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
    statuses = {name: read_result(reports / f"{name}.result.json")["status"] for name in EXPERIMENTS}
    assert statuses == {"exp1": "ok", "exp2": "failed", "exp3": "failed", "exp4": "failed"}
    assert json.loads((reports / "result.json").read_text())["status"] == "failed"
    index = (reports / "index.html").read_text()
    assert index.count("не закончен") >= 3 and "&lt;b&gt;bad&lt;/b&gt; lr" in index
    assert "exp1.html" in index and 'href="exp2.html"' not in index
    linked = set(re.findall(r'href="(../../notebooks/[^"]+)"', index))
    assert linked == {f"../../notebooks/{name}.ipynb" for name in EXPERIMENTS}
    assert all((reports / link).exists() for link in linked)
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
            for folder in (sys.prefix, tempfile.gettempdir(), str(ROOT)):
                assert f"{folder}/" not in text, path.name
            assert 'result_file = "' not in text
    assert not list(reports.glob(".*"))


@pytest.mark.slow
def test_the_page_tells_how_to_repeat(reports: Path) -> None:
    text = (reports / "exp1.html").read_text()
    assert "python -m warp_nb.report exp1 --task small --seeds 2" in text
    for word in ("torch", "потоков", "seed", "Длительность", "Память процесса"):
        assert word in text


def test_links_of_a_notebook_lead_back_to_the_notebooks(tmp_path: Path) -> None:
    notebooks, folder = tmp_path / "notebooks", tmp_path / "reports" / "small"
    (notebooks / "lessons").mkdir(parents=True)
    for name in ("index", "lessons/lesson2"):
        (notebooks / f"{name}.ipynb").touch()
    text = "[a](index.ipynb#Словарь) [b](lessons/lesson2.ipynb) [c](https://x.org/index.ipynb) [d](exp9.ipynb) $f(x)$"
    cells = [new_markdown_cell(text), new_code_cell("'[a](index.ipynb)'")]
    link_back_(notebook := new_notebook(cells=cells), notebooks, folder)
    words, code = notebook.cells
    assert words.source == (
        "[a](../../notebooks/index.ipynb#Словарь) [b](../../notebooks/lessons/lesson2.ipynb) "
        "[c](https://x.org/index.ipynb) [d](exp9.ipynb) $f(x)$"
    )
    assert code.source == "'[a](index.ipynb)'"


def test_a_merged_result_is_ok_only_when_all_are(tmp_path: Path) -> None:
    for name, one in results().items():
        write_json(tmp_path / f"{name}.result.json", one)
    assert report.summarise("smollm", tmp_path)["status"] == "ok"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "exp3.result.json").write_text('{"status": "ok"')
    assert report.summarise("smollm", tmp_path)["status"] == "failed"


@pytest.mark.parametrize("argv", [["exp9"], ["--task", "../x"], ["--task", ""]])
def test_wrong_arguments_are_refused_before_anything_runs(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main(argv)
    assert stopped.value.code == 2
