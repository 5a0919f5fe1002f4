"""Every silent failure, planted in the real loop through its parts, is told by its own check and by no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from gates import gate

from warp_nb.algorithm import warp as algorithm
from warp_nb.algorithm.merge import Weights, liti
from warp_nb.algorithm.run import Run, Watch
from warp_nb.config import ExperimentConfig
from warp_nb.runs.training import FAST, Parts
from warp_nb.studies.experiment import ExperimentResult, run_experiment
from warp_nb.studies.faults import FAULTS, planted

CONFIG = ExperimentConfig(
    I=1, T=4, lr=3e-3, warmup_steps=0, mu=0.1, eta=0.3, batch_size=16, max_new_tokens=6, n_eval_prompts=64
)
FAITHFUL = {"lr": 1e-6, "warmup_steps": 100, "mu": 0.01, "T": 10}
"""Experiment 1's own: the anchor moves less than half a unit in the last place of most weights."""


def run(
    reward: Callable[..., Any] = tiny.opinion, parts: Parts = FAST, policy: Any = None, **changes: Any
) -> ExperimentResult:
    task = tiny.task(reward=reward, policy=policy, gate=gate)
    return run_experiment(CONFIG.replace(**changes), task, progress=False, parts=parts)


def failed(result: ExperimentResult) -> set[str]:
    return {check.name for check in result.checks if check.failed}


# nothing planted


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"M": 1}, {"anchor": "sft"}, {"merge": "lerp"}, {"merge": "slerp_weights"}, {"I": 2, "eta": 0.5},
        {"dtype": "bfloat16"}, {"baseline": "rloo", "samples_per_prompt": 4},
    ],
    ids=str,
)  # fmt: skip
def test_a_healthy_run_is_silent(changes: dict[str, Any]) -> None:
    result = run(**changes)
    assert failed(result) == set()
    silent = {check.name for check in result.checks if not check.applies}
    assert silent == ({"runs-differ", "objective-split"} if changes.get("M") == 1 else set()), "those that compare runs"


def test_the_faithful_tiny_rate_is_silent_too() -> None:
    """Moves so small that only rounding could look like a fault."""
    assert failed(run(**FAITHFUL)) == set()


# the reward


