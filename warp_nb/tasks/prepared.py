"""The prepared tasks: small, smollm and gpt2, all on IMDb reviews."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from warp_nb.config import ExperimentConfig
from warp_nb.fast.devices import choose_device
from warp_nb.files import loading
from warp_nb.tasks import hub, imdb, text
from warp_nb.tasks.identity import tokenizer_identity, versions
from warp_nb.tasks.imported import imported
from warp_nb.tasks.remembered import code_of, remembered
from warp_nb.tasks.task import Task

PROMPT_TOKENS = 12
SMALL = Path(__file__).parent / "small"
Loaded = tuple[Any, Any, imdb.Source, dict[str, Any]]
"""Policy in fp32, tokenizer, source of the reviews, facts about the policy."""


def resolve(name: str, device: str = "") -> tuple[str, str, str]:
    """Resolve the notebooks' `task` and `device` parameters to (task, device, reason).

    The reason is `named`; of task `auto` it is `no-gpu` (small), `gpu` (gpt2), or `no-hub` (smollm: there is a GPU, and
    `hub.at_hand` says no). Without a GPU the hub is not asked.

    Raises:
        ValueError: the task is unknown, or this machine lacks the device.
    """
    if name not in ("auto", *LOADERS):
        raise ValueError(f"task must be one of auto, {', '.join(LOADERS)}, got {name!r}; or build a Task of your own")
    device = choose_device(device)
    if name != "auto":
        return name, device, "named"
    if device == "cpu":
        return "small", device, "no-gpu"
    return ("gpt2", device, "gpu") if hub.at_hand() else ("smollm", device, "no-hub")


def load_task(name: str | ExperimentConfig, device: str | None = None, judge: bool = False) -> Task:
    """Load a prepared task, or the task of an experiment; parts are fetched and trained at first use, then cached.

    Args:
        name: `small`, `smollm`, `gpt2`, or `auto`: `small` without a GPU; with one `gpt2`, or `smollm` where the hub
            does not answer. Or the parameters of an experiment: their `policy`, `reward` and `prompts` make a task (see
            `Task.from_pretrained`); otherwise their `task` is a name as above, or a `module:function` that is called
            without arguments and returns a `Task`.
        device: cpu, cuda, cuda:N or mps; the fastest one by default, and that of the parameters.
        judge: whether a prepared task has a judge, a second reward model from other reviews (see `load_judge`); the
            fact `judge_correlation` is the correlation of its scores of held-out reviews with the reward's. A task of
            your own has the one that it was made with.

    Raises:
        ValueError: the name is unknown, this machine lacks the device, or what the parameters name is not sound.
        RuntimeError: a part cannot be fetched.
    """
    if isinstance(name, ExperimentConfig):
        config, device = name, device or name.device
        if config.policy:
            given = {"reward": config.reward, "prompts": config.prompts}
            return Task.from_pretrained(config.policy, **given, device=device or None)
        return made_task(config.task) if config.own else load_task(config.task, device, judge)
    from warp_nb.tasks.imdb_gate import imdb_gate, judge_correlation
    from warp_nb.tasks.isolation import quiet
    from warp_nb.tasks.reward_model import load_judge, load_reward

    name, device, _ = resolve(name, device or "")
    with quiet():
        policy, tokenizer, source, facts = LOADERS[name](device)
    train = beginnings(tokenizer, "prompts", source)
    seen = set(train)
    reward = load_reward(device, progress=True, source=source)
    judging = load_judge(device, progress=True, source=source) if judge else None
    if judging is not None:
        facts = facts | {"judge_correlation": judge_correlation(reward, judging, source)}
    return Task(
        policy=policy.to(device).eval(),
        tokenizer=tokenizer,
        reward=reward,
        train_prompts=train,
        eval_prompts=[prompt for prompt in beginnings(tokenizer, "eval", source) if prompt not in seen],
        name=name,
        gate=partial(imdb_gate, source=source),
        judge=judging,
        facts=facts,
        rebuild=partial(load_task, name),
    )


def made_task(named: str) -> Task:
    """Call a user's `module:function`, which returns a task.

    Raises:
        ValueError: it does not import, or returns something else.
    """
    task = imported(named, "task")()
    if not isinstance(task, Task):
        raise ValueError(f"task = {named!r} returned a {type(task).__name__}; it must return a warp_nb.Task")
    return task


def beginnings(tokenizer: Any, part: imdb.Part, source: imdb.Source, count: int | None = None) -> list[str]:
    """Return the first PROMPT_TOKENS tokens of a part's reviews (of the first `count`) as prompts.

    They are made once for a tokenizer, then read from the cache folder.
    """
    facts = {
        "reviews": imdb.part_facts(part, source),
        "count": count,
        "tokens": PROMPT_TOKENS,
        "tokenizer": tokenizer_identity(tokenizer) | versions(),
        "code": code_of(text.__name__),
    }

    def made() -> list[str]:
        return text.first_tokens(tokenizer, imdb.reviews(part, source)["text"].tolist()[:count], PROMPT_TOKENS)

    return remembered("prompts", facts, made)


def load_policy(folder: Path) -> tuple[Any, Any]:
    """Load policy (fp32) and tokenizer from a transformers folder: safetensors only, no code from the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with loading(folder, "policy"):
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return policy, AutoTokenizer.from_pretrained(folder)


def _small(device: str) -> Loaded:
    """Load the shipped policy of two layers."""
    return *load_policy(SMALL), "embedded", {}


def _smollm(device: str) -> Loaded:
    """Load SmolLM2-135M after a short SFT on the reviews, trained at first use."""
    from warp_nb.tasks.sft import load_sft

    folder, facts = load_sft(device)
    return *load_policy(folder), "embedded", facts


def _gpt2(device: str) -> Loaded:
    """Load GPT-2 fine-tuned on IMDb from the hub: the original report's kind of model."""
    return *load_policy(hub.fetch_from_hub(hub.GPT2_IMDB)), "hub", {}


LOADERS: dict[str, Callable[[str], Loaded]] = {"small": _small, "smollm": _smollm, "gpt2": _gpt2}
