"""Part evaluation: the held-out evaluation of a policy beside its reference, and its floor.

No peer does this work; the floor is `warp_nb.cost.evaluation_work` at rates measured in the same process.
The reference's side was kept by an evaluation before, as it is in all experiments but the first.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.figures import Figure, alone
from benchmarks.sides import Side, Turns


def run(say: Callable[[str], None], repeats: int, **settings: object) -> Figure:
    """`repeats` evaluations with a free reward, after one that keeps the reference's side."""
    with Side("benchmarks.evaluation:measure", **settings) as side:
        units = []
        for number in range(1, repeats + 1):
            units.append(side.unit())
            say(f"{number}/{repeats}: {units[-1]['seconds']:.1f} s")
    title = f"evaluation of {settings['task']}, {settings['n_prompts']} prompts"
    seconds = alone(title, "s", [unit["seconds"] for unit in units], floor=side.warmup["floor"])
    memory = alone(f"{title}: peak memory", "bytes", [unit["peak_rss"] for unit in units])
    return {"alone": [seconds, memory], "rates": side.warmup["rates"]}


def measure(turns: Turns, task: str, n_prompts: int, completion: int, threads: int) -> None:
    """The side: rates and the floor first, then an evaluation a unit."""
    import copy

    import torch

    from benchmarks import work
    from benchmarks.floor import best_rates, machine_rates, products
    from warp_nb.fast.devices import LARGE
    from warp_nb.fast.rollout import encode_prompts
    from warp_nb.measure.cost import CHUNK, evaluation_work, seconds, sizes_of
    from warp_nb.measure.evaluation import evaluate

    torch.set_num_threads(threads)
    work_task = work.task(task)
    sizes, policy = sizes_of(work_task.policy), copy.deepcopy(work_task.policy)
    with torch.no_grad():
        for value in policy.parameters():
            value.mul_(1.001)
    prompt = encode_prompts(work_task.tokenizer, work_task.eval_prompts, 1 << 20)[0].shape[1]
    shapes = products(policy, min(CHUNK, n_prompts), prompt + completion - 1, completion)
    rates = best_rates([machine_rates(shapes, torch.float32, sizes.products)])
    work_done = evaluation_work(sizes, n_prompts, prompt, completion, reference_kept=sizes.parameters >= LARGE)
    floor = seconds(work_done, rates["flop_per_s"], rates["bytes_per_s"])
    while True:
        evaluate(policy, work_task.policy, work_task, n_prompts, 0, completion, 1.0)
        turns.next(rates=rates, floor=floor)
