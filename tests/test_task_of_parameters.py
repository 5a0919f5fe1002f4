"""The task that an experiment's parameters name, and what is said when they do not fit together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import tiny

from warp_nb.config import ExperimentConfig
from warp_nb.notebook.experiment_banner import banner
from warp_nb.report import command
from warp_nb.studies.experiment import check_loaded, resolved, run_experiment
from warp_nb.tasks import prepared
from warp_nb.tasks.prepared import load_task
from warp_nb.tasks.task import Task

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "exp.ipynb"
REWARD = "def brevity(prompts, completions, **kwargs):\n    return [-float(len(text)) for text in completions]\n"
MAKES = "import tiny\n\ndef make_task():\n    return tiny.task(name='small')\n\ndef wrong():\n    return 1\n"
OWN = {"policy": "model", "reward": "users_rewards:brevity", "prompts": "prompts.jsonl"}
RUN = {"I": 1, "M": 2, "T": 1, "batch_size": 2, "max_new_tokens": 4, "warmup_steps": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user: a model, prompts with two duplicates, a module of rewards, a module of tasks."""
    words = tiny.tokenizer()
    tiny.gpt2(len(words)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    rows = [{"prompt": text} for text in [*tiny.prompts(40, seed=0), *tiny.prompts(2, seed=0)]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "users_rewards.py").write_text(REWARD)
    (tmp_path / "users_tasks.py").write_text(MAKES)
    monkeypatch.chdir(tmp_path)
    for name in ("users_rewards", "users_tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def shown(config: ExperimentConfig, task: Task) -> str:
    return banner(config, task).data.replace("\n", " ")


def test_policy_reward_and_prompts_make_a_task(folder: Path) -> None:
    config = ExperimentConfig(**OWN, **RUN)
    task = load_task(config)
    assert task.score(["the"], ["film"], "here") == [-4.0]
    assert (len(task.train_prompts), len(task.eval_prompts)) == (32, 8)
    assert task.facts == {"policy": "model", "prompts": "prompts.jsonl", "duplicates": 2}
    text = shown(config, task)
    assert "own (своя: политика, награда и промпты заданы в параметрах)" in text and "<td>model, " in text
    assert "32 для обучения, 8 отложено, повторов убрано: 2; файл prompts.jsonl" in text and "Начала" not in text
    result = run_experiment(config, task, progress=False)
    assert result.config.n_eval_prompts == 8 and len(result.evaluations[0].rewards_policy) == 8
    assert result.to_json()["config"]["prompts"] == "prompts.jsonl"


def test_a_function_makes_a_task_whatever_its_name(folder: Path) -> None:
    config = ExperimentConfig(task="users_tasks:make_task")
    task = load_task(config)
    assert task.name == "small"
    assert "small (своя: её возвращает users_tasks:make_task)" in shown(config, task)
    check_loaded(config, task)
    assert resolved(config, task).n_eval_prompts == 256, "only a file of a user's decides"
    with pytest.raises(ValueError, match=r"^task = 'users_tasks:wrong' returned a int; it must return a warp_nb\.Task"):
        load_task(ExperimentConfig(task="users_tasks:wrong"))
    with pytest.raises(
        ValueError, match=r"^task = 'users_tasks:gone': users_tasks has no function gone; pass one that"
    ):
        load_task(ExperimentConfig(task="users_tasks:gone"))


def test_a_prepared_task_is_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(*given: str) -> tuple[str, str, str]:
        asked.append(given)
        raise ValueError("far enough")

    monkeypatch.setattr(prepared, "resolve", resolve)
    for device, wanted in ((None, "cpu"), ("cuda", "cuda")):
        with pytest.raises(ValueError, match="far enough"):
            load_task(ExperimentConfig(task="smollm", device="cpu"), device)
        assert asked.pop() == ("smollm", wanted)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"policy": "model"},
            "policy = 'model' needs reward and prompts too; pass -p policy DIR -p reward module:func",
        ),
        ({"prompts": "p.txt"}, "prompts = 'p.txt' needs policy and reward too; pass -p policy DIR"),
        ({"reward": "a:b", "policy": "m"}, "policy = 'm' needs prompts too; pass -p policy DIR"),
        (OWN | {"task": "small"}, "task = 'small' and policy = 'model' are two tasks; pass -p task auto"),
        ({"policy": 3}, r"policy = 3 refused \(folder or hub id of a policy of your own; empty: the task's\): must be"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        ExperimentConfig(**values)


def test_another_task_than_the_parameters_name_is_not_trained(folder: Path) -> None:
    task = load_task(ExperimentConfig(**OWN))
    for changes in ({"policy": "other"}, {"prompts": "other.txt"}, {"device": "mps"}):
        (name,) = changes
        with pytest.raises(ValueError, match=rf"^the loaded task has {name} = .*, got .* in config; load it again"):
            check_loaded(ExperimentConfig(**OWN | changes), task)
    with pytest.raises(ValueError, match=r"^the loaded task has policy = None, got 'model' in config; load it again"):
        check_loaded(ExperimentConfig(**OWN), tiny.task())


def test_a_report_of_a_users_task_is_refused_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.arguments(["exp4", "--task", "small", "-p", "policy", "model"])
    said = " ".join(capsys.readouterr().err.split())
    assert "-p policy model refused: a report is of a prepared task; for your own run papermill" in said


@pytest.mark.slow
@pytest.mark.parametrize("task", [OWN, {"task": "users_tasks:make_task"}], ids=["policy", "task"])
def test_papermill_runs_a_task_of_the_current_folder(task: dict[str, str], folder: Path) -> None:
    given = RUN | {"n_eval_prompts": 8, "result_file": "r.json"} | task
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), "out.ipynb", *words]
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}  # a user's module imports tiny
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "r.json").read_text())
    assert found["status"] == "ok" and found["config"]["policy"] == task.get("policy", "")
    assert found["task"]["reward"] == ("brevity" if task is OWN else "opinion")
    assert {path: path.read_bytes() for path in before} == before
    outputs = str([cell.get("outputs") for cell in nbformat.read(folder / "out.ipynb", as_version=4).cells])
    assert "своя: " in outputs and "встроенная" not in outputs


@pytest.mark.slow
def test_papermill_stops_at_a_bad_reward_before_any_model(folder: Path) -> None:
    words = ["-p", "policy", "model", "-p", "reward", "users_rewards:gone", "-p", "prompts", "prompts.jsonl"]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), "out.ipynb", *words]
    (folder / "model" / "model.safetensors").write_bytes(b"never read")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode and "users_rewards has no function gone; pass one that it has: brevity" in done.stderr
