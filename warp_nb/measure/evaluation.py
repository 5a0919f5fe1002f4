"""Held-out evaluation in fp32: reward, both KLs, perplexity, diversity, with 95 % intervals."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from warp_nb.algorithm.average import StateDict
from warp_nb.fast.rollout import Rollout, sample
from warp_nb.fast.scoring import completion_logits, token_kl, token_log_probs
from warp_nb.measure.reference_cache import ReferenceSide
from warp_nb.runs.policy_gradient import derive_seed
from warp_nb.runs.warping import final_front
from warp_nb.runs.weights import snapshot
from warp_nb.tasks.task import Task, call_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURES = (
    "reward_reference",
    "reward_policy",
    "reward_difference",
    "kl_reference_policy",
    "kl_policy_reference",
    "perplexity_reference",
    "perplexity_policy",
    "distinct_reference",
    "distinct_policy",
)
CHUNK = 32


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; both ends are NaN where there is only one value."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; an unknown interval excludes nothing."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of independent values with the t interval of n - 1 degrees of freedom."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Evaluation:
    """A policy beside its reference on the same held-out prompts; intervals over prompts.

    Rewards are the task's; KLs in nats a sequence; perplexity is of the completions under
    the reference, per token; distinct is the share of distinct bigrams in a completion.
    """

    reward_reference: Estimate
    reward_policy: Estimate
    reward_difference: Estimate
    """Policy minus reference, paired by prompt."""
    kl_reference_policy: Estimate
    """KL(reference || policy), on the reference's samples."""
    kl_policy_reference: Estimate
    """KL(policy || reference), on the policy's samples."""
    perplexity_reference: Estimate
    perplexity_policy: Estimate
    distinct_reference: Estimate
    distinct_policy: Estimate
    variety_reference: float
    """Share of distinct bigrams in all completions together: low where every prompt gets the same text."""
    variety_policy: float
    samples: list[dict[str, Any]]
    rewards_policy: list[float] = field(default_factory=list)
    """Of every prompt, to pair two policies that were evaluated with the same seed."""

    def measures(self) -> dict[str, Estimate]:
        """The estimates by name."""
        return {name: getattr(self, name) for name in MEASURES}


def over_trainings(evaluations: Sequence[Evaluation], measure: str) -> Estimate:
    """Of one training its own estimate, over prompts; of several the t interval, of perplexities in the log."""
    own: list[Estimate] = [getattr(evaluation, measure) for evaluation in evaluations]
    if len(own) == 1:
        return own[0]
    values = [estimate.value for estimate in own]
    if measure.startswith("perplexity"):
        return exponential(mean_interval([math.log(value) for value in values]))
    return mean_interval(values)


def check_eval_prompts(count: int, task: Task) -> None:
    """Raises ValueError unless the task has `count` held-out prompts, two at least."""
    if not 2 <= count <= len(task.eval_prompts):
        raise ValueError(
            f"n_eval_prompts must be 2 to {len(task.eval_prompts)}, the held-out prompts of task {task.name}, "
            f"got {count}; pass e.g. -p n_eval_prompts {len(task.eval_prompts)}"
        )


