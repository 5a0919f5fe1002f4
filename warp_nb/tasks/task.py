"""A task: the policy theta_sft, its tokenizer, a reward and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.tasks.reward_interface import Reward, call_reward, describe_reward, reward_name
from warp_nb.tasks.text import context_length, decode_completions, encode_prompts, pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from warp_nb.tasks.gate import RewardGate


@dataclass(frozen=True)
class Task:
    """The input of Algorithm 1: a policy, its tokenizer, a reward and prompts.

    Args:
        policy: θ_sft, a causal language model in fp32 and eval mode. It is never changed.
        tokenizer: the policy's tokenizer.
        reward: a function of TRL's convention, `reward(prompts, completions, **kwargs) -> list[float]`.
        train_prompts: texts that the policy completes in training.
        eval_prompts: held-out texts; none of them may be a training prompt.
        name: shown in banners and result files.
        gate: measures a reward function before a policy is trained on it; None skips that check.
        facts: for banners and result files, e.g. `perplexity_before` and `perplexity_after` the SFT, per word.
        rebuild: loads this task on a device, in a worker of an executor; a function of a module, or a partial of one.

    Raises:
        ValueError: a list of prompts is empty, a prompt is in both lists, or the policy is in training mode (with
            dropout) or below fp32.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: Reward
    train_prompts: list[str]
    eval_prompts: list[str]
    name: str = "own"
    gate: Callable[[Reward], RewardGate] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    rebuild: Callable[[str], Task] | None = None

    def __post_init__(self) -> None:
        if self.policy.training:
            raise ValueError("the policy is in training mode, so dropout would change its output; call policy.eval()")
        low = [f"{n} is {p.dtype}" for n, p in self.policy.named_parameters() if p.dtype.itemsize < 4]
        if low:
            raise ValueError(f"the policy must be float32, {low[0]}; call policy.float() (config.dtype sets bf16)")
        for name in ("train_prompts", "eval_prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; pass at least one prompt")
        shared = set(self.train_prompts) & set(self.eval_prompts)
        if shared:
            raise ValueError(
                f"{len(shared)} prompts are in both train_prompts and eval_prompts, e.g. {min(shared)!r}; "
                f"the evaluation must be held out: drop them from one"
            )

    def sampling(self, max_new_tokens: int, temperature: float = 1.0) -> Sampling:
        """Return the settings of the sampler, with the tokenizer's end and padding ids."""
        end = self.tokenizer.eos_token_id
        return Sampling(max_new_tokens, temperature, () if end is None else (end,), pad_id(self.tokenizer))

    def encode(self, prompts: list[str], sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode prompts as (ids, attention mask), int64 [B, P], on the policy's device (see `encode_prompts`)."""
        limit = context_length(self.policy) - sampling.max_new_tokens
        ids, mask = encode_prompts(self.tokenizer, prompts, limit)
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def decode(self, rollout: Rollout) -> list[str]:
        """Decode the completions to the texts that the reward sees."""
        return decode_completions(self.tokenizer, rollout)

    def score(self, prompts: list[str], completions: list[str], where: str) -> list[float]:
        """Call the reward and check that it returns one finite number per completion (see `call_reward`)."""
        return call_reward(self.reward, prompts, completions, where)


def describe(task: Task) -> dict[str, Any]:
    """Return plain facts about a task for banners and result files."""
    return {
        "task": task.name,
        "parameters": task.policy.num_parameters(),
        "reward": reward_name(task.reward),
        "reward_model": describe_reward(task.reward),
        "train_prompts": len(task.train_prompts),
        "eval_prompts": len(task.eval_prompts),
        **task.facts,
    }
