"""A task: the policy θ_sft, its tokenizer, a reward and prompts; the prepared ones by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.fast.devices import choose_device
from warp_nb.tasks import hub, imdb

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reward = Callable[..., Sequence[float]]
PROMPT_TOKENS = 12
SMALL = Path(__file__).parent / "small"


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
    reviews: imdb.Source = "embedded"
    """Whose held-out part the reward's gate is measured on."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the policy beside its size: `perplexity_before`, `perplexity_after` its SFT, per word."""
    rebuild: Callable[[str], Task] | None = None
    """device -> this task, made anew in a worker of `warp`'s executor: a function of a module, or a partial of one."""

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

    Raises ValueError that names the function, `where` it was called, the first bad value and its prompt;
    RuntimeError that names the same from the function's own error.
    """
    name = reward_name(reward)
    called = f"reward {name} at {where}"
    try:
        given = reward(prompts=prompts, completions=completions)
    except Exception as error:
        raise RuntimeError(
            f"{called} raised {type(error).__name__}: {error} (first of {len(prompts)} prompts: {prompts[0][:60]!r})"
        ) from error
    try:
        values = list(given)
    except TypeError:
        raise ValueError(f"{called} returned {given!r}; it must return a list of numbers, one a completion") from None
    if len(values) != len(completions):
        raise ValueError(f"{called} returned {len(values)} values for {len(completions)} completions")
    for prompt, value in zip(prompts, values, strict=True):
        if not _is_finite_number(value):
            raise ValueError(
                f"{called} returned {value!r} for prompt {prompt[:60]!r}; every value must be one finite number"
            )
    return [float(value) for value in values]


def _is_finite_number(value: Any) -> bool:
    """Whether `value` is a number, or an array or tensor of no dimensions that holds one, and finite."""
    if isinstance(value, str | bytes) or getattr(value, "shape", ()) != ():
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def resolve(name: str, device: str = "") -> tuple[str, str, str]:
    """(task, device, why in Russian) for the notebooks' `task` and `device` parameters.

    Raises ValueError for an unknown task or a device this machine lacks.
    """
    if name not in ("auto", *LOADERS):
        raise ValueError(f"task must be one of auto, {', '.join(LOADERS)}, got {name!r}; or build a Task of your own")
    device = choose_device(device)
    if name != "auto":
        return name, device, "указана в параметрах"
    if device == "cpu":
        return "small", device, "GPU нет: встроенная, без хаба"
    return "gpt2", device, "есть GPU: как в исходном отчёте, модели с хаба"


def load_task(name: str, device: str | None = None) -> Task:
    """One of the tasks by name, prepared at first use: `small`, `smollm`, `gpt2`, or `auto` (see `resolve`).

    Raises ValueError for an unknown name or device, RuntimeError when a part cannot be fetched.
    """
    from warp_nb.tasks.isolation import quiet
    from warp_nb.tasks.reward_model import load_reward

    name, device, _ = resolve(name, device or "")
    with quiet():
        policy, tokenizer, source, facts = LOADERS[name](device)
    train = first_tokens(tokenizer, imdb.reviews("prompts", source)["text"].tolist())
    held_out = first_tokens(tokenizer, imdb.reviews("eval", source)["text"].tolist())
    seen = set(train)
    return Task(
        policy=policy.to(device).eval(),
        tokenizer=tokenizer,
        reward=load_reward(device, progress=True, source=source),
        train_prompts=train,
        eval_prompts=[prompt for prompt in held_out if prompt not in seen],
        name=name,
        reviews=source,
        facts=facts,
        rebuild=partial(load_task, name),
    )


Loaded = tuple[Any, Any, imdb.Source, dict[str, Any]]


def _load(folder: Path) -> tuple[Any, Any]:
    """Policy in fp32 and tokenizer of a transformers folder; safetensors only, no code of the folder's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return policy, AutoTokenizer.from_pretrained(folder)


def _small(device: str) -> Loaded:
    """The shipped policy of two layers."""
    return *_load(SMALL), "embedded", {}


def _smollm(device: str) -> Loaded:
    """SmolLM2-135M after a short SFT on the reviews, trained at first use."""
    from warp_nb.tasks.sft import load_sft

    folder, facts = load_sft(device)
    return *_load(folder), "embedded", facts


def _gpt2(device: str) -> Loaded:
    """GPT-2 tuned on IMDb, of the hub: the original's size and task."""
    return *_load(hub.fetch(hub.GPT2_IMDB)), "hub", {}


LOADERS: dict[str, Callable[[str], Loaded]] = {"small": _small, "smollm": _smollm, "gpt2": _gpt2}


def first_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], count: int = PROMPT_TOKENS) -> list[str]:
    """The distinct beginnings of `count` tokens, as text, in the order of `texts`."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(dict.fromkeys(tokenizer.batch_decode([row[:count] for row in rows])))


def reward_name(reward: Reward) -> str:
    """The function's own name, or the class of an object that is called."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def describe_reward(reward: Reward) -> dict[str, Any]:
    """What the reward tells of itself by a method `describe`, at least its name."""
    told = reward.describe() if hasattr(reward, "describe") else {}
    return {"name": reward_name(reward)} | told


def describe(task: Task) -> dict[str, Any]:
    """Plain facts about a task for banners and result files."""
    return {
        "task": task.name,
        "parameters": task.policy.num_parameters(),
        "reward": reward_name(task.reward),
        "reward_model": describe_reward(task.reward),
        "train_prompts": len(task.train_prompts),
        "eval_prompts": len(task.eval_prompts),
        **task.facts,
    }
