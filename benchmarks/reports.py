"""Part reports (only by name): experiments 1 to 4, evaluation and rendering, as `make reports` does them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable

from benchmarks.figures import Figure, alone
from benchmarks.sides import fresh


def run(say: Callable[[str], None], task: str, target: float) -> Figure:
    """One whole run into a folder that is thrown away; the embedded parts come from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        say("this takes many minutes")
        found = fresh(sys.executable, "-m", "warp_nb.report", "--task", task, "--out", folder)
    title = f"reports of {task}, parts cached"
    seconds = alone(title, "s", [found["seconds"]], target)
    return {"alone": [seconds, alone(f"{title}: peak memory of the largest process", "bytes", [found["peak_rss"]])]}
