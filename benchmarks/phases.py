"""The phases of a real step, timed through the parts of its run: the algorithm carries no timing code."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from warp_nb.algorithm.merge import Weights
from warp_nb.algorithm.objective import draw
from warp_nb.algorithm.run import Run, Watch
from warp_nb.runs.training import FAST, Parts

EVENTS = ("draw", "sample", "logits", "log_probs", "kl", "loss", "update", "ema")
"""What every step calls: functions of the run's parts, `loss_of`, and the watch's `before_update`."""
PHASES = ("prefill", "decode", "forward", "anchor", "backward", "optimizer", "ema")
REST = "the rest"


@dataclass(frozen=True)
class Event:
    """A call: seconds at its begin and end, and whether autograd recorded its result."""

    name: str
    start: float
    end: float
    recorded: bool = False

    @property
    def seconds(self) -> float:
        """How long the call took."""
        return self.end - self.start


class Noted(Watch):
    """Pass every call on to `watch`, and add an event to `events` for each `before_update`."""

    def __init__(self, watch: Watch, events: list[Event]) -> None:
        self.watch, self.events = watch, events

    def begin(self, run: Run) -> None:
        self.watch.begin(run)

    def before_update(self, run: Run, loss: torch.Tensor) -> None:
        noting("update", self.watch.before_update, self.events)(run, loss)

    def after_step(self, run: Run) -> None:
        self.watch.after_step(run)


def noting(name: str, function: Callable[..., Any], events: list[Event]) -> Callable[..., Any]:
    """Wrap `function` so that it adds an event to `events` when it returns."""

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = function(*args, **kwargs)
        recorded = isinstance(found, torch.Tensor) and found.requires_grad
        events.append(Event(name, start, time.perf_counter(), recorded))
        return found

    return noted


def noted_parts(events: list[Event], parts: Parts = FAST) -> Parts:
    """Return parts of a run that add an event to `events` for every call named in EVENTS."""

    def train_run(init: Weights, model: Any, loss_of: Any, T: int, *, watch: Watch, **settings: Any) -> Weights:
        loss_of = noting("loss", loss_of, events)
        return parts.train_run(init, model, loss_of, T, watch=Noted(watch, events), **settings)

    return replace(
        parts,
        train_run=train_run,
        sample=noting("sample", partial(parts.sample, draw=noting("draw", draw, events)), events),
        completion_logits=noting("logits", parts.completion_logits, events),
        token_log_probs=noting("log_probs", parts.token_log_probs, events),
        token_kl=noting("kl", parts.token_kl, events),
        ema_update_=noting("ema", parts.ema_update_, events),
    )


def phases(events: list[Event]) -> dict[str, float]:
    """Return the seconds of each phase of one step.

    prefill: from the beginning of sampling to the first token drawn; decode: the rest of sampling. forward: the
    policy's logits and log-probabilities, which autograd records; anchor: the anchor's, and the KL between the two.
    backward: from the loss to the update. optimizer: from there to the EMA, including the gradient's norm.

    Raises:
        ValueError: one of EVENTS is missing: a step no longer calls that function.
    """
    first = {event.name: event for event in reversed(events)}
    silent = [name for name in EVENTS if name not in first]
    if silent:
        raise ValueError(f"a step no longer calls {', '.join(silent)}; adapt benchmarks/phases.py")
    sampling, loss, update, ema = (first[name] for name in ("sample", "loss", "update", "ema"))
    prefill = first["draw"].end - sampling.start
    scoring = [event for event in events if event.name in ("logits", "log_probs", "kl")]
    return {
        "prefill": prefill,
        "decode": sampling.seconds - prefill,
        "forward": sum(event.seconds for event in scoring if event.recorded),
        "anchor": sum(event.seconds for event in scoring if not event.recorded),
        "backward": update.start - loss.end,
        "optimizer": ema.start - update.start,
        "ema": ema.seconds,
    }


def with_rest(parts: dict[str, float], step: float) -> dict[str, float]:
    """Return the phases, the rest of the step (tokenising, the reward's call, checks), and the whole step."""
    return parts | {REST: step - sum(parts.values()), "step": step}
