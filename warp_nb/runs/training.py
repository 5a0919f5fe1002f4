"""A run (i, m) of Algorithm 1 on a task: its steps sample, score and measure; its state is saved and resumed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from statistics import fmean, median
from typing import Any

import torch

from warp_nb.algorithm import merge as plain
from warp_nb.algorithm import objective
from warp_nb.algorithm.merge import Weights, load_, weights_of
from warp_nb.algorithm.objective import BASELINES
from warp_nb.algorithm.run import Run, Watch, train_run
from warp_nb.config import WarpConfig
from warp_nb.fast import averages, decoding, scoring
from warp_nb.fast.capture import CapturedStep, why_eager
from warp_nb.fast.devices import arithmetic, prepare_attention
from warp_nb.fast.low_rank import Shared, follow_, low_rank_pair, plain_parameters, sharing
from warp_nb.fast.optimizers import MOMENTS, optimizer_of
from warp_nb.runs.checkpoint import Checkpoints
from warp_nb.runs.facts import AnchorProbe, Row, displacement, tokens_after_end
from warp_nb.runs.interrupts import interrupts_wait
from warp_nb.runs.layout import check_history, check_moments, check_noise, check_tensors
from warp_nb.tasks.reward_interface import TrainerState
from warp_nb.tasks.task import Task
from warp_nb.tasks.text import completion_tokens

OnStep = Callable[[Row], None]
Keep = Callable[[int | str, Weights], None]
"""Called as keep(step, weights) with a snapshot of the policy, and as keep("anchor", weights) with the final anchor."""


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from the parts: equal for equal parts, independent otherwise."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prompt_batches(prompts: list[str], size: int, generator: torch.Generator) -> Iterator[list[str]]:
    """Yield batches of `size` prompts without end; every pass over the prompts is a new shuffle."""
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += torch.randperm(len(prompts), generator=generator).tolist()
        batch, queue = queue[:size], queue[size:]
        yield [prompts[index] for index in batch]


def learning_rate(lr: float, warmup_steps: int, step: int) -> float:
    """Return lr * min(1, t / warmup_steps) at step t = 1 … T; every run has this warm-up."""
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


@dataclass(frozen=True)
class Parts:
    """The functions that a run calls. Pass others with the same signatures to vary or to observe them.

    The defaults are the fast ones. `PLAIN` holds the functions of `algorithm` itself.
    """

    train_run: Callable[..., Weights] = train_run
    sample: Callable[..., objective.Rollout] = decoding.sample
    completion_logits: Callable[..., torch.Tensor] = objective.completion_logits
    token_log_probs: Callable[..., torch.Tensor] = scoring.token_log_probs
    token_kl: Callable[..., torch.Tensor] = scoring.token_kl
    regularised_reward: Callable[..., torch.Tensor] = objective.regularised_reward
    reinforce_loss: Callable[..., torch.Tensor] = objective.reinforce_loss
    ema_update_: Callable[..., None] = averages.ema_update_
    merge: Callable[..., Weights] = plain.merge
    prompt_batches: Callable[..., Iterator[list[str]]] = prompt_batches
    learning_rate: Callable[[float, int, int], float] = learning_rate
    run_seed: Callable[[int, int, int], int] = derive_seed

    def replaced(self) -> list[str]:
        """Return the names of the functions that are not the defaults."""
        return [part.name for part in fields(self) if getattr(self, part.name) is not part.default]


FAST = Parts()
PLAIN = Parts(
    sample=objective.sample,
    token_log_probs=objective.token_log_probs,
    token_kl=objective.token_kl,
    ema_update_=plain.ema_update_,
)


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Args:
        weights: θ^m, on the CPU.
        history: one row per step.
        facts: measurements of the whole run for the checks.
    """

    weights: Weights
    history: list[Row]
    facts: Row


