"""Every silent failure, planted in the real loop, is told by its own check and by no other."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from warp_nb.config import ExperimentConfig
from warp_nb.measure import evaluation
from warp_nb.runs import policy_gradient
from warp_nb.runs import warping as algorithm
from warp_nb.studies import experiment
from warp_nb.studies.experiment import ExperimentResult, run_experiment

CONFIG = ExperimentConfig(
    I=1, T=4, lr=3e-3, warmup_steps=0, mu=0.1, eta=0.3, batch_size=16, max_new_tokens=6, n_eval_prompts=64
)
PAIRS = [((text, f" it is {good}"), (text, f" it is {bad}")) for text, good, bad in zip(
    tiny.prompts(9, seed=7), tiny.GOOD, tiny.BAD, strict=True)]  # fmt: skip
FAITHFUL = {"lr": 1e-6, "warmup_steps": 100, "mu": 0.01, "T": 10}
"""Experiment 1's own: the anchor moves less than half a unit in the last place of most weights."""
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def own_pairs(monkeypatch: Patch) -> None:
    """The gate on pairs of this file instead of IMDb's."""
    monkeypatch.setattr(experiment, "gate_pairs", lambda source: PAIRS)


def run(reward: Callable[..., Any] = tiny.opinion, **changes: Any) -> ExperimentResult:
    return run_experiment(CONFIG.replace(**changes), tiny.task(reward=reward), progress=False)


def failed(result: ExperimentResult) -> set[str]:
    return {check.name for check in result.checks if check.failed}


