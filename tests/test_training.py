"""One run on a task against finite differences, exact expectations, loops and hand-written formulas."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from brute import FOUR
from faulty import Opinion, fail

from warp_nb.algorithm.merge import weights_of
from warp_nb.algorithm.objective import Rollout
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint, unseal
from warp_nb.runs.checkpoint import Checkpoints
from warp_nb.runs.training import (
    FAST,
    PLAIN,
    Parts,
    RunResult,
    Training,
    derive_seed,
    learning_rate,
    prompt_batches,
    train,
)

PROMPT = [0, 1]
EVERY = list(tiny.sequences(4, 3, end=3))
REWARDS = torch.arange(len(EVERY), dtype=torch.float32).sin() + 2
CONFIG = WarpConfig(T=3, lr=1e-2, warmup_steps=0, batch_size=8, max_new_tokens=6)

# the loss of a step


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


def given(completions: list[list[int]], rewards: torch.Tensor, config: WarpConfig, parts: Parts = FAST) -> Training:
    """A step that samples these completions and whose reward gives these numbers."""

    def sample(*args: Any, **kwargs: Any) -> Rollout:
        return replace(tiny.rollout(PROMPT, completions), temperature=config.temperature)

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return rewards.tolist()

    prompts = {"train_prompts": ["a b"], "eval_prompts": ["a c"]}
    task = tiny.task(reward, policy=tiny.gpt2(4), tokenizer=tiny.tokenizer(FOUR), **prompts)
    config = config.replace(batch_size=len(completions))
    return Training(config, task, 1, 1, parts=replace(parts, sample=sample))


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


@pytest.mark.parametrize("parts", [FAST, PLAIN], ids=["fast", "plain"])
@pytest.mark.parametrize("kind", ["none", "mean", "batch_loo", "rloo"])
def test_gradient_against_finite_differences_with_r_beta_constant(kind: str, parts: Parts) -> None:
    policy, anchor = doubles()
    config = CONFIG.replace(beta=0.7, temperature=0.8, baseline=kind, samples_per_prompt=4)
    found = gradient(policy, given(EVERY, REWARDS, config, parts).loss_of(policy, anchor))
    constant = objectives(policy, anchor, REWARDS, config)
    count, size = len(EVERY), len(EVERY) if kind == "batch_loo" else 4
    groups = [[j for j in range(count) if j // size == i // size and j != i] for i in range(count)]
    left_out = torch.stack([constant[group].mean() for group in groups])
    offset = {"none": 0 * constant, "mean": constant.mean().expand(count)}.get(kind, left_out)

    def surrogate(advantage: torch.Tensor) -> float:
        return -(advantage * log_probs(policy, 0.8)).mean().item()

    for direction in directions(policy):
        wanted = slope(policy, lambda: surrogate(constant - offset), direction)
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
        loss = given([y], reward[None], config).loss_of(policy, anchor)
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
    training = given(EVERY, REWARDS, config)
    training.loss_of(policy, anchor)
    row = {name: value.item() for name, value in training.measured.items()}
    wanted = objectives(policy, anchor, REWARDS, config)
    assert row["reward"] == pytest.approx(REWARDS.mean().item())
    assert row["objective"] == pytest.approx(wanted.mean().item())
    assert row["penalty"] == pytest.approx((wanted - REWARDS).mean().item())
    assert row["tokens"] == pytest.approx(sum(map(len, EVERY)) / len(EVERY))
    with torch.no_grad():
        each = log_probs(policy).tolist()
    assert row["sampling_gap"] >= max(-a / len(y) for a, y in zip(each, EVERY, strict=True))  # sampled at "0"
    assert row["kl"] > 0 and row["after_end"] == 0 and training.empty == 1 / len(EVERY)
    training = given(EVERY, REWARDS, config)
    training.loss_of(policy, copy.deepcopy(policy))  # equal policies pay no penalty
    assert [training.measured[name].item() for name in ("penalty", "kl")] == pytest.approx([0, 0], abs=1e-12)


# prompts, seeds, the schedule


def test_learning_rate_of_every_step() -> None:
    assert [learning_rate(0.1, 4, step) for step in (1, 2, 4, 5, 100)] == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])
    assert learning_rate(0.1, 0, 1) == 0.1


def test_batches_are_fresh_shuffles_of_all_prompts() -> None:
    batches = prompt_batches([str(i) for i in range(10)], 4, torch.Generator().manual_seed(0))
    drawn = [text for _ in range(5) for text in next(batches)]
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == [str(i) for i in range(10)] and first != second
    wide = next(prompt_batches(["a", "b"], 5, torch.Generator().manual_seed(0)))
    assert Counter(wide) in ({"a": 3, "b": 2}, {"a": 2, "b": 3}) and set(wide[:2]) == set(wide[2:4]) == {"a", "b"}


def test_seeds_differ_in_every_part() -> None:
    seeds = {derive_seed(s, i, m) for s in range(5) for i in range(1, 12) for m in range(1, 12)}
    assert len(seeds) == 5 * 11 * 11 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 11) != derive_seed(11, 1) and derive_seed(1, "a") == derive_seed("1", "a")


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_neighbours_in_a_batch_share_a_prompt(samples: int) -> None:
    """8 completions a step, K of a prompt: 8 / K prompts a step, every prompt once before one comes again."""
    batches: list[list[str]] = []
    texts: list[list[str]] = []

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        batches.append(prompts)
        texts.append(completions)
        return tiny.opinion(prompts, completions)

    known = tiny.prompts(16, seed=3)
    task = tiny.task(reward, train_prompts=known[:12], eval_prompts=known[12:])
    train(CONFIG.replace(samples_per_prompt=samples), task, weights_of(task.policy), i=1, m=1)
    for batch in batches:
        heads = batch[::samples]
        assert batch == [prompt for prompt in heads for _ in range(samples)] and len(set(heads)) == 8 // samples
    pass_of_prompts = [prompt for batch in batches for prompt in batch[::samples]][:12]
    assert len(set(pass_of_prompts)) == len(pass_of_prompts) == min(12, 3 * 8 // samples)
    assert len({text for batch in texts for text in batch[:samples]}) > min(samples, 2)  # of one prompt they differ


@pytest.mark.parametrize("kind", ["mean", "batch_loo", "rloo"])
def test_what_a_baseline_takes_off_in_a_run(kind: str) -> None:
    """From r_beta and the advantage of every step, seen by the parts of the run itself."""
    r_betas: list[torch.Tensor] = []
    advantages: list[torch.Tensor] = []

    def regularised_reward(*args: Any) -> torch.Tensor:
        r_betas.append(FAST.regularised_reward(*args))
        return r_betas[-1]

    def reinforce_loss(advantage: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        advantages.append(advantage)
        return FAST.reinforce_loss(advantage, log_probs)

    parts = replace(FAST, regularised_reward=regularised_reward, reinforce_loss=reinforce_loss)
    trained(CONFIG.replace(baseline=kind, samples_per_prompt=4), parts=parts)
    assert len(r_betas) == len(advantages) == 3
    for r_beta, advantage in zip(r_betas, advantages, strict=True):
        for i, value in enumerate(r_beta.tolist()):
            group = range(i // 4 * 4, i // 4 * 4 + 4) if kind == "rloo" else range(8)
            over = [r_beta[j].item() for j in group if kind == "mean" or j != i]
            assert advantage[i].item() == pytest.approx(value - sum(over) / len(over), abs=1e-5)


# a whole run


def trained(config: WarpConfig, parts: Parts = FAST, **changes: Any) -> RunResult:
    task = tiny.task(**changes)
    return train(config, task, weights_of(task.policy), i=1, m=1, parts=parts)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimizer_moves_by_its_own_rule(optimizer: str) -> None:
    """The displacement of the first step from the gradient of that very step."""
    task, config = tiny.task(), CONFIG.replace(T=1, optimizer=optimizer)
    policy = copy.deepcopy(task.policy)
    g = gradient(policy, Training(config, task, 1, 1).loss_of(policy, task.policy))
    init = weights_of(task.policy)
    result = train(config, task, init, i=1, m=1)
    start, end = (torch.cat([value.flatten() for value in side.values()]) for side in (init, result.weights))
    first = g / (g.abs() + 1e-8)  # Adam's first step after bias correction
    rule = {"sgd": g, "adam": first, "adamw": first + 0.01 * start}[optimizer]
    assert torch.allclose(end - start, -1e-2 * rule, rtol=1e-3, atol=2e-7)
    assert result.history[0]["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-4)


def test_warm_up_starts_anew_and_is_what_the_optimizer_used() -> None:
    config = CONFIG.replace(optimizer="sgd", warmup_steps=2, T=3)
    assert [row["lr"] for row in trained(config).history] == pytest.approx([5e-3, 1e-2, 1e-2])
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
    init = {name: value + 0.05 for name, value in weights_of(task.policy).items()}
    rows = {kind: train(CONFIG.replace(T=1, anchor=kind), task, init, i=2, m=1).history[0] for kind in ("ema", "sft")}
    assert rows["ema"]["kl"] == pytest.approx(0, abs=1e-6) and rows["sft"]["kl"] > 1e-3


def test_theta_sft_is_never_mutated_and_no_gradient_is_left_on_it() -> None:
    task = tiny.task()
    init = weights_of(task.policy)
    before = fingerprint(init)
    result = train(CONFIG, task, init, i=1, m=1)
    assert fingerprint(init) == fingerprint(weights_of(task.policy)) == before != fingerprint(result.weights)
    assert all(value.grad is None for value in task.policy.parameters())


def test_equal_seeds_repeat_a_run_to_the_bit() -> None:
    first, again, other = trained(CONFIG), trained(CONFIG), trained(CONFIG.replace(seed=1))
    assert fingerprint(first.weights) == fingerprint(again.weights) != fingerprint(other.weights)
    assert [row["objective"] for row in first.history] == [row["objective"] for row in again.history]


def test_bf16_arithmetic_keeps_fp32_weights() -> None:
    result = trained(CONFIG.replace(dtype="bfloat16"))
    assert {value.dtype for value in result.weights.values()} == {torch.float32}
    assert 0 < result.facts["sampling_gap"] < 0.5


# snapshots and anchors


def collected(config: WarpConfig, **settings: Any) -> tuple[RunResult, dict[Any, Any]]:
    """A run and what it gives to `keep`."""
    task, snapshots = tiny.task(), {}
    result = train(config, task, weights_of(task.policy), i=1, m=1, keep=snapshots.__setitem__, **settings)
    return result, snapshots


def test_a_snapshot_is_the_run_as_it_was_after_that_step() -> None:
    """A shorter run has the same weights there; a snapshot is a copy that later steps do not change."""
    result, snapshots = collected(CONFIG.replace(T=5, snapshot_every=2))
    assert list(snapshots) == [2, 4]
    for step, weights in snapshots.items():
        assert fingerprint(weights) == fingerprint(trained(CONFIG.replace(T=step)).weights)
    assert fingerprint(result.weights) == fingerprint(trained(CONFIG.replace(T=5)).weights)


def test_without_the_parameters_nothing_is_copied() -> None:
    _, snapshots = collected(CONFIG)
    assert snapshots == {}
    _, snapshots = collected(CONFIG.replace(snapshot_every=4))  # longer than the run
    assert snapshots == {}


def test_the_final_anchor_is_the_ema_of_the_weights_after_every_step() -> None:
    config = CONFIG.replace(T=5, mu=0.3, snapshot_every=1, keep_anchors=True)
    _, snapshots = collected(config)
    anchor = {name: value.double() for name, value in weights_of(tiny.task().policy).items()}
    for step in range(1, 6):
        anchor = {name: 0.7 * value + 0.3 * snapshots[step][name].double() for name, value in anchor.items()}
    assert list(snapshots) == [1, 2, 3, 4, 5, "anchor"]
    for name, value in snapshots["anchor"].items():
        assert torch.allclose(value.double(), anchor[name], rtol=0, atol=1e-6)
    moved = max((anchor[name] - value).abs().max().item() for name, value in weights_of(tiny.task().policy).items())
    assert moved > 1e-3
    _, fixed = collected(CONFIG.replace(anchor="sft", keep_anchors=True))
    assert fingerprint(fixed["anchor"]) == fingerprint(weights_of(tiny.task().policy))


# steps that fail


def endless(p: torch.Tensor, q: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """A KL that is not finite."""
    return torch.full(mask.shape, math.inf)


POISON: dict[str, tuple[str, Callable[..., torch.Tensor], str]] = {
    "loss": ("reinforce_loss", lambda advantage, log_probs: log_probs.sum() * math.nan, "loss nan"),
    "gradient": ("reinforce_loss", lambda advantage, log_probs: (log_probs.sum() * 0).sqrt(), "^grad_norm nan"),
    "kl": ("token_kl", endless, "^kl inf"),
    "objective": ("regularised_reward", lambda rewards, *others: rewards * math.nan, "objective nan"),
}


def sound_once(part: str, instead: Callable[..., torch.Tensor]) -> Parts:
    """The part as it is in the first step, another in every later one."""
    functions = [getattr(FAST, part)]
    return replace(FAST, **{part: lambda *args: (functions.pop() if functions else instead)(*args)})


def after_one_step(path: Path) -> tuple[str, list[dict[str, float]]]:
    """Fingerprint of the checkpoint and its history without times."""
    tensors, record = unseal(path)
    return fingerprint(tensors), [row | {"seconds": 0} for row in record["history"]]


@pytest.mark.parametrize("what", [*POISON, "reward"])
def test_a_step_that_fails_changes_nothing(what: str, tmp_path: Path) -> None:
    """The state after it is the state of a run that ends a step earlier: weights, moments, anchor and noise."""
    whole, failed = (Checkpoints(tmp_path / f"{name}.state.safetensors", "start") for name in ("whole", "failed"))
    task, init = tiny.task(), weights_of(tiny.task().policy)
    train(CONFIG.replace(T=1, save_every=1), task, init, i=1, m=1, checkpoints=whole)
    if what == "reward":
        parts, error, said = FAST, RuntimeError, "raised OSError: the scoring service is gone"
        task = tiny.task(Opinion(2, fail))
    else:
        part, instead, said = POISON[what]
        parts, error = sound_once(part, instead), FloatingPointError
    with pytest.raises(error, match=said) as caught:
        train(CONFIG, task, init, i=1, m=1, parts=parts, checkpoints=failed)
    assert "at iteration 1, run 1, step 2" in str(caught.value)
    assert after_one_step(failed.path) == after_one_step(whole.path)


def test_a_failure_before_the_first_step_claims_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run.state.safetensors", "start")
    task = tiny.task(reward=Opinion(1, fail))
    with pytest.raises(RuntimeError, match="step 1 raised OSError") as caught:
        train(CONFIG, task, weights_of(task.policy), i=1, m=1, checkpoints=checkpoints)
    assert "__notes__" not in vars(caught.value) and list(tmp_path.iterdir()) == []
