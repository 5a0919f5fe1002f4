"""What `make gpu` and `make bench-gpu` promise: rows and targets, resuming, verdicts, limits, exit codes.

The tests under the marker `gpu` hold what the benchmarks measure on a card with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from benchmarks import floor, gpu, gpu_sides, gpu_table, session, work
from benchmarks.card import card
from benchmarks.figures import ratio, spread
from warp_nb import WarpConfig

ROOT = Path(__file__).resolve().parents[1]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
CARD = {"device": "cuda", "gpu": "Example", "gpu_memory_gb": 80, "cuda": "13.0"}
NOW = {"card": CARD, "machine": {"cpu": "one", "processors": 16}, "versions": {"torch": "2.11"}, "source_sha256": "aa"}

# Rows and verdicts


def test_the_rows_and_targets_are_those_agreed_on() -> None:
    found = {name: (row.before, row.before_peer, row.target, row.peer, row.floors) for name, row in gpu.ROWS.items()}
    assert found == {
        "smollm-16": (2.034, 2.672, 0.080, 25, 12),
        "small-32": (0.145, 0.541, 0.020, 20, 0),
        "smollm-128": (2.372, 0, 0.160, 0, 0),
        "gpt2-16": (0.538, 0, 0.050, 0, 0),
        "evaluation": (30, 0, 3, 0, 0),
        "exp4": (42, 0, 20, 0, 0),
        "reports": (260, 0, 120, 0, 0),
        "prepare": (0, 0, 240, 0, 0),
    }
    shapes = [(s["task"], s["batch"], s["completion"], s["dtype"]) for s in settings_of_steps()]
    assert shapes == [
        ("smollm", 16, 32, "bfloat16"),
        ("small", 32, 24, "float32"),
        ("smollm", 128, 32, "bfloat16"),
        ("gpt2-124m", 16, 32, "bfloat16"),
    ]
    assert [s["trl"] for s in settings_of_steps()] == [True, True, False, False]


def settings_of_steps() -> list[dict[str, Any]]:
    return [row.settings for row in gpu.ROWS.values() if row.measure is gpu.step_row]


def record(seconds: float, **more: Any) -> dict[str, Any]:
    return {"seconds": spread([seconds]), "resumed": False, "took": 1.0, **NOW, **more}


def step_record(seconds: float, theirs: float = 2.0, least: float = 0.01) -> dict[str, Any]:
    beside = {"peer": spread([theirs]) | {"peak_device": 4e9}, "ratio": ratio([theirs], [seconds]), "floor": least}
    profile = {"kernel launches": 12, "graph launches": 33, "copies": 5, "kernels": 900, "busy": 0.03}
    phases = {"sampling": spread([0.02])}
    facts = {"eager": "", "weights": "", "profile": profile, "phases": phases, "floors": {"sampling": 0.004}}
    return record(seconds, **beside, **facts, peak_device=2e9)


@pytest.mark.parametrize(
    ("seconds", "theirs", "least", "verdict"),
    [
        (0.06, 2.0, 0.01, "met"),
        (0.09, 2.3, 0.01, "missed: ≤ 80.0 ms"),
        (0.08, 1.9, 0.01, "missed: ≥ 25.0 × TRL"),
        (0.06, 2.0, 0.004, "missed: ≤ 12.0 floors"),
        (0.2, 2.0, 0.01, "missed: ≤ 80.0 ms, ≥ 25.0 × TRL, ≤ 12.0 floors"),
    ],
)
def test_a_target_is_met_or_missed(seconds: float, theirs: float, least: float, verdict: str) -> None:
    found = gpu_table.cells("smollm-16", gpu.ROWS["smollm-16"], {"smollm-16": step_record(seconds, theirs, least)})
    assert dict(zip(gpu_table.HEAD, found, strict=True))["met or missed"] == verdict


def test_a_row_stands_beside_floor_and_peer_and_a_row_without_figure_is_open() -> None:
    text = gpu_table.table({"smollm-16": step_record(0.05)}, gpu.ROWS)
    wanted = "≤ 80.0 ms, ≥ 25.0 × TRL, ≤ 12.0 floors"
    assert (
        "| `smollm` 16 × (12+32) bf16, a step | 2.03 s, TRL 2.67 s | 50.0 [50.0, 50.0] ms | 10.0 ms | 5.00 | 2.00 s "
        f"| 40.0 [40.0, 40.0] | {wanted} | met |"
    ) in text
    assert "| exp4 on `small`, papermill, parts ready | 42.0 s | not measured |  |  |  |  | ≤ 20.0 s | open |" in text
    for detail in (
        "captured in CUDA graphs",
        "12 kernel launches, 33 graph launches, 5 copies, 900 kernels; GPU busy 30.0 ms, 60% of a step",
        "peak of torch's memory 2.00 GB, TRL 4.00 GB",
        "sampling 20.0 ms (floor 4.00 ms)",
    ):
        assert f"- `smollm-16`: {detail}" in text.replace("phases, in steps of their own: ", "")
    eager = step_record(0.05) | {"eager": "mps", "profile": {}, "phases": {}}
    told = " ".join(gpu_table.details(eager))
    broken = gpu_table.details(step_record(0.05) | {"unseen": "Traceback\nRuntimeError: no CUPTI\n", "phases": {}})
    assert broken[-1] == "profile and phases failed: RuntimeError: no CUPTI"
    assert "eager, because mps" in told and "not measured (no CUDA device" in told and "called no hook" in told


def test_a_trial_and_a_failure_are_no_verdicts() -> None:
    trial = step_record(0.001) | {"card": CARD | {"device": "cpu"}}
    failed = {"error": "Traceback\nOutOfMemoryError: too much", **NOW, "took": 1.0, "resumed": False}
    results = {"smollm-16": trial, "small-32": failed}
    lines = gpu_table.verdict_lines(results, gpu.ROWS)
    assert lines[0].endswith("a trial, not judged")
    assert "failed: OutOfMemoryError: too much" in lines[1] and lines[1].endswith("open")


def test_cold_is_both_commands_and_only_if_the_first_made_the_parts() -> None:
    made = ["reward-0123456789", "smollm2-135m-bcc8", "smollm2-sft-0123456789"]
    cold, reports = record(40.0, made=made), record(100.0, notebooks={})
    verdict = partial(gpu_table.cells, "prepare", gpu.ROWS["prepare"])
    assert verdict({"prepare": cold, "reports": reports})[2] == "140 [140, 140] s"
    assert verdict({"prepare": cold, "reports": reports})[-1] == "met"
    assert verdict({"prepare": cold})[-1] == "open"
    ready = record(9.0, made=[])
    assert "the parts were there" in verdict({"prepare": ready, "reports": reports})[2]
    again = cold | {"resumed": True}
    assert "resumed" in verdict({"prepare": again, "reports": reports})[2]


# Resuming rows


def row_of(function: Any, **settings: Any) -> dict[str, gpu.Row]:
    return {"one": gpu.Row(title="one", measure=function, settings=settings, trial={"n": 1}, before=1, target=1)}


def test_a_finished_row_is_valid_until_something_changes(tmp_path: Path) -> None:
    place = gpu.Place("cuda", tmp_path, tmp_path / "r.json")
    rows = row_of(lambda say, place, n: {"seconds": spread([float(n)])}, n=7)
    found = gpu.measure("one", place, NOW, lambda text: None, rows=rows)
    assert found == gpu.read(place.results)["one"] and found["seconds"]["median"] == 7.0
    assert gpu.is_finished(found) and gpu.is_valid(found, NOW, {"n": 7})
    for now in (NOW | {"source_sha256": "bb"}, NOW | {"card": CARD | {"gpu": "Another"}}):
        assert not gpu.is_valid(found, now, {"n": 7})
    assert not gpu.is_valid(found, NOW, {"n": 8})
    trial = gpu.Place("cpu", tmp_path, tmp_path / "r.json")
    assert gpu.settings_of(rows["one"], trial) == {"n": 1} and gpu.settings_of(rows["one"], place) == {"n": 7}


def test_an_interrupted_row_is_known_to_have_begun_and_a_failed_one_is_told(tmp_path: Path) -> None:
    place = gpu.Place("cuda", tmp_path, tmp_path / "r.json")

    def stopped(say: Any, place: gpu.Place) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.measure("one", place, NOW, lambda text: None, rows=row_of(stopped))
    begun = gpu.read(place.results)["one"]
    assert not gpu.is_finished(begun)
    found = gpu.measure("one", place, NOW, lambda text: None, rows=row_of(lambda say, place: {}))
    assert found["begun"] == begun["begun"] and found["resumed"]

    def failed(say: Any, place: gpu.Place) -> Any:
        raise RuntimeError("side ended\nno such luck")

    said: list[str] = []
    found = gpu.measure("one", place, NOW | {"source_sha256": "bb"}, said.append, rows=row_of(failed))
    assert not found["resumed"] and not gpu.is_finished(found) and "failed: no such luck" in said[0]
    place.results.write_text("{ damaged")
    assert gpu.read(place.results) == {}


def test_parts_are_made_before_a_row_that_counts_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = gpu.Place("cuda", tmp_path, tmp_path / "r.json"), []
    monkeypatch.setattr(gpu, "once", lambda function, **settings: asked.append(settings))
    gpu.write(place.results, {"exp4": NOW})
    gpu.make_parts(lambda text: None, place, "exp4", "small")
    assert asked == [{"task": "small", "device": "cuda"}]
    gpu.write(place.results, {"exp4": NOW, "prepare": record(30.0, made=[])})
    gpu.make_parts(lambda text: None, place, "exp4", "small")
    gpu.write(place.results, {"exp4": NOW, "prepare": record(30.0, made=[]) | {"versions": {"torch": "2.12"}}})
    gpu.make_parts(lambda text: None, place, "exp4", "small")
    assert len(asked) == 2


def test_only_reports_of_this_row_count_as_finished(tmp_path: Path) -> None:
    path = tmp_path / "exp1.result.json"
    assert not gpu.is_reported(path, 0.0)
    path.write_text('{"status": "ok"}')
    assert gpu.is_reported(path, path.stat().st_mtime - 1) and not gpu.is_reported(path, path.stat().st_mtime + 1)
    for text in ('{"status": "failed"}', "{", "{}"):
        path.write_text(text)
        assert not gpu.is_reported(path, 0.0)


def test_interrupted_reports_resume_with_what_is_missing_and_then_have_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = gpu.Place("cuda", tmp_path, tmp_path / "r.json")
    gpu.write(place.results, {"prepare": record(30.0, made=[])})
    commands: list[list[str]] = []
    broken = ["exp3"]

    def fresh(*command: str) -> dict[str, float]:
        named = [word for word in command if word in gpu.REPORTED]
        commands.append(named)
        for name in named:
            if name in broken:
                broken.clear()
                raise KeyboardInterrupt
            found = {"status": "ok", "run": {"seconds": 9.0}, "seconds": 7.0, "history": [{"seconds": 2.0}] * 3}
            (tmp_path / f"{name}.result.json").write_text(json.dumps(found))
        return {"seconds": 40.0}

    monkeypatch.setattr(gpu, "fresh", fresh)
    (tmp_path / "exp2.result.json").write_text('{"status": "ok"}')  # of another day
    os.utime(tmp_path / "exp2.result.json", (0, 0))
    with pytest.raises(KeyboardInterrupt):
        gpu.measure("reports", place, NOW, lambda text: None)
    found = gpu.measure("reports", place, NOW, lambda text: None)
    assert commands == [list(gpu.REPORTED), ["exp3", "exp4"]]
    assert gpu.is_finished(found) and "seconds" not in found and found["resumed"]
    assert found["notebooks"]["exp1"] == {"whole": 9.0, "experiment": 7.0, "steps": 6.0}
    told = gpu_table.cells("reports", gpu.ROWS["reports"], gpu.read(place.results))
    assert told[2] == "resumed after an interruption, so no figure" and told[-1] == "open"
    monkeypatch.setattr(gpu, "make_parts", lambda *given: None)
    whole = gpu.measure("reports", place, NOW | {"source_sha256": "bb"}, lambda text: None)
    assert whole["seconds"]["median"] == 40.0 and not whole["resumed"] and commands[-1] == list(gpu.REPORTED)


def test_no_card_is_told_and_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(function: str, **settings: Any) -> Any:
        raise RuntimeError(f"side {function} ended\nRuntimeError: device {settings['device']}, but no card")

    monkeypatch.setattr(gpu, "once", once)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu.main(["--results", str(tmp_path / "r.json"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "RuntimeError: device cuda, but no card\n" and not list(tmp_path.iterdir())
    assert session.main(["--out", str(tmp_path / "out")]) == 2
    assert "GPU_DEVICE=cpu tries the commands in miniature" in capsys.readouterr().err


@DEVICES
def test_the_card_is_named_or_missed(device: str) -> None:
    answers: list[dict[str, Any]] = []
    turns: Any = SimpleNamespace(next=lambda **found: answers.append(found))
    card(turns, device=device)
    assert (answers[0]["gpu_memory_gb"] > 0) is (device == "cuda") and answers[0]["gpu"]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="sees no CUDA device"):
            card(turns, device="cuda")


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["no-such-row"])
    assert "unknown row no-such-row; choose from smollm-16" in capsys.readouterr().err


def test_notebooks_run_in_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    other = tmp_path / "other" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["/usr/bin/false"], "display_name": "x", "language": "x"}))
    (tmp_path / "site" / "share" / "jupyter").mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "other"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/usr/bin/false"
    gpu.use_this_interpreter(tmp_path / "mine")
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == sys.executable
    assert str(tmp_path / "site" / "share" / "jupyter") in os.environ["JUPYTER_PATH"].split(os.pathsep)


# What a side measures


def event(name: str, start: float, end: float, on_card: bool = True) -> Any:
    kind = torch.autograd.DeviceType.CUDA if on_card else torch.autograd.DeviceType.CPU
    return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end))


def test_launches_are_counted_and_overlapping_kernels_count_once() -> None:
    host = [("cudaLaunchKernel", 2), ("cudaLaunchKernelExC", 1), ("cuLaunchKernelEx", 1), ("cudaGraphLaunch", 3)]
    host += [("cudaMemcpyAsync", 2), ("cudaMemsetAsync", 1), ("aten::mm", 9), ("cudaEventRecord", 9)]
    events = [event(name, 0, 1, on_card=False) for name, count in host for _ in range(count)]
    events += [event("a", 0, 100), event("b", 50, 150), event("c", 60, 70), event("d", 200, 250)]
    events += [event("ProfilerStep*", 0, 900), event("Optimizer.step#Adam.step", 0, 900)]
    found = gpu_sides.launches(events)
    assert found == {
        "kernel launches": 4,
        "graph launches": 3,
        "copies": 3,
        "kernels": 4,
        "busy": pytest.approx(200e-6),
    }
    assert gpu_sides.launches(events[:9]) == {}  # CUPTI is missing: no event of a device


def test_the_profilers_events_have_what_is_counted() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        torch.ones(4).sum()
    one = found.events()[0]
    assert one.device_type == torch.autograd.DeviceType.CPU and one.time_range.end >= one.time_range.start
    assert gpu_sides.launches(found.events()) == {}


def setup_of(device: str) -> work.Setup:
    return work.Setup(
        tiny.task(policy=tiny.llama(len(tiny.tokenizer())).to(device)), WarpConfig(T=1, batch_size=2, max_new_tokens=3)
    )


@DEVICES
def test_phases_are_seen_from_outside_and_fill_the_step(device: str) -> None:
    setup = setup_of(device)
    rows: list[float] = []
    found = gpu_sides.phases_outside(setup, work.waiter(device), steps=2)
    assert list(found) == list(gpu_sides.PARTS_OF) and all(len(values) == 2 for values in found.values())
    assert all(value > 0 for values in found.values() for value in values)
    setup.run(on_step=lambda row: rows.append(row["seconds"]))
    assert not setup.parts.replaced() and len(rows) == 1


def test_phases_that_are_not_all_there_are_none() -> None:
    assert gpu_sides.per_phase([[0.0, 1.0, 2.0, 3.0, 4.0, 6.0]])["EMA"] == [2.0]
    assert gpu_sides.per_phase([[0.0, 1.0, 2.0, 6.0]]) == {}


@DEVICES
def test_rates_and_floors_are_of_the_device(device: str) -> None:
    setup, buffers = setup_of(device), {"numbers": 1 << 16, "square": 64}
    floors, rates, shape = gpu_sides.step_floors(setup, buffers=buffers, device=device)
    assert set(floors) == set(gpu_sides.PARTS_OF) and floors["reward"] == 0 and floors["sampling"] > 0
    assert rates["flop_per_s"] == max(rate for name, rate in rates.items() if name.startswith("product"))
    assert shape["batch"] == 2 and shape["completion"] == 3
    assert floor.matrices(2, 3, 4, torch.float32, device)[1].device.type == device


@pytest.mark.gpu
def test_events_wait_for_the_kernel() -> None:
    left = torch.ones(8192, 8192, device="cuda")
    floor.best_time(floor.seconds_of_cuda, torch.mm, left, left)
    assert floor.seconds_of_cuda(torch.mm, left, left) > 1e-3  # 1.1e12 operations: no card makes them in less


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), DEVICES.args[1][1]])
def test_a_step_is_profiled_and_has_launches_and_a_peak_on_a_card(device: str) -> None:
    found = gpu_sides.profile(setup_of(device), device)
    assert not found or (device == "cuda" and min(found["kernels"], found["busy"]) > 0)  # empty too without CUPTI
    assert (work.peak_device(device) > 0) is (device == "cuda")


def test_an_evaluation_is_saved_elsewhere_and_the_cache_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("/x", None):
        if before:
            monkeypatch.setenv("WARP_NB_CACHE", before)
        else:
            monkeypatch.delenv("WARP_NB_CACHE")
        with gpu_sides.saved_elsewhere():
            assert Path(os.environ["WARP_NB_CACHE"]).is_dir()
        assert os.environ.get("WARP_NB_CACHE") == before


# The session


def planned(*names: str, limit: float = 100) -> list[session.Part]:
    return [session.Part(name, f"the {name}", limit, ["true"]) for name in names]


class Runner:
    """Takes the seconds that a part is planned to take, or is stopped at the limit."""

    def __init__(self, **planned: float) -> None:
        self.time, self.planned = 0.0, planned
        self.asked: list[tuple[str, float]] = []

    def __call__(self, part: session.Part, log: Path, seconds: float) -> str:
        self.asked.append((part.name, seconds))
        wanted = self.planned[part.name]
        self.time += min(abs(wanted), seconds)
        return session.STOPPED if abs(wanted) > seconds else session.DONE if wanted >= 0 else session.FAILED

    def session(self, out: Path, wanted: list[session.Part], budget: float = 480, **now: Any) -> dict[str, Any]:
        start = self.time
        return session.session(wanted, out, budget=budget, now=NOW | now, run=self, clock=lambda: self.time - start)


def test_the_budget_shortens_what_comes_last_and_the_next_call_resumes(tmp_path: Path) -> None:
    run, wanted = Runner(one=50, two=200, three=30, four=5), planned("one", "two", "three", "four")
    found = run.session(tmp_path, wanted, budget=170)
    assert run.asked == [("one", 100), ("two", 100), ("three", 15)]  # a quarter of what is left is kept for stopping
    statuses = [found[part.name]["status"] for part in wanted]
    assert statuses == [session.DONE, session.STOPPED, session.STOPPED, session.NOT_BEGUN]
    run.asked.clear()
    run.planned["two"] = 20.0
    found = run.session(tmp_path, wanted)
    assert run.asked == [("two", 100), ("three", 100), ("four", 100)]
    assert [found[part.name]["status"] for part in wanted] == [session.DONE] * 4


def test_a_changed_card_or_code_runs_everything_again(tmp_path: Path) -> None:
    run, wanted = Runner(one=5), planned("one")
    run.session(tmp_path, wanted)
    assert run.session(tmp_path, wanted)["one"]["before"] and len(run.asked) == 1
    run.session(tmp_path, wanted, source_sha256="bb")
    assert len(run.asked) == 2
    (tmp_path / "session.json").write_text("[]")
    run.session(tmp_path, wanted)
    assert len(run.asked) == 3


def test_a_failed_part_does_not_stop_the_others_and_is_run_again(tmp_path: Path) -> None:
    run, wanted = Runner(one=-5, two=5), planned("one", "two")
    found = run.session(tmp_path, wanted)
    assert [found[name]["status"] for name in ("one", "two")] == [session.FAILED, session.DONE]
    run.session(tmp_path, wanted)
    assert [name for name, _ in run.asked] == ["one", "two", "one"]


JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="x"/></testcase>
<testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase></testsuite></testsuites>"""


