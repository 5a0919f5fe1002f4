"""A task: the policy theta_sft, its tokenizer, a reward and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.fast.agreement import vocabulary_size
from warp_nb.tasks.lora import Lora, holds_adapters, take_apart
from warp_nb.tasks.policy_check import PROBE_TOKENS, check_policy
from warp_nb.tasks.prompts import check_ids, check_lengths, texts_of
from warp_nb.tasks.reward_interface import Reward, call_reward, describe_reward, reward_name
from warp_nb.tasks.text import (
    context_length,
    decode_completions,
    encode_prompts,
    end_ids,
    pad_id,
    prompt_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from warp_nb.tasks.gate import RewardGate

PROMPTS = ("train_prompts", "eval_prompts")


@dataclass(frozen=True)
class Task:
    """The input of Algorithm 1: a policy, its tokenizer, a reward and prompts.

    Args:
        policy: θ_sft, a causal language model of transformers in fp32 and eval mode (see `check_policy`). It is never
            changed; weights with `requires_grad = False` are not trained. A PEFT policy trains its adapter only: this
            field becomes a plain model with the adapter merged (see `take_apart`), and `lora` the factors to train.
        tokenizer: the policy's tokenizer.
        reward: a function of TRL's convention, `reward(prompts, completions, **kwargs) -> list[float]`.
        train_prompts: texts that the policy completes in training, a list or a column (see `texts_of`).
        eval_prompts: held-out texts; none of them may be a training prompt.
        name: shown in banners and result files.
        gate: measures a reward function before a policy is trained on it; None skips that check.
        judge: a second reward of the same convention for evaluations, which tells improvement from reward hacking. No
            policy is ever trained on it, so runs do not depend on it.
        facts: for banners and result files, e.g. `perplexity_before` and `perplexity_after` the SFT, per word.
        rebuild: loads this task on a device, in a worker of an executor; a function of a module, or a partial of one.
        lora: set from a PEFT policy.

    Raises:
        ValueError: the prompts are no list of texts, a prompt is empty, beyond the vocabulary or in both lists, or the
            policy is in training mode (with dropout), below fp32, frozen as a whole, no causal language model, or a
            PEFT policy that is not plain LoRA.
    """

    policy: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    reward: Reward
    train_prompts: list[str] = field(repr=False)
    eval_prompts: list[str] = field(repr=False)
    name: str = "own"
    gate: Callable[[Reward], RewardGate] | None = None
    judge: Reward | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    rebuild: Callable[[str], Task] | None = None
    lora: Lora | None = field(default=None, repr=False)
    lengths: Mapping[str, list[int]] = field(init=False, repr=False)
    """Tokens of every prompt, by the name of its list."""

    def __post_init__(self) -> None:
        if self.policy.training:
            raise ValueError("the policy is in training mode, so dropout would change its output; call policy.eval()")
        if holds_adapters(self.policy):
            for name, value in zip(("policy", "lora"), take_apart(self.policy), strict=True):
                object.__setattr__(self, name, value)
        low = [f"{n} is {p.dtype}" for n, p in self.policy.named_parameters() if p.dtype.itemsize < 4]
        if low:
            raise ValueError(f"the policy must be float32, {low[0]}; call policy.float() (config.dtype sets bf16)")
        rows = {}
        for name in PROMPTS:
            texts = texts_of(getattr(self, name), name)
            rows[name] = prompt_ids(self.tokenizer, texts)
            check_ids(rows[name], texts, name, vocabulary=vocabulary_size(self.policy))
            object.__setattr__(self, name, texts)
        object.__setattr__(self, "lengths", {name: list(map(len, found)) for name, found in rows.items()})
        check_policy(self.policy, list(chain(*rows["train_prompts"][:PROBE_TOKENS])), context_length(self.policy))
        shared = set(self.train_prompts) & set(self.eval_prompts)
        if shared:
            raise ValueError(
                f"{len(shared)} prompts are in both train_prompts and eval_prompts, e.g. {min(shared)!r}; "
                f"the evaluation must be held out: drop them from one"
            )

    def sampling(self, max_new_tokens: int, temperature: float = 1.0) -> Sampling:
        """Return the settings of the sampler, with the ids of end and padding that tokenizer and policy declare."""
        return Sampling(
            max_new_tokens, temperature, end_ids(self.tokenizer, self.policy), pad_id(self.tokenizer, self.policy)
        )

    def check_lengths(self, max_new_tokens: int) -> None:
        """Raise ValueError unless every prompt, also the held-out ones, leaves room for a completion."""
        for name, lengths in self.lengths.items():
            context = context_length(self.policy)
            check_lengths(lengths, getattr(self, name), name, context=context, max_new_tokens=max_new_tokens)

    def encode(self, prompts: list[str], sampling: Sampling, among: str = "") -> tuple[torch.Tensor, torch.Tensor]:
        """Encode prompts as (ids, attention mask), int64 [B, P], on the policy's device (see `encode_prompts`).

        On a GPU all batches of prompts `among` a list of the task, e.g. train_prompts, have one width: that of its
        longest prompt. So a captured rollout serves all of them.
        """
        limit = context_length(self.policy) - sampling.max_new_tokens
        width = max(self.lengths[among]) if among and self.policy.device.type == "cuda" else 0
        ids, mask = encode_prompts(self.tokenizer, prompts, limit, sampling.pad_id, width=width)
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def decode(self, rollout: Rollout) -> list[str]:
        """Decode the completions to the texts that the reward sees."""
        return decode_completions(self.tokenizer, rollout)

    def score(self, prompts: list[str], completions: list[str], where: str) -> list[float]:
        """Call the reward and check that it returns one finite number per completion (see `call_reward`)."""
        return call_reward(self.reward, prompts, completions, where)

    def score_judge(self, prompts: list[str], completions: list[str], where: str) -> list[float]:
        """Call the judge and check what it returns, as `score` does; raise ValueError if the task has none."""
        if self.judge is None:
            raise ValueError(f"task {self.name} has no judge; pass Task(judge=...), or load_task(..., judge=True)")
        return call_reward(self.judge, prompts, completions, f"{where}, as the judge")

    def gates(self) -> dict[str, RewardGate]:
        """Measure the reward, and the judge if there is one, with the task's gate: by `reward` and `judge`."""
        scored = {"reward": self.reward} | ({} if self.judge is None else {"judge": self.judge})
        return {name: self.gate(reward) for name, reward in scored.items()} if self.gate else {}


def describe(task: Task) -> dict[str, Any]:
    """Return plain facts about a task for banners and result files."""
    return {
        "task": task.name,
        "parameters": task.policy.num_parameters(),
        "reward": reward_name(task.reward),
        "reward_model": describe_reward(task.reward),
        **({} if task.judge is None else {"judge": describe_reward(task.judge)}),
        **({} if task.lora is None else {"trained_by_lora": task.lora.trained}),
        "train_prompts": len(task.train_prompts),
        "eval_prompts": len(task.eval_prompts),
        **task.facts,
    }
