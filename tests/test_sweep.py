"""A sweep: every combination once, what is finished is not run again, and bad values stop it before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import result

from warp_nb.config import ExperimentConfig
from warp_nb.files import write_json
from warp_nb.report import sweep as module
from warp_nb.report.sweep import label_of, run_sweep
from warp_nb.studies.result_files import result_path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FIXED = {"task": "small", "T": 2}
GRID = {"lr": [1e-4, "1e-3"], "M": [1, 2]}
LABELS = ["lr=0.0001,M=1", "lr=0.0001,M=2", "lr=0.001,M=1", "lr=0.001,M=2"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parameters of every notebook that a sweep runs; `bad` combinations fail."""
    asked: list[dict[str, Any]] = []

    def run(name: str, notebooks: Path, folder: Path, parameters: dict[str, Any], *, command: str) -> str:
        asked.append(parameters)
        if parameters.get("beta") == 0.5:
            write_json(result_path(folder, name), {"status": "failed", "error": "Kernel died"})
            return "failed"
        stated = module.stated_in(notebooks / f"{name}.ipynb") | parameters
        config = ExperimentConfig(**{k: v for k, v in stated.items() if k in ExperimentConfig.model_fields})
        write_json(result_path(folder, name), result(**config.replace(dtype="float32").model_dump()).to_json())
        return "ok"

    monkeypatch.setattr(module, "run", run)
    return asked


def test_every_combination_is_run_once_and_finished_ones_are_kept(tmp_path: Path, ran: list[dict[str, Any]]) -> None:
    files = run_sweep(GRID, FIXED, tmp_path / "sweep", notebooks=NOTEBOOKS)
    assert files == [tmp_path / "sweep" / label / "exp.result.json" for label in LABELS]
    assert ran == [FIXED | {"lr": lr, "M": m} for lr in GRID["lr"] for m in GRID["M"]]
    files[1].write_text("{")
    run_sweep(GRID | {"M": [1, 2, 3]}, FIXED, tmp_path / "sweep", notebooks=NOTEBOOKS)
    assert [(row["lr"], row["M"]) for row in ran[4:]] == [(1e-4, 2), (1e-4, 3), ("1e-3", 3)]
    run_sweep(GRID, FIXED | {"T": 3}, tmp_path / "sweep", notebooks=NOTEBOOKS)
    assert len(ran) == 7 + 4, "of other settings"


@pytest.mark.parametrize(
    ("grid", "fixed", "said"),
    [
        ({"lr": [1e-4, 2.0]}, {}, "lr = 2.0 refused"),
        ({"learning_rate": [1e-4]}, {}, "unknown parameter learning_rate"),
        ({"lr": [1e-4]}, {"T": 0}, "T = 0 refused"),
        ({"T": [2]}, {"T": 3}, "T stands in grid and in fixed"),
        ({"out_dir": ["a"]}, {}, "the sweep sets out_dir itself"),
        ({"T": [2]}, {"result_file": "r.json"}, "the sweep sets result_file itself"),
        ({}, {}, "grid must hold a list of values"),
        ({"T": []}, {}, "grid must hold a list of values"),
        ({"task": "small"}, {}, "grid must hold a list of values"),
    ],
)
def test_bad_values_stop_a_sweep_before_anything_runs(
    grid: dict[str, Any], fixed: dict[str, Any], said: str, tmp_path: Path, ran: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match=said):
        run_sweep(grid, fixed, tmp_path / "sweep", notebooks=NOTEBOOKS)
    assert ran == [] and not list(tmp_path.iterdir())


def test_a_failed_experiment_is_named_after_the_others_were_run(tmp_path: Path, ran: list[dict[str, Any]]) -> None:
    told = r"1 of 2 experiments failed: beta=0\.5: Kernel died"
    with pytest.raises(RuntimeError, match=told):
        run_sweep({"beta": [0.5, 0.1]}, FIXED, tmp_path, notebooks=NOTEBOOKS)
    assert [row["beta"] for row in ran] == [0.5, 0.1]
    with pytest.raises(RuntimeError, match=told):
        run_sweep({"beta": [0.5, 0.1]}, FIXED, tmp_path, notebooks=NOTEBOOKS)
    assert [row["beta"] for row in ran[2:]] == [0.5]


def test_a_label_is_a_folders_name() -> None:
    assert label_of({"task": "../../etc", "lr": 1e-4}) == "task=.._.._etc,lr=0.0001"
