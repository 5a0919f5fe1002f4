"""One run against finite differences, exact expectations and hand-written formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch

from warp_nb.config import WarpConfig
from warp_nb.fast.rollout import Rollout
from warp_nb.runs import policy_gradient
from warp_nb.runs.policy_gradient import (
    AnchorProbe,
    baseline,
    derive_seed,
    displacement,
    learning_rate,
    policy_gradient_loss,
    prompt_batches,
    run_seed,
    scored_after_end,
    train_run,
)
from warp_nb.runs.weights import fingerprint, snapshot

PROMPT = [0, 1]
EVERY = list(tiny.sequences(4, 3, end=3))
REWARDS = torch.arange(len(EVERY), dtype=torch.float32).sin() + 2
CONFIG = WarpConfig(T=3, lr=1e-2, warmup_steps=0, batch_size=8, max_new_tokens=6)


def log_probs(policy: Any, temperature: float = 1.0) -> torch.Tensor:
    """log pi(y | PROMPT) of EVERY completion; zeros on the right, which nothing to their left can see."""
    rows = [PROMPT + y + [0] * (3 - len(y)) for y in EVERY]
    tables = (policy(torch.tensor(rows)).logits / temperature).log_softmax(-1)
    return torch.stack(
        [
            sum(table[len(PROMPT) + i - 1, token] for i, token in enumerate(y))
            for table, y in zip(tables, EVERY, strict=True)
        ]
    )


def objectives(policy: Any, anchor: Any, rewards: torch.Tensor, config: WarpConfig) -> torch.Tensor:
    """r_beta of line 7 for every completion of EVERY, float64."""
    with torch.no_grad():
        ratios = log_probs(policy, config.temperature) - log_probs(anchor, config.temperature)
    return rewards.double() - config.beta * ratios


def doubles() -> tuple[Any, Any]:
    return tiny.gpt2(4, seed=1).double(), tiny.gpt2(4, seed=2).double()


def gradient(policy: Any, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def slope(policy: Any, value: Callable[[], float], direction: torch.Tensor, step: float = 1e-5) -> float:
    """Central difference of `value` along `direction` in the space of all parameters."""
    parameters = list(policy.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    ends = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(start + sign * step * direction, parameters)
        with torch.no_grad():
            ends.append(value())
    torch.nn.utils.vector_to_parameters(start, parameters)
    return (ends[0] - ends[1]) / (2 * step)


def directions(policy: Any, count: int = 3) -> list[torch.Tensor]:
    size = sum(value.numel() for value in policy.parameters())
    drawn = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return list(drawn / drawn.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", ["none", "mean", "loo"])
def test_gradient_against_finite_differences_with_r_beta_constant(kind: str) -> None:
    policy, anchor = doubles()
    config = CONFIG.replace(beta=0.7, temperature=0.8, baseline=kind)
    loss, _ = policy_gradient_loss(policy, anchor, tiny.rollout(PROMPT, EVERY), REWARDS, config)
    found = gradient(policy, loss)
    constant = objectives(policy, anchor, REWARDS, config)
    count = len(EVERY)
    offsets = {"none": 0 * constant, "mean": constant.mean().expand(count)}
    offsets["loo"] = torch.stack([torch.cat([constant[:i], constant[i + 1 :]]).mean() for i in range(count)])

    def surrogate(advantage: torch.Tensor) -> float:
        return -(advantage * log_probs(policy, 0.8)).mean().item()

    for direction in directions(policy):
        wanted = slope(policy, lambda: surrogate(constant - offsets[kind]), direction)
        assert (found @ direction).item() == pytest.approx(wanted, rel=1e-5, abs=1e-8)
    if kind == "none":  # were r_beta no constant to the gradient, the comparison would tell
        moving = slope(policy, lambda: surrogate(objectives(policy, anchor, REWARDS, config)), directions(policy)[0])
        assert abs(moving - (found @ directions(policy)[0]).item()) > 1e-4


def test_expected_gradient_is_the_gradient_of_reward_minus_beta_kl() -> None:
    """E[r_beta * grad log pi] over every completion against differences of E[r] - beta * KL(pi || anchor)."""
    policy, anchor = doubles()
    config = CONFIG.replace(beta=0.5)
    with torch.no_grad():
        chances = log_probs(policy).exp().tolist()
    total = 0.0
    for chance, y, reward in zip(chances, EVERY, REWARDS, strict=True):
        loss, _ = policy_gradient_loss(policy, anchor, tiny.rollout(PROMPT, [y]), reward[None], config)
        total = total - chance * gradient(policy, loss)

    def exact() -> float:
        logs, others = log_probs(policy), log_probs(anchor)
        return (logs.exp() * (REWARDS.double() - 0.5 * (logs - others))).sum().item()

    assert sum(chances) == pytest.approx(1, abs=1e-12)
    for direction in directions(policy):
        assert (total @ direction).item() == pytest.approx(slope(policy, exact, direction), rel=1e-5, abs=1e-8)


def test_a_step_is_measured_by_the_formulas() -> None:
    policy, anchor = doubles()
    config = CONFIG.replace(beta=0.7)
    given = tiny.rollout(PROMPT, EVERY)
    _, row = policy_gradient_loss(policy, anchor, given, REWARDS, config)
    wanted = objectives(policy, anchor, REWARDS, config)
    assert row["reward"] == pytest.approx(REWARDS.mean().item())
    assert row["objective"] == pytest.approx(wanted.mean().item())
    assert row["penalty"] == pytest.approx((wanted - REWARDS).mean().item())
    assert row["tokens"] == pytest.approx(sum(map(len, EVERY)) / len(EVERY))
    with torch.no_grad():
        each = log_probs(policy).tolist()
    tokens = [len(y) for y in EVERY]
    assert row["sampling_gap"] >= max(-a / n for a, n in zip(each, tokens, strict=True))  # sampled at "0"
    assert row["kl"] > 0


def test_equal_policies_pay_no_penalty() -> None:
    policy, _ = doubles()
    _, row = policy_gradient_loss(policy, copy.deepcopy(policy), tiny.rollout(PROMPT, EVERY), REWARDS, CONFIG)
    assert row["penalty"] == pytest.approx(0, abs=1e-12) and row["kl"] == pytest.approx(0, abs=1e-12)


def test_baselines_by_hand() -> None:
    given = torch.tensor([1.0, 2.0, 6.0])
    assert baseline(given, "none").tolist() == [0, 0, 0]
    assert baseline(given, "mean").tolist() == [3, 3, 3]
    assert baseline(given, "loo").tolist() == [4, 3.5, 1.5]


def test_learning_rate_of_every_step() -> None:
    config = CONFIG.replace(lr=0.1, warmup_steps=4)
    rates = [learning_rate(config, step) for step in (1, 2, 4, 5, 100)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])
    assert learning_rate(config.replace(warmup_steps=0), 1) == 0.1


def test_batches_are_fresh_shuffles_of_all_prompts() -> None:
    batches = prompt_batches([str(i) for i in range(10)], 4, torch.Generator().manual_seed(0))
    drawn = [text for _ in range(5) for text in next(batches)]
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == [str(i) for i in range(10)] and first != second
    wide = next(prompt_batches(["a", "b"], 5, torch.Generator().manual_seed(0)))
    assert sorted(wide)[1:4:2] == ["a", "b"]


def test_seeds_differ_in_every_part_unless_switched_off() -> None:
    seeds = {run_seed(CONFIG.replace(seed=s), i, m) for s in range(5) for i in range(1, 12) for m in range(1, 12)}
    assert len(seeds) == 5 * 11 * 11
    same = CONFIG.replace(independent_seeds=False)
    assert run_seed(same, 1, 1) == run_seed(same, 1, 2) == run_seed(same, 2, 1)
    assert derive_seed(1, 11) != derive_seed(11, 1)


# a whole run


def trained(config: WarpConfig, **changes: Any) -> policy_gradient.RunResult:
    task = tiny.task(**changes)
    return train_run(task, config, snapshot(task.policy), 1, 1)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimizer_moves_by_its_own_rule(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The displacement of the first step from the gradient of that very step."""
    task, seen = tiny.task(), {}

    def watch(policy: Any, anchor: Any, rollout: Rollout, rewards: Any, config: Any) -> Any:
        loss, row = policy_gradient_loss(policy, anchor, rollout, rewards, config)
        seen["gradient"] = gradient(policy, policy_gradient_loss(policy, anchor, rollout, rewards, config)[0])
        return loss, row

    monkeypatch.setattr(policy_gradient, "policy_gradient_loss", watch)
    result = train_run(task, CONFIG.replace(T=1, optimizer=optimizer), snapshot(task.policy), 1, 1)
    names = [name for name, _ in task.policy.named_parameters()]
    start = torch.cat([task.policy.state_dict()[name].flatten() for name in names])
    end = torch.cat([result.state[name].flatten() for name in names])
    g = seen["gradient"]
    first = g / (g.abs() + 1e-8)  # Adam's first step after bias correction
    rule = {"sgd": g, "adam": first, "adamw": first + 0.01 * start}[optimizer]
    assert torch.allclose(end - start, -1e-2 * rule, rtol=1e-3, atol=2e-7)
    assert result.history[0]["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-4)


def test_warm_up_starts_anew_and_is_what_the_optimizer_used() -> None:
    config = CONFIG.replace(optimizer="sgd", warmup_steps=2, T=3)
    history = trained(config).history
    assert [row["lr"] for row in history] == pytest.approx([5e-3, 1e-2, 1e-2])
    full, half = (trained(config.replace(T=1, warmup_steps=w)).facts["delta_norm"] for w in (1, 2))
    assert half == pytest.approx(full / 2, rel=1e-3)


def test_sft_anchor_stands_still_and_ema_follows() -> None:
    fixed, ema = (trained(CONFIG.replace(anchor=kind, mu=0.5)) for kind in ("sft", "ema"))
    assert fixed.facts["anchor_moved"] == 0 == fixed.facts["anchor_error"]
    assert ema.facts["anchor_moved"] > 0 and ema.facts["anchor_error"] < 1e-3
    assert fixed.history[0]["kl"] == pytest.approx(0, abs=1e-6) == ema.history[0]["kl"]
    assert fixed.history[2]["kl"] > ema.history[2]["kl"] > 0


def test_the_sft_anchor_is_theta_sft_in_later_iterations_too() -> None:
    task = tiny.task()
    init = {name: value + 0.05 for name, value in snapshot(task.policy).items()}
    rows = {
        kind: train_run(task, CONFIG.replace(T=1, anchor=kind), init, 2, 1).history[0]["kl"] for kind in ("ema", "sft")
    }
    assert rows["ema"] == pytest.approx(0, abs=1e-6) and rows["sft"] > 1e-3


def test_theta_sft_is_never_mutated() -> None:
    task = tiny.task()
    before = fingerprint(task.policy.state_dict())
    result = train_run(task, CONFIG, snapshot(task.policy), 1, 1)
    assert fingerprint(task.policy.state_dict()) == before != fingerprint(result.state)
    assert all(value.grad is None for value in task.policy.parameters())


def test_equal_seeds_repeat_a_run_to_the_bit() -> None:
    first, again, other = trained(CONFIG), trained(CONFIG), trained(CONFIG.replace(seed=1))
    assert fingerprint(first.state) == fingerprint(again.state) != fingerprint(other.state)
    assert [row["objective"] for row in first.history] == [row["objective"] for row in again.history]


def test_bf16_arithmetic_keeps_fp32_weights() -> None:
    result = trained(CONFIG.replace(dtype="bfloat16"))
    assert {value.dtype for value in result.state.values()} == {torch.float32}
    assert 0 < result.facts["sampling_gap"] < 0.5


def test_a_loss_that_is_not_finite_stops_before_the_optimizer() -> None:
    def exploding(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [1e38 * (1 if index % 2 else -1) for index in range(len(prompts))]

    with pytest.raises(FloatingPointError, match=r"at iteration 1, run 1, step 1; lower lr"):
        trained(CONFIG, reward=exploding)


def test_a_bad_reward_is_named_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"reward short at iteration 1, run 1, step 1 returned 1 values for 8"):

        def short(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
            return [1.0]

        trained(CONFIG, reward=short)


# facts for the checks


def test_displacement_counts_tied_weights_once() -> None:
    policy = tiny.gpt2(20)
    init, state = snapshot(policy), snapshot(policy)
    state["transformer.wte.weight"][:5] += 0.5  # the head is the same tensor
    facts = displacement(init, state)
    assert facts["delta_norm"] == pytest.approx(0.5 * math.sqrt(5 * 16), rel=1e-5)
    assert facts["unmoved"] == pytest.approx(1 - 5 * 16 / policy.num_parameters())
    assert displacement(init, init) == {"delta_norm": 0.0, "unmoved": 1.0}


def test_tokens_after_the_end_are_counted() -> None:
    sound = tiny.rollout([0], [[1, 3], [1, 2, 0]])
    padded = Rollout(sound.ids, sound.attention_mask, torch.ones(2, 3, dtype=torch.bool), *[sound.prompts] * 3)
    twice = tiny.rollout([0], [[3, 3, 3]])
    assert scored_after_end(sound, 3) == 0 and scored_after_end(padded, 3) == 1 and scored_after_end(twice, 3) == 2
    assert scored_after_end(padded, None) == 0


def test_the_probe_measures_the_anchors_error() -> None:
    anchor, policy = tiny.gpt2(20, seed=1), tiny.gpt2(20, seed=2)
    probe, still = AnchorProbe(anchor), AnchorProbe(anchor)
    for _ in range(3):
        probe.follow(policy, 0.01)
        policy_gradient.ema_update_(anchor, policy, 0.01)
    assert probe.compare(anchor)["anchor_error"] < 1e-4
    assert probe.compare(tiny.gpt2(20, seed=1))["anchor_error"] == pytest.approx(1, abs=1e-3)
    assert probe.compare(policy)["anchor_error"] > 10
    assert still.compare(tiny.gpt2(20, seed=1)) == {"anchor_moved": 0.0, "anchor_error": 0.0}
    assert still.compare(anchor)["anchor_error"] == 1.0
