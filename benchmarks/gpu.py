"""`python -m benchmarks.gpu [ROW ...]`: steps, evaluation and reports on one CUDA card, beside TRL and the floor.

Without names: the rows that take seconds (steps and the evaluation). The long ones (`prepare`, `exp4`, `reports`) are
measured by name; `make gpu` does so. Every row is written to the results file as soon as it is finished, and is kept
until the code, the card, the machine or a version changes. `--device cpu` tries the same program in miniature: it
measures nothing that is worth reading.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratio, spread
from benchmarks.gpu_table import lines_of, table
from benchmarks.machine import PACKAGES, Clock, machine, others, source_sha256, versions
from benchmarks.sides import ROOT, Side, fresh, interleave, once
from benchmarks.step import same_work

Say = Callable[[str], None]
HERE = Path(__file__).parent
RESULTS = HERE / "results-gpu.json"
BUFFERS = {"numbers": 1 << 28, "square": 8192}
SMALL_BUFFERS = {"numbers": 1 << 10, "square": 16}
REPORTED = ("exp1", "exp2", "exp3", "exp4")
"""What `warp-nb report` runs when none is named."""
SHORTEST = {"I": 1, "M": 1, "T": 1, "n_eval_prompts": 8, "batch_size": 2, "max_new_tokens": 3}
"""Parameters of an experiment in miniature."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Args:
        title: what is measured.
        measure: called as measure(say, place, **settings).
        settings: its keywords.
        trial: those that differ in a trial on the CPU.
        before: seconds on commit 024658b, one H100.
        hedge: what stands before these seconds where they are not a median: about, over.
        before_peer: TRL's seconds there; 0 where it was not measured.
        target: most seconds.
        peer: least number of times as fast as TRL; 0 for none.
        floors: most floors; 0 for none.
    """

    title: str
    measure: Callable[..., Figure]
    settings: dict[str, Any]
    trial: dict[str, Any] = field(default_factory=dict)
    before: float
    hedge: str = ""
    before_peer: float = 0.0
    target: float
    peer: float = 0.0
    floors: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where rows are measured and written.

    Args:
        device: cuda, or cpu for a trial.
        out: folder of reports and notebooks.
        results: the file of results.
    """

    device: str
    out: Path
    results: Path

    @property
    def trial(self) -> bool:
        """Whether this is a trial on the CPU."""
        return self.device == "cpu"


# Measuring


def step_row(say: Say, place: Place, *, pairs: int, warmup: int, steps: int, trl: bool, **shape: Any) -> Figure:
    """Measure a step: pairs of units in turn with TRL's trainer, or units alone; then the floor and the phases.

    Beside TRL a step is profiled, too. What fails in profile and phases costs them alone.
    """
    shape |= {"device": place.device, "warmup": warmup}
    sides = [("benchmarks.gpu_sides:step", shape | {"pairs": pairs, "steps": steps, "profiled": trl})]
    theirs = {"settle": 0, "steps": 1, "warmup": min(2, warmup), "checkpointing": False}
    sides += [("benchmarks.step:trl", {key: shape[key] for key in shape if key != "buffers"} | theirs)] if trl else []
    with ExitStack() as stack, ThreadPoolExecutor() as starting:
        ready = [starting.submit(Side, name, **settings) for name, settings in sides]
        alive = [stack.enter_context(one.result()) for one in ready]
        if trl:
            mine, other = interleave(alive[0], alive[1], pairs, say)
            same_work(mine[-1], other[-1])
        else:
            mine, other = [alive[0].unit() for _ in range(pairs)], []
        say("floor")
        about = alive[0].unit()
        say("profile, phases" if trl else "phases")
        try:
            seen = alive[0].unit()
        except RuntimeError as error:
            seen = {"phases": {}, "unseen": str(error)[-500:] or "the process ended"}
    took = [unit["seconds"] / steps for unit in mine]
    found: Figure = {"seconds": spread(took), "floor": sum(about["floors"].values())}
    if other:
        slow = [unit["seconds"] for unit in other]
        found |= {"peer": spread(slow) | {"peak_device": other[-1]["peak_device"]}, "ratio": ratio(slow, took)}
    facts = {name: about[name] for name in ("eager", "weights", "floors", "rates", "shape")}
    facts |= {name: seen[name] for name in ("profile", "unseen") if name in seen}
    phases = {name: spread(values) for name, values in seen["phases"].items()}
    return found | facts | {"phases": phases, "peak_device": mine[-1]["peak_device"]}


