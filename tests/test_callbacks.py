"""Callbacks of a training: trackers get every step once, and a missing package is named with its extra."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faulty import CONFIG, FOUR_RUNS, quick

from warp_nb.runs import callbacks
from warp_nb.runs.callbacks import TensorBoard, Trackio, WandB, run_name

ROOT = Path(__file__).resolve().parents[1]
SHORT = FOUR_RUNS.replace(T=2)


class Module:
    """What trackio and wandb have in common."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def init(self, **settings: Any) -> None:
        self.said.append(settings)

    def log(self, figures: dict[str, float], step: int) -> None:
        assert self.said[-1] != "finish"
        self.said.append((step, figures))

    def finish(self) -> None:
        self.said.append("finish")


@pytest.mark.parametrize(("kind", "name"), [(Trackio, "trackio"), (WandB, "wandb")])
def test_every_run_is_a_run_of_the_tracker(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module()
    monkeypatch.setitem(sys.modules, name, module)
    with kind("mine", group="a") as tracker:
        result = quick(SHORT, progress=tracker)
    opened = [one for one in module.said if isinstance(one, dict)]
    assert opened == [{"project": "mine", "group": "a", "name": f"theta{m}_{i}"} for i in (1, 2) for m in (1, 2)]
    assert [one if isinstance(one, str) else one[0] for one in module.said if not isinstance(one, dict)] == [
        1, 2, "finish"
    ] * 4  # fmt: skip
    logged = [one[1] for one in module.said if isinstance(one, tuple)]
    assert logged == result.history.drop(columns=["iteration", "run", "step"]).to_dict("records")


def test_a_second_training_with_one_callback_opens_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module()
    monkeypatch.setitem(sys.modules, "trackio", module)
    with Trackio("mine") as tracker:
        for _ in range(2):
            quick(CONFIG.replace(T=1), progress=tracker)
    assert [one for one in module.said if not isinstance(one, tuple)] == [
        {"project": "mine", "name": "theta1_1"},
        "finish",
    ] * 2


def test_tensorboard_gets_a_folder_for_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[Any]] = {}

    class Writer:
        def __init__(self, folder: str, flush_secs: int) -> None:
            self.rows = written.setdefault(Path(folder).relative_to(tmp_path).as_posix(), [])

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.rows.append((name, value, step))

        def close(self) -> None:
            self.rows.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    with TensorBoard(tmp_path) as tracker:
        result = quick(SHORT.replace(I=1), progress=tracker)
    assert written.keys() == {"theta1_1", "theta2_1"} and all(rows[-1] == "closed" for rows in written.values())
    rewards = [value for rows in written.values() for name, value, _ in rows[:-1] if name == "reward"]
    assert rewards == result.history.reward.tolist()


def test_tensorboard_itself_reads_what_was_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TensorBoard(tmp_path) as tracker:
        result = quick(CONFIG, progress=tracker)
    events = reader.EventAccumulator(str(tmp_path / "theta1_1"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward")]
    assert found == [(step, pytest.approx(value)) for step, value in enumerate(result.history.reward, start=1)]


@pytest.mark.parametrize(("kind", "package"), [(TensorBoard, "tensorboard"), (Trackio, "trackio"), (WandB, "wandb")])
def test_a_missing_package_is_named_before_anything_runs(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}, .*pip install 'warp-nb\[{package}\]'"):
        kind("x")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [line.partition(">=")[0] for line in extras[package]] == [package]


def test_none_of_them_is_imported_unless_it_is_used() -> None:
    ask = (
        "import sys; from warp_nb.runs import callbacks; print({'tensorboard', 'trackio', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_a_run_is_named_as_in_the_plots() -> None:
    row = {"iteration": 2, "run": 1, "step": 1}
    assert run_name(row) == "theta1_2" and run_name(row | {"seed": 3}) == "theta1_2_seed3"
    assert callbacks.PLACE == ("seed", "iteration", "run", "step")