@pytest.mark.parametrize(
    "changes",
    [{}, {"M": 1}, {"anchor": "sft"}, {"merge": "lerp"}, {"I": 2, "eta": 0.5}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_a_healthy_run_is_silent(changes: dict[str, Any]) -> None:
    result = run(**changes)
    assert failed(result) == set()
    silent = {check.name for check in result.checks if not check.applies}
    assert silent == ({"runs-differ"} if changes.get("M") == 1 else set())


def test_the_faithful_tiny_rate_is_silent_too() -> None:
    """Moves so small that only rounding could look like a fault."""
    assert failed(run(**FAITHFUL)) == set()


def test_collapsed_reward() -> None:
    def collapsed(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0438 + 3e-6 * value for value in tiny.opinion(prompts, completions)]

    assert failed(run(collapsed)) == {"reward-gate-spread"}


def test_prompt_only_reward() -> None:
    def prompt_only(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(text)) for text in prompts]

    assert failed(run(prompt_only)) == {"reward-gate-swap", "reward-gate-accuracy", "reward-gate-sentences"}


def test_wrong_label() -> None:
    def negated(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [-value for value in tiny.opinion(prompts, completions)]

    assert failed(run(negated)) == {"reward-gate-accuracy", "reward-gate-sentences"}


def test_equal_seeds() -> None:
    assert failed(run(independent_seeds=False)) == {"runs-differ"}


def test_frozen_anchor(monkeypatch: Patch) -> None:
    monkeypatch.setattr(policy_gradient, "ema_update_", lambda anchor, policy, mu: None)
    assert failed(run()) == {"anchor-formula"}


SETTINGS = pytest.mark.parametrize("settings", [{}, FAITHFUL], ids=["usual", "faithful"])


@SETTINGS
def test_anchor_updated_with_mu_swapped(monkeypatch: Patch, settings: dict[str, Any]) -> None:
    real = policy_gradient.ema_update_
    monkeypatch.setattr(policy_gradient, "ema_update_", lambda anchor, policy, mu: real(anchor, policy, 1 - mu))
    assert failed(run(**settings)) == {"anchor-formula"}


@SETTINGS
def test_anchor_that_is_the_policy(monkeypatch: Patch, settings: dict[str, Any]) -> None:
    """The second deep copy of a run, the anchor's, returns the policy itself."""
    calls = 0

    def alias(value: Any) -> Any:
        nonlocal calls
        calls += 1
        return copy.deepcopy(value) if calls % 2 else value

    monkeypatch.setattr(policy_gradient, "copy", types.SimpleNamespace(deepcopy=alias))
    result = run(**settings)
    assert failed(result) == {"anchor-formula"} and (result.history.kl == 0).all()


def test_a_policy_that_writes_one_sentence_after_every_prompt(monkeypatch: Patch) -> None:
    """Its bigrams differ within a completion, so only a look at all of them together tells."""
    task, real = tiny.task(), evaluation.sample

    def chant(policy: Any, *rest: Any) -> Any:
        rollout = real(policy, *rest)
        if policy is task.policy:
            return rollout
        ids, mask = rollout.ids.clone(), rollout.completion_mask[:1].expand_as(rollout.completion_mask)
        ids[:, -rollout.width :] = ids[0, -rollout.width :]
        return replace(rollout, ids=ids, completion_mask=mask, completions=rollout.completions[:1] * len(ids))

    monkeypatch.setattr(evaluation, "sample", chant)
    assert "completions-varied" in failed(run_experiment(CONFIG, task, progress=False))


def test_aliased_policies(monkeypatch: Patch) -> None:
    """Every run of an iteration comes back with the first one's weights."""
    real, first = algorithm.load_run, {}

    def alias(job: Any, like: Any) -> Any:
        found = real(job, like)
        return found and replace(found, state=first.setdefault(job.iteration, found.state))

    monkeypatch.setattr(algorithm, "load_run", alias)
    assert failed(run_experiment(CONFIG, tiny.task(), progress=False)) == {"runs-differ"}


def test_runs_that_share_memory_are_kept_apart(monkeypatch: Patch) -> None:
    """All runs train one module, and what they return is its memory: each is on the disk before the next begins."""
    task, shared = tiny.task(), {}

    def alias(value: Any) -> Any:
        if value is task.policy:
            return shared.setdefault("policy", copy.deepcopy(value))
        return copy.deepcopy(value)

    healthy = run_experiment(CONFIG, task, progress=False)
    monkeypatch.setattr(policy_gradient, "copy", types.SimpleNamespace(deepcopy=alias))
    monkeypatch.setattr(policy_gradient, "snapshot", lambda module: module.state_dict())
    found = run_experiment(CONFIG, task, progress=False)
    assert failed(found) == failed(healthy) == set()
    assert found.history.objective.tolist() == healthy.history.objective.tolist()


def test_an_optimizer_that_moves_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    result = run()
    assert failed(result) == {"deltas-nonzero"}
    assert (result.runs.unmoved == 1).all()


def test_weights_that_did_not_move_are_counted(monkeypatch: Patch) -> None:
    real = policy_gradient.build_optimizer

    def half(config: Any, policy: Any) -> Any:
        policy.transformer.h[0].requires_grad_(False)
        return real(config, policy)

    monkeypatch.setattr(policy_gradient, "build_optimizer", half)
    share = (
        sum(p.numel() for p in tiny.task().policy.transformer.h[0].parameters()) / tiny.task().policy.num_parameters()
    )
    assert run().runs.unmoved.min() > 0.9 * share


def test_eta_swapped(monkeypatch: Patch) -> None:
    real = algorithm.liti
    monkeypatch.setattr(algorithm, "liti", lambda init, merged, eta: real(init, merged, 1 - eta))
    assert failed(run()) == {"liti-formula"}


def test_pad_counted_as_completion(monkeypatch: Patch) -> None:
    """The log-probabilities of the padding are taken as sampled ones, so only the mask is at fault."""
    real = policy_gradient.sample

    def padded(policy: Any, tokenizer: Any, *rest: Any) -> Any:
        found = real(policy, tokenizer, *rest)
        everything = replace(
            found,
            completion_mask=torch.ones_like(found.completion_mask),
            attention_mask=torch.cat(
                [found.attention_mask[:, : -found.width], torch.ones_like(found.completion_mask).long()], 1
            ),
        )
        with torch.no_grad():
            logits = policy_gradient.completion_logits(policy, everything)
        return replace(everything, sampled_log_probs=policy_gradient.token_log_probs(logits, everything))

    monkeypatch.setattr(policy_gradient, "sample", padded)
    assert failed(run()) == {"nothing-scored-after-end"}


def test_sampling_and_scoring_at_different_temperatures(monkeypatch: Patch) -> None:
    real = policy_gradient.sample

    def hot(policy: Any, tokenizer: Any, prompts: Any, count: int, temperature: float, generator: Any) -> Any:
        return real(policy, tokenizer, prompts, count, 0.9 * temperature, generator)

    monkeypatch.setattr(policy_gradient, "sample", hot)
    assert failed(run()) == {"sampling-scoring"}


def test_dropout_left_on(monkeypatch: Patch) -> None:
    real = policy_gradient.policy_gradient_loss

    def noisy(policy: Any, *rest: Any) -> Any:
        policy.train()
        try:
            return real(policy, *rest)
        finally:
            policy.eval()

    monkeypatch.setattr(policy_gradient, "policy_gradient_loss", noisy)
    assert "sampling-scoring" in failed(run())


def test_completions_that_end_at_once() -> None:
    policy = tiny.gpt2(39, spread=0.05)
    with torch.no_grad():
        policy.transformer.ln_f.bias += 3 * policy.lm_head.weight[38] / policy.lm_head.weight[38].norm() ** 2
    result = run_experiment(CONFIG, tiny.task(policy=policy), progress=False)
    assert "completions-nonempty" in failed(result)
