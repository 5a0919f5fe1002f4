"""Runs fail loudly, only a whole one counts, an experiment is an entry and a notebook, what is kept can be repeated."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pages import entries, links, tables
from synthetic import comparison_record, diagnosis_record, record, results

from warp_nb import cli
from warp_nb.files import write_json
from warp_nb.report import command, guide
from warp_nb.report.catalogue import EXPERIMENTS, Experiment, results_of, rows_of
from warp_nb.report.command import arguments, main, summarise
from warp_nb.report.document import document
from warp_nb.report.execution import link_back_, runs_folder
from warp_nb.report.gathered import Findings
from warp_nb.report.index_page import index
from warp_nb.report.introduction import introduction
from warp_nb.report.page import footer
from warp_nb.report.readme import filled_readme
from warp_nb.studies.result_files import read_result, read_result_of, reports_of
from warp_nb.tasks import hub

ROOT = Path(__file__).parents[1]
NAMES = [one.name for one in rows_of(EXPERIMENTS)]
PARAMETERS = 'task: str = "small"  # x\nn_seeds: int = 1  # x\nout_dir: str = ""  # x\nresult_file: str = ""  # x\n'


def write_notebook(folder: Path, name: str, last: str) -> None:
    """A notebook that begins its folder of runs and prints folders of this machine; `last` is its last cell."""
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell("import os, sys, tempfile\nos.makedirs(out_dir)"),
        new_code_cell("print(sys.prefix + '/lib', tempfile.gettempdir() + '/x')"),
        new_code_cell(last),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"{name}.ipynb")


def saving(result: dict[str, Any]) -> str:
    """A cell that writes `result`."""
    return f"import json\nfrom pathlib import Path\nPath(result_file).write_text(json.dumps({result!r}))"


@pytest.mark.slow
def test_an_experiment_is_an_entry_and_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_notebook(Path("notebooks"), "exp6", saving(record()))
    write_notebook(Path("notebooks"), "tally", saving({"status": "ok", "film": 3}))
    more = (Experiment("exp6", "6", "lr = 1e-5"), Experiment("tally", "Подсчёт", section="tally"))
    assert main(["exp6", "tally", "--task", "small"], experiments=(*EXPERIMENTS, *more)) == 0
    index = Path("reports/small/index.html").read_text()
    assert {"Эксперимент 6: lr = 1e-5", "Подсчёт"} <= entries(index).keys()
    whole = links(Path("reports/report.html").read_text())
    assert whole["#exp6"] == "Эксперимент 6: lr = 1e-5" and whole["#tally"] == "Подсчёт"
    for one in more:
        assert all(Path("reports/small", f"{one.name}.{kind}").exists() for kind in ("ipynb", "html", "result.json"))
        command = f"warp-nb report {one.name} --task small --seeds 3"
        assert ["Повторить", command] in tables(Path(f"reports/small/{one.name}.html").read_text())[-1]
        assert {f"{one.name}.html", f"../../notebooks/{one.name}.ipynb"} <= links(index).keys()
    assert not Path("reports/small/.runs").exists()
    merged = json.loads(Path("reports/small/result.json").read_text())
    assert merged["status"] == "failed", "the experiments that run by default have no result"
    assert merged["experiments"]["tally"]["film"] == 3 and "history" not in merged["experiments"]["exp6"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Reports, made in the current folder, of one good, one raising, one silent and one dying notebook."""
    folder = tmp_path_factory.mktemp("made")
    notebooks, stale = folder / "notebooks", folder / "reports" / "small" / "exp2.result.json"
    write_notebook(notebooks, "exp1", saving(record()))
    write_notebook(notebooks, "exp2", "raise ValueError('<b>bad</b> lr')")
    write_notebook(notebooks, "exp3", "1 + 1")
    write_notebook(notebooks, "exp4", "import os\nos._exit(1)")
    stale.parent.mkdir(parents=True)
    write_json(stale, record())
    with chdir(folder):
        assert main(["--task", "small", "--seeds", "2"]) == 1
    yield folder / "reports" / "small"


