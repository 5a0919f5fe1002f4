"""One RL run: lines 4 to 9 of Algorithm 1."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warp_nb.algorithm.merge import Weights, ema_update_, load_, weights_of


@dataclass
class Run:
    """State of a run after `step` steps: theta^m, anchor, optimizer. `whole` is False while lines 8 and 9 change it."""

    policy: Any
    anchor: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    whole: bool = True


class Watch:
    """Hooks of a run: after line 4 (may load a checkpoint), before line 8 (may set lr or raise) and after line 9."""

    def begin(self, run: Run) -> None: ...
    def before_update(self, run: Run, loss: Tensor) -> None: ...
    def after_step(self, run: Run) -> None: ...


def train_run(
    init: Weights, model: Any, loss_of: Callable[[Any, Any], Tensor], T: int, *, lr: float, mu: float,
    anchor: Any = None, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ema_update_: Callable[[Any, Any, float], None] = ema_update_, watch: Watch | None = None,
) -> Weights:  # fmt: skip
    """Train theta^m from theta_init for T steps (lines 4 to 9) and return it; `model`, a template, is not changed.

    `loss_of(policy, anchor)` returns a step's loss (lines 6 and 7). The anchor is a copy of theta_init, or of `anchor`.
    """
    policy = copy.deepcopy(model)
    load_(policy, init)  # line 4
    anchor = copy.deepcopy(policy if anchor is None else anchor).requires_grad_(False)  # line 4
    run = Run(policy, anchor, optimizer([p for p in policy.parameters() if p.requires_grad], lr=lr))
    watch = watch or Watch()
    watch.begin(run)
    while run.step < T:  # line 5
        loss = loss_of(policy, anchor)  # lines 6 and 7
        loss.backward()
        watch.before_update(run, loss)
        run.whole = False
        run.optimizer.step()  # line 8
        run.optimizer.zero_grad()
        ema_update_(anchor, policy, mu)  # line 9
        run.step, run.whole = run.step + 1, True
        watch.after_step(run)
    return weights_of(policy)