def test_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(JUNIT)
    assert session.tests_of(tmp_path / "tests.xml") == {"passed": 1, "failed": 2, "skipped": 1}
    assert session.tests_of(tmp_path / "none.xml") == {"passed": 0, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("device", "passed", "failed", "skipped", "status"),
    [
        ("cuda", 5, 0, 0, session.DONE),
        ("cuda", 5, 0, 1, session.FAILED),
        ("cuda", 5, 1, 0, session.FAILED),
        ("cuda", 0, 0, 0, session.FAILED),
        ("cpu", 0, 0, 5, session.DONE),
        ("cpu", 0, 0, 0, session.FAILED),
    ],
)
def test_on_a_card_no_test_may_be_skipped(device: str, passed: int, failed: int, skipped: int, status: str) -> None:
    counts = {"passed": passed, "failed": failed, "skipped": skipped}
    assert session.judge_tests(session.DONE, counts, device) == status
    assert session.judge_tests(session.STOPPED, counts, device) == session.STOPPED


def test_the_summary_says_what_was_run_and_what_not() -> None:
    wanted = planned("tests", "bench", "reports", "exp5")
    found: dict[str, dict[str, Any]] = {
        "tests": {"status": session.DONE, "seconds": 31.0, "counts": {"passed": 9, "failed": 0, "skipped": 0}},
        "bench": {"status": session.FAILED, "seconds": 12.0},
        "reports": {"status": session.DONE, "seconds": 99.0, "before": True},
        "exp5": {"status": session.NOT_BEGUN, "seconds": 0.0},
    }
    text = session.summary(wanted, found, Path("out"), ["a row: met"])
    for line in (
        "  tests: done, 31 s (9 passed, 0 failed, 0 skipped)",
        "  bench: failed, 12 s; see out/bench.log",
        "  reports: done before, 99 s",
        "  exp5: not begun",
        "  a row: met",
        "The same command again resumes with what is not done.",
    ):
        assert line in text.splitlines()
    assert "resumes" not in session.summary(wanted[:1], {"tests": found["tests"]}, Path("out"), [])


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    part = session.Part("slow", "slow", 1, ["bash", "-c", "setsid sleep 60 & echo $!; wait"])
    assert session.run_part(part, tmp_path / "log", 0.5) == session.STOPPED
    pid = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for command, status in (("true", session.DONE), ("false", session.FAILED)):
        assert session.run_part(session.Part("x", "x", 1, [command]), tmp_path / "log", 30) == status


