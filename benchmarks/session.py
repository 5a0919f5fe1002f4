"""`scripts/gpu.sh`: everything that one CUDA card can check, in one command within a budget.

The parts, in this order: the tests under the marker `gpu`; the policy and reward model of `smollm`; the rows of
`benchmarks.gpu` beside TRL; experiment 4 on `small`; the four experiments on `smollm` with their reports; experiment 5
with what is left. A part that reaches its limit, or the end of the budget, is stopped; the same command later resumes
with what is not finished. Results are written to the output folder as they come, and the summary at the end says what
was run, what was not, and which targets were met.

Exit code 0: no test failed and no part broke, whether or not all were reached and all targets met. 1: one did.
2: a package or the card is missing; nothing was run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 480
LEAST = 10
"""Seconds of the budget below which no part begins."""
TRIAL_LIMIT = 600
"""Seconds that a part of a trial on the CPU may take."""
GRACE = 10
"""Seconds in which a part that is stopped may save what it has."""
TESTING = ("pytest", "hypothesis")
DONE, FAILED, STOPPED, KEPT, NOT_BEGUN = "done", "failed", "out of time", "done before", "not begun"
RESULTS = "results-gpu.json"


@dataclass(frozen=True)
class Part:
    """A command of the session: its name, the most seconds it may take, and what it checks or measures."""

    name: str
    title: str
    limit: float
    command: list[str]


def parts(out: Path, card: Mapping[str, Any]) -> list[Part]:
    """Return the parts in their order, on the card that `gpu.ask_card` found; on its device `cpu` their miniatures."""
    device = card["device"]
    rows = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--card", json.dumps(dict(card))]
    rows += ["--out", str(out), "--results", str(out / RESULTS)]
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-o", "addopts=", "-p", "no:cacheprovider"]
    tests += [f"--junitxml={out / 'tests.xml'}", *map(str, marked())]
    exp5 = [sys.executable, "-m", "warp_nb", "report", "exp5", "--out", str(out), "--notebooks", "notebooks"]
    exp5 += ["--task", "small" if device == "cpu" else "smollm", "--seeds", "1"]
    if device == "cpu":
        shortest = {"I": 1, "T": 1, "n_eval_prompts": 8, "batch_size": 4, "max_new_tokens": 3, "warmup_steps": 0}
        exp5 += [word for name, value in shortest.items() for word in ("-p", name, str(value))]
    steps = ["smollm-16", "small-32", "smollm-128", "gpt2-16", "evaluation"]
    made = [
        Part("tests", "tests under the marker gpu", 110, tests),
        Part("prepare", "policy and reward model of smollm", 130, [*rows, "prepare"]),
        Part("bench", "steps and evaluation beside TRL and the floor", 180, [*rows, *steps]),
        Part("exp4", "experiment 4 on small by papermill", 45, [*rows, "exp4"]),
        Part("reports", "the four experiments and their reports", 180, [*rows, "reports"]),
        Part("exp5", "experiment 5, as far as it comes", 3600, exp5),
    ]
    return [replace(part, limit=TRIAL_LIMIT) for part in made] if device == "cpu" else made


def marked(tests: Path = ROOT / "tests") -> list[Path]:
    """Return the test files with a test under the marker `gpu`: the others need not be importable here."""
    return [path for path in sorted(tests.glob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]


# What is needed


def lacking(wanted: Sequence[str], version_of: Callable[[str], str] = version) -> list[str]:
    """Return the requirements that the installed packages do not meet, each with what is installed instead."""
    found = []
    for line in wanted:
        name, _, least = line.partition(">=")
        try:
            here = version_of(name)
        except PackageNotFoundError:
            found.append(f"{line} (not installed)")
            continue
        if least and numbers(here) < numbers(least):
            found.append(f"{line} (installed: {here})")
    return found


def numbers(text: str) -> list[int]:
    """Return the leading numbers of a version: [2, 11] of 2.11.0+cu130 compares as it should with [2, 4]."""
    found: list[int] = []
    for part in text.partition("+")[0].split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    while found and found[-1] == 0:
        found.pop()
    return found


def requirements(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return what the package and the tests need."""
    return [*tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"], *TESTING]


# Running


def run_part(part: Part, log: Path, seconds: float) -> str:
    """Run a part for at most `seconds`, its output into `log`; return DONE, FAILED or STOPPED.

    What it started ends with it, kernels of notebooks too: first by SIGTERM, on which a run saves its state.
    """
    import psutil

    with open(log, "a", encoding="utf-8") as sink:
        process = psutil.Popen(part.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
        try:
            return DONE if process.wait(seconds) == 0 else FAILED
        except psutil.TimeoutExpired:
            return STOPPED
        finally:
            stop(process)


def stop(process: Any) -> None:
    """End a process and all that it started: SIGTERM, and SIGKILL after GRACE seconds."""
    import psutil

    try:
        alive = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for one in alive:
        try:
            one.terminate()
        except psutil.NoSuchProcess:
            continue
    for one in psutil.wait_procs(alive, timeout=GRACE)[1]:
        one.kill()
    psutil.wait_procs(alive, timeout=GRACE)


def tests_of(path: Path) -> dict[str, int]:
    """Count passed, failed and skipped tests in pytest's JUnit file; all zero if it is missing or damaged."""
    found = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return found
    for case in cases:
        kinds = {child.tag for child in case}
        found["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
    return found


def judge_tests(status: str, counts: Mapping[str, int], device: str) -> str:
    """Return the status of the tests: on a card none may be skipped and at least one has to run.

    Without a card all of them are skipped, which a trial expects.
    """
    if status == STOPPED:
        return STOPPED
    ran = counts["passed"] + (counts["skipped"] if device == "cpu" else 0)
    skipped = counts["skipped"] if device != "cpu" else 0
    return DONE if status == DONE and ran and not counts["failed"] and not skipped else FAILED


def session(
    wanted: Sequence[Part],
    out: Path,
    *,
    budget: float,
    now: Mapping[str, Any],
    device: str = "cuda",
    run: Callable[[Part, Path, float], str] = run_part,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, dict[str, Any]]:
    """Run the parts that are not done yet, within `budget` seconds; return and save what became of each.

    A part counts as done before only if that was under the same conditions, `now`.
    """
    state, started = out / "session.json", clock()
    before = read_state(state)
    kept = before["parts"] if before.get("conditions") == json.loads(json.dumps(now)) else {}
    found: dict[str, dict[str, Any]] = {}
    for part in wanted:
        old = kept.get(part.name, {})
        left = budget - (clock() - started)
        if old.get("status") == DONE:
            found[part.name] = old | {"before": True}
            continue
        begun = clock()
        status = NOT_BEGUN
        if left >= LEAST:
            print(f"{part.name}: {part.title}, at most {min(part.limit, left):.0f} s", flush=True)
            status = run(part, out / f"{part.name}.log", min(part.limit, left - min(GRACE, left / 4)))
        record: dict[str, Any] = {"status": status, "seconds": clock() - begun}
        if part.name == "tests" and status != NOT_BEGUN:
            record["counts"] = tests_of(out / "tests.xml")
            record["status"] = judge_tests(status, record["counts"], device)
        found[part.name] = record
        write_state(state, {"conditions": dict(now), "parts": kept | found})
        if status != NOT_BEGUN:
            print(f"{part.name}: {record['status']} after {record['seconds']:.0f} s", flush=True)
    return found


def read_state(path: Path) -> dict[str, Any]:
    """Read what a session saved; nothing if there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if {"conditions", "parts"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a session atomically."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


# Summary


def summary(wanted: Sequence[Part], found: Mapping[str, Mapping[str, Any]], out: Path, targets: Sequence[str]) -> str:
    """Say of every part what became of it, then of every row whether its targets were met."""
    lines = ["What was run:"]
    for part in wanted:
        record = found[part.name]
        status = KEPT if record.get("before") else record["status"]
        took = "" if status == NOT_BEGUN else f", {record['seconds']:.0f} s"
        counts = ", ".join(f"{count} {name}" for name, count in record.get("counts", {}).items())
        where = f"; see {out / part.name}.log" if status in (FAILED, STOPPED) else ""
        lines.append(f"  {part.name}: {status}{took}{f' ({counts})' if counts else ''}{where}")
    lines += ["Rows and targets:", *(f"  {line}" for line in targets)]
    if any(record["status"] in (STOPPED, NOT_BEGUN) for record in found.values()):
        lines.append("The same command again resumes with what is not done.")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; the environment has the defaults."""
    given = os.environ
    parser = argparse.ArgumentParser(
        prog="scripts/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--budget", type=float, default=given.get("GPU_BUDGET", BUDGET), help="seconds in all; also GPU_BUDGET"
    )
    parser.add_argument(
        "--out", type=Path, default=given.get("GPU_OUT", ROOT / "reports" / "gpu"), help="folder; also GPU_OUT"
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default=given.get("GPU_DEVICE", "cuda"),
        help="cpu: the same commands in miniature, as a trial; also GPU_DEVICE",
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Check what is needed, run the parts, print and save the summary; return the exit code (see the module)."""
    chosen = arguments(argv)
    if missing := lacking(requirements()):
        print(f"{sys.executable} lacks what is needed, nothing was run:", *missing, sep="\n  ", file=sys.stderr)
        print(
            "Install them beside its torch, e.g. pip install --target site-packages --no-deps NAME ... and "
            "PYTHONPATH=site-packages (the name matters to dill); scripts/pack.sh packs all of them for a machine "
            "without a network",
            file=sys.stderr,
        )
        return 2
    from benchmarks import gpu
    from benchmarks.gpu_table import table, verdict_lines

    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    started, out = time.monotonic(), Path(chosen.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    place = gpu.Place(chosen.device, out, out / RESULTS)
    try:
        card = gpu.ask_card(chosen.device)
    except RuntimeError as error:
        print(f"{error}; GPU_DEVICE=cpu tries the commands in miniature", file=sys.stderr)
        return 2
    now = gpu.conditions(place, card)
    gpu.use_this_interpreter(out / ".jupyter")
    wanted = [part for part in parts(out, card) if part.name in (chosen.only or part.name)]
    found = session(wanted, out, budget=chosen.budget - (time.monotonic() - started), now=now, device=chosen.device)
    results = gpu.read(out / RESULTS)
    told = summary(wanted, found, out, verdict_lines(results, gpu.ROWS))
    (out / "summary.md").write_text(f"{told}\n\n{table(results, gpu.ROWS)}\n", encoding="utf-8")
    print(told)
    return 1 if any(record["status"] == FAILED for record in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
