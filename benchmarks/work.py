"""The work that both sides are given: a policy's folder, prompts, a reward that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warp_nb.tasks import imdb
from warp_nb.tasks.sft import load_sft
from warp_nb.tasks.task import SMALL, Task, first_tokens

PROMPTS = 512


def free_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """The length of each completion's last word: costs nothing and is not the same for all."""
    return [float(len(text.rpartition(" ")[2])) for text in completions]


def policy_folder(name: str) -> Path:
    """Folder of the policy of task small or smollm; the latter is prepared at first use."""
    return SMALL if name == "small" else load_sft()[0]


def load(name: str) -> tuple[Any, Any]:
    """Policy in fp32, in eval mode, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = policy_folder(name)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return policy.eval(), AutoTokenizer.from_pretrained(folder)


def prompts(tokenizer: Any, part: imdb.Part = "prompts") -> list[str]:
    """PROMPTS beginnings of reviews of 12 tokens."""
    return first_tokens(tokenizer, imdb.reviews(part)["text"].tolist()[:PROMPTS])


def task(name: str) -> Task:
    """The task by name with the free reward: its own reward model is not what is measured."""
    policy, tokenizer = load(name)
    train = prompts(tokenizer)
    held_out = [prompt for prompt in prompts(tokenizer, "eval") if prompt not in set(train)]
    return Task(policy, tokenizer, free_reward, train, held_out, name=name)
