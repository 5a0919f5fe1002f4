"""Two runs side by side with one thread each against one after the other with two, task `small`.

`python benchmarks/parallel.py` prints JSON: whole calls of `warp()` with I = 1 and M = 2, in interleaved
pairs; medians, spread and the ratio of every pair. The pool is warm, its first call is given apart.
`--write` keeps it as parallel.json and puts its table into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from warp_nb import Task, WarpConfig, load_task, warp
from warp_nb.experiment import machine
from warp_nb.parallel import process_pool
from warp_nb.weights import fingerprint

KEPT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MARKS = re.compile(r"(<!-- parallel -->\n).*?(<!-- /parallel -->)", re.DOTALL)


def seconds(config: WarpConfig, task: Task, executor: Executor | None = None) -> tuple[float, str]:
    """Seconds of a call of `warp()`, and the fingerprint of its policy."""
    started = time.perf_counter()
    policy = warp(config, task, executor=executor, progress=False).policy
    return time.perf_counter() - started, fingerprint(policy.state_dict())


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def run(say: Callable[[str], None], pairs: int, **settings: Any) -> dict[str, Any]:
    """`pairs` interleaved pairs; `settings` are fields of WarpConfig (I = 1, M = 2).

    Raises RuntimeError when the pool's policy is not the loop's to the bit at equal threads.
    """
    task = load_task("small", "cpu")
    wide, narrow = (WarpConfig(I=1, M=2, threads=threads, **settings) for threads in (2, 1))
    after: list[float] = []
    beside: list[float] = []
    with process_pool(2) as pool:
        first, there = seconds(narrow, task, pool)
        alone, here = seconds(narrow, task)
        if here != there:
            raise RuntimeError(f"the pool's policy is {there}, the loop's {here}: equal threads must give equal bits")
        for pair in range(1, pairs + 1):
            after.append(seconds(wide, task)[0])
            beside.append(seconds(narrow, task, pool)[0])
            say(f"pair {pair}/{pairs}: {after[-1]:.2f} s one after the other, {beside[-1]:.2f} s side by side")
    return {
        "settings": settings | {"pairs": pairs},
        "after": spread(after),
        "beside": spread(beside),
        "ratio": spread([a / b for a, b in zip(after, beside, strict=True)]),
        "after_1_thread": alone,
        "first_of_pool": first,
        "machine": machine(),
    }


def table(found: dict[str, Any]) -> str:
    """The figures of `run` in Markdown."""
    after, beside, ratio = (
        "{median:.3g} ({least:.3g} to {largest:.3g})".format(**found[name]) for name in ("after", "beside", "ratio")
    )
    steps, pairs = found["settings"]["T"], found["settings"]["pairs"]
    rows = [
        f"| M = 2, I = 1, T = {steps}, task `small`, {found['machine']['cpu']} | seconds, median of {pairs} (range) |",
        "|---|---|",
        f"| one after the other, 2 threads | {after} |",
        f"| side by side, 1 thread each | {beside} |",
        f"| the first divided by the second, pair by pair | {ratio} |",
        f"| one after the other, 1 thread (once) | {found['after_1_thread']:.3g} |",
        f"| side by side, the pool's first call: start, import, the task (once) | {found['first_of_pool']:.3g} |",
    ]
    return "\n".join(rows)


def main() -> None:
    """Print the figures as JSON, the progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="T, steps of a run")
    parser.add_argument("--write", action="store_true", help=f"keep it as {KEPT.name}, with its table in {PAGE.name}")
    given = parser.parse_args()
    settings = {"T": given.steps, "lr": 1e-4, "warmup_steps": 0, "batch_size": 32, "max_new_tokens": 24}
    found = run(lambda line: print(line, file=sys.stderr), given.pairs, **settings)
    text = json.dumps(found, indent=1)
    print(text)
    if given.write:
        KEPT.write_text(text + "\n", encoding="utf-8")
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(MARKS.sub(lambda marks: f"{marks[1]}{table(found)}\n{marks[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
