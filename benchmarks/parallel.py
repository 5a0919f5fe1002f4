"""Part parallel: two runs in parallel with one thread each, against one after the other with two.

Whole calls of `warp()` with I = 1 and M = 2 on task small, in interleaved pairs; the pool is warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, compare
from benchmarks.sides import Turns, once

if TYPE_CHECKING:
    from warp_nb import Task, WarpConfig


def run(say: Callable[[str], None], pairs: int, **settings: Any) -> Figure:
    """Compare them; `settings` are fields of WarpConfig."""
    say(f"{pairs} pairs")
    found = once("benchmarks.parallel:measure", pairs=pairs, settings=settings)
    title, peer = "two runs side by side, 1 thread each", "one after the other, 2 threads"
    return {"comparisons": [compare(title, "s", peer, found["beside"], found["after"])]}


def measure(turns: Turns, pairs: int, settings: dict[str, Any]) -> None:
    """Run the side: seconds of every call; raise RuntimeError if equal threads do not give equal bits."""
    from warp_nb import WarpConfig, load_task
    from warp_nb.runs.jobs import process_pool

    task = load_task("small", "cpu")
    wide, narrow = (WarpConfig(I=1, M=2, threads=threads, **settings) for threads in (2, 1))
    with process_pool(2) as pool:
        (_, there), (_, here) = timed(narrow, task, pool), timed(narrow, task)
        if here != there:
            raise RuntimeError(f"the pool's policy is {there}, the loop's {here}: equal threads must give equal bits")
        found = [(timed(narrow, task, pool)[0], timed(wide, task)[0]) for _ in range(pairs)]
    beside, after = zip(*found, strict=True)
    turns.next(beside=beside, after=after)


def timed(config: WarpConfig, task: Task, executor: Executor | None = None) -> tuple[float, str]:
    """Return the seconds of a call of `warp()`, and the fingerprint of its policy."""
    from warp_nb import warp
    from warp_nb.files import fingerprint

    started = time.perf_counter()
    policy = warp(config, task, executor=executor, progress=False).policy
    return time.perf_counter() - started, fingerprint(dict(policy.named_parameters()))