def evaluation_row(say: Say, place: Place, *, repeats: int, **settings: Any) -> Figure:
    """Measure held-out evaluations with nothing saved before, and each again, which finds the reference's side."""
    with Side("benchmarks.gpu_sides:evaluation", device=place.device, **settings) as side:
        units = []
        for number in range(1, repeats + 1):
            units.append(side.unit())
            say(f"{number}/{repeats}: {units[-1]['first']:.2f} s")
    found: Figure = {"seconds": spread([unit["first"] for unit in units]), "peak_device": units[-1]["peak_device"]}
    about = {"again": spread([unit["again"] for unit in units]), "eager": units[-1]["eager"]}
    return found | about | {name: side.warmup[name] for name in ("floor", "rates")}


def prepare_row(say: Say, place: Place, *, task: str) -> Figure:
    """Measure a process that loads the task; the first one trains its SFT and reward model."""
    started = time.perf_counter()
    made = once("benchmarks.gpu_sides:prepare", task=task, device=place.device)["made"]
    return {"seconds": spread([time.perf_counter() - started]), "made": made}


def make_parts(say: Say, place: Place, row: str, task: str) -> None:
    """Make the parts of a task before `row`, which counts on them, unless `prepare` made them on this card."""
    results = read(place.results)
    done = results.get("prepare", {})
    if not is_finished(done) or any(done[key] != results[row][key] for key in ("card", "versions", "source_sha256")):
        say("the parts first")
        once("benchmarks.gpu_sides:prepare", task=task, device=place.device)


def notebook_row(say: Say, place: Place, *, name: str, task: str, parameters: Mapping[str, Any]) -> Figure:
    """Measure papermill on the notebook of an experiment, from its start to its end."""
    make_parts(say, place, "exp4", task)
    values = {"task": task, "device": place.device, **parameters}
    words = [word for key, value in values.items() for word in ("-p", key, str(value))]
    out = place.out / "papermill" / f"{name}-{task}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "notebooks" / f"{name}.ipynb"
    command = [sys.executable, "-m", "papermill", str(source), str(out), "-k", "python3", "--no-progress-bar", *words]
    return {"seconds": spread([fresh(*command)["seconds"]])}


def reports_row(say: Say, place: Place, *, task: str, names: Sequence[str], parameters: Mapping[str, Any]) -> Figure:
    """Measure `warp-nb report`; an interrupted one resumes with what is missing, and then has no seconds.

    A row that has begun, with the same conditions, is found in the results file.
    """
    make_parts(say, place, "reports", task)
    folder = place.out if task == "smollm" else place.out / task
    begun = datetime.fromisoformat(read(place.results)["reports"]["begun"]).timestamp()
    missing = [name for name in names if not is_reported(folder / f"{name}.result.json", begun)]
    words = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    say(f"{', '.join(missing)} on {task}")
    options = ["--task", task, "--seeds", "1", "--out", str(place.out), "--notebooks", str(ROOT / "notebooks")]
    found = fresh(sys.executable, "-m", "warp_nb", "report", *missing, *options, *words)["seconds"]
    records = {name: json.loads((folder / f"{name}.result.json").read_text(encoding="utf-8")) for name in names}
    parts = {
        name: {
            "whole": record["run"]["seconds"],
            "experiment": record["seconds"],
            "steps": sum(row["seconds"] for row in record["history"]),
        }
        for name, record in records.items()
    }
    resumed = len(missing) < len(names) or bool(read(place.results)["reports"].get("resumed"))
    return {"notebooks": parts, "resumed": resumed} | ({} if resumed else {"seconds": spread([found])})


