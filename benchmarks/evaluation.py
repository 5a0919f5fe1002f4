"""Part evaluation: the held-out evaluation of a policy and its reference, and its floor.

No peer does this work; the floor is `benchmarks.cost.evaluation_work` at rates measured in the same process. The
reference's side of a large policy was saved by an evaluation before, as it is in all experiments but the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.figures import Figure, alone
from benchmarks.floor import BUFFERS, best_rates, machine_rates, products
from benchmarks.sides import Side, Turns


def run(say: Callable[[str], None], repeats: int, **settings: object) -> Figure:
    """Time `repeats` evaluations with a free reward, after one that saves the reference's side."""
    with Side("benchmarks.evaluation:measure", **settings) as side:
        units = []
        for number in range(1, repeats + 1):
            units.append(side.unit())
            say(f"{number}/{repeats}: {units[-1]['seconds']:.1f} s")
    title = f"evaluation of {settings['task']}, {settings['n_prompts']} prompts"
    seconds = alone(title, "s", [unit["seconds"] for unit in units], floor=side.warmup["floor"])
    memory = alone(f"{title}: peak memory", "bytes", [unit["peak_rss"] for unit in units])
    return {"alone": [seconds, memory], "rates": side.warmup["rates"]}


def measure(
    turns: Turns, *, task: str, n_prompts: int, completion: int, threads: int, buffers: Mapping[str, int] = BUFFERS
) -> None:
    """Run the side: rates and the floor first, then one evaluation per unit."""
    import copy

    import torch

    from benchmarks import work
    from benchmarks.cost import evaluation_work, seconds, sizes_of
    from warp_nb import evaluate
    from warp_nb.fast.decoding import BLOCK
    from warp_nb.fast.devices import LARGE

    torch.set_num_threads(threads)
    given = work.load_task(task)
    sizes, policy, sampling = sizes_of(given.policy), copy.deepcopy(given.policy), given.sampling(completion)
    with torch.no_grad():
        for value in policy.parameters():
            value.mul_(1.001)
    prompt = given.encode(given.eval_prompts, sampling)[0].shape[1]
    shapes = products(policy, min(BLOCK, n_prompts), prompt + completion - 1, completion)
    rates = best_rates([machine_rates(shapes, torch.float32, sizes.products, buffers=buffers)])
    work_done = evaluation_work(sizes, n_prompts, prompt, completion, reference_kept=sizes.parameters >= LARGE)
    floor = seconds(work_done, rates["flop_per_s"], rates["bytes_per_s"])
    while True:
        evaluate(policy, given.policy, given, sampling=sampling, n_prompts=n_prompts)
        turns.next(rates=rates, floor=floor)
