"""Held-out evaluation in fp32: reward, judge, both KLs, perplexity, diversity, with 95 % intervals."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.merge import Weights, load_
from warp_nb.algorithm.objective import Rollout, Sampling, completion_logits
from warp_nb.fast.agreement import vocabulary_size
from warp_nb.fast.capture import why_eager
from warp_nb.fast.decoding import BLOCK, sample_by_seeds
from warp_nb.fast.scoring import token_kl, token_log_probs, without_early_ends
from warp_nb.measure.estimates import NO_ESTIMATE, Estimate, exponential, geometric, mean_interval, non_negative
from warp_nb.measure.reference_cache import ReferenceSide
from warp_nb.runs.training import derive_seed
from warp_nb.tasks.task import Task
from warp_nb.tasks.text import completion_tokens

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
JUDGE_MEASURES = ("judge_reference", "judge_policy", "judge_difference")
"""Measures of a task that has a judge."""
TEXT_SHARES = ("variety_reference", "variety_policy", "repeated_reference", "repeated_policy")
"""Shares over groups of completions; they have no intervals."""
GROUP = 64
"""Completions that are compared with one another: the more there are, the more any two of them have in common."""
PHRASE = 5
"""Tokens of a phrase that two completions share. θ_sft's own rarely do: at most 6 % of a group, on both tasks."""
LOGITS = 1 << 29
"""Largest number of logits of a batch on a GPU: 2 GB."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A policy compared with its reference on the same held-out prompts; intervals are over prompts.

    Args:
        reward_reference, reward_policy: mean rewards of their completions.
        reward_difference: policy minus reference, paired by prompt.
        kl_reference_policy: KL(reference || policy) along the reference's samples, nats per sequence.
        kl_policy_reference: KL(policy || reference) along the policy's samples, nats per sequence.
        perplexity_reference, perplexity_policy: of their completions under the reference, per token.
        distinct_reference, distinct_policy: share of distinct bigrams in a completion.
        variety_reference, variety_policy: share of distinct bigrams across completions, in groups of GROUP; low where
            every prompt gets the same text.
        repeated_reference, repeated_policy: share of completions with a phrase of PHRASE tokens that another completion
            of their group has too.
        samples: prompts with both completions and rewards, and the judge's scores if there is a judge.
        judge_reference, judge_policy, judge_difference: as the rewards, by the judge; NaN if the task has none.
        rewards_reference, rewards_policy: the reward on every prompt, to pair two policies that were evaluated with the
            same seed, or the reward with the judge.
        judges_reference, judges_policy: the judge's score on every prompt; empty if the task has none.
        kls_policy: KL(policy || reference) on every prompt, nats.
    """

    reward_reference: Estimate
    reward_policy: Estimate
    reward_difference: Estimate
    kl_reference_policy: Estimate
    kl_policy_reference: Estimate
    perplexity_reference: Estimate
    perplexity_policy: Estimate
    distinct_reference: Estimate
    distinct_policy: Estimate
    variety_reference: float
    variety_policy: float
    repeated_reference: float
    repeated_policy: float
    samples: list[dict[str, Any]]
    judge_reference: Estimate = NO_ESTIMATE
    judge_policy: Estimate = NO_ESTIMATE
    judge_difference: Estimate = NO_ESTIMATE
    rewards_reference: list[float] = field(default_factory=list)
    rewards_policy: list[float] = field(default_factory=list)
    judges_reference: list[float] = field(default_factory=list)
    judges_policy: list[float] = field(default_factory=list)
    kls_policy: list[float] = field(default_factory=list)

    @property
    def judged(self) -> bool:
        """Whether a judge scored the completions."""
        return not math.isnan(self.judge_difference.value)

    def measures(self) -> dict[str, Estimate]:
        """Return the estimates by name: MEASURES, then JUDGE_MEASURES if there is a judge."""
        return {name: getattr(self, name) for name in MEASURES + (JUDGE_MEASURES if self.judged else ())}

    def figures(self) -> dict[str, Any]:
        """Return all measures as plain values, without texts and rewards of single prompts."""
        estimates = {name: asdict(one) for name, one in self.measures().items()}
        return estimates | {name: getattr(self, name) for name in TEXT_SHARES}


@dataclass
class Side:
    """Completions of one of the two models, with measurements of each."""

    texts: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    judges: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)


def over_trainings(evaluations: Sequence[Evaluation], measure: str) -> Estimate:
    """One training: the interval over prompts. Several: the t interval over trainings.

    Perplexity and KL are averaged in log scale (`geometric`).
    """
    own: list[Estimate] = [getattr(evaluation, measure) for evaluation in evaluations]
    if len(own) == 1:
        return own[0]
    mean = geometric if measure.startswith(("perplexity", "kl")) else mean_interval
    return mean([estimate.value for estimate in own])