def is_reported(path: Path, since: float) -> bool:
    """Return whether a result file is one of a finished experiment that was written after `since`."""
    try:
        return path.stat().st_mtime >= since and json.loads(path.read_text(encoding="utf-8"))["status"] == "ok"
    except (OSError, ValueError, KeyError):
        return False


# Rows

TINY = {"task": "small", "batch": 2, "completion": 3, "dtype": "float32", "pairs": 1, "steps": 1, "warmup": 1}
STEP = {"pairs": 3, "steps": 5, "warmup": 4, "trl": False, "buffers": BUFFERS}
SMOLLM = STEP | {"task": "smollm", "completion": 32, "dtype": "bfloat16"}


def a_step(title: str, settings: dict[str, Any], **targets: Any) -> Row:
    """Return the row of a step; in a trial it is one of two prompts on `small`."""
    trial = TINY | {"buffers": SMALL_BUFFERS}
    return Row(title=f"{title}, a step", measure=step_row, settings=settings, trial=trial, **targets)


ROWS: dict[str, Row] = {
    "smollm-16": a_step(
        "`smollm` 16 × (12+32) bf16",
        SMOLLM | {"batch": 16, "trl": True},
        before=2.034,
        before_peer=2.672,
        target=0.080,
        peer=25,
        floors=12,
    ),
    "small-32": a_step(
        "`small` 32 × (12+24) fp32",
        STEP | {"task": "small", "batch": 32, "completion": 24, "dtype": "float32", "pairs": 5, "trl": True},
        before=0.145,
        before_peer=0.541,
        target=0.020,
        peer=20,
    ),
    "smollm-128": a_step(
        "`smollm` 128 × (12+32) bf16",
        SMOLLM | {"batch": 128},
        before=2.372,
        target=0.160,
    ),
    "gpt2-16": a_step(
        "GPT-2 124M 16 × (12+32) bf16",
        SMOLLM | {"task": "gpt2-124m", "batch": 16},
        before=0.538,
        target=0.050,
    ),
    "evaluation": Row(
        title="held-out evaluation of `smollm`, 256 prompts",
        measure=evaluation_row,
        settings={"task": "smollm", "n_prompts": 256, "completion": 24, "repeats": 3, "buffers": BUFFERS},
        trial={"task": "small", "n_prompts": 2, "completion": 3, "repeats": 1, "buffers": SMALL_BUFFERS},
        before=30,
        hedge="about ",
        target=3,
    ),
    "exp4": Row(
        title="exp4 on `small`, papermill, parts ready",
        measure=notebook_row,
        settings={"name": "exp4", "task": "small", "parameters": {}},
        trial={"parameters": SHORTEST},
        before=42,
        target=20,
    ),
    "reports": Row(
        title="`make reports` on `smollm`, parts ready, all four",
        measure=reports_row,
        settings={"task": "smollm", "names": REPORTED, "parameters": {}},
        trial={"task": "small", "names": ("exp4",), "parameters": SHORTEST},
        before=260,
        hedge="over ",
        target=120,
    ),
    "prepare": Row(
        title="`make reports` on `smollm`, cold with SFT and reward model",
        measure=prepare_row,
        settings={"task": "smollm"},
        trial={"task": "small"},
        before=0,
        target=240,
    ),
}
"""The last row is that of `reports` together with `prepare`, which makes the parts."""
LONG = ("prepare", "exp4", "reports")
"""Rows that are measured only by name."""


def settings_of(row: Row, place: Place) -> dict[str, Any]:
    """Return the keywords of a row's function; those of a trial on the CPU."""
    return row.settings | (row.trial if place.trial else {})