def collapsed(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [0.0438 + 3e-6 * value for value in tiny.opinion(prompts, completions)]


def prompt_only(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in prompts]


def negated(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [-value for value in tiny.opinion(prompts, completions)]


@pytest.mark.parametrize(
    ("reward", "told"),
    [(collapsed, {"spread"}), (prompt_only, {"swap", "accuracy", "sentences"}), (negated, {"accuracy", "sentences"})],
)
def test_a_bad_reward_is_told_by_its_gate(reward: Callable[..., Any], told: set[str]) -> None:
    assert failed(run(reward)) == {f"reward-gate-{name}" for name in told}


# seeds, weights, the optimizer


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_faults_of_the_diagnosis(name: str) -> None:
    """No check sees a wrong lr, forgotten moments or rounded weights: runs still differ, move and learn."""
    told = {one: {"runs-differ"} for one in ("one-seed", "one-model", "greedy")}
    told |= {one: {"deltas-nonzero"} for one in ("never-stepped", "live-init")}
    assert failed(run(parts=planted([name]))) == told.get(name, set())


def test_weights_that_did_not_move_are_counted() -> None:
    """An optimizer that holds every parameter but those of the first layer."""
    policy = tiny.task().policy
    names = [name for name, _ in policy.named_parameters()]
    frozen = [index for index, name in enumerate(names) if name.startswith("transformer.h.0.")]

    def half(*args: Any, optimizer: Callable[..., Any], **settings: Any) -> Weights:
        def some(parameters: list[Any], lr: float) -> Any:
            return optimizer([value for index, value in enumerate(parameters) if index not in frozen], lr=lr)

        return FAST.train_run(*args, optimizer=some, **settings)

    share = sum(p.numel() for p in policy.transformer.h[0].parameters()) / policy.num_parameters()
    result = run(parts=replace(FAST, train_run=half))
    assert failed(result) == set() and share <= result.runs.unmoved.min() < result.runs.unmoved.max() + 0.05 < 2 * share


# the anchor and the averages

SETTINGS = pytest.mark.parametrize("settings", [{}, FAITHFUL], ids=["usual", "faithful"])


def test_frozen_anchor() -> None:
    assert failed(run(parts=replace(FAST, ema_update_=lambda anchor, policy, mu: None))) == {"anchor-formula"}


@SETTINGS
def test_anchor_updated_with_mu_swapped(settings: dict[str, Any]) -> None:
    swapped = replace(FAST, ema_update_=lambda anchor, policy, mu: FAST.ema_update_(anchor, policy, 1 - mu))
    assert failed(run(parts=swapped, **settings)) == {"anchor-formula"}


@SETTINGS
def test_anchor_that_is_the_policy(settings: dict[str, Any]) -> None:
    class Aliased(Watch):
        """Hands the policy on as the anchor, too."""

        def __init__(self, inner: Watch) -> None:
            self.before_update, self.after_step, self.inner = inner.before_update, inner.after_step, inner

        def begin(self, run: Run) -> None:
            run.anchor = run.policy
            self.inner.begin(run)

    def one_object(init: Any, model: Any, loss_of: Any, T: int, *, watch: Watch, **rest: Any) -> Weights:
        def loss(policy: Any, anchor: Any) -> Any:
            return loss_of(policy, policy)

        return FAST.train_run(init, model, loss, T, watch=Aliased(watch), **rest)

    result = run(parts=replace(FAST, train_run=one_object), **settings)
    assert failed(result) == {"anchor-formula"} and (result.history.kl == 0).all()


def test_eta_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 13 is no part of a run, so its name in the loop is replaced."""
    monkeypatch.setattr(algorithm, "liti", lambda init, merged, eta: liti(init, merged, 1 - eta))
    assert failed(run()) == {"liti-formula"}


# sampling and scoring


def test_pad_counted_as_completion() -> None:
    """The log-probabilities of the padding are taken as sampled ones, so only the mask is at fault."""

    def padded(policy: Any, *args: Any, **settings: Any) -> Any:
        found = FAST.sample(policy, *args, **settings)
        whole = torch.ones_like(found.completion_mask)
        attention = torch.cat([found.attention_mask[:, : -whole.shape[1]], whole.long()], 1)
        everything = replace(found, completion_mask=whole, attention_mask=attention)
        with torch.no_grad():
            logits = FAST.completion_logits(policy, everything)
        scored = everything.tokens, whole, everything.temperature
        return replace(everything, sampled_log_probs=FAST.token_log_probs(logits, *scored))

    assert failed(run(parts=replace(FAST, sample=padded))) == {"nothing-scored-after-end"}


def test_sampling_and_scoring_at_different_temperatures() -> None:
    def hot(policy: Any, ids: Any, mask: Any, sampling: Any, **settings: Any) -> Any:
        cooler = replace(sampling, temperature=0.9 * sampling.temperature)
        return replace(FAST.sample(policy, ids, mask, cooler, **settings), temperature=sampling.temperature)

    assert failed(run(parts=replace(FAST, sample=hot))) == {"sampling-scoring"}


def test_dropout_left_on() -> None:
    def noisy(policy: Any, rollout: Any) -> Any:
        policy.train()
        try:
            return FAST.completion_logits(policy, rollout)
        finally:
            policy.eval()

    assert "sampling-scoring" in failed(run(parts=replace(FAST, completion_logits=noisy)))


# what the policy writes


def test_a_policy_that_writes_one_sentence_after_every_prompt() -> None:
    """Its bigrams differ within a completion, so only a look at all of them together tells."""

    def chant(init: Weights, policies: list[Weights], **settings: Any) -> Weights:
        """The position alone decides the next word: every place looks like a word of its own."""
        words = init["transformer.wte.weight"][torch.arange(32) % 30]
        places = 100 * words / words.norm(dim=1, keepdim=True)
        certain = 30 * init["transformer.ln_f.weight"]
        return init | {"transformer.wpe.weight": places, "transformer.ln_f.weight": certain}

    policy = tiny.gpt2(39, spread=0.05, width=64)
    found = failed(run(parts=replace(FAST, merge=chant), policy=policy, eta=1.0))
    assert "completions-varied" in found and "completions-diverse" not in found


def test_completions_that_end_at_once() -> None:
    policy = tiny.gpt2(39, spread=0.05)
    with torch.no_grad():
        policy.transformer.ln_f.bias += 3 * policy.lm_head.weight[38] / policy.lm_head.weight[38].norm() ** 2
    result = run(policy=policy)
    assert "completions-nonempty" in failed(result) and not math.isnan(result.runs.empty_completions.min())