def check_eval_prompts(count: int, task: Task, max_new_tokens: int, name: str = "n_eval_prompts") -> None:
    """Raise ValueError unless the task has `count` >= 2 held-out prompts, and all its prompts leave room."""
    task.check_lengths(max_new_tokens)
    if not 2 <= count <= len(task.eval_prompts):
        raise ValueError(
            f"{name} must be 2 to {len(task.eval_prompts)}, the held-out prompts of task {task.name}, "
            f"got {count}; pass e.g. {name} = {len(task.eval_prompts)}"
        )


@torch.no_grad()
def evaluate(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    task: Task,
    *,
    sampling: Sampling,
    n_prompts: int = 256,
    seed: int = 0,
    n_samples: int = 8,
) -> Evaluation:
    """Compare a policy with its reference on held-out prompts, in fp32.

    Both sample with the same noise. KL is exact per token over the whole vocabulary, along the sampled text.

    Args:
        policy, reference: models of one vocabulary in fp32; the reference is usually θ_sft.
        task: its held-out prompts, tokenizer, reward and judge are used.
        sampling: settings of both samplers, e.g. `task.sampling(24, temperature=1.0)`.
        n_prompts: number of held-out prompts, drawn by `seed`.
        seed: seed of the prompts and the noise.
        n_samples: number of prompts whose texts are in `Evaluation.samples`.

    Raises:
        ValueError: n_prompts is below 2 or above the number of held-out prompts, or a model is below fp32.

    Example:
        found = evaluate(result.policy, task.policy, task, sampling=task.sampling(24))
        print(found.reward_difference, found.kl_policy_reference)
    """
    check_eval_prompts(n_prompts, task, sampling.max_new_tokens, "n_prompts")
    for model in (policy, reference):
        if any(value.dtype.itemsize < 4 for value in model.parameters()):
            raise ValueError("evaluation is always in fp32; call model.float() first")
    prompts = held_out(task, n_prompts, seed)
    mine, theirs = Side(), Side()
    reference_side = ReferenceSide(reference, task, sampling)
    size = batch_size(policy, reference, sampling)
    for start in range(0, n_prompts, size):
        chunk = prompts[start : start + size]
        seeds = [derive_seed(seed, block) for block in range(start, start + len(chunk), BLOCK)]
        drawn, logits = reference_side.rollout(chunk, seeds)
        rollout, logits = task.finish(drawn), without_early_ends(logits, sampling)
        add_batch_(theirs, task, rollout, logits, others=scored(policy, rollout, sampling), under=logits)
        given = task.encode(chunk, sampling, "eval_prompts")
        rollout = task.finish(sample_by_seeds(policy, *given, sampling, seeds=seeds))
        others = scored(reference, rollout, sampling)
        add_batch_(mine, task, rollout, scored(policy, rollout, sampling), others=others, under=others)
    for side, name in ((theirs, "reference"), (mine, "policy")):
        side.rewards = task.score(prompts, side.texts, f"evaluation of the {name}", ids=side.tokens)
        if task.judge is not None:
            side.judges = task.score_judge(prompts, side.texts, f"evaluation of the {name}", ids=side.tokens)
    return compared(prompts, theirs, mine, n_samples=n_samples)


def scored(model: PreTrainedModel, rollout: Rollout, sampling: Sampling) -> torch.Tensor:
    """Return the logits of completions by the model that the sampler's settings make of it, [B, C, V]."""
    return without_early_ends(completion_logits(model, rollout), sampling)


def held_out(task: Task, count: int, seed: int) -> list[str]:
    """Return `count` held-out prompts of the task, drawn by `seed`."""
    order = torch.randperm(len(task.eval_prompts), generator=torch.Generator().manual_seed(seed))
    return [task.eval_prompts[index] for index in order[:count].tolist()]


