"""Experiment 5: the arms spend the same steps and share what is the same; evaluations are saved and used again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gates
import pytest
import tiny

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import ExperimentConfig
from warp_nb.measure.best_of_n import best_of_n
from warp_nb.measure.front import pareto_front
from warp_nb.runs.warp import warp
from warp_nb.studies import evaluation_store
from warp_nb.studies.comparison import (
    ARMS,
    ETAS,
    REINFORCE,
    RLOO,
    SINGLE,
    WARP,
    Comparison,
    arm_config,
    folder_name,
    run_comparison,
    total_steps,
)
from warp_nb.studies.equal_kl import FRONTS
from warp_nb.studies.experiment import evaluation_settings
from warp_nb.tasks.task import Task

CONFIG = ExperimentConfig(
    T=2, lr=3e-3, warmup_steps=1, mu=0.1, eta=0.5, batch_size=4, max_new_tokens=4, n_eval_prompts=16, n_seeds=2
)


@pytest.fixture(scope="module")
def found() -> Comparison:
    return run_comparison(CONFIG, judged_task(), progress=False)


def judged_task(**changes: Any) -> Task:
    return tiny.task(**{"gate": gates.gate, "judge": tiny.counted()} | changes)


@pytest.mark.slow
def test_every_arm_has_its_steps(found: Comparison) -> None:
    assert {name: len(arm.history) for name, arm in found.arms.items()} == {
        WARP: 16,
        SINGLE: 8,
        REINFORCE: 16,
        RLOO: 16,
    }
    assert {name: arm.steps for name, arm in found.arms.items()} == {WARP: 8, SINGLE: 4, REINFORCE: 8, RLOO: 8}
    assert total_steps(CONFIG) == 2 * (8 + 4 + 8 + 8)
    assert arm_config(CONFIG, REINFORCE).model_dump(include={"I", "M", "T"}) == {"I": 1, "M": 1, "T": 8}
    assert arm_config(CONFIG, RLOO) == CONFIG.replace(baseline="rloo", samples_per_prompt=4)
    assert all(len(measured.front) == len(ETAS) for arm in found.arms.values() for measured in arm.measured)


@pytest.mark.slow
def test_the_first_run_is_shared_and_made_once(found: Comparison) -> None:
    columns = ["step", "reward", "kl", "objective", "seconds"]
    first, single = (found.arms[arm].history.query("iteration == 1 and run == 1")[columns] for arm in (WARP, SINGLE))
    assert first.to_numpy().tolist() == single.to_numpy().tolist()
    loaded = found.arms[SINGLE].runs.set_index(["seed", "iteration"]).loaded
    assert loaded.to_dict() == {(0, 1): 1.0, (0, 2): 0.0, (1, 1): 1.0, (1, 2): 0.0}
    assert not found.arms[WARP].runs.loaded.any() and not found.arms[REINFORCE].runs.loaded.any()


@pytest.mark.slow
def test_the_seconds_of_all_steps_count_the_shared_run_once(found: Comparison) -> None:
    arms = {name: replace(arm, history=arm.history.assign(seconds=1.0)) for name, arm in found.arms.items()}
    assert replace(found, arms=arms).training_seconds == 16 + (8 - 4) + 16 + 16


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_warp_with_its_loops_and_its_front(found: Comparison, arm: str) -> None:
    task, config = judged_task(), arm_config(CONFIG, arm).replace(seed=1, dtype="float32")
    alone = warp(config, task, progress=False)
    rows = pareto_front(task.policy, alone.merged, ETAS, task, **evaluation_settings(config, task))
    measured = found.arms[arm].measured[1]
    assert [row["evaluation"] for row in rows] == measured.front
    if arm == WARP:
        settings = evaluation_settings(config, task)
        (end,) = pareto_front(task.policy, weights_of(alone.policy), [1.0], task, **settings)
        assert measured.end == end["evaluation"]
        for weights, own in zip(alone.ingredients, measured.own_runs, strict=True):
            assert own == [row["evaluation"] for row in pareto_front(task.policy, weights, ETAS, task, **settings)]
        assert measured.unmerged == [own[-1] for own in measured.own_runs] and len(measured.unmerged) == 2
        assert measured.best == best_of_n(task, **settings)
    else:
        assert not measured.own_runs and measured.end is None and not measured.best


def test_a_batch_that_rloo_cannot_divide_is_refused_before_any_step() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of 4, .*'WARP, RLOO', got 6; pass e\.g\."):
        run_comparison(CONFIG.replace(batch_size=6), tiny.task(), progress=False)


def test_every_arm_has_its_own_folder() -> None:
    assert [folder_name(arm) for arm in ARMS] == ["WARP", "M=1", "REINFORCE", "WARP-RLOO"]


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, gates.gate])
def test_a_second_call_resumes(gate: Any, tmp_path: Path) -> None:
    config, task = CONFIG.replace(out_dir=str(tmp_path), n_seeds=1), judged_task(gate=gate)
    first, again = (run_comparison(config, task, progress=False) for _ in range(2))
    assert all((arm.runs.loaded == 1).all() for arm in again.arms.values())
    for part in ("summary", "equal_kl"):
        assert again.to_json()[part] == first.to_json()[part]
    silent = {check.reason for check in first.checks if not check.applies}
    assert silent == (set() if gate else {"no-gate"}) and (first.gate is None) == (gate is None)
    assert (first.judge_gate is None) == (gate is None)


@pytest.mark.slow
def test_the_record_is_plain_json(found: Comparison) -> None:
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["status"] == "ok" and set(record["summary"]) == set(ARMS)
    assert len(record["arms"][REINFORCE]["history"]) == 16
    runs = {(row["arm"], row["seed"], row["iteration"], row["run"]) for row in record["runs"]}
    first = {(WARP, seed, i, m) for seed in (0, 1) for i in (1, 2) for m in (1, 2)} | {
        (REINFORCE, 0, 1, 1),
        (REINFORCE, 1, 1, 1),
    }
    first |= {(RLOO, seed, i, m) for seed in (0, 1) for i in (1, 2) for m in (1, 2)}
    assert runs == first | {(SINGLE, 0, 2, 1), (SINGLE, 1, 2, 1)} and len(record["runs"]) == 20, "the shared is WARP's"
    kept = record["arms"][WARP]["measured"]
    assert [len(one["front"]) for one in kept] == [len(ETAS)] * 2 and kept[0]["samples"]["samples"]
    assert [len(own) for own in kept[0]["own_runs"]] == [len(ETAS)] * 2
    assert [one["n"] for one in kept[1]["best_of_n"]] == [2, 4, 16, 64]
    assert set(kept[0]["front"][0]) >= {"judge_difference", "reward_difference"}
    assert set(record["equal_kl"]["fronts"]) == set(FRONTS) and record["judge_gate"]["n_pairs"] == len(gates.PAIRS)
    front = found.over_seeds(WARP, "reward_difference")
    assert [point["value"] for point in record["summary"][WARP]["reward_difference"]] == [e.value for e in front]


# Saved evaluations


class Counting:
    """Stands in for a function and counts its calls."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        return self.function(*arguments, **keywords)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make (a store in one folder, the counter of its evaluations) for a task and settings."""
    counter = Counting(pareto_front)
    monkeypatch.setattr(evaluation_store, "pareto_front", counter)

    def made(task: Task, **changes: Any) -> tuple[evaluation_store.EvaluationStore, Counting]:
        settings = evaluation_settings(CONFIG.replace(**changes), task)
        depends = evaluation_store.evaluation_identity(task, settings)
        return evaluation_store.EvaluationStore(tmp_path, task, settings, depends), counter

    return made


