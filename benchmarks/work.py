"""The work that both sides of a comparison do: a policy, prompts, a reward that costs nothing, a run's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from warp_nb import Task, WarpConfig
from warp_nb.algorithm.merge import weights_of
from warp_nb.runs.training import FAST, Parts, RunResult, train
from warp_nb.tasks.prepared import LOADERS, Loaded, beginnings

PROMPTS = 512
ENDLESS = 100_000
BETA, MU, LR = 0.1, 0.01, 1e-6


def free_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Return the length of each completion's last word, which costs nothing and differs between completions."""
    return [float(len(text.rpartition(" ")[2])) for text in completions]


def gpt2_124m(device: str) -> Loaded:
    """Load GPT-2 (124M) from the hub's cache; if it is not there, random weights of that size.

    Random weights get the tokenizer of SmolLM2, whose ids fit GPT-2's vocabulary. The prompts are those of the embedded
    reviews in both cases.
    """
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from warp_nb.tasks.sft import load_sft

    try:
        policy, tokenizer, _, _ = LOADERS["gpt2"](device)
        return policy, tokenizer, "embedded", {"weights": "lvwerra/gpt2-imdb"}
    except RuntimeError:  # no hub
        tokenizer = AutoTokenizer.from_pretrained(load_sft(device)[0])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = GPT2LMHeadModel(GPT2Config(**ids))
    return policy, tokenizer, "embedded", {"weights": "random, with the tokenizer of SmolLM2"}


POLICIES: dict[str, Callable[[str], Loaded]] = LOADERS | {"gpt2-124m": gpt2_124m}


def load_task(name: str, device: str = "cpu") -> Task:
    """Load a policy with the free reward and the first tokens of PROMPTS reviews as prompts."""
    policy, tokenizer, source, facts = POLICIES[name](device)
    train_prompts = beginnings(tokenizer, "prompts", source, PROMPTS)
    known = set(train_prompts)
    held_out = [prompt for prompt in beginnings(tokenizer, "eval", source, PROMPTS) if prompt not in known]
    policy = policy.to(device).eval()
    return Task(policy, tokenizer, free_reward, train_prompts, held_out, name=name, facts=facts)


def waiter(device: str) -> Callable[[], None]:
    """Return a function that waits until the device has done all that was launched."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def peak_device(device: str) -> int:
    """Return the largest memory that torch's tensors had on a CUDA device so far, bytes; 0 elsewhere."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0


@dataclass(frozen=True)
class Setup:
    """A run of policy-gradient steps: its task, configuration and parts."""

    task: Task
    config: WarpConfig
    parts: Parts = FAST

    def run(self, **settings: Any) -> RunResult:
        """Train run (1, 1) from the task's policy, as `warp` does; `settings` are keywords of `train`."""
        start = weights_of(self.task.policy)
        return train(self.config, self.task, start, i=1, m=1, parts=self.parts, **settings)


def setup(
    *, task: str, batch: int, completion: int, dtype: str, threads: int = 0, steps: int = ENDLESS, device: str = "cpu"
) -> Setup:
    """Set up the run that is measured, with `threads` torch threads from here on (0: torch's number)."""
    torch.set_num_threads(threads or torch.get_num_threads())
    config = WarpConfig(T=steps, lr=LR, warmup_steps=0, beta=BETA, mu=MU)
    config = config.replace(batch_size=batch, max_new_tokens=completion, dtype=dtype)
    return Setup(load_task(task, device), config)