@torch.no_grad()
def evaluate(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    task: Task,
    n_prompts: int,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    n_samples: int = 8,
) -> Evaluation:
    """Compare a policy with its reference on `n_prompts` held-out prompts, in fp32.

    Both sample at `temperature` with the same noise. KL is exact per token over the whole
    vocabulary, along sampled text (see `token_kl`). Raises ValueError when the task has fewer
    held-out prompts.
    """
    check_eval_prompts(n_prompts, task)
    for model in (policy, reference):
        if any(value.dtype not in (torch.float32, torch.float64) for value in model.parameters()):
            raise ValueError("evaluation is always in fp32; call model.float() first")
    order = torch.randperm(len(task.eval_prompts), generator=torch.Generator().manual_seed(seed))
    prompts = [task.eval_prompts[index] for index in order[:n_prompts].tolist()]
    columns: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    bigrams: dict[str, list[list[tuple[int, int]]]] = {}
    reference_side = ReferenceSide(reference, task.tokenizer, max_new_tokens, temperature)
    for start in range(0, n_prompts, CHUNK):
        chunk, noise_seed = prompts[start : start + CHUNK], derive_seed(seed, start)
        for side, other in (("reference", policy), ("policy", reference)):
            if side == "reference":
                rollout, logits = reference_side.rollout(chunk, noise_seed)
            else:
                noise = torch.Generator().manual_seed(noise_seed)
                rollout = sample(policy, task.tokenizer, chunk, max_new_tokens, temperature, noise)
                logits = completion_logits(policy, rollout)
            others = completion_logits(other, rollout)
            columns.setdefault(f"kl_{side}", []).extend(token_kl(logits, others, rollout, temperature).sum(1).tolist())
            under_reference = logits if side == "reference" else others
            columns.setdefault(f"nll_{side}", []).extend(token_nll(under_reference, rollout))
            bigrams.setdefault(side, []).extend(found := completion_bigrams(rollout))
            columns.setdefault(f"distinct_{side}", []).extend(map(distinct_share, found))
            texts.setdefault(side, []).extend(rollout.completions)
    rewards = {side: call_reward(task.reward, prompts, texts[side], f"evaluation of the {side}") for side in texts}
    difference = [a - b for a, b in zip(rewards["policy"], rewards["reference"], strict=True)]
    return Evaluation(
        mean_interval(rewards["reference"]),
        mean_interval(rewards["policy"]),
        mean_interval(difference),
        mean_interval(columns["kl_reference"]),
        mean_interval(columns["kl_policy"]),
        exponential(mean_interval(columns["nll_reference"])),
        exponential(mean_interval(columns["nll_policy"])),
        mean_interval(columns["distinct_reference"]),
        mean_interval(columns["distinct_policy"]),
        distinct_share(list(chain.from_iterable(bigrams["reference"]))),
        distinct_share(list(chain.from_iterable(bigrams["policy"]))),
        [
            {
                "prompt": prompts[i],
                "reference": texts["reference"][i],
                "policy": texts["policy"][i],
                "reward_reference": rewards["reference"][i],
                "reward_policy": rewards["policy"][i],
            }
            for i in range(min(n_samples, n_prompts))
        ],
        rewards["policy"],
    )


def pareto_front(
    sft: PreTrainedModel,
    merged: StateDict,
    etas: Sequence[float],
    task: Task,
    n_prompts: int,
    seed: int,
    max_new_tokens: int,
    temperature: float,
) -> list[dict[str, Any]]:
    """Rows (eta, reward, kl, evaluation) of the front {(1 - eta) θ_sft + eta θ_slerp^I}, with intervals.

    reward and kl are Estimates: the policy's held-out reward and KL(policy || sft), as in the Evaluation.
    """
    rows = []
    policy = copy.deepcopy(sft).eval()
    for eta, state in zip(etas, final_front(snapshot(sft), merged, etas), strict=True):
        policy.load_state_dict(state)
        found = evaluate(policy, sft, task, n_prompts, seed, max_new_tokens, temperature)
        rows.append({"eta": eta, "reward": found.reward_policy, "kl": found.kl_policy_reference, "evaluation": found})
    return rows


def token_nll(logits: torch.Tensor, rollout: Rollout) -> list[float]:
    """Mean negative log-likelihood a token of each completion, nats."""
    totals = -token_log_probs(logits, rollout).sum(1)
    return (totals / rollout.completion_mask.sum(1)).tolist()


def completion_bigrams(rollout: Rollout) -> list[list[tuple[int, int]]]:
    """The token bigrams of each completion."""
    rows = zip(rollout.ids[:, -rollout.width :], rollout.completion_mask, strict=True)
    return [list(pairwise(row[keep].tolist())) for row, keep in rows]


def distinct_share(bigrams: list[tuple[int, int]]) -> float:
    """Share of distinct ones; 1 where there is none."""
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def exponential(estimate: Estimate) -> Estimate:
    """exp of a mean and of the ends of its interval."""
    return Estimate(*(math.exp(min(value, 700.0)) for value in asdict(estimate).values()))
