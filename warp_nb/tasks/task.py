"""A task: the policy theta_sft, its tokenizer, a reward and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.fast.agreement import vocabulary_size
from warp_nb.tasks.columns import GIVEN, Rows, columns_by_prompt, columns_for
from warp_nb.tasks.lora import Lora, holds_adapters, take_apart
from warp_nb.tasks.own import own_fields
from warp_nb.tasks.policy_check import PROBE_TOKENS, check_policy
from warp_nb.tasks.prompt_sources import COLUMN
from warp_nb.tasks.prompts import check_ids, check_lengths, texts_of
from warp_nb.tasks.reward_interface import (
    Reward,
    TrainerState,
    as_conversations,
    call_reward,
    check_keywords,
    describe_reward,
    on_texts,
    reward_name,
)
from warp_nb.tasks.rewards import as_reward
from warp_nb.tasks.text import (
    context_length,
    decode_completions,
    encode_prompts,
    end_at_stops,
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
        reward: a function of TRL's convention, `reward(prompts, completions, **kwargs) -> list[float]`; a list of
            rewards, which is their sum, or a `WeightedSum`; the folder or hub id of a sequence classifier; or
            `module:function` (see `as_reward`).
        train_prompts: texts that the policy completes in training, a list or a column (see `texts_of`).
        eval_prompts: held-out texts; none of them may be a training prompt.
        name: shown in banners and result files.
        gate: measures a reward function before a policy is trained on it; None skips that check.
        judge: a second reward of the same convention for evaluations, which tells improvement from reward hacking. No
            policy is ever trained on it, so runs do not depend on it.
        facts: for banners and result files, e.g. `perplexity_before` and `perplexity_after` the SFT, per word.
        rebuild: loads this task on a device, in a worker of an executor; a function of a module, or a partial of one.
        run_rewards: M rewards, on which the runs of an iteration are trained in the place of `reward` (figure 18):
            run m on the m-th. Evaluations use `reward`.
        train_columns, eval_columns: further columns of the prompts, by name, a value for every prompt, which rewards
            get as keywords. Both have the same names.
        conversations: for prompts that a chat template rendered, text -> messages; rewards get messages, as in TRL.
        stop_strings: texts that end a completion, beside the end tokens that tokenizer and policy declare (see
            `finish`), e.g. ["\\n\\n", "User:"].
        min_new_tokens: fewest tokens before an end token, which has probability 0 until then, when completions are
            drawn and when they are scored. Stop strings end a completion earlier.
        lora: set from a PEFT policy.

    Raises:
        ValueError: the prompts are no list of texts, a prompt is empty, beyond the vocabulary or in both lists, or the
            policy is in training mode (with dropout), below fp32, frozen as a whole, no causal language model, or a
            PEFT policy that is not plain LoRA; a reward does not load, or needs a keyword that no column gives; columns
            do not fit the prompts.
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
    run_rewards: Sequence[Reward] = ()
    train_columns: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    eval_columns: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    conversations: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    stop_strings: Sequence[str] = ()
    min_new_tokens: int = 0
    lora: Lora | None = field(default=None, repr=False)
    lengths: Mapping[str, list[int]] = field(init=False, repr=False)
    """Tokens of every prompt, by the name of its list."""
    rows: Rows = field(init=False, repr=False)
    """Columns of every prompt."""

    def __post_init__(self) -> None:
        if self.policy.training:
            raise ValueError("the policy is in training mode, so dropout would change its output; call policy.eval()")
        if holds_adapters(self.policy):
            for name, value in zip(("policy", "lora"), take_apart(self.policy), strict=True):
                object.__setattr__(self, name, value)
        low = [f"{n} is {p.dtype}" for n, p in self.policy.named_parameters() if p.dtype.itemsize < 4]
        if low:
            raise ValueError(f"the policy must be float32, {low[0]}; call policy.float() (config.dtype sets bf16)")
        if type(self.min_new_tokens) is not int or self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must be a whole number, at least 0, got {self.min_new_tokens!r}; pass 0")
        stops = [] if self.stop_strings == () else texts_of(self.stop_strings, "stop_strings")
        if "" in stops:
            raise ValueError("stop_strings has an empty text, with which every completion would end; drop it")
        object.__setattr__(self, "stop_strings", tuple(stops))
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
        columns = {"train": self.train_columns, "eval": self.eval_columns}
        object.__setattr__(
            self, "rows", columns_by_prompt({"train": self.train_prompts, "eval": self.eval_prompts}, columns)
        )
        self._load_rewards()

    def _load_rewards(self) -> None:
        """Turn what was passed as rewards into functions, and check that they get the keywords that they need."""
        device = str(self.policy.device)
        object.__setattr__(self, "reward", as_reward(self.reward, device))
        object.__setattr__(self, "judge", None if self.judge is None else as_reward(self.judge, device))
        object.__setattr__(self, "run_rewards", tuple(as_reward(one, device) for one in self.run_rewards))
        given = dict.fromkeys([*GIVEN, *self.train_columns])
        for reward in (self.reward, *self.run_rewards, *([] if self.judge is None else [self.judge])):
            check_keywords(reward, given, "of the task")
        silent = [text for text in self.train_prompts + self.eval_prompts if text not in self.conversations]
        if self.conversations and silent:
            raise ValueError(
                f"conversations lacks prompt {silent[0][:60]!r}; pass the messages of all prompts, or none"
            )

    @classmethod
    def from_pretrained(
        cls,
        policy: str | PathLike[str] | PreTrainedModel,
        *,
        reward: Reward | str,
        prompts: Any,
        tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
        held_out: Any = None,
        column: str = COLUMN,
        device: str | None = None,
        revision: str | None = None,
        **fields: Any,
    ) -> Task:
        """Make a task of a model, a reward and prompts of your own; the weights are loaded last.

        Args:
            policy: a folder of transformers or a hub id, loaded in fp32 and eval mode, from safetensors and without
                code of its own; or a loaded model.
            reward: any reward that `Task` takes; `module:function` is looked for in the current folder first.
            prompts: texts or conversations (lists of messages) as a list, a column, a dataset, a data frame, or a file:
                `.txt` with a prompt a line, or `.jsonl`, `.csv`, `.parquet`. Conversations become text by the
                tokenizer's chat template, and rewards get the messages. Further columns reach the rewards by name.
                Duplicates are dropped; `facts["duplicates"]` is their number.
            tokenizer: a tokenizer, or a folder or hub id; by default the policy's own.
            held_out: the part of the prompts that the evaluation holds out, a share or a number, or prompts as above;
                by default a fifth, at least 8. The sha256 of a prompt decides, so no seed or order changes the split.
            column: the column of prompts in a dataset or a file.
            device: cpu, cuda, cuda:N or mps; the fastest one by default. A loaded model stays where it is.
            revision: branch, tag or commit of a hub id.
            fields: other fields of `Task`, e.g. `name`, `judge` or `stop_strings`.

        Raises:
            ValueError: an argument is refused, with the value, the rule and the remedy; and what `Task` raises.

        Example:
            task = Task.from_pretrained("my-model", reward="rewards:brevity", prompts="prompts.jsonl")
            result = warp(WarpConfig(T=50, lr=1e-5), task)
        """
        given = {"reward": reward, "prompts": prompts, "tokenizer": tokenizer, "held_out": held_out, "column": column}
        made = own_fields(policy, **given, device=device, revision=revision)
        if isinstance(policy, str | PathLike):
            given |= {"revision": made["facts"].get("commit")}
            fields = {"rebuild": partial(on_device, policy=policy, **given, **fields)} | fields
        return cls(**made | fields)

    def sampling(self, max_new_tokens: int, temperature: float = 1.0) -> Sampling:
        """Return the settings of the sampler, with the ids of end and padding that tokenizer and policy declare."""
        ends, pad = end_ids(self.tokenizer, self.policy), pad_id(self.tokenizer, self.policy)
        return Sampling(max_new_tokens, temperature, ends, pad, self.min_new_tokens)

    def check_lengths(self, max_new_tokens: int) -> None:
        """Raise ValueError unless every prompt, also the held-out ones, leaves room for a completion."""
        if self.min_new_tokens > max_new_tokens:
            raise ValueError(
                f"min_new_tokens = {self.min_new_tokens} of the task is more than max_new_tokens = {max_new_tokens}; "
                f"pass a larger max_new_tokens"
            )
        for name, lengths in self.lengths.items():
            context = context_length(self.policy)
            check_lengths(lengths, getattr(self, name), name, context=context, max_new_tokens=max_new_tokens)

    def check_runs(self, M: int) -> None:
        """Raise ValueError if the runs have rewards of their own that are not M."""
        if self.run_rewards and len(self.run_rewards) != M:
            count = len(self.run_rewards)
            raise ValueError(f"task {self.name} has {count} run_rewards, and M = {M}; pass {M}, or set M = {count}")

    def encode(self, prompts: list[str], sampling: Sampling, among: str = "") -> tuple[torch.Tensor, torch.Tensor]:
        """Encode prompts as (ids, attention mask), int64 [B, P], on the policy's device (see `encode_prompts`).

        On a GPU all batches of prompts `among` a list of the task, e.g. train_prompts, have one width: that of its
        longest prompt. So a captured rollout serves all of them.
        """
        limit = context_length(self.policy) - sampling.max_new_tokens
        width = max(self.lengths[among]) if among and self.policy.device.type == "cuda" else 0
        ids, mask = encode_prompts(self.tokenizer, prompts, limit, sampling.pad_id, width=width)
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def finish(self, rollout: Rollout) -> Rollout:
        """End every completion of a rollout with its first stop string, which it keeps (see `end_at_stops`).

        All that samples for this task calls it: training, evaluation and best-of-N.
        """
        if not self.stop_strings:
            return rollout
        return end_at_stops(self.tokenizer, rollout, self.stop_strings, pad_id(self.tokenizer, self.policy))

    def decode(self, rollout: Rollout) -> list[str]:
        """Decode the completions to the texts that the reward sees."""
        return decode_completions(self.tokenizer, rollout)

    def score(
        self,
        prompts: list[str],
        completions: list[str],
        where: str,
        *,
        ids: list[list[int]] | None = None,
        state: TrainerState | None = None,
        run: int | None = None,
    ) -> list[float]:
        """Score completions by the reward, one finite number each (see `call_reward`).

        Args:
            prompts, completions: texts; the prompts are the task's, if it has columns or conversations.
            where: the place of the call, for messages.
            ids: tokens of the completions without padding; by default those of the texts.
            state: progress of a training, None outside of one.
            run: number of the run in its iteration, from 1, which may have a reward of its own; None in an evaluation.
        """
        reward = self.run_rewards[run - 1] if run is not None and self.run_rewards else self.reward
        return self._score_by(reward, prompts, completions, where=where, ids=ids, state=state)

    def score_judge(
        self, prompts: list[str], completions: list[str], where: str, *, ids: list[list[int]] | None = None
    ) -> list[float]:
        """Score by the judge, as `score` does; raise ValueError if the task has none."""
        if self.judge is None:
            raise ValueError(f"task {self.name} has no judge; pass Task(judge=...), or load_task(..., judge=True)")
        return self._score_by(self.judge, prompts, completions, where=f"{where}, as the judge", ids=ids)

    def _score_by(
        self,
        reward: Reward,
        prompts: list[str],
        completions: list[str],
        *,
        where: str,
        ids: list[list[int]] | None,
        state: TrainerState | None = None,
    ) -> list[float]:
        seen = as_conversations(prompts, completions, self.conversations)
        ids = self._tokenize(completions) if ids is None else ids
        columns = columns_for(self.rows, prompts)
        return call_reward(reward, *seen, where, completion_ids=ids, trainer_state=state, **columns)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def of_texts(self, reward: Reward) -> Reward:
        """Return a reward for texts that no policy sampled, as a gate has; `completion_ids` are the tokenizer's."""
        return on_texts(reward, self._tokenize)

    def gates(self) -> dict[str, RewardGate]:
        """Measure the reward, and the judge if there is one, with the task's gate: by `reward` and `judge`."""
        scored = {"reward": self.reward} | ({} if self.judge is None else {"judge": self.judge})
        return {name: self.gate(self.of_texts(reward)) for name, reward in scored.items()} if self.gate else {}


def on_device(device: str, policy: str | PathLike[str], **given: Any) -> Task:
    """Make a task by `Task.from_pretrained` on a device, in a worker of an executor."""
    return Task.from_pretrained(policy, device=device, **given)


def describe(task: Task) -> dict[str, Any]:
    """Return plain facts about a task for banners and result files."""
    return {
        "task": task.name,
        "parameters": task.policy.num_parameters(),
        "reward": reward_name(task.reward),
        "reward_model": describe_reward(task.reward),
        **({} if task.judge is None else {"judge": describe_reward(task.judge)}),
        **({"run_rewards": [describe_reward(one) for one in task.run_rewards]} if task.run_rewards else {}),
        **({} if task.lora is None else {"trained_by_lora": task.lora.trained}),
        "train_prompts": len(task.train_prompts),
        "eval_prompts": len(task.eval_prompts),
        **task.facts,
    }
