"""The work that both sides of a comparison do: a policy, prompts, a reward that costs nothing, a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from warp_nb import Task, WarpConfig
from warp_nb.algorithm.merge import weights_of
from warp_nb.runs.training import FAST, Parts, RunResult, train
from warp_nb.tasks.prepared import LOADERS, beginnings

PROMPTS = 512
ENDLESS = 100_000
BETA, MU, LR = 0.1, 0.01, 1e-6


def free_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Return the length of each completion's last word, which costs nothing and differs between completions."""
    return [float(len(text.rpartition(" ")[2])) for text in completions]


def load_task(name: str) -> Task:
    """Load a prepared task with the free reward and the first tokens of PROMPTS reviews as prompts."""
    policy, tokenizer, source, _ = LOADERS[name]("cpu")
    train_prompts = beginnings(tokenizer, "prompts", source, PROMPTS)
    known = set(train_prompts)
    held_out = [prompt for prompt in beginnings(tokenizer, "eval", source, PROMPTS) if prompt not in known]
    return Task(policy.eval(), tokenizer, free_reward, train_prompts, held_out, name=name)


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


def setup(*, task: str, batch: int, completion: int, dtype: str, threads: int, steps: int = ENDLESS) -> Setup:
    """Set up the run that is measured, with `threads` torch threads from here on."""
    torch.set_num_threads(threads)
    config = WarpConfig(T=steps, lr=LR, warmup_steps=0, beta=BETA, mu=MU)
    config = config.replace(batch_size=batch, max_new_tokens=completion, dtype=dtype)
    return Setup(load_task(task), config)
