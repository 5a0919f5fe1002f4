"""The diagnosis' faults are planted as they are named, beside parts that stay as they were."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import tiny

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint
from warp_nb.runs.training import FAST, PLAIN
from warp_nb.runs.warp import WarpResult, warp
from warp_nb.studies.faults import FAULTS, constant_reward, planted

CONFIG = WarpConfig(I=1, T=2, lr=1e-2, warmup_steps=0, batch_size=4, max_new_tokens=4, threads=1)
TASK = tiny.task()


def trained(*names: str, **settings: Any) -> WarpResult:
    return warp(CONFIG, TASK, progress=False, parts=planted(names, **settings))


def curves(result: WarpResult) -> list[Any]:
    """What each run recorded, but for its number and its seconds."""
    return [rows.drop(columns=["run", "seconds"]).to_numpy().tolist() for _, rows in result.history.groupby("run")]


def test_nothing_planted_is_nothing_changed() -> None:
    assert planted([]) is FAST
    assert fingerprint(weights_of(trained().policy)) == fingerprint(
        weights_of(warp(CONFIG, TASK, progress=False).policy)
    )
    first, second = curves(trained())
    assert first != second


def test_a_scheduler_never_stepped_leaves_every_weight() -> None:
    found = trained("never-stepped")
    assert fingerprint(weights_of(found.policy)) == fingerprint(weights_of(TASK.policy))
    assert (found.runs.unmoved == 1).all() and (found.history.lr == 0).all()


def test_one_seed_makes_one_run() -> None:
    found = trained("one-seed")
    assert found.runs.run_seed.nunique() == 1 and found.merges.delta_cosine.min() > 0.9999
    first, second = curves(found)
    assert first == second


def test_one_model_is_merged_with_itself() -> None:
    found = trained("one-model")
    assert found.geometry.omega.abs().max() < 0.1 and found.merges.delta_cosine.min() > 0.9999
    first, second = curves(found)
    assert first != second, "the runs themselves are independent"
    second_alone = replace(FAST, run_seed=lambda seed, i, m: FAST.run_seed(seed, i, 2))
    alone = warp(CONFIG.replace(M=1), TASK, progress=False, parts=second_alone)
    assert fingerprint(found.merged) == fingerprint(alone.merged), "what is merged is the last run"


def test_greedy_runs_in_order_are_one_run() -> None:
    asked: list[list[str]] = []

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        asked.append(prompts)
        return tiny.opinion(prompts, completions)

    found = warp(CONFIG, tiny.task(reward=reward), progress=False, parts=planted(["greedy"]))
    first, second = curves(found)
    assert first == second
    assert asked == [TASK.train_prompts[:4], TASK.train_prompts[4:8]] * 2


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("never-stepped", ["learning_rate"]),
        ("one-seed", ["run_seed"]),
        ("one-model", ["train_run"]),
        ("greedy", ["sample", "prompt_batches"]),
    ],
)
def test_a_fault_changes_its_parts_and_no_other(name: str, changed: list[str]) -> None:
    for parts in (FAST, PLAIN):
        found = planted([name], parts)
        assert [
            part.name for part in fields(parts) if getattr(found, part.name) != getattr(parts, part.name)
        ] == changed
        assert planted([name], parts).replaced() == sorted({*parts.replaced(), *changed}, key=ORDER.index)
    assert FAST.replaced() == []


ORDER = [part.name for part in fields(FAST)]


def test_faults_are_planted_together() -> None:
    found = trained("one-seed", "never-stepped")
    assert (found.history.lr == 0).all() and found.runs.run_seed.nunique() == 1
    assert set(planted(FAULTS).replaced()) == {"learning_rate", "run_seed", "train_run", "sample", "prompt_batches"}


def test_an_unknown_fault_is_refused() -> None:
    told = "unknown fault gremlin; choose from never-stepped, one-seed, one-model, greedy"
    with pytest.raises(ValueError, match=told):
        planted(["greedy", "gremlin"])


def test_the_constant_reward_is_constant() -> None:
    assert constant_reward(["a", "b"], ["c", "d"]) == [0.0438, 0.0438]