def test_a_saved_evaluation_is_used_again(store: Any) -> None:
    task = judged_task()
    weights = weights_of(tiny.gpt2(len(task.tokenizer), seed=1, spread=0.05))
    first, counter = store(task)
    once = first.front("WARP", weights, [0.5, 1.0])
    again = store(judged_task())[0].front("WARP", weights, [0.5, 1.0])
    assert again == once and counter.calls == 2
    assert store(task)[0].best_of_n("best") == store(task)[0].best_of_n("best")


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ({"judge": tiny.opinion}, {}),
        ({"judge": None}, {}),
        ({"reward": tiny.counted("superb")}, {}),
        ({"eval_prompts": tiny.prompts(112, seed=0)[48:-1]}, {}),
        ({}, {"n_eval_prompts": 8}),
        ({}, {"seed": 5}),
        ({}, {"max_new_tokens": 3}),
        ({}, {"temperature": 0.7}),
    ],
)
def test_what_an_evaluation_depends_on_makes_it_again(
    store: Any, task: dict[str, Any], settings: dict[str, Any]
) -> None:
    before = judged_task()
    weights = weights_of(before.policy)
    first, counter = store(before)
    first.front("WARP", weights, [1.0])
    store(judged_task(**task), **settings)[0].front("WARP", weights, [1.0])
    assert counter.calls == 2


def test_other_weights_and_a_damaged_file_are_evaluated_again(store: Any, tmp_path: Path) -> None:
    task = judged_task()
    kept, counter = store(task)
    first, other = (weights_of(tiny.gpt2(len(task.tokenizer), seed=seed, spread=0.05)) for seed in (1, 2))
    found = kept.front("WARP", first, [1.0])
    assert kept.front("WARP", other, [1.0]) != found and counter.calls == 2
    (path,) = tmp_path.glob("WARP-1.json")
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert kept.front("WARP", first, [1.0]) == found and counter.calls == 3
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["found"][0]["kls_policy"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert kept.front("WARP", first, [1.0]) == found and counter.calls == 4


def test_the_unknown_stays_unknown_on_disk(store: Any) -> None:
    task = tiny.task()
    kept, _ = store(task)
    weights = weights_of(task.policy)
    for _ in range(2):
        (found,) = kept.front("WARP", weights, [1.0])
        assert not found.judged and found.judges_policy == []