@pytest.mark.slow
def test_kernels_of_reports_and_guide_are_encrypted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = "from ipykernel.kernelapp import IPKernelApp\nassert IPKernelApp.instance().curve_secretkey"
    write_notebook(tmp_path, "exp1", f"{asked}\n{saving(record())}")
    where = ["--notebooks", str(tmp_path), "--out", str(tmp_path), "--task", "small"]
    assert main(["exp1", *where, "-p", "T", "5"]) == 0
    nbformat.write(new_notebook(cells=[new_code_cell(asked)]), tmp_path / "index.ipynb")
    assert guide.main([str(tmp_path / "index.ipynb"), "--folder", str(tmp_path)]) == 0
    assert "encryption" not in capfd.readouterr().err


@pytest.mark.slow
def test_only_a_whole_run_counts(reports: Path) -> None:
    found = [read_result(reports / f"{name}.result.json") for name in NAMES]
    assert [one["status"] for one in found] == ["ok", "failed", "failed", "failed"]
    assert found[1]["error"] == "ValueError: <b>bad</b> lr (ячейка [5]: raise ValueError('<b>bad</b> lr'))"
    assert found[2]["error"].startswith("тетрадь не записала результат в конце")
    assert found[3]["error"].endswith(" (ячейка [5]: import os)")
    assert json.loads((reports / "result.json").read_text())["status"] == "failed"
    index = (reports / "index.html").read_text()
    shown = list(entries(index).values())[1:4]
    assert [said.partition(". Команда: ")[0] for said in shown] == [f"Не закончен: {one['error']}" for one in found[1:]]
    assert "exp1.html" in links(index) and "exp2.html" not in links(index)
    leading = {link for link in links(index) if link.endswith(".ipynb") and "/" in link}
    assert leading == {f"../../notebooks/{name}.ipynb" for name in NAMES}
    assert all((reports / link).exists() for link in leading)
    assert "Прогон не закончен: ValueError: &lt;b&gt;bad&lt;/b&gt; lr" in (reports / "exp2.html").read_text()


@pytest.mark.slow
def test_what_is_kept_names_no_folder_of_this_machine(reports: Path) -> None:
    kept = [path for path in reports.iterdir() if path.suffix in (".ipynb", ".html", ".json")]
    assert {(path.stem.split(".")[0], path.suffix) for path in kept} >= {
        (name, suffix) for name in NAMES for suffix in (".ipynb", ".html", ".json")
    }
    for path in kept:
        text = path.read_text()
        for folder in (sys.prefix, tempfile.gettempdir(), str(ROOT)):
            assert f"{folder}/" not in text, path.name
        assert 'result_file = "' not in text
    assert "lib x" in (reports / "exp1.ipynb").read_text()


@pytest.mark.slow
def test_the_runs_of_what_has_no_result_stay_for_the_next_call(reports: Path) -> None:
    assert {path.name.split("-")[0] for path in (reports / ".runs").iterdir()} == {"exp2", "exp3", "exp4"}


@pytest.mark.slow
def test_the_page_tells_how_to_repeat(reports: Path) -> None:
    facts = dict(tables((reports / "exp1.html").read_text())[-1])
    assert facts["Повторить"] == "warp-nb report exp1 --task small --seeds 2"
    assert facts["Начальное значение"] == "seed = 0, повторений: 1"
    assert "потоков" in facts["Устройство"] and "torch" in facts["Версии"]
    assert {"Длительность", "Память процесса", "Ядер и память"} <= facts.keys()


@pytest.mark.slow
def test_a_notebook_that_hangs_is_ended_and_the_report_says_where(tmp_path: Path) -> None:
    write_notebook(tmp_path, "exp1", "import threading\nthreading.Event().wait()")
    assert (
        main(["exp1", "--notebooks", str(tmp_path), "--out", str(tmp_path), "--task", "small", "--timeout", "3"]) == 1
    )
    error = read_result(tmp_path / "small" / "exp1.result.json")["error"]
    assert error.startswith("CellTimeoutError") and error.endswith("(ячейка [5]: import threading)")


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