def batch_size(policy: PreTrainedModel, reference: PreTrainedModel, sampling: Sampling) -> int:
    """Return the number of prompts in a batch: a block, or on a GPU as many blocks as `LOGITS` allows."""
    if why_eager(policy) or why_eager(reference):
        return BLOCK
    return max(1, LOGITS // (BLOCK * sampling.max_new_tokens * vocabulary_size(policy))) * BLOCK


def add_batch_(
    side: Side, task: Task, rollout: Rollout, logits: torch.Tensor, *, others: torch.Tensor, under: torch.Tensor
) -> None:
    """Add a batch to a side: KL(logits || others) along its text, its likelihood by the reference's logits `under`."""
    side.kl += token_kl(logits, others, rollout.completion_mask, rollout.temperature).sum(1).tolist()
    side.nll += token_nll(under, rollout)
    side.tokens += completion_tokens(rollout)
    side.texts += task.decode(rollout)


def compared(prompts: list[str], theirs: Side, mine: Side, *, n_samples: int) -> Evaluation:
    """Build the evaluation from the scored completions of the reference and the policy."""
    judged: dict[str, Estimate] = {}
    if mine.judges:
        estimates = (*map(mean_interval, (theirs.judges, mine.judges)), mean_gain(theirs.judges, mine.judges))
        judged = dict(zip(JUDGE_MEASURES, estimates, strict=True))
    return Evaluation(
        reward_reference=mean_interval(theirs.rewards),
        reward_policy=mean_interval(mine.rewards),
        reward_difference=mean_gain(theirs.rewards, mine.rewards),
        **judged,
        kl_reference_policy=non_negative(theirs.kl),
        kl_policy_reference=non_negative(mine.kl),
        perplexity_reference=exponential(mean_interval(theirs.nll)),
        perplexity_policy=exponential(mean_interval(mine.nll)),
        distinct_reference=mean_interval([distinct_share([one]) for one in theirs.tokens]),
        distinct_policy=mean_interval([distinct_share([one]) for one in mine.tokens]),
        variety_reference=in_groups(theirs.tokens, distinct_share),
        variety_policy=in_groups(mine.tokens, distinct_share),
        repeated_reference=in_groups(theirs.tokens, repeated_share),
        repeated_policy=in_groups(mine.tokens, repeated_share),
        samples=[sample_of(prompts, theirs, mine, index) for index in range(min(n_samples, len(prompts)))],
        rewards_reference=theirs.rewards,
        rewards_policy=mine.rewards,
        judges_reference=theirs.judges,
        judges_policy=mine.judges,
        kls_policy=mine.kl,
    )


def mean_gain(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Return the mean of `after` minus `before`, paired by prompt."""
    return mean_interval([b - a for a, b in zip(before, after, strict=True)])


def sample_of(prompts: list[str], theirs: Side, mine: Side, index: int) -> dict[str, Any]:
    """Return one prompt with both completions and their scores."""
    sides = {"reference": theirs, "policy": mine}
    sample: dict[str, Any] = {"prompt": prompts[index]} | {name: side.texts[index] for name, side in sides.items()}
    sample |= {f"reward_{name}": side.rewards[index] for name, side in sides.items()}
    return sample | {f"judge_{name}": side.judges[index] for name, side in sides.items() if side.judges}


def trajectory(
    snapshots: Mapping[tuple[int, int, int | str], Weights], task: Task, **settings: Any
) -> list[dict[str, Any]]:
    """Evaluate saved weights along training in the plane of reward and KL (figures 3, 4a, 13, 14).

    Args:
        snapshots: `WarpResult.snapshots`.
        task, settings: as for `evaluate`; the reference is θ_sft.

    Returns:
        Rows of iteration, run, step (or "anchor"), reward, kl and evaluation, in the order of training.
    """
    rows = []
    for i, m, at in sorted(snapshots, key=lambda key: (key[0], key[1], isinstance(key[2], str), key[2])):
        found = evaluate_weights(snapshots[i, m, at], task.policy, task, **settings)
        row = {"iteration": i, "run": m, "step": at, "reward": found.reward_policy, "kl": found.kl_policy_reference}
        rows.append(row | {"evaluation": found})
    return rows


def evaluate_weights(weights: Weights, reference: PreTrainedModel, task: Task, **settings: Any) -> Evaluation:
    """Evaluate a copy of the reference with these weights (see `evaluate`)."""
    policy = copy.deepcopy(reference).eval()
    load_(policy, weights)
    return evaluate(policy, reference, task, **settings)


def token_nll(logits: torch.Tensor, rollout: Rollout) -> list[float]:
    """Return the mean negative log-likelihood per token of each completion, at temperature 1, nats."""
    totals = -token_log_probs(logits, rollout.tokens, rollout.completion_mask, 1.0).sum(1)
    return (totals / rollout.completion_mask.sum(1)).tolist()


def in_groups(completions: Sequence[list[int]], share: Callable[[Sequence[list[int]]], float]) -> float:
    """Return the mean of a share over groups of GROUP completions, so that it does not depend on their number.

    Completions behind the last full group are left out; fewer than GROUP are one group.
    """
    last = max(1, len(completions) - GROUP + 1)
    return fmean(share(completions[start : start + GROUP]) for start in range(0, last, GROUP))


def distinct_share(completions: Sequence[list[int]]) -> float:
    """Return the share of distinct bigrams of all completions together; 1 if there are none."""
    bigrams = [pair for tokens in completions for pair in pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def repeated_share(completions: Sequence[list[int]]) -> float:
    """Return the share of completions with a phrase of PHRASE tokens that another one has too.

    A shorter completion is a phrase as a whole.
    """
    phrases = [
        {tuple(tokens[start : start + PHRASE]) for start in range(max(1, len(tokens) - PHRASE + 1))}
        for tokens in completions
    ]
    count = Counter(chain.from_iterable(phrases))
    return sum(any(count[phrase] > 1 for phrase in own) for own in phrases) / len(phrases)
