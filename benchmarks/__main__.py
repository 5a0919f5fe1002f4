"""`python -m benchmarks [PART ...]`: measure, write results.json, fill README.md.

Without names: every part whose result is missing or out of date (other code, machine, versions
or settings), so that an interrupted run goes on where it was. Named parts are always measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import Clock, machine, measured_load, others, refuse_load, source_sha256, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
THREADS = machine()["processors"]
STEP_SMALL = {"task": "small", "batch": 32, "completion": 24, "threads": THREADS}
STEP_SMOLLM = {"task": "smollm", "batch": 16, "completion": 32, "threads": THREADS}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "step-small": (
        "step",
        STEP_SMALL
        | {"dtype": "float32", "settle": 1, "steps": 4, "warmup": 4, "pairs": 7, "checkpointing_pairs": 2}
        | {"targets": {"s": 4.0}},
    ),
    "step-smollm": (
        "step",
        STEP_SMOLLM
        | {"dtype": "bfloat16", "settle": 1, "steps": 2, "warmup": 2, "pairs": 5, "checkpointing_pairs": 2}
        | {"targets": {"s": 3.0, "bytes": 0.7}},
    ),
    "choices": ("choices", STEP_SMOLLM | {"dtype": "bfloat16", "warmup": 2, "pairs": 3}),
    "floor-small": ("floor", STEP_SMALL | {"dtype": "float32", "steps": 12, "warmup": 4, "target": None}),
    "floor-smollm": ("floor", STEP_SMOLLM | {"dtype": "bfloat16", "steps": 5, "warmup": 2, "target": 3.0}),
    "floor-smollm-fp32": ("floor", STEP_SMOLLM | {"dtype": "float32", "steps": 5, "warmup": 2, "target": 1.6}),
    "evaluation": (
        "evaluation",
        {"task": "smollm", "n_prompts": 32, "completion": 32, "threads": THREADS, "repeats": 3},
    ),
    "merge": (
        "merge",
        {"task": "smollm", "threads": THREADS, "pairs": 5, "cli_pairs": 3, "etas": [0.3, 0.5, 0.8]}
        | {"targets": {"s": 5.0, "bytes": 0.5}},
    ),
    "parallel": (
        "parallel",
        {"pairs": 5, "T": 3, "lr": 1e-4, "warmup_steps": 0, "batch_size": 32, "max_new_tokens": 24},
    ),
    "states-small": ("states", STEP_SMALL | {"dtype": "float32", "steps": 5, "warmup": 3}),
    "states-smollm": ("states", STEP_SMOLLM | {"dtype": "bfloat16", "steps": 5, "warmup": 2}),
    "growth": (
        "growth",
        {"threads": THREADS, "rounds": 3, "loops": {"T": [2, 4, 8], "M": [1, 2, 4], "I": [1, 2, 4]}}
        | {"steps": {"batch": [4, 8, 16, 32], "completion": [8, 16, 32, 64]}, "widths": [128, 256, 384, 512]},
    ),
    "startup": ("startup", {"rounds": 9, "step_rounds": 3, "target": 0.3, "threads": THREADS}),
    "reports": ("reports", {"task": "smollm", "target": 720.0}),
}
"""Part -> module with a function `run(say, **settings)`, and the settings."""
ON_REQUEST = {"reports"}
"""Parts that are measured only by name."""

Say = Callable[[str], None]


def conditions() -> dict[str, Any]:
    """What every part's result is valid for."""
    return {"machine": machine(), "versions": versions(), "source_sha256": source_sha256()}


def out_of_date(results: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parts without a result for these conditions and settings, those on request left out."""
    found = []
    for name, (_, settings) in PARTS.items():
        kept = results.get(name, {})
        wanted = json.loads(json.dumps(now | {"settings": settings}))
        if name not in ON_REQUEST and any(kept.get(key) != value for key, value in wanted.items()):
            found.append(name)
    return found


def measure(name: str, say: Say) -> dict[str, Any]:
    """One part's record; RuntimeError when others use the machine before or while it is measured."""
    refuse_load(measured_load(), f"Before {name}")
    module, settings = PARTS[name]
    begun, before = datetime.now(UTC), Clock.now()
    found = import_module(f"benchmarks.{module}").run(say, **settings)
    disturbed = others(before, Clock.now())
    refuse_load(disturbed, f"During {name}")
    seconds = (datetime.now(UTC) - begun).total_seconds()
    about = {"date": begun.isoformat(timespec="seconds"), "seconds": seconds, "used_by_others": disturbed}
    return about | conditions() | {"settings": settings} | found


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results atomically, parts in the order of PARTS."""
    ordered = {name: results[name] for name in [*PARTS, *sorted(set(results) - set(PARTS))] if name in results}
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all that are due by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file that is read and written")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is due; exit code 1 when the machine is loaded or a side failed."""
    chosen = arguments(argv)
    results = json.loads(chosen.results.read_text(encoding="utf-8")) if chosen.results.exists() else {}
    due = chosen.parts or out_of_date(results, conditions())
    failed = ""
    for place, name in enumerate(due, start=1):
        started = time.monotonic()

        def say(text: str, name: str = name, started: float = started) -> None:
            print(f"  {name} {time.monotonic() - started:5.0f} s  {text}", flush=True)

        print(f"[{place}/{len(due)}] {name}", flush=True)
        try:
            results[name] = measure(name, say)
        except RuntimeError as error:
            failed = str(error)
            break
        write(chosen.results, results)
        if chosen.results == RESULTS:
            subprocess.run([sys.executable, "-m", "benchmarks.page"], cwd=HERE.parent, check=True)
    if failed:
        print(failed, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