def conditions(place: Place, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions that a row's result is valid for; `card` is what `ask_card` found."""
    packages = [name for name in PACKAGES if name != "mergekit"]
    return {
        "card": dict(card),
        "machine": machine(),
        "versions": versions(packages),
        "source_sha256": source_sha256(),
    }


def ask_card(device: str) -> dict[str, Any]:
    """Return name, memory and CUDA version of the card.

    Raises:
        RuntimeError: torch sees no CUDA device.
    """
    try:
        found = once("benchmarks.card:card", device=device)
    except RuntimeError as error:
        raise RuntimeError(str(error).strip().splitlines()[-1]) from None
    return {name: found[name] for name in ("device", "gpu", "gpu_memory_gb", "cuda")}


def is_valid(record: Mapping[str, Any], now: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether a record belongs to these conditions and settings."""
    wanted = json.loads(json.dumps({**now, "settings": settings}))
    return all(record.get(key) == value for key, value in wanted.items())


def is_finished(record: Mapping[str, Any]) -> bool:
    """Return whether a row was measured to its end, with or without a figure."""
    return "took" in record and "error" not in record


def measure(name: str, place: Place, now: Mapping[str, Any], say: Say, *, rows: Mapping[str, Row] = ROWS) -> Figure:
    """Measure a row and write it to the results file; an error of the row is recorded.

    Its conditions are written before it begins: what an interrupted row has left can be told from that of another code.
    """
    row, settings = rows[name], settings_of(rows[name], place)
    old = read(place.results).get(name, {})
    resumes = is_valid(old, now, settings) and "took" not in old
    begun = old["begun"] if resumes else datetime.now(UTC).isoformat()
    record = {"begun": begun, "resumed": resumes, **now, "settings": settings}
    write(place.results, read(place.results) | {name: record})
    started, before = time.perf_counter(), Clock.now()
    try:
        found = row.measure(say, place, **settings)
    except RuntimeError as error:
        found = {"error": str(error)}
    took = {"took": time.perf_counter() - started, "used_by_others": others(before, Clock.now())}
    written = read(place.results) | {name: record | took | found}
    write(place.results, written)
    for line in lines_of(name, written, rows):
        say(line)
    return written[name]


def read(path: Path) -> dict[str, Any]:
    """Read the results so far; none if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results atomically, rows in the order of ROWS."""
    ordered = {name: results[name] for name in [*ROWS, *sorted(set(results) - set(ROWS))] if name in results}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def use_this_interpreter(folder: Path) -> None:
    """Let the kernel `python3` be this interpreter, whatever kernels the machine has; needs `folder` for its files.

    Templates and kernels beside packages on the path (`pip install --target`) are found too.
    """
    from ipykernel.kernelspec import get_kernel_dict

    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True, exist_ok=True)
    (kernel / "kernel.json").write_text(json.dumps(get_kernel_dict()), encoding="utf-8")
    beside = [str(Path(path) / "share" / "jupyter") for path in sys.path if (Path(path) / "share" / "jupyter").is_dir()]
    others_given = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(folder), *beside, *([others_given] if others_given else [])])


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    short = [name for name in ROWS if name not in LONG]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; by default {', '.join(short)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file that is read and written")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "gpu", help="folder of notebooks and reports")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial in miniature")
    parser.add_argument("--again", action="store_true", help="measure also what is finished")
    parser.add_argument("--card", type=json.loads, default={}, help="what benchmarks.card says; it is asked by default")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.rows) - set(ROWS)
    if unknown:
        parser.error(f"unknown row {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    chosen.rows = [name for name in chosen.rows or short if name in ROWS]
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is due and print the table; return exit code 1 if a row failed, 2 without a card."""
    chosen = arguments(argv)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several cards TRL would divide its batch
    place = Place(chosen.device, chosen.out.resolve(), chosen.results.resolve())
    try:
        card = chosen.card or ask_card(place.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    now = conditions(place, card)
    use_this_interpreter(place.out / ".jupyter")
    failed = []
    for name in chosen.rows:
        old, started = read(place.results).get(name, {}), time.monotonic()

        def say(text: str, name: str = name, started: float = started) -> None:
            print(f"  {name} {time.monotonic() - started:5.0f} s  {text}", flush=True)

        if not chosen.again and is_valid(old, now, settings_of(ROWS[name], place)) and is_finished(old):
            print(f"{name}: finished before", flush=True)
            continue
        print(f"{name}: {ROWS[name].title}", flush=True)
        failed += [name] if "error" in measure(name, place, now, say) else []
    print(table(read(place.results), ROWS))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
