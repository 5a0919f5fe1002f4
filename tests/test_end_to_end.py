"""A real notebook, from papermill's command line to its result file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = Path(__file__).parents[1] / "notebooks"
SMALL_RUN = "lr: 1e-4\nI: 1\nbatch_size: 2\nmax_new_tokens: 4\nn_eval_prompts: 8\nwarmup_steps: 0\n"


@pytest.mark.slow
def test_a_notebook_runs_from_any_folder_with_what_yaml_and_the_command_line_make_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SMALL_RUN)
    arguments = ["-f", "p.yaml", "-p", "T", "2e0", "-p", "task", "small", "-p", "result_file", "r.json"]
    command = [sys.executable, "-m", "papermill", str(FOLDER / "exp.ipynb"), "out.ipynb", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["status"] == "ok" and found["config"]["lr"] == 1e-4 and found["config"]["T"] == 2
    assert len(found["history"]) == 4 and found["task"]["reward_model"]["recipe"]["pairs"] > 0
    shown = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert not [c for c in shown.cells if any(o.output_type == "error" for o in c.get("outputs", []))]
    text = json.dumps(shown, ensure_ascii=False)
    assert "Такого набора параметров в исходном отчёте нет" in text


@pytest.mark.slow
def test_the_notebook_of_experiment_5_runs(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SMALL_RUN.replace("I: 1", "I: 2") + "T: 2\ntask: small\nresult_file: r.json\n")
    command = [sys.executable, "-m", "papermill", str(FOLDER / "exp5.ipynb"), "out.ipynb", "-f", "p.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["status"] == "ok" and len(found["arms"]["REINFORCE"]["history"]) == 8 and found["conclusion"]


@pytest.mark.slow
def test_a_notebook_whose_kernel_was_killed_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    """SIGKILL of the kernel between two steps: papermill fails; the same command again has the same result file."""
    (tmp_path / "p.yaml").write_text(SMALL_RUN + "M: 1\nT: 12\nsave_every: 1\n")

    def command(out_dir: str, result_file: str) -> list[str]:
        arguments = ["-f", "p.yaml", "-p", "task", "small", "-p", "out_dir", out_dir, "-p", "result_file", result_file]
        return [sys.executable, "-m", "papermill", str(FOLDER / "exp.ipynb"), f"{result_file}.ipynb", *arguments]

    with subprocess.Popen(
        command("runs", "r.json"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as first:
        while not list(tmp_path.rglob("*.state-before.safetensors")):
            assert first.poll() is None, first.stderr.read()[-2000:]
            time.sleep(0.01)
        for child in psutil.Process(first.pid).children(recursive=True):
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                child.kill()
        assert first.wait(timeout=120) != 0 and "Kernel died" in first.stderr.read()
    assert not (tmp_path / "r.json").exists()
    for arguments in (("runs", "r.json"), ("", "whole.json")):
        subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, check=True, timeout=600)
    again, whole = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("r.json", "whole.json"))
    assert 0 < again["runs"][0]["loaded"] < 1 and whole["runs"][0]["loaded"] == 0
    assert again["summary"] == whole["summary"] and len(again["history"]) == 12
    for mine, other in zip(again["history"], whole["history"], strict=True):
        assert mine | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.parametrize(
    ("folder", "repo", "installed"),
    [
        (FOLDER, "", str(FOLDER.parent)),
        (Path("/"), "octocat/warp", "git+https://github.com/octocat/warp"),
    ],
)
def test_the_first_cell_installs_what_is_missing(
    folder: Path, repo: str, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run_first_cell(folder, repo, asked, monkeypatch)
    assert asked == [f"install -q {installed}"]


def test_the_first_cell_says_what_to_do_where_it_cannot_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError, match="make badges"):
        run_first_cell(Path("/"), "", [], monkeypatch)


def run_first_cell(folder: Path, repo: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook's first code cell as IPython would run it, where warp_nb is not installed."""

    def run_line_magic(name: str, line: str) -> None:
        assert name == "pip"
        source: Any = space["source"]
        asked.append(line.replace("{source}", str(source)))

    notebook = nbformat.read(FOLDER / "exp1.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    source = first.source.replace('REPO = ""', f'REPO = "{repo}"')
    shell = types.SimpleNamespace(run_line_magic=run_line_magic)
    space: dict[str, Any] = {"get_ipython": lambda: shell}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(TransformerManager().transform_cell(source), space)
