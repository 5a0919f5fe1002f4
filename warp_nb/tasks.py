"""A task: the policy θ_sft, its tokenizer, a reward and prompts; the embedded ones by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb import imdb

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reward = Callable[..., Sequence[float]]
PROMPT_TOKENS = 12
SMALL = Path(__file__).parent / "small"
NAMES = ("small",)


@dataclass(frozen=True)
class Task:
    """What Algorithm 1 gets as input. `policy` is θ_sft and is never mutated.

    `reward(prompts: list[str], completions: list[str], **kwargs) -> list[float]` follows TRL's
    convention. Raises ValueError when prompts are missing or training and evaluation share one,
    and when the policy is in training mode (dropout) or not in fp32.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: Reward
    train_prompts: list[str]
    eval_prompts: list[str]
    name: str = "own"

    def __post_init__(self) -> None:
        if self.policy.training:
            raise ValueError("the policy is in training mode, dropout would differ at every look; call policy.eval()")
        low = [f"{n} is {p.dtype}" for n, p in self.policy.named_parameters() if p.dtype.itemsize < 4]
        if low:
            raise ValueError(f"the policy must be float32, {low[0]}; call policy.float() (dtype is for arithmetic)")
        for name in ("train_prompts", "eval_prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; pass at least one prompt")
        shared = set(self.train_prompts) & set(self.eval_prompts)
        if shared:
            raise ValueError(
                f"{len(shared)} prompts are in both train_prompts and eval_prompts, e.g. {min(shared)!r}; "
                f"the evaluation must be held out: drop them from one"
            )


def call_reward(reward: Reward, prompts: list[str], completions: list[str], where: str) -> list[float]:
    """The reward of each completion, checked: one finite number a completion.

    Raises ValueError that names the function, `where` it was called and the first bad value.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    given = reward(prompts=prompts, completions=completions)
    try:
        scores = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name} at {where} must return one number a completion: {error}") from error
    if len(scores) != len(completions):
        raise ValueError(f"reward {name} at {where} returned {len(scores)} values for {len(completions)} completions")
    for prompt, score in zip(prompts, scores, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"reward {name} at {where} returned {score} for prompt {prompt[:60]!r}; it must be finite")
    return scores


def resolve(name: str, device: str = "") -> tuple[str, str, str]:
    """(task, device, why in Russian) for the notebooks' `task` and `device` parameters."""
    if name not in ("auto", *NAMES):
        raise ValueError(f"task must be one of auto, {', '.join(NAMES)}, got {name!r}; or build a Task of your own")
    device = device or "cpu"
    why = "указана в параметрах" if name != "auto" else "встроенная: ни GPU, ни хаба не нужно"
    return ("small" if name == "auto" else name), device, why


def load_task(name: str, device: str | None = None) -> Task:
    """One of the embedded tasks: `small`.

    Raises ValueError for an unknown name.
    """
    from warp_nb.reward_model import load_reward, quiet

    name, where, _ = resolve(name, device or "")
    with quiet():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(SMALL)
        policy: Any = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)
    train = first_tokens(tokenizer, imdb.reviews("prompts")["text"].tolist())
    held_out = first_tokens(tokenizer, imdb.reviews("eval")["text"].tolist())
    seen = set(train)
    return Task(
        policy=policy.to(where).eval(),
        tokenizer=tokenizer,
        reward=load_reward(where, progress=True),
        train_prompts=train,
        eval_prompts=[prompt for prompt in held_out if prompt not in seen],
        name=name,
    )


def first_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], count: int = PROMPT_TOKENS) -> list[str]:
    """The distinct beginnings of `count` tokens, as text, in the order of `texts`."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(dict.fromkeys(tokenizer.batch_decode([row[:count] for row in rows])))


def describe(task: Task) -> dict[str, Any]:
    """Plain facts about a task for banners and result files."""
    return {
        "task": task.name,
        "parameters": task.policy.num_parameters(),
        "reward": getattr(task.reward, "__name__", type(task.reward).__name__),
        "train_prompts": len(task.train_prompts),
        "eval_prompts": len(task.eval_prompts),
    }
