"""Best-of-N: of N completions of θ_sft the one with the highest reward. It needs no training.

Its policy is at most log N - (N - 1) / N nats away from θ_sft, KL(best-of-N || θ_sft): the formula is of Stiennon et
al. 2020 (arXiv 2009.01325); Beirami et al. 2024 (arXiv 2401.01879) prove that it is an upper bound. So a line through
these points is the least that a trained policy has to beat in the plane of reward and KL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from warp_nb.algorithm.objective import Sampling
from warp_nb.fast.decoding import BLOCK, sample_by_seeds
from warp_nb.measure.estimates import NO_ESTIMATE, Estimate, mean_interval
from warp_nb.measure.evaluation import batch_size, check_eval_prompts, held_out
from warp_nb.runs.training import derive_seed
from warp_nb.tasks.task import Task
from warp_nb.tasks.text import completion_tokens


@dataclass(frozen=True)
class BestOfN:
    """Gains of best-of-N over θ_sft; intervals are over prompts.

    Args:
        n: N, the number of completions to choose from.
        kl_bound: upper bound of KL(best-of-N || θ_sft), nats per sequence.
        gain: mean reward of the chosen completion minus the mean of θ_sft's.
        judge_gain: the same of the judge's score of that completion; NaN if the task has no judge.
        gains, judge_gains: both on every prompt, in the order of `evaluate`; empty where unknown.
    """

    n: int
    kl_bound: float
    gain: Estimate
    judge_gain: Estimate = NO_ESTIMATE
    gains: list[float] = field(default_factory=list)
    judge_gains: list[float] = field(default_factory=list)


@torch.no_grad()
def best_of_n(
    task: Task, *, sampling: Sampling, n_prompts: int = 256, seed: int = 0, ns: Sequence[int] = (2, 4, 16, 64)
) -> list[BestOfN]:
    """Measure best-of-N of θ_sft on the held-out prompts that `evaluate` takes with the same seed, in fp32.

    Every prompt gets max(ns) completions, and for each N the mean over all choices of N of them is exact (see
    `mean_of_best`), which varies less than one choice. The judge scores the completion that the reward chooses.

    Args:
        task: its policy, held-out prompts, tokenizer, reward and judge are used.
        sampling: settings of the sampler, as for `evaluate`.
        n_prompts: number of held-out prompts, drawn by `seed`.
        seed: seed of the prompts and the noise.
        ns: the values of N, at least 1.

    Returns:
        One result for each N, in the order of `ns`.

    Raises:
        ValueError: `ns` is empty or has a value below 1, or n_prompts is below 2 or above the number of held-out
            prompts.

    Example:
        for point in best_of_n(task, sampling=task.sampling(24)):
            print(point.n, point.kl_bound, point.gain)
    """
    if not ns or min(ns) < 1:
        raise ValueError(f"ns must be numbers of completions, each at least 1, got {ns!r}; pass e.g. (2, 4, 16, 64)")
    check_eval_prompts(n_prompts, task, sampling.max_new_tokens, "n_prompts")
    prompts = held_out(task, n_prompts, seed)
    rewards, judges = [], []
    for draw in range(max(ns)):
        texts, ids = completions(task, prompts, sampling, derive_seed(seed, "best-of-n", draw))
        rewards.append(task.score(prompts, texts, f"draw {draw + 1} of best-of-N", ids=ids))
        if task.judge is not None:
            judges.append(task.score_judge(prompts, texts, f"draw {draw + 1} of best-of-N", ids=ids))
    return [gains_of_best(n, np.array(rewards).T, np.array(judges).T) for n in ns]


def completions(task: Task, prompts: list[str], sampling: Sampling, seed: int) -> tuple[list[str], list[list[int]]]:
    """Sample one completion of θ_sft for every held-out prompt: its text and its tokens, without padding.

    Each block of prompts has noise of its own.
    """
    texts, ids = list[str](), list[list[int]]()
    size = batch_size(task.policy, task.policy, sampling)
    for start in range(0, len(prompts), size):
        chunk = prompts[start : start + size]
        seeds = [derive_seed(seed, block) for block in range(start, start + len(chunk), BLOCK)]
        given = task.encode(chunk, sampling, "eval_prompts")
        rollout = task.finish(sample_by_seeds(task.policy, *given, sampling, seeds=seeds))
        texts += task.decode(rollout)
        ids += completion_tokens(rollout)
    return texts, ids


def gains_of_best(n: int, rewards: np.ndarray, judges: np.ndarray) -> BestOfN:
    """Return best-of-n from the rewards of all completions [prompts, draws], and the judge's scores or an empty array.

    A gain is relative to the mean of the same prompt's completions, which varies less than one completion.
    """
    gains, judge_gains = (
        (mean_of_best(rewards, scores, n) - scores.mean(1)).tolist() if scores.size else []
        for scores in (rewards, judges)
    )
    judge_gain = mean_interval(judge_gains) if judge_gains else NO_ESTIMATE
    return BestOfN(n, kl_bound(n), mean_interval(gains), judge_gain, gains, judge_gains)


def mean_of_best(rewards: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Return the mean of `scores` of the completion with the highest reward, over all choices of n: [prompts].

    The completion of rank k of K (1 is the worst) is the best of C(k - 1, n - 1) of the C(K, n) choices, so the mean
    over the choices is a weighted sum over the ranks. It is an unbiased estimate for n independent completions. Of
    equal rewards the later completion counts as higher.

    Args:
        rewards: float64 [prompts, K], what chooses.
        scores: float64 [prompts, K], what is averaged: the rewards themselves, or the judge's scores.
        n: number of completions to choose from, at most K.
    """
    drawn = rewards.shape[1]
    weights = np.array([math.comb(rank, n - 1) / math.comb(drawn, n) for rank in range(drawn)])
    return np.take_along_axis(scores, np.argsort(rewards, axis=1, kind="stable"), axis=1) @ weights


def kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n, the largest KL(best-of-n || θ_sft), nats."""
    return math.log(n) - (n - 1) / n
