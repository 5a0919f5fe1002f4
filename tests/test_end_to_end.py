"""A real notebook, from papermill's command line to its result file."""

from __future__ import annotations

import json
import shlex
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
    settings = SMALL_RUN.replace("I: 1", "I: 2").replace("batch_size: 2", "batch_size: 4")
    (tmp_path / "p.yaml").write_text(settings + "T: 2\ntask: small\nresult_file: r.json\n")
    command = [sys.executable, "-m", "papermill", str(FOLDER / "exp5.ipynb"), "out.ipynb", "-f", "p.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["status"] == "ok" and len(found["arms"]["REINFORCE"]["history"]) == 8 and found["conclusion"]
    assert found["judge_gate"]["pair_accuracy"] > 0.5 and found["task"]["judge_correlation"] > 0


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


def first_cell(path: Path = FOLDER / "exp1.ipynb") -> str:
    return next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code").source


def clone(folder: Path, project: str = "warp-nb") -> Path:
    """A project in `folder` that names itself `project` and holds a folder warp_nb."""
    (folder / "warp_nb").mkdir(parents=True)
    (folder / "warp_nb" / "__init__.py").write_text("inside = True\n")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    return folder


def test_every_notebook_has_the_same_first_cell() -> None:
    paths = sorted(FOLDER.rglob("*.ipynb"))
    assert len(paths) > 10 and {first_cell(path) for path in paths} == {first_cell()}


@pytest.mark.parametrize(
    ("folder", "address", "installed"),
    [
        (FOLDER, {}, str(FOLDER.parent)),
        (Path("/"), {"REPO": "octocat/warp"}, "git+https://github.com/octocat/warp"),
        (Path("/"), {"REPO": "octocat/warp", "COMMIT": "ab" * 20}, f"git+https://github.com/octocat/warp@{'ab' * 20}"),
        (FOLDER, {"REPO": "octocat/warp"}, str(FOLDER.parent)),
    ],
)
def test_the_first_cell_installs_what_is_missing(
    folder: Path, address: dict[str, str], installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_first_cell(folder, address, monkeypatch) == [["install", "-q", installed]]


@pytest.mark.parametrize("inside", [".", "notebooks/lessons", ".."])
@pytest.mark.parametrize("name", ["warp_nb", "WARP of mine, $HOME's"])
def test_the_first_cell_finds_the_clone_around_and_below_whatever_its_path(
    name: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = clone(tmp_path / "my clones" / name)
    (made / "notebooks" / "lessons").mkdir(parents=True)
    assert run_first_cell(made / inside, {}, monkeypatch) == [["install", "-q", str(made)]]


@pytest.mark.parametrize("inside", [".", "notebooks", ".."])
def test_the_first_cell_installs_no_other_project(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = clone(tmp_path / "warp_nb", project="another")
    (other / "notebooks").mkdir()
    (other / "setup.py").write_text("raise SystemExit('foreign code')")
    (tmp_path / "warp_nb.txt").mkdir()
    with pytest.raises(ModuleNotFoundError, match="make badges"):
        run_first_cell(other / inside, {}, monkeypatch)


def test_the_first_cell_takes_no_folder_for_the_package(tmp_path: Path) -> None:
    """A Python without site-packages, above a clone called warp_nb; what a cell run too early imported is forgotten."""
    made = clone(tmp_path / "warp_nb")
    source = first_cell().replace("%pip install -q {source}", "print(source); sys.path.insert(0, source)")
    program = f"import warp_nb\n{source}\nimport warp_nb; print(warp_nb.inside)\n{source}\nprint('here')"
    done = subprocess.run([sys.executable, "-S", "-E", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(made), "True", "here"], done.stderr


def run_first_cell(folder: Path, address: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that the first cell gives to %pip in `folder`, as IPython would run it, where warp_nb is missing."""
    asked: list[list[str]] = []

    def run_line_magic(name: str, line: str) -> None:
        assert name == "pip"
        asked.append(shlex.split(line.replace("{source}", str(space["source"]))))

    source = first_cell()
    for name, value in address.items():
        assert f'{name} = ""' in source
        source = source.replace(f'{name} = ""', f'{name} = "{value}"')
    shell = types.SimpleNamespace(run_line_magic=run_line_magic)
    space: dict[str, Any] = {"get_ipython": lambda: shell}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.modules", dict(sys.modules))
    exec(TransformerManager().transform_cell(source), space)
    return asked
