"""The experiment notebooks: one page, five sets of parameters; refusals under the plain papermill CLI."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from warp_nb.config import RESERVED, ExperimentConfig
from warp_nb.studies.original import match

FOLDER = Path(__file__).parents[1] / "notebooks"
EXPERIMENTS = ["exp1", "exp2", "exp3", "exp4", "exp"]


def cells(name: str, kind: str = "code") -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tagged(cell: nbformat.NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def parameters(name: str) -> dict[str, object]:
    (cell,) = [cell for cell in cells(name) if tagged(cell, "parameters")]
    found = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.AnnAssign) and node.value is not None, "one annotated assignment a line"
        found[node.target.id] = ast.literal_eval(node.value)
    return found


def papermill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_code_cells_are_the_same_apart_from_the_parameters(name: str) -> None:
    mine, first = cells(name), cells("exp1")
    differing = [a.source for a, b in zip(mine, first, strict=True) if a.source != b.source]
    assert [tagged(cell, "parameters") for cell in mine] == [tagged(cell, "parameters") for cell in first]
    assert all(source.startswith("task: str") for source in differing)
    assert parameters(name).keys() == parameters("exp1").keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_parameter_is_known_typed_and_explained(name: str) -> None:
    values = parameters(name)
    known = set(ExperimentConfig.model_fields)
    assert values.keys() - RESERVED <= known
    config = ExperimentConfig(**{key: value for key, value in values.items() if key not in RESERVED})
    assert config.model_dump(include=set(values)) == {k: v for k, v in values.items() if k not in RESERVED}
    (cell,) = [cell for cell in cells(name) if tagged(cell, "parameters")]
    assert all("  # " in line for line in cell.source.splitlines())


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_parameters_are_those_of_the_original_report(number: int) -> None:
    values = {key: value for key, value in parameters(f"exp{number}").items() if key not in RESERVED}
    assert match(ExperimentConfig(**values)) == number


def test_experiment_5_is_the_fourth_with_more_steps_and_a_warm_up() -> None:
    fourth, fifth = parameters("exp4"), parameters("exp5")
    assert {name for name in fifth if fifth[name] != fourth[name]} == {"T", "warmup_steps", "save_every"}
    assert (fifth["T"], fifth["warmup_steps"], fifth["lr"], fifth["save_every"]) == (100, 20, 1e-4, 100)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_committed_outputs_are_whole_and_small(name: str) -> None:
    for cell in cells(name):
        assert not [output for output in cell.outputs if output.output_type == "error"]
        length = len([line for line in cell.source.splitlines() if line.strip()])
        assert length <= 22 or tagged(cell, "parameters")
    checked = [cell for cell in cells(name) if not tagged(cell, "nbval-ignore-output") and cell.outputs]
    assert len(checked) >= 2 or name == "exp5", "nbval would compare nothing"


def test_no_notebook_is_large() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*.ipynb")}
    assert len(sizes) >= 14 and max(sizes.values()) < 2_000_000


@pytest.mark.slow
def test_help_lists_every_parameter_with_its_comment(tmp_path: Path) -> None:
    shown = papermill("--help-notebook", str(FOLDER / "exp.ipynb"), cwd=tmp_path).stdout
    for name in parameters("exp"):
        assert f"{name}: " in shown
    assert "скорость обучения (lr) оптимизатора" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "learnig_rate", "1"], "unknown parameter learnig_rate"),
        (["-p", "lr", "nan"], "lr = nan refused"),
        (["-p", "T", "2.5"], "T = 2.5 refused"),
        (["-p", "merge", "mean"], "merge = 'mean' refused"),
        (["-p", "eta", "1.5", "-p", "T", "1e1"], "eta = 1.5 refused"),
    ],
)
def test_bad_parameters_stop_before_any_model_is_loaded(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = papermill(str(FOLDER / "exp.ipynb"), "out.ipynb", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert said in done.stderr
    ran = [c for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if c.get("execution_count")]
    assert "load_task" not in "".join(cell.source for cell in ran)
