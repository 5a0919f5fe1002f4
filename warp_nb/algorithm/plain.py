"""Algorithm 1 in plain PyTorch. What the lessons take apart.

Each function is a line or two of the algorithm and calls the ones above it. Borrowed from the package are sampling,
the logits of completions, the order of prompts, the seeds and the names of a layer's tensors. The tests hold the
functions to the fast code or to closed forms. The learning rate is constant: warm-up, arithmetic and resuming are left
to `policy_gradient`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from warp_nb.algorithm.average import StateDict, blocks, tied_to
from warp_nb.config import WarpConfig
from warp_nb.fast.rollout import Rollout, sample
from warp_nb.fast.scoring import completion_logits
from warp_nb.runs.policy_gradient import derive_seed, prompt_batches, run_seed
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LossOf = Callable[[Any, Any], torch.Tensor]
"""(policy, anchor) -> the loss of one step: lines 6 and 7."""
RunOf = Callable[[StateDict, int, int], StateDict]
"""(theta_init, i, m) -> theta^m: lines 4 to 9."""


def task_vector(policy: StateDict, init: StateDict) -> StateDict:
    """delta = theta - theta_init, tensor by tensor (line 11)."""
    return {name: policy[name] - init[name] for name in init}


def slerp(d1: torch.Tensor, d2: torch.Tensor, lam: float) -> torch.Tensor:
    """Spherical interpolation of two tensors of one shape; LERP where sin Omega <= 1e-3 (line 11, section 3.2)."""
    cosine = (d1 * d2).sum() / (d1.norm() * d2.norm())
    omega = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(omega)
    if sine.isnan() or sine <= 1e-3:
        return (1 - lam) * d1 + lam * d2
    return torch.sin((1 - lam) * omega) / sine * d1 + torch.sin(lam * omega) / sine * d2


def liti(init: StateDict, merged: StateDict, eta: float) -> StateDict:
    """(1 - eta) * theta_init + eta * theta_slerp, tensor by tensor (line 12)."""
    return {name: (1 - eta) * init[name] + eta * merged[name] for name in init}


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigma(r_chosen - r_rejected), the mean over pairs: scores [B], [B] -> a number, nats."""
    return -F.logsigmoid(chosen - rejected).mean()


def pair_accuracy(chosen: torch.Tensor, rejected: torch.Tensor) -> float:
    """Share of pairs whose chosen text has the higher score; a tie counts as half a pair. Scores [B], [B]."""
    wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return wins.mean().item()


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """log pi of every completion token: logits [B, C, V], ids and mask [B, C] -> [B, C], nats; 0 off the mask."""
    log_probs = (logits / temperature).log_softmax(-1)
    chosen = log_probs.gather(-1, tokens[..., None])[..., 0]
    return chosen.masked_fill(~mask, 0.0)