@pytest.mark.slow
def test_a_merged_result_is_ok_only_when_all_that_run_by_default_are(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for name, one in results().items():
        write_json(small / f"{name}.result.json", one)
    write_json(tmp_path / "diagnosis.result.json", diagnosis_record())
    merged = summarise("small", tmp_path)
    assert (merged["status"], merged["task"]) == ("ok", "small")
    assert merged["experiments"]["exp5"] == {"status": "missing"}
    assert merged["experiments"]["diagnosis"] == diagnosis_record(), "the one of all tasks"
    assert "../diagnosis.html" in links((small / "index.html").read_text())
    assert json.loads((small / "result.json").read_text()) == merged


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {"status": "missing"}),
        ('{"status": "ok", "film": 3}', {"status": "ok", "film": 3}),
        ('{"status": "ok"', {"status": "failed", "error": "r.json is damaged (Expecting ',' delimiter: line 1 column"}),
        ('{"film": 3}', {"status": "failed", "error": "r.json has no status"}),
        ('{"status": ["ok"]}', {"status": "failed", "error": "r.json has no status"}),
        ("[1]", {"status": "failed", "error": "r.json is damaged (it holds '[1]' where an object is expected)"}),
        ("[" * 100_000, {"status": "failed", "error": "r.json is damaged ("}),
        (
            '{"status": "ok", "x": ' + "[" * 900 + "]" * 900 + "}",
            {"status": "failed", "error": "r.json is damaged (it is"},
        ),
    ],
)
def test_a_result_file_counts_only_when_it_is_whole(text: str | None, found: dict[str, Any], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    read = read_result(tmp_path / "r.json")
    error = found.pop("error", "")
    assert read.pop("error", "").startswith(error) and read == found


HARMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a status alone": lambda found: [found.pop(name) for name in [*found] if name != "status"],
    "no summary": lambda found: found.pop("summary"),
    "a measure is text": lambda found: found["summary"]["reward_policy"].update(value="high"),
    "a list for the configuration": lambda found: found.update(config=[]),
    "no rows of the history": lambda found: found.update(history=[1, 2]),
    "a check without a name": lambda found: found["checks"][0].pop("name"),
    "no command": lambda found: found.pop("run"),
    "versions are a list": lambda found: found["machine"].update(versions=[]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_result_without_what_pages_show_is_a_failed_one(harm: str, tmp_path: Path) -> None:
    """The pages, the merged result and the tables are made, and say which file lacks what."""
    for name, one in results().items():
        if name == "exp2":
            HARMS[harm](one)
        write_json(tmp_path / f"{name}.result.json", one)
    write_json(tmp_path / "diagnosis.result.json", {"status": "ok"})
    write_json(tmp_path / "exp5.result.json", {"status": "ok", "summary": [], "config": {}})
    found = results_of("smollm", tmp_path, EXPERIMENTS)
    assert {name for name, one in found.items() if one["status"] == "ok"} == {"exp1", "exp3", "exp4"}
    for name in ("exp2", "exp5", "diagnosis"):
        assert re.match(rf"{name}\.result\.json is incomplete \(.+\); run it again", found[name]["error"])
        assert footer(found[name]).count("is incomplete") == 1
    page = index("smollm", [one for one in EXPERIMENTS if one.reported], found)
    assert page.count("is incomplete") == 3
    assert document(Findings.read(tmp_path, EXPERIMENTS)).count("is incomplete") == 3
    marks = "".join(f"<!-- {kind} smollm -->\n<!-- /{kind} -->\n" for kind in ("results", "comparison", "diagnosis"))
    assert "| exp2 | not finished |" in filled_readme(marks, tmp_path)


@pytest.mark.parametrize(
    ("section", "made"),
    [("", lambda: results()["exp1"]), ("comparison", comparison_record), ("diagnosis", diagnosis_record)],
)
def test_a_whole_result_is_taken(section: str, made: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", made())
    assert read_result_of(section, tmp_path / "r.json")["status"] == "ok"


def test_a_tilde_in_the_arguments_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_notebook(tmp_path / "mine", "exp1", "1")
    chosen = arguments(["exp1", "--out", "~/reports", "--notebooks", "~/mine", "--task", "smollm"])
    assert (chosen.out, chosen.notebooks) == (tmp_path / "reports", tmp_path / "mine")


@pytest.mark.slow
def test_rendering_makes_the_pages_again_without_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_notebook(Path("reports"), "exp1", "raise SystemExit")
    write_json(Path("reports/exp1.result.json"), results()["exp1"])
    assert main(["exp1", "exp2", "--render", "--task", "smollm"]) == 1, "experiment 2 has no result"
    assert ["Повторить", "x"] in tables(Path("reports/exp1.html").read_text())[-1]
    assert not Path("reports/exp2.html").exists() and "exp1.html" in links(Path("reports/index.html").read_text())


@pytest.mark.parametrize("text", ["", "[]", '{"cells": 1', "[" * 100_000])
def test_a_damaged_notebook_among_the_reports_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exp1.ipynb").write_text(text)
    assert cli.main(["report", "exp1", "--render", "--task", "smollm", "--out", str(tmp_path)]) == 1
    assert "exp1.ipynb holds no sound notebook (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["exp9"], "unknown experiment exp9; choose from exp1, exp2, exp3, exp4, exp5, diagnosis"),
        (["exp"], "unknown experiment exp;"),
        (["--task", "../x"], "got '../x'"),
        (["--task", ""], "got ''"),
        (["exp1", "exp2"], "no such notebook: notebooks/exp2.ipynb; pass --notebooks"),
        (["exp1", "--task", "smoll"], "task must be one of auto, small, smollm, gpt2, got 'smoll'"),
        (["exp1", "--seeds", "-1"], "--seeds must be at least 1, got -1"),
        (["exp1", "--seeds", "two"], "invalid int value: 'two'"),
        (["exp1", "--timeout", "0"], "--timeout must be at least 1 second, got 0"),
        (["diagnosis", "--seeds", "2"], "--seeds 2 would have no effect on diagnosis"),
        (["exp1", "--render", "--readme"], "not allowed with argument --render"),
        (["exp1", "--render", "-p", "T", "5", "--seeds", "2"], "--render runs nothing, so -p, --seeds would have no"),
        (["--readme", "--timeout", "5"], "--readme runs nothing, so --timeout would have no effect"),
        (["--readme", "--out", "report"], "--readme reads the reports in 'report', which is no folder"),
        (["--readme", "--out", "README.md"], "--readme reads the reports in 'README.md', which is no folder"),
        (["exp1", "--render", "--task", "small"], "--render reads the reports in 'reports/small', which is no folder"),
        (["exp1", "--out", "README.md", "--task", "smollm"], "the folder 'README.md' cannot be written"),
        (["exp1", "--out", "README.md/reports"], "the folder 'README.md/reports/small' cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_notebook(Path("notebooks"), "exp1", "1")
    write_notebook(Path("notebooks"), "diagnosis", "1")
    Path("README.md").touch()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not Path("reports").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (
            "exp4",
            ["learnig_rate", "1"],
            "unknown parameter learnig_rate; pass one of task, policy, reward, prompts, lr",
        ),
        ("exp4", ["Lr", "1e-4"], "unknown parameter Lr (did you mean lr?)"),
        ("exp4", ["T=1;print(1)", "1"], "unknown parameter T=1;print(1)"),
        ("exp4", ["table_file", "x"], "unknown parameter table_file"),
        ("exp4", ["lr", "1e4"], "exp4: lr = 10000.0 refused"),
        ("exp4", ["lr", "fast"], "exp4: lr = 'fast' refused"),
        ("exp4", ["T", "2.5"], "exp4: T = 2.5 refused"),
        ("exp4", ["batch_size", "5", "-p", "samples_per_prompt", "2"], "must be a multiple of samples_per_prompt = 2"),
        ("exp4", ["lam", "0.3", "-p", "M", "3"], "lam = 0.3 needs M = 2, got M = 3"),
        ("exp4", ["merge", "mean"], "exp4: merge = 'mean' refused"),
        ("exp4", ["device", "gpu"], "device must be cuda, cuda:N, mps or cpu, got 'gpu'"),
        ("exp4", ["snapshot_every", "-1"], "snapshot_every = -1 refused"),
        ("exp4", ["T", "5", "-p", "T", "6"], "-p T is given twice, 5 and 6; pass it once"),
        ("exp4", ["out_dir", "runs"], "-p out_dir runs refused: the command sets out_dir itself"),
        ("exp4", ["result_file", "r.json"], "-p result_file r.json refused"),
        ("exp4", ["n_seeds", "3"], "-p n_seeds 3 refused: the command sets n_seeds itself; pass --seeds"),
        ("exp4", ["task", "small"], "-p task small refused: the command sets task itself; pass --task"),
        ("exp5", ["save_evry", "5"], "unknown parameter save_evry (did you mean save_every?)"),
        ("diagnosis", ["lr", "1e-4"], "diagnosis: unknown parameter lr; pass one of result_file, table_file"),
        ("diagnosis", ["table_file", "gone.json"], "table_file = 'gone.json' refused: there is no such file"),
        ("diagnosis", ["table_file", "5"], "table_file = 5 refused: must be str, as '' is"),
    ],
)
def test_a_mistyped_parameter_leaves_the_report_in_place(
    name: str, given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the notebooks as they are."""
    folder = tmp_path if name == "diagnosis" else tmp_path / "small"
    folder.mkdir(exist_ok=True)
    for file in (f"{name}.result.json", f"{name}.html", f"{name}.ipynb", "result.json", "index.html"):
        write_json(folder / file, record())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        main([name, "--task", "small", "--out", str(tmp_path), "--notebooks", str(ROOT / "notebooks"), "-p", *given])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_right_parameters_reach_the_notebooks() -> None:
    given = ["-p", "lr", "1e-4", "-p", "T", "1e1", "-p", "snapshot_every", "5", "-p", "device", "cpu"]
    chosen = arguments(["exp4", "exp5", "--task", "small", "--notebooks", str(ROOT / "notebooks"), *given])
    wanted = {"task": "small", "n_seeds": 3, "lr": 1e-4, "T": 10, "snapshot_every": 5, "device": "cpu"}
    assert chosen.wanted == {"exp4": wanted, "exp5": wanted}
    table = ["-p", "table_file", str(ROOT / "warp_nb" / "studies" / "diagnosis.json")]
    chosen = arguments(["diagnosis", "--notebooks", str(ROOT / "notebooks"), *table])
    assert chosen.wanted == {"diagnosis": {"table_file": table[-1]}}


@pytest.mark.parametrize(
    ("changes", "loaded"),
    [({}, None), ({0: 1.0}, "готовых прогонов: 1 из 4;"), ({0: 1.0, 1: 0.5}, "готовых прогонов: 1 из 4, начатых")],
)
def test_the_footer_says_what_was_loaded(changes: dict[int, float], loaded: str | None) -> None:
    found = record()
    for place, share in changes.items():
        found["runs"][place]["loaded"] = share
    ((*rows,),) = tables(footer(found))
    said = dict(rows).get("Загружено")
    assert said is None if loaded is None else said.startswith(loaded)


def test_the_footer_of_a_failed_run_escapes_its_error() -> None:
    html = footer({"status": "failed", "error": "<b>x</b>", "run": {"command": "warp-nb report '<i>'"}})
    assert '<p class="failed">Прогон не закончен: &lt;b&gt;x&lt;/b&gt;</p>' in html
    assert tables(html) == [[["Повторить", "warp-nb report '<i>'"], ["Ядер и память", "не записаны"]]]


# task `auto`


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch report the devices named. Whoever asks the hub fails: the reports never do."""

    def asked() -> bool:
        raise AssertionError("the hub was asked")

    def has(*kinds: str) -> None:
        monkeypatch.setattr(hub, "at_hand", asked)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)

    return has


@pytest.mark.parametrize(
    ("kinds", "argv", "task", "seeds", "why"),
    [
        ("", [], "small", 1, "this runs on a CPU"),
        ("", ["--task", "auto"], "small", 1, "this runs on a CPU"),
        ("", ["--seeds", "2"], "small", 2, "this runs on a CPU"),
        ("", ["exp5"], "small", 1, "this runs on a CPU"),
        ("", ["--task", "small"], "small", 3, ""),
        ("", ["--task", "smollm"], "smollm", 1, ""),
        ("cuda", [], "smollm", 1, "this runs on a GPU, cuda"),
        ("mps", [], "smollm", 1, "this runs on a GPU, mps"),
        ("cuda", ["-p", "device", "cpu"], "small", 1, "this runs on a CPU"),
        ("cuda", ["--task", "small"], "small", 3, ""),
        ("cuda", ["--task", "gpt2"], "gpt2", 1, ""),
    ],
)
def test_auto_is_the_task_that_suits_the_machine(
    kinds: str, argv: list[str], task: str, seeds: int, why: str, devices: Any, tmp_path: Path
) -> None:
    devices(*kinds.split())
    chosen = arguments([*argv, "--notebooks", str(ROOT / "notebooks"), "--out", str(tmp_path)])
    assert (chosen.task, chosen.why) == (task, why) and len(chosen.wanted) == (1 if "exp5" in argv else 4)
    assert {(given["task"], given["n_seeds"]) for given in chosen.wanted.values()} == {(task, seeds)}
    assert reports_of(chosen.task, tmp_path) == (tmp_path if task == "smollm" else tmp_path / task)


@pytest.mark.parametrize("kinds", ["", "cuda"])
def test_a_report_of_all_tasks_is_of_none_in_particular(kinds: str, devices: Any, tmp_path: Path) -> None:
    devices(*kinds.split())
    chosen = arguments(["diagnosis", "--notebooks", str(ROOT / "notebooks"), "--out", str(tmp_path)])
    assert (chosen.task, chosen.why, chosen.wanted) == ("smollm", "", {"diagnosis": {}})


def saved(folder: Path, seconds: float, **settings: Any) -> None:
    """Result files of experiments 1 to 4, each of which took `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in results().items():
        one["config"] |= settings
        one["run"]["seconds"] = seconds
        one["machine"] |= {"gpu": None, "cpu": "Z80"}
        write_json(folder / f"{name}.result.json", one)


def test_auto_is_explained_with_the_commands_for_more(
    devices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices()
    monkeypatch.chdir(tmp_path)
    Path("notebooks").symlink_to(ROOT / "notebooks")
    first, full, three = introduction(arguments([]))
    assert first == "task small, trainings an experiment: 1 (auto: this runs on a CPU) -> reports/small/index.html"
    assert full == "  full size: make reports TASK=smollm (without make: warp-nb report --task smollm)"
    assert three == "  3 trainings: make reports TASK=small (without make: warp-nb report --task small)"
    saved(Path("reports"), 300.0)
    saved(Path("reports/small"), 100.0, n_seeds=3)
    replaced, timed = introduction(arguments([]))[1:3]
    assert replaced == "  replaces the results of 3 trainings in reports/small; --out FOLDER writes elsewhere"
    assert timed == f"{full}; took 20 min on Z80, 2 cores"
    assert introduction(arguments(["exp1"]))[2].endswith(
        "full size: warp-nb report exp1 --task smollm; took 5 min on Z80, 2 cores"
    )
    said = introduction(arguments(["--seeds", "3"]))
    assert said[0].startswith("task small, trainings an experiment: 3 (") and said[1:] == [timed]
    longer = introduction(arguments(["exp4", "-p", "T", "50"]))[2]
    assert longer == "  full size: warp-nb report exp4 --task smollm -p T 50", "of other steps, no time"
    own = introduction(arguments(["exp4", "-p", "T", "50", "--out", "my reports"]))
    assert own[1] == "  full size: warp-nb report exp4 --task smollm -p T 50 --out 'my reports'"
    saved(Path("reports/small"), 100.0, n_seeds=1)
    assert introduction(arguments([]))[1] == timed, "nothing of more trainings is replaced"
    assert introduction(arguments(["exp5"]))[1].endswith(
        "make exp5 TASK=smollm (without make: warp-nb report exp5 --task smollm)"
    )
    devices("cuda")
    said = introduction(arguments([]))
    assert said == ["task smollm, trainings an experiment: 1 (auto: this runs on a GPU, cuda) -> reports/index.html"]


@pytest.mark.parametrize("harm", [{"run": {}}, {"machine": []}, {"config": {}}, {"status": "failed"}], ids=str)
def test_an_incomplete_result_tells_no_time(harm: dict[str, Any], devices: Any, tmp_path: Path) -> None:
    devices()
    saved(tmp_path, 300.0)
    write_json(tmp_path / "exp2.result.json", results()["exp2"] | harm)
    write_json(tmp_path / "exp5.result.json", comparison_record())  # no machine, no seconds
    for named in ([], ["exp5"]):
        said = introduction(arguments([*named, "--notebooks", str(ROOT / "notebooks"), "--out", str(tmp_path)]))
        assert len(said) == 3 and "took" not in "".join(said)


@pytest.mark.parametrize(
    ("argv", "lines"),
    [(["exp1"], 3), (["exp1", "--task", "auto"], 3), (["exp1", "--task", "small"], 0), (["diagnosis"], 0)],
)
def test_the_choice_of_auto_is_printed_before_anything_is_replaced(
    argv: list[str], lines: int, devices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    devices()

    def stopped(name: str, *_: Any, **__: Any) -> str:
        raise InterruptedError

    monkeypatch.setattr(command, "run", stopped)
    monkeypatch.chdir(tmp_path)
    Path("notebooks").symlink_to(ROOT / "notebooks")
    with pytest.raises(InterruptedError):
        main(argv)
    *said, running = capsys.readouterr().out.splitlines()
    assert running.startswith(f"{argv[0]}: running") and len(said) == lines
    assert not lines or said[0].endswith("-> reports/small/index.html")


def test_runs_of_another_number_of_trainings_are_not_resumed(devices: Any, tmp_path: Path) -> None:
    devices()

    def place(*argv: str) -> Path:
        chosen = arguments(["exp1", *argv, "--notebooks", str(ROOT / "notebooks"), "--out", str(tmp_path)])
        return runs_folder("exp1", chosen.notebooks, reports_of(chosen.task, chosen.out), chosen.wanted["exp1"])

    assert place() == place("--task", "auto") == place("--task", "small", "--seeds", "1")
    assert len({place(), place("--task", "small"), place("--seeds", "2"), place("--task", "smollm")}) == 4
    assert place().parent == place("--task", "small").parent == tmp_path / "small" / ".runs"


@pytest.mark.slow
def test_an_interrupted_report_of_one_training_resumes_and_one_of_three_begins(
    devices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices()
    monkeypatch.chdir(tmp_path)
    begun = "from pathlib import Path\nprint(len(list(Path(out_dir).parent.iterdir())), 'begun')\nraise SystemExit(1)"
    write_notebook(Path("notebooks"), "exp1", begun)
    notebook = nbformat.read("notebooks/exp1.ipynb", as_version=4)
    notebook.cells[
        2
    ].source = "import os, sys, tempfile\nprint(os.path.exists(out_dir))\nos.makedirs(out_dir, exist_ok=True)"
    nbformat.write(notebook, "notebooks/exp1.ipynb")
    found = []
    for argv in ([], [], ["--task", "small"], ["--task", "small"]):
        assert main(["exp1", *argv]) == 1
        cells = nbformat.read("reports/small/exp1.ipynb", as_version=4).cells
        found.append([one.outputs[0].text.strip() for one in cells if one.cell_type == "code" and one.outputs][:1])
    assert found == [["False"], ["True"], ["False"], ["True"]]


@pytest.mark.slow
def test_a_report_of_all_tasks_renews_every_index_that_is_there(tmp_path: Path, devices: Any) -> None:
    devices()
    (tmp_path / "small").mkdir()
    write_json(tmp_path / "diagnosis.result.json", diagnosis_record())
    where = ["diagnosis", "--render", "--out", str(tmp_path)]
    assert main(where) == 0
    assert (tmp_path / "index.html").exists() and not (tmp_path / "small" / "index.html").exists()
    for name in ("index.html", "result.json"):
        (tmp_path / "small" / name).write_text("{}")
    assert main(where) == 0
    assert "../diagnosis.html" in links((tmp_path / "small" / "index.html").read_text())
    assert json.loads((tmp_path / "small" / "result.json").read_text())["experiments"]["diagnosis"]["status"] == "ok"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"small"}
