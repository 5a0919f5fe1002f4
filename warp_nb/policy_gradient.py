"""One run (i, m): lines 4 to 9 of Algorithm 1."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from warp_nb.average import StateDict, ema_update_, first_names
from warp_nb.config import WarpConfig
from warp_nb.devices import arithmetic, keep_freed_memory, prepare_attention
from warp_nb.rollout import Rollout, sample
from warp_nb.scoring import completion_logits, token_kl, token_log_probs
from warp_nb.tasks import Task, call_reward
from warp_nb.weights import snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, float]
PROBE = 64
HALF_ULP = 2.0**-24


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: its weights, a history row a step, facts for the checks."""

    state: StateDict
    history: list[Row]
    facts: Row


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, equal for equal parts and independent otherwise."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def run_seed(config: WarpConfig, iteration: int, run: int) -> int:
    """Seed of run (i, m): its prompt order and its sampling noise."""
    if not config.independent_seeds:
        return derive_seed(config.seed, iteration)
    return derive_seed(config.seed, iteration, run)


def learning_rate(config: WarpConfig, step: int) -> float:
    """lr * min(1, t / warmup_steps) at step t = 1 … T, anew for every run."""
    return config.lr * min(1.0, step / config.warmup_steps) if config.warmup_steps else config.lr


