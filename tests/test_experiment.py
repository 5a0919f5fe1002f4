"""An experiment as a whole: seeds, intervals, its record, a folder of runs, a task without a gate."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gates
import pytest
import tiny

from warp_nb.config import ExperimentConfig
from warp_nb.measure.estimates import mean_interval
from warp_nb.measure.evaluation import MEASURES, evaluate
from warp_nb.notebook.check_words import WORDS, headline
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.experiment_page import save
from warp_nb.runs.training import FAST, derive_seed
from warp_nb.runs.warp import warp
from warp_nb.studies.comparison import run_comparison
from warp_nb.studies.experiment import ExperimentResult, check_loaded, evaluation_settings, run_experiment

CONFIG = ExperimentConfig(
    I=1, T=2, lr=3e-3, warmup_steps=0, mu=0.1, eta=0.3, batch_size=16, max_new_tokens=6, n_eval_prompts=64
)


def run(task: Any = None, **changes: Any) -> ExperimentResult:
    return run_experiment(CONFIG.replace(**changes), task or tiny.task(gate=gates.gate), progress=False)


@pytest.mark.slow
def test_seeds_are_whole_trainings_with_an_interval_over_them() -> None:
    result = run(n_seeds=2, seed=5)
    for frame in (result.history, result.geometry, result.runs, result.merges):
        assert set(frame.seed) == {5, 6}
    assert result.runs.run_seed.nunique() == 4 and len(result.evaluations) == 2
    for name in MEASURES:
        if not name.startswith(("perplexity", "kl")):  # in the log: test_evaluation.py
            assert result.summary[name] == mean_interval([getattr(e, name).value for e in result.evaluations])
    stored = result.to_json()["evaluations"]
    assert [one["seed"] for one in stored] == [5, 6]
    assert [one["kl_policy_reference"] for one in stored] == [asdict(e.kl_policy_reference) for e in result.evaluations]
    single = run(seed=6)
    assert single.summary == single.evaluations[0].measures() == result.evaluations[1].measures()


def test_an_experiment_is_warp_its_evaluation_and_the_gate() -> None:
    task = tiny.task(gate=gates.gate)
    result, alone = run(task, seed=3), warp(CONFIG.replace(seed=3, dtype="float32"), task, progress=False)
    settings = {"n_prompts": 64, "seed": derive_seed(3, "evaluation"), "sampling": task.sampling(6)}
    assert evaluation_settings(CONFIG.replace(seed=3), task) == settings
    assert result.evaluations == [evaluate(alone.policy, task.policy, task, **settings)]
    assert result.gate == gates.gate(tiny.opinion) and result.config.dtype == "float32"
    columns = ["iteration", "run", "step", "reward", "objective", "kl"]
    assert result.history[columns].equals(alone.history[columns])


@pytest.mark.parametrize("run", [run_experiment, run_comparison])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "smollm"}, "task = 'small', got 'smollm' in config"),
        ({"device": "cuda:1"}, "device = 'cpu', got 'cuda'"),
    ],
)
def test_a_prepared_task_that_was_not_loaded_again_is_refused(run: Any, asked: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(CONFIG.replace(**asked), tiny.task(name="small"), progress=False)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("small", {}), ("small", {"task": "small", "device": "cpu"}), ("own", {"task": "gpt2", "device": "cuda"})],
)
def test_a_task_that_was_loaded_or_is_ones_own_is_taken(name: str, asked: dict[str, str]) -> None:
    check_loaded(CONFIG.replace(**asked), tiny.task(name=name))


def test_the_parts_of_a_run_can_be_varied() -> None:
    parts = replace(FAST, learning_rate=lambda lr, warmup_steps, step: 0.0)
    result = run_experiment(CONFIG, tiny.task(), progress=False, parts=parts)
    assert [check.name for check in result.checks if check.failed] == ["deltas-nonzero"]


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    result = run(M=1)  # one run: cosines are NaN
    assert math.isnan(result.merges.delta_cosine[0])
    save(result, str(tmp_path / "result.json"))
    save(result, "")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found["status"] == "ok" and found["merges"][0]["delta_cosine"] is None
    assert found["summary"]["reward_policy"] == asdict(result.summary["reward_policy"])
    (own,) = found["evaluations"]
    assert own == json.loads(json.dumps({"seed": 0} | result.evaluations[0].figures()))
    assert own.keys() == {
        "seed",
        "variety_reference",
        "variety_policy",
        "repeated_reference",
        "repeated_policy",
        *MEASURES,
    }
    assert found["config"]["eta"] == 0.3 and "out_dir" not in found["config"]
    assert found["checks"] == json.loads(json.dumps([check.to_json() for check in result.checks]))
    assert found["gate"] == asdict(gates.gate(tiny.opinion)) and found["conclusion"] == conclude(result)
    assert len(found["history"]) == 2 and found["machine"]["versions"]["torch"]
    assert found["seconds"] > 0 and found["peak_rss_mb"] > 50


def test_a_task_without_a_gate_leaves_its_checks_out(tmp_path: Path) -> None:
    result = run(tiny.task())
    assert result.gate is None and not any(check.failed for check in result.checks)
    gate = [name for name in WORDS if name.startswith("reward-gate-")]
    assert {check.name: check.reason for check in result.checks if not check.applies} == dict.fromkeys(gate, "no-gate")
    titles = ", ".join(f"«{WORDS[name][0]}»" for name in gate)
    assert headline(result.checks) == f"Все {len(WORDS) - 4} проверок пройдены. Не применимы: {titles}."
    assert conclude(result) and result.to_json()["gate"] is None
    save(result, str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["gate"] is None


def test_too_many_evaluation_prompts_are_refused_before_anything_else() -> None:
    def never(**kwargs: Any) -> list[float]:
        raise AssertionError("the reward was called")

    with pytest.raises(ValueError, match=r"n_eval_prompts must be 2 to 64, the held-out prompts of task tiny, got 65"):
        run(tiny.task(reward=never, gate=gates.gate), n_eval_prompts=65)


class Guarded:
    """`tiny.opinion`, which refuses to score batches of one size."""

    __name__ = "opinion"

    def __init__(self, refused: int = 0) -> None:
        self.refused = refused

    def describe(self) -> dict[str, Any]:
        """It counts as the same reward whatever it refuses."""
        return {}

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        assert len(completions) != self.refused, "a run was trained again"
        return tiny.opinion(prompts, completions)


@pytest.mark.slow
def test_a_second_experiment_loads_the_first_ones_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sound, untrained = (tiny.task(reward=Guarded(size), gate=gates.gate) for size in (0, CONFIG.batch_size))
    first = run(sound, out_dir=str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    again = run(untrained, out_dir=tmp_path.name)  # the same folder, said otherwise
    assert again.runs.loaded.all() and again.summary == first.summary
    wider = run(sound, out_dir=str(tmp_path), n_seeds=2, n_eval_prompts=32)
    assert wider.runs.loaded.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"eta: 0\.3 there, 0\.4 here"):
        run(sound, out_dir=str(tmp_path), eta=0.4)


def test_the_policies_in_its_folder_state_what_was_measured_and_rows_have_their_seed(tmp_path: Path) -> None:
    rows: list[Any] = []
    settings = {"n_seeds": 2, "seed": 3, "out_dir": str(tmp_path)}
    result = run_experiment(CONFIG.replace(**settings), tiny.task(), progress=rows.append)
    assert [(row["seed"], row["run"], row["step"]) for row in rows] == [
        (row.seed, row.run, row.step) for row in result.history.itertuples(index=False)
    ]
    for seed, found in zip((3, 4), result.evaluations, strict=True):
        card = (tmp_path / f"seed_{seed}" / "final" / "README.md").read_text(encoding="utf-8")
        kl = found.kl_policy_reference
        assert f"| {kl.value:.3g} [{kl.low:.3g}, {kl.high:.3g}] |" in card and f"seed={seed}" in card
        assert "Checks were not run" not in card
        merged = (tmp_path / f"seed_{seed}" / "merged" / "README.md").read_text(encoding="utf-8")
        assert "were not measured" in merged