def test_what_is_missing_or_too_old_is_named() -> None:
    here = {"torch": "2.11.0+cu130", "trl": "0.9.4", "transformers": "5.0.0rc1", "numpy": "1.26"}

    def version_of(name: str) -> str:
        if name not in here:
            raise session.PackageNotFoundError(name)
        return here[name]

    wanted = ["torch>=2.4", "trl>=1.0", "papermill>=2.6", "transformers>=5.0", "numpy>=1.26.0", "pytest"]
    found = session.lacking(wanted, version_of)
    assert found == ["trl>=1.0 (installed: 0.9.4)", "papermill>=2.6 (not installed)", "pytest (not installed)"]
    assert session.lacking(session.requirements()) == [] and "trl>=1.0" in session.requirements()


BARE = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.session import main
raise SystemExit(main(["--out", sys.argv[2]]))
"""


def test_a_machine_without_the_packages_is_told_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", BARE, str(ROOT), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "nothing was run" in done.stderr and "papermill>=2.6 (not installed)" in done.stderr


def test_the_tests_for_a_card_are_found_by_their_marker() -> None:
    names = {path.name for path in session.marked()}
    assert "test_gpu.py" in names and "test_config.py" not in names


def test_all_of_it_fits_the_budget_in_the_order_of_what_matters() -> None:
    wanted = session.parts(Path("out"), CARD)
    assert [part.name for part in wanted] == ["tests", "prepare", "bench", "exp4", "reports", "exp5"]
    assert session.BUDGET <= 480
    named = [word for part in wanted if "benchmarks.gpu" in part.command for word in part.command if word in gpu.ROWS]
    assert sorted(named) == sorted(gpu.ROWS)
    trial = " ".join(" ".join(part.command) for part in session.parts(Path("out"), CARD | {"device": "cpu"}))
    assert "--device cuda" not in trial and "smollm " not in trial.replace("smollm-", "")


@pytest.mark.slow
def test_the_script_runs_in_miniature_and_resumes(tmp_path: Path) -> None:
    given = os.environ | {"PYTHON": sys.executable, "GPU_DEVICE": "cpu", "GPU_OUT": str(tmp_path / "out")}
    command = ["bash", str(ROOT / "scripts" / "gpu.sh"), "--budget", "1100"]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in ("tests", "prepare", "bench", "exp4", "reports", "exp5"):
        assert any(line.startswith(f"  {name}: done, ") for line in lines), done.stdout
    results = gpu.read(tmp_path / "out" / gpu.RESULTS.name)
    assert set(results) == set(gpu.ROWS) and all(gpu.is_finished(one) for one in results.values())
    assert sum("a trial, not judged" in line for line in lines) >= 7 and ": met" not in done.stdout
    assert results["smollm-16"]["peer"]["median"] > 0 and results["smollm-16"]["phases"]
    small = tmp_path / "out" / "small"
    assert all((small / name).exists() for name in ("exp4.html", "exp5.html", "index.html"))
    again = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("done before") == 6
