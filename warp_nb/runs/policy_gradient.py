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

from warp_nb.algorithm.average import StateDict, ema_update_
from warp_nb.config import WarpConfig
from warp_nb.fast.devices import arithmetic, keep_freed_memory, prepare_attention
from warp_nb.fast.rollout import Rollout, sample
from warp_nb.fast.scoring import completion_logits, token_kl, token_log_probs
from warp_nb.runs.checkpoint import RunStates, kept_on_error
from warp_nb.runs.facts import AnchorProbe, Row, displacement, scored_after_end
from warp_nb.runs.interrupts import interrupts_wait
from warp_nb.runs.weights import snapshot
from warp_nb.tasks.task import Task, call_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    return derive_seed(config.seed, iteration, run) if config.independent_seeds else derive_seed(config.seed)


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


class Run:
    """Run (i, m) between two steps: all that the next step depends on, and what was measured so far."""

    def __init__(self, task: Task, config: WarpConfig, init: StateDict, iteration: int, run: int) -> None:
        self.task, self.config, self.iteration, self.run = task, config, iteration, run
        self.seed = run_seed(config, iteration, run)
        order, self.noise = (
            torch.Generator().manual_seed(derive_seed(self.seed, name)) for name in ("prompts", "sampling")
        )
        self.policy = copy.deepcopy(task.policy).eval()  # line 4
        self.policy.load_state_dict(init)
        self.anchor = copy.deepcopy(self.policy if config.anchor == "ema" else task.policy).requires_grad_(False)
        self.optimizer = build_optimizer(config, self.policy.requires_grad_(True))
        self.device = next(self.policy.parameters()).device
        keep_freed_memory()
        for model in (self.policy, self.anchor):
            prepare_attention(model, config.dtype)
        self.batches = prompt_batches(task.train_prompts, config.batch_size, order)
        self.probe = AnchorProbe(self.anchor)
        self.history: list[Row] = []
        self.facts: Row = {"scored_after_end": 0.0, "empty_completions": 0.0}
        self.whole = True
        """False while line 8 or 9 is changing the weights."""
        self.restored = 0
        """Steps that were not made here but read from a kept state."""

    def step(self) -> Row:
        """Lines 6 to 9, once; the row it adds to the history.

        Raises what `train_run` raises. An error before line 8 leaves weights, moments, anchor and noise as they
        were; the prompts of the step are used up.
        """
        started, step, config = time.perf_counter(), len(self.history) + 1, self.config
        where, noise = f"iteration {self.iteration}, run {self.run}, step {step}", self.noise.get_state()
        try:
            rollout, measured = self._gradient(where)
        except BaseException:
            self.noise.set_state(noise)
            self.optimizer.zero_grad()
            raise
        self.whole = False
        self.optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        self.optimizer.step()  # line 8
        self.optimizer.zero_grad()
        if config.anchor == "ema":
            ema_update_(self.anchor, self.policy, config.mu)  # line 9
            self.probe.follow(self.policy, config.mu)
        empty = sum(not text.strip() for text in rollout.completions) / len(rollout.completions)
        self.facts["scored_after_end"] += scored_after_end(rollout, self.task.tokenizer.eos_token_id)
        self.facts["empty_completions"] += empty / config.T
        row = {"iteration": self.iteration, "run": self.run, "step": step} | measured
        row |= {"lr": learning_rate(config, step), "seconds": time.perf_counter() - started}
        self.history.append(row)
        self.whole = True
        return row

    def _gradient(self, where: str) -> tuple[Rollout, Row]:
        """Lines 6 and 7 and the gradient of line 8, all of it finite; what was sampled, what was measured."""
        config, prompts = self.config, next(self.batches)
        with arithmetic(config.dtype, self.device):  # line 6
            rollout = sample(
                self.policy, self.task.tokenizer, prompts, config.max_new_tokens, config.temperature, self.noise
            )
        scores = call_reward(self.task.reward, prompts, rollout.completions, where)
        rewards = torch.tensor(scores, dtype=torch.float32, device=self.device)
        with arithmetic(config.dtype, self.device):
            loss, measured = policy_gradient_loss(self.policy, self.anchor, rollout, rewards, config)  # line 7
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None])
        measured["grad_norm"] = norm.item()
        wrong = [f"{name} {value}" for name, value in measured.items() if not math.isfinite(value)]
        if wrong or not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss {loss.item()}, {', '.join(wrong)} at {where}; lower lr (-p lr 1e-5)")
        return rollout, measured

    def result(self, init: StateDict) -> RunResult:
        """What the run leaves; `init` is what it began at."""
        state = snapshot(self.policy)
        facts = {"iteration": self.iteration, "run": self.run, "run_seed": self.seed} | self.facts
        facts["loaded"] = self.restored / self.config.T
        facts |= displacement(init, state) | self.probe.compare(self.anchor)
        facts |= {"sampling_gap": median(row["sampling_gap"] for row in self.history)}
        return RunResult(state, self.history, facts | {"seconds": sum(row["seconds"] for row in self.history)})

    def tensors(self) -> StateDict:
        """All that training changes, by name: weights, anchor, the optimizer's moments, noise, the anchor's probe."""
        found = {f"policy.{name}": value.detach() for name, value in self.policy.named_parameters()}
        if self.config.anchor == "ema":
            found |= {f"anchor.{name}": value for name, value in self.anchor.named_parameters()}
            found |= {"probe.expected": self.probe.expected, "probe.rounding": self.probe.rounding}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        return found | {"noise": self.noise.get_state()}

    @torch.no_grad()
    def restore(self, tensors: StateDict, history: list[Row], facts: Row) -> None:
        """Go on where `tensors`, `history` and `facts` of another Run of the same start were taken."""
        models = {"policy": self.policy} | ({"anchor": self.anchor} if self.config.anchor == "ema" else {})
        for prefix, model in models.items():
            for name, value in model.named_parameters():
                value.copy_(tensors[f"{prefix}.{name}"])
        if self.config.anchor == "ema":
            self.probe.expected, self.probe.rounding = (tensors[f"probe.{n}"].clone() for n in ("expected", "rounding"))
        moments: dict[int, StateDict] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = value.clone()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.noise.set_state(tensors["noise"].cpu().clone())
        self.history, self.facts, self.restored = list(history), dict(facts), len(history)
        for _ in history:
            next(self.batches)


def train_run(
    task: Task,
    config: WarpConfig,
    init: StateDict,
    iteration: int,
    run: int,
    on_step: Callable[[Row], None] = lambda row: None,
    states: RunStates | None = None,
) -> RunResult:
    """Train θ^m from θ_init for T steps (lines 4 to 9).

    With `states` it goes on from the last state kept there, keeps one every `config.save_every` steps, and one
    when it ends before its time: by an error, or by SIGINT, which waits for the end of the step (a second one
    does not). Raises ValueError or RuntimeError for a reward that misbehaves (see `call_reward`) and
    FloatingPointError for a number that is not finite, before the optimizer has used it.
    """
    here = Run(task, config, init, iteration, run)
    if states is not None:
        states.restore(here)
        for row in here.history:
            on_step(row)
    with interrupts_wait() as interrupted, kept_on_error(here, states):
        while len(here.history) < config.T:  # line 5
            on_step(here.step())
            if states is not None and config.save_every and len(here.history) % config.save_every == 0:
                states.save(here)
            if interrupted():
                raise KeyboardInterrupt(f"stopped after step {len(here.history)} of {config.T}")
    return here.result(init)