def build_optimizer(config: WarpConfig, policy: torch.nn.Module) -> torch.optim.Optimizer:
    """Opt of line 8 with the library's defaults; one fused pass over the weights where torch has it."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    fused = {p.device.type for p in policy.parameters()} <= {"cpu", "cuda"}
    return kinds[config.optimizer](policy.parameters(), lr=config.lr, fused=fused)


def prompt_batches(prompts: list[str], size: int, generator: torch.Generator) -> Iterator[list[str]]:
    """Endless batches; every pass over the prompts is a fresh shuffle."""
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += torch.randperm(len(prompts), generator=generator).tolist()
        batch, queue = queue[:size], queue[size:]
        yield [prompts[index] for index in batch]


def baseline(objective: torch.Tensor, kind: str) -> torch.Tensor:
    """What is subtracted from r_beta [B]: nothing, the mean, or the mean of the others."""
    if kind == "none":
        return torch.zeros_like(objective)
    if kind == "mean":
        return objective.mean().expand_as(objective)
    return (objective.sum() - objective) / (len(objective) - 1)


def policy_gradient_loss(
    policy: PreTrainedModel, anchor: PreTrainedModel, rollout: Rollout, rewards: torch.Tensor, config: WarpConfig
) -> tuple[torch.Tensor, Row]:
    """Loss whose gradient is line 8's, and what the step measured.

    r_beta(y) = r(x, y) - beta * log(pi(y|x) / pi_anchor(y|x))      (line 7; a constant to the gradient)
    loss = - mean over y of (r_beta(y) - baseline) * log pi(y|x)    (line 8, REINFORCE)
    """
    logits = completion_logits(policy, rollout)
    log_probs = token_log_probs(logits, rollout, config.temperature)
    with torch.no_grad():
        anchor_logits = completion_logits(anchor, rollout)
        log_ratio = (log_probs.detach() - token_log_probs(anchor_logits, rollout, config.temperature)).sum(1)
        objective = rewards - config.beta * log_ratio
        kl = token_kl(logits, anchor_logits, rollout, config.temperature).sum(1)
        advantage = objective - baseline(objective, config.baseline)
        gap = (log_probs.detach() - rollout.sampled_log_probs).abs().max()
    loss = -(advantage * log_probs.sum(1)).mean()
    row = {
        "reward": rewards.mean().item(),
        "kl": kl.mean().item(),
        "objective": objective.mean().item(),
        "penalty": (objective - rewards).mean().item(),
        "tokens": rollout.completion_mask.sum().item() / len(rewards),
        "sampling_gap": gap.item(),
    }
    return loss, row


def train_run(
    task: Task,
    config: WarpConfig,
    init: StateDict,
    iteration: int,
    run: int,
    on_step: Callable[[Row], None] = lambda row: None,
) -> RunResult:
    """Train θ^m from θ_init for T steps (lines 4 to 9).

    Raises ValueError for a reward that misbehaves (see `call_reward`) and FloatingPointError
    for a loss or gradient that is not finite, before the optimizer has used it.
    """
    seed = run_seed(config, iteration, run)
    order, noise = (torch.Generator().manual_seed(derive_seed(seed, name)) for name in ("prompts", "sampling"))
    policy = copy.deepcopy(task.policy).eval()  # line 4
    policy.load_state_dict(init)
    anchor = copy.deepcopy(policy if config.anchor == "ema" else task.policy).requires_grad_(False)
    optimizer = build_optimizer(config, policy.requires_grad_(True))
    device = next(policy.parameters()).device
    keep_freed_memory()
    for model in (policy, anchor):
        prepare_attention(model, config.dtype)
    batches = prompt_batches(task.train_prompts, config.batch_size, order)
    probe, history, facts = AnchorProbe(anchor), [], {"scored_after_end": 0.0, "empty_completions": 0.0}
    for step in range(1, config.T + 1):  # line 5
        started = time.perf_counter()
        where = f"iteration {iteration}, run {run}, step {step}"
        prompts = next(batches)
        with arithmetic(config.dtype, device):  # line 6
            rollout = sample(policy, task.tokenizer, prompts, config.max_new_tokens, config.temperature, noise)
        scores = call_reward(task.reward, prompts, rollout.completions, where)
        rewards = torch.tensor(scores, dtype=torch.float32, device=device)
        with arithmetic(config.dtype, device):
            loss, measured = policy_gradient_loss(policy, anchor, rollout, rewards, config)  # line 7
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in policy.parameters() if p.grad is not None]).item()
        if not math.isfinite(loss.item()) or not math.isfinite(norm):
            raise FloatingPointError(f"loss {loss.item()}, gradient norm {norm} at {where}; lower lr (-p lr 1e-5)")
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.step()  # line 8
        optimizer.zero_grad()
        if config.anchor == "ema":
            ema_update_(anchor, policy, config.mu)  # line 9
            probe.follow(policy, config.mu)
        facts["scored_after_end"] += scored_after_end(rollout, task.tokenizer.eos_token_id)
        facts["empty_completions"] += sum(not text.strip() for text in rollout.completions) / len(prompts) / config.T
        row = {"iteration": iteration, "run": run, "step": step} | measured
        row |= {"lr": learning_rate(config, step), "grad_norm": norm, "seconds": time.perf_counter() - started}
        history.append(row)
        on_step(row)
    state = snapshot(policy)
    facts |= {"iteration": iteration, "run": run, "run_seed": seed, "loaded": 0.0}
    facts |= displacement(init, state) | probe.compare(anchor)
    facts |= {"sampling_gap": median(row["sampling_gap"] for row in history)}
    return RunResult(state, history, facts | {"seconds": sum(row["seconds"] for row in history)})


def displacement(init: StateDict, state: StateDict) -> Row:
    """Norm of the task vector, and the share of weights that did not change at all; tied weights count once."""
    square, same, total = 0.0, 0, 0
    for name in first_names(init).values():
        value = state[name]
        if value.is_floating_point():
            start = init[name].to(value.device)
            square += (value - start).double().square().sum().item()
            same += int((value == start).sum())
            total += value.numel()
    return {"delta_norm": math.sqrt(square), "unmoved": same / total}


def scored_after_end(rollout: Rollout, eos: int | None) -> float:
    """Completion tokens in the mask that stand after the first end-of-text token; 0 when all is well."""
    if eos is None:
        return 0.0
    ended = (rollout.ids[:, -rollout.width :] == eos).long()
    after = (ended.cumsum(1) - ended) > 0
    return float((rollout.completion_mask & after).sum())


class AnchorProbe:
    """Follows the EMA of a few weights of every parameter in float64, apart from `ema_update_`.

    `rounding` bounds what fp32 may have lost: a step below half a unit in the last place can vanish
    whole, a larger one loses at most that half.
    """

    def __init__(self, anchor: torch.nn.Module) -> None:
        self.start = self.expected = self.read(anchor)
        self.rounding = torch.zeros_like(self.start)

    @staticmethod
    def read(module: torch.nn.Module) -> torch.Tensor:
        """The probed weights, float64 [n] on the CPU."""
        pieces = [value.detach().reshape(-1)[:PROBE].cpu().double() for value in module.parameters()]
        return torch.cat(pieces)

    def follow(self, policy: torch.nn.Module, mu: float) -> None:
        """One step of (1 - mu) * anchor + mu * policy."""
        change = mu * (self.read(policy) - self.expected)
        self.rounding += torch.minimum(change.abs(), HALF_ULP * self.expected.abs())
        self.expected = self.expected + change

    def compare(self, anchor: torch.nn.Module) -> Row:
        """anchor_moved: norm of the probed displacement; anchor_error: error relative to the expected one.

        What fp32 rounding explains is not counted. Where rounding may swallow the whole expected
        displacement, an error beyond twice that is told relative to it, and a smaller one is NaN:
        there a frozen anchor and a sound one are the same to fp32.
        """
        found, rounding = self.read(anchor), self.rounding.norm().item()
        expected, error = (self.expected - self.start).norm().item(), (found - self.expected).norm().item()
        moved = (found - self.start).norm().item()
        if expected == 0:
            relative = float(moved > 0)
        elif expected > 2 * rounding:
            relative = max(0.0, error - rounding) / expected
        else:
            relative = error / rounding if error > 2 * rounding else math.nan
        return {"anchor_moved": moved, "anchor_error": relative}