class Training(Watch):
    """Run (i, m): the loss of its steps for `train_run`, their history, and its checkpoints."""

    def __init__(
        self,
        config: WarpConfig,
        task: Task,
        i: int,
        m: int,
        *,
        parts: Parts = FAST,
        on_step: OnStep = lambda row: None,
        checkpoints: Checkpoints | None = None,
        keep: Keep = lambda at, weights: None,
        finish: Callable[[RunResult], None] = lambda result: None,
    ) -> None:
        self.config, self.task, self.parts = config, task, parts
        self.on_step, self.checkpoints, self.keep, self.finish = on_step, checkpoints, keep, finish
        self.place = {"iteration": i, "run": m}
        self.seed = parts.run_seed(config.seed, i, m)
        order, self.noise = (
            torch.Generator().manual_seed(derive_seed(self.seed, name)) for name in ("prompts", "sampling")
        )
        self.batches = parts.prompt_batches(task.train_prompts, config.batch_size // config.samples_per_prompt, order)
        self.sampling = task.sampling(config.max_new_tokens, config.temperature)
        self.history: list[Row] = []
        self.restored = 0
        """Number of steps that were restored from a checkpoint."""
        self.interrupted: Callable[[], BaseException | None] = lambda: None
        self.noise_before: torch.Tensor | None = None
        """State of the noise generator before the current step; None between two steps."""
        self.run: Run | None = None
        self.replays = False
        """Whether rollouts and steps are captured: on a GPU, unless a part was replaced, which may do anything."""
        self.captured: CapturedStep | None = None

    def loss_of(self, policy: Any, anchor: Any) -> torch.Tensor:
        """Return the loss of the next step, whose gradient is line 8's (lines 6 to 8), and measure the step."""
        config, parts, repeats = self.config, self.parts, range(self.config.samples_per_prompt)
        self.started, self.noise_before = time.perf_counter(), self.noise.get_state()
        prompts = [prompt for prompt in next(self.batches) for _ in repeats]
        ids, mask = self.task.encode(prompts, self.sampling, "train_prompts")
        sample = decoding.replay if self.replays else parts.sample
        with arithmetic(config.dtype, ids.device):
            rollout = self.task.finish(sample(policy, ids, mask, self.sampling, generator=self.noise))  # line 6
        texts = self.task.decode(rollout)
        tokens = completion_tokens(rollout)
        scores = self.task.score(prompts, texts, self.where(), ids=tokens, state=self.state(), run=self.place["run"])
        rewards = torch.tensor(scores, dtype=torch.float32, device=ids.device)
        with arithmetic(config.dtype, ids.device):
            loss, self.measured = self.step_of(policy, anchor, rollout)(rollout, rewards)
        self.empty = fmean(not text.strip() for text in texts)
        return loss

    def step_of(self, policy: Any, anchor: Any, rollout: objective.Rollout) -> Callable[..., tuple[torch.Tensor, Any]]:
        """Return `terms` of the two models, captured where a step is."""
        if not self.replays:
            return partial(self.terms, policy, anchor, completion_logits=self.parts.completion_logits)
        shape = len(rollout.ids), rollout.ids.shape[1] - rollout.tokens.shape[1]
        if self.captured is None or self.captured.shape != shape:
            self.captured = CapturedStep(partial(self.terms, policy, anchor), policy, shape, self.sampling)
        return self.captured

    def terms(
        self,
        policy: Any,
        anchor: Any,
        rollout: objective.Rollout,
        rewards: torch.Tensor,
        *,
        completion_logits: Callable[..., torch.Tensor],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and the measurements of a step; nothing here waits for the device."""
        config, parts = self.config, self.parts
        scored = rollout.tokens, rollout.completion_mask, rollout.temperature
        both = (completion_logits(model, rollout) for model in (policy, anchor))
        logits, anchor_logits = (scoring.without_early_ends(side, self.sampling) for side in both)
        log_probs, anchor_log_probs = (parts.token_log_probs(side, *scored) for side in (logits, anchor_logits))
        r_beta = parts.regularised_reward(rewards, log_probs, anchor_log_probs, config.beta)  # line 7
        advantage = r_beta - BASELINES[config.baseline](r_beta, config.samples_per_prompt)
        loss = parts.reinforce_loss(advantage, log_probs)  # line 8
        kl = parts.token_kl(logits.detach(), anchor_logits, *scored[1:]).sum(1)
        means = {"reward": rewards, "kl": kl, "objective": r_beta, "penalty": r_beta - rewards}
        means |= {"tokens": rollout.completion_mask.sum(1).float()}
        measured = {name: value.mean() for name, value in means.items()}
        measured["sampling_gap"] = (log_probs.detach() - rollout.sampled_log_probs).abs().max()
        measured["after_end"] = tokens_after_end(rollout, self.sampling.end_ids)
        return loss, measured

    def where(self) -> str:
        """Name the current step in messages."""
        return f"iteration {self.place['iteration']}, run {self.place['run']}, step {len(self.history) + 1}"

    def state(self) -> TrainerState:
        """Return the progress that rewards see."""
        before = (self.place["iteration"] - 1) * self.config.T
        return TrainerState(before + len(self.history), self.config.I * self.config.T)

    # Hooks of `train_run`

    def begin(self, run: Run) -> None:
        """Prepare both models; resume from the last checkpoint."""
        self.run, self.probe = run, AnchorProbe(run.anchor)
        for model in (run.policy, run.anchor):
            prepare_attention(model, self.config.dtype)
        with arithmetic(self.config.dtype, run.policy.device):
            self.replays = not self.parts.replaced() and not why_eager(run.policy)
        if self.checkpoints is not None:
            self.checkpoints.restore(self)
            self.snapshot(run)  # the call before may have failed to write it
        for row in self.history:
            self.on_step(row)

    def before_update(self, run: Run, loss: torch.Tensor) -> None:
        """Read the step's measurements, raise FloatingPointError unless all are finite, set the learning rate."""
        gradients = [value.grad for value in run.policy.parameters() if value.grad is not None]
        measured = {"loss": loss} | self.measured | {"grad_norm": torch.nn.utils.get_total_norm(gradients)}
        figures = torch.stack([value.detach().to(loss.dtype) for value in measured.values()]).tolist()
        self.row = dict(zip(measured, figures, strict=True))
        wrong = [f"{name} {value}" for name, value in self.row.items() if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(f"{', '.join(wrong)} at {self.where()}; lower lr (-p lr 1e-5)")
        self.lr = self.parts.learning_rate(self.config.lr, self.config.warmup_steps, run.step + 1)
        for group in run.optimizer.param_groups:
            group["lr"] = self.lr

    def after_step(self, run: Run) -> None:
        """Record the step, save a snapshot or checkpoint if one is due, stop after an interrupt."""
        config, self.noise_before = self.config, None
        if config.anchor == "ema":
            self.probe.follow(run.policy, config.mu)
        row = self.place | {"step": run.step} | {name: value for name, value in self.row.items() if name != "loss"}
        self.history.append(row | {"empty": self.empty, "lr": self.lr, "seconds": time.perf_counter() - self.started})
        self.snapshot(run)
        self.on_step(self.history[-1])
        if self.checkpoints is not None and config.save_every and run.step % config.save_every == 0:
            self.checkpoints.save(self)
        if (stop := self.interrupted()) is not None:
            stop.add_note(f"stopped after step {run.step} of {config.T}")
            raise stop

    def snapshot(self, run: Run) -> None:
        """Pass the weights to `keep` if a snapshot is due."""
        every = self.config.snapshot_every
        if every and run.step and run.step % every == 0:
            self.keep(run.step, dict(plain_parameters(run.policy, weights_of(run.policy))))

    # Saving and resuming

    def failed(self, error: BaseException) -> None:
        """Save the state after the last finished step, unless the error came while lines 8 and 9 changed the weights.

        If a step raised before line 8, the noise generator returns to its state before that step.
        """
        if self.run is None or not self.run.whole:
            return
        if self.noise_before is not None:
            self.noise.set_state(self.noise_before)
        self.run.optimizer.zero_grad()
        if self.checkpoints is not None:
            self.checkpoints.save_after(error, self)

    def state_dict(self) -> Weights:
        """Return all tensors that the next step depends on: weights, anchor, optimizer moments, noise, the probe.

        Weights that a run by LoRA shares with theta_init are not among them.
        """
        assert self.run is not None
        found = {f"policy.{name}": value.detach() for name, value in own_parameters(self.run.policy).items()}
        if self.config.anchor == "ema":
            found |= {f"anchor.{name}": value for name, value in own_parameters(self.run.anchor).items()}
            found |= {f"probe.{name}": value for name, value in self.probe.state_dict().items()}
        for index, moments in self.run.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        return found | {"noise": self.noise.get_state()}

    def load_state_dict(self, state: Weights, history: list[Row]) -> None:
        """Continue after the last row of `history`, with the tensors that `state_dict` returned there.

        Raises:
            Misfit: they are not of this policy, optimizer and run; nothing has changed.
        """
        assert self.run is not None
        parts: dict[str, Weights] = {}
        moments: dict[int, Weights] = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index) if index.isdecimal() else -1, {})[moment] = value
            else:
                parts.setdefault(part, {})[rest] = value
        self.check_state(state, moments, history)
        load_(self.run.policy, dict(self.run.policy.named_parameters()) | parts["policy"])
        if self.config.anchor == "ema":
            load_(self.run.anchor, dict(self.run.anchor.named_parameters()) | parts["anchor"])
            self.probe.load_state_dict(parts["probe"])
        self.run.optimizer.load_state_dict(self.run.optimizer.state_dict() | {"state": moments})
        self.noise.set_state(parts["noise"][""].cpu())
        self.history, self.restored, self.run.step = list(history), len(history), len(history)
        for _ in history:
            next(self.batches)

    def check_state(self, state: Weights, moments: Mapping[int, Weights], history: list[Row]) -> None:
        """Raise Misfit unless tensors, moments by parameter, and rows are those of a checkpoint of this run."""
        assert self.run is not None
        check_history(history, self.place["iteration"], self.place["run"], self.config.T)
        check_tensors(
            {name: value for name, value in state.items() if not name.startswith("optimizer.")}, self.state_dict()
        )
        check_noise(state["noise"])
        trained = [value for value in self.run.policy.parameters() if value.requires_grad]
        check_moments(moments, trained, MOMENTS[self.config.optimizer])

    # Result

    def result(self, init: Weights, weights: Weights) -> RunResult:
        """Return weights, history, and measurements of the whole run for the checks."""
        assert self.run is not None
        columns = {name: [row[name] for row in self.history] for name in self.history[0]}
        facts: Row = self.place | {"run_seed": self.seed, "loaded": self.restored / self.config.T}
        trained = [name for name, value in self.task.policy.named_parameters() if value.requires_grad]
        facts |= displacement({name: init[name] for name in trained}, weights) | self.probe.compare(self.run.anchor)
        facts |= {"scored_after_end": sum(columns["after_end"]), "empty_completions": fmean(columns["empty"])}
        facts |= {"sampling_gap": median(columns["sampling_gap"]), "seconds": sum(columns["seconds"])}
        if self.config.keep_anchors:
            self.keep("anchor", weights_of(self.run.anchor))
        return RunResult(weights, self.history, facts)


def own_parameters(model: torch.nn.Module) -> Weights:
    """Return the parameters of a model that it does not share with its copies."""
    return {name: value for name, value in model.named_parameters() if not isinstance(value, Shared)}


def beginning(
    config: WarpConfig, task: Task, init: Weights, ema_update_: Callable[[Any, Any, float], None]
) -> tuple[Weights, Any, Any, Callable[[Any, Any, float], None]]:
    """Return what `train_run` begins with: θ_init, the model, the anchor (None: a copy of θ_init), and line 9.

    A run by LoRA trains factors beside frozen θ_init. Its anchor is a plain model, because a mean of products has not
    their rank. Policy and anchor share all weights that do not move.
    """
    fixed = None if config.anchor == "ema" else task.policy
    if task.lora is None:
        return init, task.policy, fixed, ema_update_
    model, anchor = low_rank_pair(task.policy, init, task.lora.factors)
    if fixed is not None:
        anchor = sharing(fixed, dict(fixed.named_parameters()))
    return dict(model.named_parameters()), model, anchor, partial(follow_, ema_update_=ema_update_)


def train(config: WarpConfig, task: Task, init: Weights, *, i: int, m: int, **settings: Any) -> RunResult:
    """Train θ^m from θ_init for T steps (lines 4 to 9); `settings` are the keywords of `Training`.

    With `checkpoints` it resumes from the last one, and saves one every `config.save_every` steps and after an error
    or a signal (see `interrupts_wait`), which takes effect at the end of the step, a second one at once.

    Raises:
        ValueError, RuntimeError: the reward fails its check or raises (see `call_reward`).
        FloatingPointError: the loss, a measurement or the gradient is not finite; the optimizer has not used it.
    """
    training = Training(config, task, i, m, **settings)
    with interrupts_wait() as training.interrupted:
        try:
            start, model, anchor, update = beginning(config, task, init, training.parts.ema_update_)
            weights = training.parts.train_run(
                start,
                model,
                training.loss_of,
                config.T,
                lr=config.lr,
                mu=config.mu if config.anchor == "ema" else 0.0,
                anchor=anchor,
                optimizer=optimizer_of(config.optimizer, task.policy.device),
                ema_update_=update,
                watch=training,
            )
            if task.lora is not None:
                assert training.run is not None
                weights = dict(plain_parameters(training.run.policy, weights))
            training.finish(result := training.result(init, weights))
        except BaseException as error:
            training.failed(error)
            raise
        finally:
            training.captured = None  # it holds the run and the memory of its graph, in a cycle
    return result
