"""Part reports (only by name): the experiments, their evaluation and rendering, as `make reports` does them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figure, alone
from benchmarks.sides import fresh


def run(say: Callable[[str], None], task: str, target: float) -> Figure:
    """Time one whole run into a temporary folder; the embedded parts come from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        say("this takes many minutes")
        found = fresh(sys.executable, "-m", "warp_nb", "report", "--task", task, "--out", folder)
        paths = Path(folder).rglob("exp*.result.json")
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    title = f"reports of {task}, parts cached"
    steps = sum(row["seconds"] for record in records for row in record["history"])
    inside = sum(record["seconds"] for record in records)
    return {
        "alone": [
            alone(title, "s", [found["seconds"]], target),
            alone("of it training steps", "s", [steps]),
            alone("of it evaluation, gate, merging, checks and files", "s", [inside - steps]),
            alone("of it starting, loading, figures and pages", "s", [found["seconds"] - inside]),
            alone(f"{title}: peak memory of the largest process", "bytes", [found["peak_rss"]]),
        ]
    }
