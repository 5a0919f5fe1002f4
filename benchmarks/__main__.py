"""`python -m benchmarks [PART ...]`: measure, write results.json, fill README.md.

Without names: every part whose result is missing or out of date (other code, machine, versions or settings), so that
an interrupted run resumes where it stopped. Named parts are always measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import choices, evaluation, floor, growth, merge, page, parallel, reports, startup, states, step
from benchmarks.machine import Clock, machine, measured_load, others, refuse_load, source_sha256, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
THREADS = machine()["processors"]
SMALL = {"task": "small", "batch": 32, "completion": 24, "threads": THREADS, "dtype": "float32"}
SMOLLM = {"task": "smollm", "batch": 16, "completion": 32, "threads": THREADS, "dtype": "bfloat16"}
CHOICE_SETTINGS = {"small": SMALL | {"warmup": 4, "pairs": 7}, "smollm": SMOLLM | {"warmup": 2, "pairs": 3}}
Part = tuple[Callable[..., dict[str, Any]], dict[str, Any]]
"""A function, which is called with `say` and the settings, and its settings."""
PARTS: dict[str, Part] = {
    "step-small": (
        step.run,
        SMALL | {"settle": 1, "steps": 4, "warmup": 4, "pairs": 7, "checkpointing_pairs": 2} | {"targets": {"s": 4.0}},
    ),
    "step-smollm": (
        step.run,
        SMOLLM
        | {"settle": 1, "steps": 2, "warmup": 2, "pairs": 5, "checkpointing_pairs": 2}
        | {"targets": {"s": 3.0, "bytes": 0.7}},
    ),
    "choices": (choices.run, CHOICE_SETTINGS["smollm"]),
    "floor-small": (floor.run, SMALL | {"steps": 12, "warmup": 4, "target": None}),
    "floor-smollm": (floor.run, SMOLLM | {"steps": 5, "warmup": 2, "target": 3.0}),
    "floor-smollm-fp32": (floor.run, SMOLLM | {"dtype": "float32", "steps": 5, "warmup": 2, "target": 1.6}),
    "evaluation": (
        evaluation.run,
        {"task": "smollm", "n_prompts": 32, "completion": 32, "threads": THREADS, "repeats": 3},
    ),
    "merge": (
        merge.run,
        {"task": "smollm", "threads": THREADS, "pairs": 5, "cli_pairs": 3, "etas": [0.3, 0.5, 0.8]}
        | {"targets": {"s": 5.0, "bytes": 0.5}},
    ),
    "parallel": (
        parallel.run,
        {"pairs": 5, "T": 3, "lr": 1e-4, "warmup_steps": 0, "batch_size": 32, "max_new_tokens": 24},
    ),
    "states-small": (states.run, SMALL | {"steps": 5, "warmup": 3}),
    "states-smollm": (states.run, SMOLLM | {"steps": 5, "warmup": 2}),
    "growth": (
        growth.run,
        {"threads": THREADS, "rounds": 3, "loops": {"T": [2, 4, 8], "M": [1, 2, 4], "I": [1, 2, 4]}}
        | {"steps": {"batch": [4, 8, 16, 32], "completion": [8, 16, 32, 64]}, "widths": [128, 256, 384, 512]},
    ),
    "startup": (startup.run, {"rounds": 9, "step_rounds": 3, "target": 0.3, "threads": THREADS}),
    "reports": (reports.run, {"task": "smollm", "target": 720.0}),
}
ON_REQUEST = {"reports"}
"""Parts that are measured only by name."""

Say = Callable[[str], None]


def conditions() -> dict[str, Any]:
    """Return the conditions that a part's result is valid for."""
    return {"machine": machine(), "versions": versions(), "source_sha256": source_sha256()}


def out_of_date(results: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List the parts without a result for these conditions and settings, without those in ON_REQUEST."""
    found = []
    for name, (_, settings) in PARTS.items():
        kept = results.get(name, {})
        wanted = json.loads(json.dumps(now | {"settings": settings}))
        if name not in ON_REQUEST and any(kept.get(key) != value for key, value in wanted.items()):
            found.append(name)
    return found


def measure(
    name: str,
    part: Part,
    say: Say,
    *,
    load: Callable[[], float],
    used: Callable[[Clock, Clock], float],
) -> dict[str, Any]:
    """Measure one part and return its record.

    Raises:
        RuntimeError: other processes use the machine before or during the measurement, or a side failed.
    """
    refuse_load(load(), f"Before {name}")
    run, settings = part
    begun, before = datetime.now(UTC), Clock.now()
    found = run(say, **settings)
    disturbed = used(before, Clock.now())
    refuse_load(disturbed, f"During {name}")
    for line in page.summary(found):
        say(line)
    seconds = (datetime.now(UTC) - begun).total_seconds()
    about = {"date": begun.isoformat(timespec="seconds"), "seconds": seconds, "used_by_others": disturbed}
    return about | conditions() | {"settings": settings} | found


def measure_all(
    names: Sequence[str],
    path: Path,
    *,
    parts: Mapping[str, Part] = PARTS,
    load: Callable[[], float] = measured_load,
    used: Callable[[Clock, Clock], float] = others,
) -> None:
    """Measure the named parts and write each to `path` as soon as it is finished.

    `load` and `used` return the share of the processors that others use now, and used between two moments.
    """
    results = read(path)
    for place, name in enumerate(names, start=1):
        started = time.monotonic()

        def say(text: str, name: str = name, started: float = started) -> None:
            print(f"  {name} {time.monotonic() - started:5.0f} s  {text}", flush=True)

        print(f"[{place}/{len(names)}] {name}", flush=True)
        results[name] = measure(name, parts[name], say, load=load, used=used)
        write(path, results)
        if path == RESULTS:
            subprocess.run([sys.executable, "-m", "benchmarks.page"], cwd=HERE.parent, check=True)


def read(path: Path) -> dict[str, Any]:
    """Read the results so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results atomically, parts in the order of PARTS."""
    ordered = {name: results[name] for name in [*PARTS, *sorted(set(results) - set(PARTS))] if name in results}
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all that are due by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file that is read and written")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is due; return exit code 1 if the machine is loaded or a side failed."""
    chosen = arguments(argv)
    try:
        measure_all(chosen.parts or out_of_date(read(chosen.results), conditions()), chosen.results)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