def token_kl(logits_p: torch.Tensor, logits_q: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(p || q) of the next token, over the whole vocabulary: logits [B, C, V] -> [B, C], nats; 0 off the mask."""
    log_p = (logits_p / temperature).log_softmax(-1)
    log_q = (logits_q / temperature).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl.masked_fill(~mask, 0.0)


def regularised_reward(
    rewards: torch.Tensor, log_probs: torch.Tensor, anchor_log_probs: torch.Tensor, beta: float
) -> torch.Tensor:
    """r_beta(y) = r(x, y) - beta * log(pi(y|x) / pi_ema(y|x)), a constant to the gradient (line 7).

    Rewards [B] and the log-probabilities of the tokens [B, C] -> [B].
    """
    log_ratio = (log_probs - anchor_log_probs).sum(1)
    return (rewards - beta * log_ratio).detach()


def reinforce_loss(objective: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """-mean of r_beta(y) * log pi(y|x): its gradient is that of line 8. r_beta [B], log pi of tokens [B, C]."""
    return -(objective * log_probs.sum(1)).mean()


@torch.no_grad()
def ema_update_(anchor: torch.nn.Module, policy: torch.nn.Module, mu: float) -> None:
    """theta_ema <- (1 - mu) * theta_ema + mu * theta on every parameter, in place (line 9)."""
    for old, new in zip(anchor.parameters(), policy.parameters(), strict=True):
        old.copy_((1 - mu) * old + mu * new)


def train_run(init: StateDict, model: torch.nn.Module, loss_of: LossOf, T: int, lr: float, mu: float) -> StateDict:
    """One run: T steps from theta_init with an anchor that follows (lines 4 to 9). `model` is not changed."""
    policy = copy.deepcopy(model)
    policy.load_state_dict(init)  # line 4
    anchor = copy.deepcopy(policy).requires_grad_(False)  # line 4
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    for _ in range(T):  # line 5
        loss = loss_of(policy, anchor)  # lines 6 and 7
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # line 8
        ema_update_(anchor, policy, mu)  # line 9
    return {name: value.detach() for name, value in policy.state_dict().items()}


def merge(init: StateDict, policies: Sequence[StateDict]) -> StateDict:
    """theta_init + slerp of the task vectors, each layer with its own angle (line 11; more than two by eq. 26)."""
    deltas = [task_vector(policy, init) for policy in policies]
    merged = dict(init)
    for names in blocks(init, "layer").values():
        flat = [torch.cat([delta[name].flatten() for name in names]) for delta in deltas]
        total = flat[0]
        for m in range(2, len(flat) + 1):
            total = slerp(total, flat[m - 1], 1 / m)
        pieces = total.split([init[name].numel() for name in names])
        for name, piece in zip(names, pieces, strict=True):
            merged[name] = init[name] + piece.view_as(init[name])
    return {name: merged[first] for name, first in tied_to(init).items()}


def warp(sft: StateDict, run: RunOf, I: int, M: int, eta: float) -> tuple[StateDict, StateDict]:
    """Algorithm 1: (theta_init after the last line 12, theta_slerp of the last iteration)."""
    init = sft  # line 1
    for i in range(1, I + 1):  # line 2
        policies = [run(init, i, m) for m in range(1, M + 1)]  # line 3; lines 4 to 9 are in run
        merged = merge(init, policies)  # line 11
        init = liti(init, merged, eta)  # line 12
    return init, merged


def front(sft: StateDict, merged: StateDict, etas: Sequence[float]) -> list[StateDict]:
    """The output of Algorithm 1: (1 - eta) * theta_sft + eta * theta_slerp^I for every eta."""
    return [liti(sft, merged, eta) for eta in etas]


def best_within(points: Sequence[Mapping[str, float]], kl_budget: float) -> Mapping[str, float]:
    """The point (eta, reward, kl) with the largest reward among those whose KL is within the budget, nats."""
    allowed = [point for point in points if point["kl"] <= kl_budget]
    return max(allowed, key=lambda point: point["reward"])


def step_loss(
    policy: PreTrainedModel,
    anchor: PreTrainedModel,
    rollout: Rollout,
    rewards: torch.Tensor,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """The loss of sampled completions and their rewards [B] (lines 7 and 8)."""
    tokens, mask = rollout.ids[:, -rollout.width :], rollout.completion_mask
    log_probs = token_log_probs(completion_logits(policy, rollout), tokens, mask, temperature)
    with torch.no_grad():
        anchor_log_probs = token_log_probs(completion_logits(anchor, rollout), tokens, mask, temperature)
    objective = regularised_reward(rewards, log_probs, anchor_log_probs, beta)
    return reinforce_loss(objective, log_probs)


@torch.no_grad()
def measured(
    policy: PreTrainedModel, anchor: PreTrainedModel, rollout: Rollout, rewards: torch.Tensor, config: WarpConfig
) -> dict[str, float]:
    """What a step is drawn by: mean reward, r_beta and KL(policy || anchor) of its completions."""
    tokens, mask, temperature = rollout.ids[:, -rollout.width :], rollout.completion_mask, config.temperature
    logits, anchor_logits = (completion_logits(model, rollout) for model in (policy, anchor))
    log_probs, anchor_log_probs = (token_log_probs(side, tokens, mask, temperature) for side in (logits, anchor_logits))
    objective = regularised_reward(rewards, log_probs, anchor_log_probs, config.beta)
    kl = token_kl(logits, anchor_logits, mask, temperature).sum(1)
    return {name: value.mean().item() for name, value in [("reward", rewards), ("objective", objective), ("kl", kl)]}


def run_of(task: Task, config: WarpConfig, on_step: Callable[[dict[str, Any]], None] | None = None) -> RunOf:
    """run(theta_init, i, m) for `warp`: lines 4 to 9 with the prompts and the noise that the package's run (i, m) has.

    `on_step`, if given, gets a row a step, for which both models are looked at once more: iteration, run, step, reward,
    objective, kl (policy to anchor, nats a sequence).
    """

    def run(init: StateDict, i: int, m: int) -> StateDict:
        seed, step = run_seed(config, i, m), 0
        order, noise = (torch.Generator().manual_seed(derive_seed(seed, name)) for name in ("prompts", "sampling"))
        batches = prompt_batches(task.train_prompts, config.batch_size, order)

        def loss_of(policy: PreTrainedModel, anchor: PreTrainedModel) -> torch.Tensor:
            nonlocal step
            step, prompts = step + 1, next(batches)
            rollout = sample(policy, task.tokenizer, prompts, config.max_new_tokens, config.temperature, noise)
            scores = task.reward(prompts=prompts, completions=rollout.completions)
            rewards = torch.tensor(scores, dtype=torch.float32, device=rollout.ids.device)  # line 6
            if on_step:
                on_step({"iteration": i, "run": m, "step": step} | measured(policy, anchor, rollout, rewards, config))
            return step_loss(policy, anchor, rollout, rewards, config.beta, config.temperature)

        return train_run(init, task.policy, loss_of, config.T, config.lr, config.mu)

    return run
