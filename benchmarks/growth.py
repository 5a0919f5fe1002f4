"""Part growth: how the cost grows with T, M, I (seconds of `warp`) and with batch, completion, size (a step).

Every round measures every point once, so that a slow minute of the machine falls on all of them;
an exponent is fitted to each round, its spread is that over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, exponent, spread
from benchmarks.sides import Side, Turns

if TYPE_CHECKING:
    from warp_nb import Task

SETTLED = 3
"""Steps whose median counts at a point, after two that warm up."""


def run(say: Callable[[str], None], rounds: int, **settings: Any) -> Figure:
    """Measure exponents with their spread over the rounds."""
    units = []
    with Side("benchmarks.growth:measure", **settings) as side:
        for number in range(1, rounds + 1):
            units.append(side.unit())
            say(f"round {number}/{rounds}: {units[-1]['seconds']:.0f} s")
    found = []
    for name, sizes in units[0]["sizes"].items():
        costs = [unit["costs"][name] for unit in units]
        fitted = spread([exponent(sizes, cost) for cost in costs])
        medians = [median(at_size) for at_size in zip(*costs, strict=True)]
        found.append({"what": name, "sizes": sizes, "seconds": medians, "exponent": fitted})
        say(f"{name}: exponent {fitted['median']:.2f}")
    return {"exponents": found}


def measure(
    turns: Turns, *, loops: dict[str, list[int]], steps: dict[str, list[int]], widths: list[int], threads: int
) -> None:
    """Run the side: a unit is one round over all points."""
    import torch

    from benchmarks import work

    torch.set_num_threads(threads)
    small = work.load_task("small")
    models = [random_task(small, width) for width in widths]
    sizes = loops | steps | {"parameters": [task.policy.num_parameters() for task in models]}
    turns.next()
    while True:
        costs = {name: [warp_seconds(small, **{name: value}) for value in loops[name]] for name in loops}
        costs |= {name: [step_seconds(small, **{name: value}) for value in steps[name]] for name in steps}
        costs["parameters"] = [step_seconds(task) for task in models]
        turns.next(sizes=sizes, costs=costs)


def random_task(like: Task, width: int) -> Task:
    """Make a random Llama of `width` channels, one layer per 64 of them, with the tokens and prompts of `like`."""
    import dataclasses

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // 64
    shape = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": heads}
    config = LlamaConfig(**like.policy.config.to_dict() | shape | {"num_attention_heads": heads}
                         | {"num_key_value_heads": heads, "dtype": torch.float32})  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dataclasses.replace(like, policy=LlamaForCausalLM(config).eval(), name="random")


def warp_seconds(task: Task, I: int = 1, M: int = 1, T: int = 2) -> float:  # noqa: E741
    """Return seconds of `warp` with 8 × 12 tokens per step."""
    import time

    from warp_nb import WarpConfig, warp

    start = time.perf_counter()
    warp(WarpConfig(I=I, M=M, T=T, batch_size=8, max_new_tokens=12), task, progress=False)
    return time.perf_counter() - start


def step_seconds(task: Task, batch: int = 8, completion: int = 12) -> float:
    """Return the median seconds of SETTLED steps."""
    from benchmarks.work import Setup
    from warp_nb import WarpConfig

    config = WarpConfig(T=2 + SETTLED, batch_size=batch, max_new_tokens=completion)
    return median(row["seconds"] for row in Setup(task, config).run().history[2:])
