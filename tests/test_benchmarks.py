"""The benchmarks' arithmetic, refusals and page; nothing here depends on a clock."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import torch

from benchmarks import __main__ as bench
from benchmarks import choices, figures, floor, merge, page, phases, sides, startup, step
from benchmarks.cost import seconds, sizes_of, step_work
from benchmarks.machine import LIMIT, Clock, others, refuse_load, source_sha256
from benchmarks.work import Setup
from warp_nb import WarpConfig
from warp_nb.runs.warp import reporting

# figures


def test_a_ratio_is_of_the_medians_and_its_spread_is_of_the_pairs() -> None:
    found = figures.ratio([8.0, 9.0, 20.0], [2.0, 3.0, 4.0])
    assert found == {"median": 3.0, "low": 3.0, "high": 5.0, "count": 3}


def test_the_pairs_enclose_the_ratio_of_the_medians() -> None:
    noise = random.Random(0)
    for count in (1, 2, 5, 8):
        upper, lower = ([noise.uniform(0.1, 10) for _ in range(count)] for _ in range(2))
        found = figures.ratio(upper, lower)
        assert found["low"] <= found["median"] <= found["high"]


def test_time_is_told_as_times_as_fast_and_memory_as_a_share() -> None:
    faster = figures.compare("step", "s", "peer", [1.0, 2.0, 3.0], [6.0, 8.0, 9.0])
    smaller = figures.compare("step", "bytes", "peer", [1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    assert faster["ratio"]["median"] == 4.0 and smaller["ratio"]["median"] == 0.5


@pytest.mark.parametrize(("upper", "lower"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0]), ([-1.0], [1.0])])
def test_no_ratio_of_what_is_no_pair(upper: list[float], lower: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs need|positive|measure at least once"):
        figures.ratio(upper, lower)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_planted_power_is_found(power: float) -> None:
    sizes = [8, 16, 32, 100]
    assert figures.exponent(sizes, [3.7 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_a_constant_beside_the_growth_lowers_the_exponent() -> None:
    assert 0.5 < figures.exponent([1, 2, 4, 8], [1 + size for size in (1, 2, 4, 8)]) < 0.9


@pytest.mark.parametrize(("sizes", "costs"), [([1, 2], [1, 2]), ([1, 2, 0], [1, 2, 3]), ([1, 2, 3], [1, -2, 3])])
def test_no_exponent_of_too_little(sizes: list[float], costs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"three sizes|positive"):
        figures.exponent(sizes, costs)


# the machine


def test_others_are_what_is_busy_without_us() -> None:
    before, after = Clock(100.0, 40.0, 10.0), Clock(120.0, 55.0, 18.0)
    assert others(before, after) == pytest.approx((15 - 8) / 20)
    assert others(before, Clock(120.0, 45.0, 18.0)) == 0.0


def test_a_loaded_machine_is_refused_with_figure_rule_and_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"Before merge, .* 37%.*at most 5%.*run the same command again"):
        refuse_load(0.37, "Before merge")
    refuse_load(LIMIT, "Before merge")


def test_nothing_is_measured_on_a_loaded_machine(tmp_path: Path) -> None:
    parts = {"merge": (lambda say: pytest.fail("ran"), {})}
    with pytest.raises(RuntimeError, match=r"Before merge, .* 50%"):
        bench.measure_all(["merge"], tmp_path / "results.json", parts=parts, load=lambda: 0.5)
    assert not list(tmp_path.iterdir())


def test_the_digest_is_over_all_rooms_and_what_measures(tmp_path: Path) -> None:
    paths = ("warp_nb/config.py", "warp_nb/runs/warp.py", "benchmarks/step.py", "benchmarks/page.py")
    found = []
    for content in (b"one", b"two"):
        for name in paths:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
            found.append(source_sha256(tmp_path))
    assert len(set(found[3:])) == len(paths) and found[-1] == found[-2]  # the page measures nothing


# which parts are measured


def recorded_conditions() -> dict[str, Any]:
    return {"machine": {"cpu": "one"}, "versions": {"torch": "2"}, "source_sha256": "aa"}


def complete(now: dict[str, Any]) -> dict[str, Any]:
    return {name: now | {"settings": settings} for name, (_, settings) in bench.PARTS.items()}


def test_only_what_is_missing_or_out_of_date_is_measured() -> None:
    now = recorded_conditions()
    kept = json.loads(json.dumps(complete(now)))
    assert bench.out_of_date(kept, now) == []
    assert set(bench.out_of_date(kept, now | {"source_sha256": "bb"})) == set(bench.PARTS) - bench.ON_REQUEST
    del kept["growth"], kept["reports"]
    kept["merge"]["settings"]["pairs"] += 1
    assert bench.out_of_date(kept, now) == ["merge", "growth"]


def test_parts_are_written_one_by_one_and_an_undisturbed_one_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = iter([0.0, 0.0, 0.5])
    parts = {
        name: (lambda say, made_by: {"alone": [figures.alone(made_by, "s", [12.0], floor=6.0)]}, {"made_by": name})
        for name in ("second", "first", "third")
    }
    path, watched = tmp_path / "results.json", {"load": lambda: next(loads), "used": lambda before, after: 0.01}
    with pytest.raises(RuntimeError, match="Before third"):
        bench.measure_all(["second", "first", "third"], path, parts=parts, **watched)
    kept = json.loads(path.read_text())
    assert {name: part["alone"][0]["what"] for name, part in kept.items()} == {"first": "first", "second": "second"}
    assert {part["used_by_others"] for part in kept.values()} == {0.01}
    assert "second, 12.0 s, 12.0 s to 12.0 s, 1, 6.00 s, ratio 2.00" in capsys.readouterr().out


def test_a_part_that_was_disturbed_is_not_kept(tmp_path: Path) -> None:
    parts, watched = {"one": (lambda say: {}, {})}, {"load": lambda: 0.0, "used": lambda before, after: 0.3}
    with pytest.raises(RuntimeError, match=r"During one, .* 30%"):
        bench.measure_all(["one"], tmp_path / "results.json", parts=parts, **watched)
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["no-such-part"])
    assert "unknown part no-such-part; choose from step-small" in capsys.readouterr().err


# sides


COUNTING = """
def count_up(turns, start):
    while start < 3:
        turns.next(count=start)
        print("not an answer")
        start += 1
    raise ValueError("three is too many")
"""


def test_sides_take_turns_and_are_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with sides.Side("counting:count_up", start=0) as one, sides.Side("counting:count_up", start=1) as two:
        mine, other = sides.interleave(one, two, 1, lambda text: None)
        assert (one.warmup["count"], mine[0]["count"], other[0]["count"]) == (0, 1, 2)
        assert one.process.pid != two.process.pid and min(mine[0]["peak_rss"], other[0]["seconds"]) > 0
        with pytest.raises(RuntimeError, match="three is too many"):
            two.unit()
    assert one.process.returncode == 0


def test_a_failed_program_is_told_with_its_error() -> None:
    assert sides.fresh(sys.executable, "-c", "pass")["peak_rss"] > 1e6
    with pytest.raises(RuntimeError, match=r"exit code 3(.|\n)*no such luck"):
        sides.fresh(sys.executable, "-c", "import sys; print('no such luck'); sys.exit(3)")


def test_the_process_that_asks_stays_small() -> None:
    code = "import sys, benchmarks.__main__; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=sides.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_steps_of_an_endless_run_are_units() -> None:
    answers, step_of = StringIO(), iter(range(1, 100))
    turns = sides.Turns(StringIO("\n\n"), answers)
    with pytest.raises(sides.Over):
        for number in step_of:
            turns.at_step(number, warmup=4, settle=1, steps=2, number=number)
    found = [json.loads(line)["number"] for line in answers.getvalue().splitlines()]
    assert found == [4, 7, 10] and next(step_of) == 11


def test_the_clock_begins_after_what_settles() -> None:
    turns = sides.Turns(StringIO("\n"), StringIO())
    begun = []
    for number in (2, 3, 4):
        turns.at_step(number, warmup=2, settle=2, steps=3)
        begun.append(turns.started)
    assert begun[0] == begun[1] < begun[2]


def test_unequal_work_is_refused() -> None:
    same = {"prompt_tokens": 13.0, "tokens": 24.0}
    step.same_work(same, same | {"tokens": 23.9})
    with pytest.raises(RuntimeError, match="not the same work"):
        step.same_work(same, same | {"tokens": 20.0})


def test_the_recipe_of_mergekit_names_what_is_read() -> None:
    assert [Path(model["model"]).name for model in merge.recipe("folder")["models"]] == list(merge.NAMES[1:])


# phases and floors


def test_the_phases_of_real_steps_are_all_there_and_explain_them() -> None:
    task, events, rows = tiny.task(), [], []

    def on_step(row: dict[str, float]) -> None:
        rows.append(phases.with_rest(phases.phases(events), row["seconds"]))
        assert sum(event.name == "draw" for event in events) <= 5
        events.clear()

    config = WarpConfig(T=2, batch_size=4, max_new_tokens=5)
    found = Setup(task, config, phases.noted_parts(events)).run(on_step=on_step)
    assert len(rows) == 2
    for row in rows:
        assert list(row) == [*phases.PHASES, phases.REST, "step"] and min(row.values()) > 0
    plain = Setup(task, config).run()
    assert all(torch.equal(found.weights[name], value) for name, value in plain.weights.items())


def test_phases_of_a_planted_step() -> None:
    events = [
        phases.Event("draw", 2.0, 3.0),
        phases.Event("draw", 5.0, 6.0),
        phases.Event("sample", 1.0, 7.0),
        phases.Event("logits", 10.0, 14.0, True),
        phases.Event("logits", 14.0, 16.0),
        phases.Event("log_probs", 16.0, 17.0, True),
        phases.Event("log_probs", 17.0, 17.5),
        phases.Event("kl", 17.5, 19.0),
        phases.Event("loss", 0.5, 20.0, True),
        phases.Event("update", 28.0, 28.5),
        phases.Event("ema", 31.0, 31.25),
    ]
    wanted = {"prefill": 2, "decode": 4, "forward": 5, "anchor": 4, "backward": 8, "optimizer": 3, "ema": 0.25}
    assert phases.phases(events) == wanted
    whole = phases.with_rest(phases.phases(events), 31.0)
    assert whole["step"] == 31.0 and whole[phases.REST] == pytest.approx(31 - sum(wanted.values()))
    with pytest.raises(ValueError, match=r"no longer calls ema; adapt benchmarks/phases"):
        phases.phases(events[:-1])


@pytest.mark.parametrize("bf16", [False, True])
def test_the_phases_have_the_operations_and_bytes_of_the_step(bf16: bool) -> None:
    model, shape = tiny.llama(50), (4, 6, 8)
    sizes = sizes_of(model)
    work = step_work(sizes, *shape, bf16)
    for rates in ({"flop_per_s": 1.0, "bytes_per_s": math.inf}, {"flop_per_s": math.inf, "bytes_per_s": 1.0}):
        tokens = dict(zip(("batch", "prompt", "completion"), shape, strict=True))
        found = floor.phase_floors(sizes, **tokens, bf16=bf16, rates=rates)
        assert set(found) == set(phases.PHASES)
        assert sum(found.values()) == pytest.approx(seconds(work, rates["flop_per_s"], rates["bytes_per_s"]))
        assert found["forward"] == found["anchor"]
    assert found["ema"] == 3 * sum(value.nbytes for value in model.parameters())


def test_a_floor_is_made_of_the_best_rates() -> None:
    first = {"product a": 3.0, "product b": 2.0, "bytes read": 7.0, "bytes copied": 1.0}
    second = {"product a": 1.0, "product b": 5.0, "bytes read": 6.0, "bytes copied": 2.0}
    best = floor.best_rates([first, second])
    assert (best["flop_per_s"], best["bytes_per_s"]) == (5.0, 7.0)
    assert (best["product a"], best["bytes copied"]) == (3.0, 2.0)


def test_products_are_those_of_the_policys_linear_layers() -> None:
    model, seen = tiny.llama(50), set()

    def note(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.add((inputs[0].shape[:-1].numel(), module.in_features, module.out_features))

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note)
    model(input_ids=torch.zeros(3, 9, dtype=torch.long), logits_to_keep=4)
    assert set(floor.products(model, 3, 9, 4)) == seen


# choices

EAGER = partial(choices.compiled, backend="eager")
"""The choice `compiled` with torch's tracing, which may go wrong, and without Inductor, which takes minutes."""
OTHER_WAYS = {name: make for name, (_, _, make) in choices.CHOICES.items()} | {"compiled": EAGER}
del OTHER_WAYS["freed_memory_kept"]  # would stay in the process of the tests


SLOW = {"compiled": pytest.mark.slow}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in OTHER_WAYS])
def test_the_other_way_is_another_way_to_the_same_step(name: str) -> None:
    bf16 = name in ("fp32", "bf16_attention")  # these change what is computed in bf16, and round otherwise
    steps = {"T": 1, "dtype": "bfloat16"} if bf16 else {"T": 3, "lr": 1e-2, "warmup_steps": 0}
    config = WarpConfig(batch_size=4, max_new_tokens=3, **steps)
    one, plain = (Setup(tiny.task(policy=tiny.llama(len(tiny.tokenizer()))), config) for _ in range(2))
    another = OTHER_WAYS[name](one)
    facts = [
        (setup.parts.replaced(), setup.config.dtype, setup.task.policy.config._attn_implementation)
        for setup in (another, plain)
    ]
    assert facts[0] != facts[1]
    found, wanted = another.run().history, plain.run().history
    assert bf16 or wanted[-1]["kl"] > 0.01
    for row, other in zip(found, wanted, strict=True):
        for figure in ("reward", "kl", "grad_norm"):
            assert row[figure] == pytest.approx(other[figure], rel=0.05 if bf16 else 1e-3, abs=1e-5)


KEPT = """
import sys
from benchmarks import choices
from benchmarks.sides import peak_rss, forget_peak
if sys.argv[1] == "kept":
    choices.freed_memory_kept(None)
block = b"x" * (64 << 20)
del block
forget_peak()
print(peak_rss() > 64 << 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(("way", "resident"), [("kept", "True"), ("given back", "False")])
def test_freed_memory_stays_resident_where_it_is_kept(way: str, resident: str) -> None:
    command = [sys.executable, "-c", KEPT, way]
    done = subprocess.run(command, cwd=sides.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == resident


# the page


def planted() -> dict[str, Any]:
    about = {
        "date": "2026-01-02T03:04:05+00:00",
        "seconds": 75.5,
        "used_by_others": 0.012,
        "machine": {"cpu": "Example", "processors": 2, "memory_gb": 8, "system": "Linux x86_64"},
        "versions": {"python": "3.12", "torch": "2.9"},
        "settings": {"task": "small", "dtype": "float32"},
    }
    memory = figures.compare("a step, memory", "bytes", "peer", [3e9], [4e9], 0.7)
    compared = [figures.compare("a step", "s", "peer", [0.5, 0.4, 0.6], [2.0, 2.5, 2.4], 4.0), memory]
    timed = [
        {"phase": name, "seconds": figures.spread([0.4]), "floor": 0.1, "ratio": 4.0, "target": 3.0}
        for name in ("decode", "step")
    ]
    rest = {"phase": phases.REST, "seconds": figures.spread([0.0123]), "floor": 0.0, "ratio": None}
    timed.insert(1, rest)
    shape = {"batch": 32, "prompt": 13, "completion": 24}
    memory = {"gradients": 42e6, "measured peak": 1.21e9}
    rates = {"flop_per_s": 1.5e11, "bytes_per_s": 4e10}
    grown = {"what": "T", "sizes": [1, 2, 4], "seconds": [1, 2, 4], "exponent": figures.spread([1.0, 1.1])}
    chosen = figures.compare("packing", "s", "unpacked", [1.0, 2.0], [4.0, 5.0])
    chosen |= {"ours_ready": 3.0, "theirs_ready": 60.0, "in_use": True}
    larger = figures.compare("packing, peak memory", "bytes", "unpacked", [2e9], [3e9]) | {"in_use": True}
    padding = {"prompt_padding": 0.01, "after_the_end": 0.002}
    return {
        "step-small": about | {"comparisons": compared},
        "choices": about | {"choices": [chosen, larger], "padding": padding},
        "floor-small": about | {"phases": timed, "rates": rates, "shape": shape, "memory": memory},
        "growth": about | {"machine": about["machine"] | {"cpu": "Another"}, "exponents": [grown]},
        "evaluation": about | {"alone": [figures.alone("evaluation", "s", [12.0, 14.0], target=20.0, floor=6.5)]},
    }


def test_the_page_says_what_was_measured() -> None:
    text = page.tables(planted())
    for row in (
        "| a step | 500 ms | peer | 2.40 s | 4.80 [4.00, 6.25] times as fast | ≥ 4.00: met | 3 |",
        "| a step, memory | 3.00 GB | peer | 4.00 GB | 0.750 [0.750, 0.750] of the peer's | ≤ 0.700: missed | 1 |",
        "| decode | 400 [400, 400] | 100 | 4.00 (≤ 3.00: missed) |",
        "| packing | yes | 1.50 s | 4.50 s | 3.00 [2.50, 4.00] times | 3.00 s / 60.0 s |",
        "| packing, peak memory | yes | 2.00 GB | 3.00 GB | 1.50 [1.50, 1.50] times |  |",
        "Of the prompts' positions 1.0% are padding, of the sampled ones 0.2% stand after an end-of-text token",
        "| the rest | 12.3 [12.3, 12.3] | 0.000 |  |",
        "| counted from sizes | floor-small |",
        "| gradients | 42.0 MB |",
        "| measured peak | 1.21 GB |",
        "| T | 1, 2, 4 | 1.00 s, 2.00 s, 4.00 s | 1.05 [1.00, 1.10] |",
        "| evaluation | 13.0 s | 12.0 s to 14.0 s | 2 | 6.50 s, ratio 2.00 | ≤ 20.0 s: met |",
        "step-small, choices, floor-small, evaluation: Example, 2 processors, 8 GB, Linux x86_64, python 3.12, torch",
        "growth: Another, 2 processors, 8 GB, Linux x86_64, python 3.12, torch 2.9.",
        "| growth | 2026-01-02T03:04:05+00:00 | 75.5 s | 1.2% |",
        "`floor-small`: 150 GFLOP/s, 40.0 GB/s; 32 × (13 + 24) tokens.",
    ):
        assert row in text


def test_what_is_printed_names_the_peer_and_the_ratio() -> None:
    assert page.summary(planted()["step-small"]) == [
        "a step, 500 ms, peer, 2.40 s, 4.80 [4.00, 6.25] times as fast, ≥ 4.00: met, 3",
        "a step, memory, 3.00 GB, peer, 4.00 GB, 0.750 [0.750, 0.750] of the peer's, ≤ 0.700: missed, 1",
    ]


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    readme = f"before\n{page.BEGIN}old\n{page.END}\nafter\n"
    filled = page.filled(readme, planted())
    assert filled.startswith("before\n") and filled.endswith("\nafter\n") and "old" not in filled
    assert page.filled(filled, planted()) == filled
    with pytest.raises(ValueError, match="markers"):
        page.filled("no markers", planted())


def test_the_readme_is_what_the_results_give() -> None:
    readme = (page.HERE / "README.md").read_text(encoding="utf-8")
    path = page.HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    assert page.filled(readme, results) == readme
    assert path.with_suffix(".png").exists() == bool(results)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    page.draw(planted(), tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_step_is_seen_on_the_bar_of_an_experiment(capfd: pytest.CaptureFixture[str]) -> None:
    with reporting(True, 40) as on_step:
        assert "0/40 [" in (before := capfd.readouterr().err) and not startup.STEP_SHOWN.search(before)
        time.sleep(0.11)  # the shortest time between two states of the bar
        on_step({})
        assert startup.STEP_SHOWN.search(capfd.readouterr().err)


STEPPING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(f"{child.pid} 0/40 [")
time.sleep(0.3)
open(sys.argv[1], "a").write("1/40 [")
time.sleep(60)
"""


def test_a_program_is_timed_to_its_first_step_and_killed_with_its_children(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    spent = startup.until_step(sys.executable, "-c", STEPPING, str(shown), shown=shown)
    assert spent > 0.3 and shown.read_text().endswith("0/40 [1/40 [")
    left = {one.pid for one in psutil.process_iter(["status"]) if one.info["status"] != psutil.STATUS_ZOMBIE}
    assert int(shown.read_text().split()[0]) not in left
    with pytest.raises(RuntimeError, match=r"(?s)ended before its first step:.*ValueError: no step"):
        startup.until_step(sys.executable, "-c", "raise ValueError('no step')", shown=tmp_path / "none")


# the parts in their smallest form, `parallel` left out (two threads on a busy machine): no figure here means anything

SHAPE = {"task": "small", "batch": 2, "completion": 3, "dtype": "float32", "threads": 1}
BUFFERS = {"numbers": 1 << 10, "square": 64}
SMALLEST: dict[str, dict[str, Any]] = {
    "step-small": SHAPE | {"settle": 0, "steps": 1, "warmup": 1, "pairs": 1, "checkpointing_pairs": 0, "targets": {}},
    "choices": SHAPE | {"warmup": 1, "pairs": 1, "only": ["freed_memory_kept"]},
    "floor-small": SHAPE | {"steps": 1, "warmup": 0, "target": None, "buffers": BUFFERS},
    "evaluation": {"task": "small", "n_prompts": 2, "completion": 3, "threads": 1, "repeats": 1, "buffers": BUFFERS},
    "merge": {"task": "small", "threads": 1, "pairs": 1, "cli_pairs": 1, "etas": [0.5], "targets": {}},
    "states-small": SHAPE | {"steps": 1, "warmup": 1},
    "growth": {"rounds": 1, "threads": 1, "loops": {"T": [1, 2, 3]}, "steps": {"batch": [1, 2, 3]}}
    | {"widths": [64, 128, 192]},
    "startup": {"rounds": 1, "step_rounds": 1, "target": None, "threads": 1},
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="one choice needs glibc")
@pytest.mark.parametrize("name", SMALLEST)
def test_a_part_measures_and_gives_a_page(name: str, tmp_path: Path) -> None:
    parts, path = {name: (bench.PARTS[name][0], SMALLEST[name])}, tmp_path / "results.json"
    bench.measure_all([name], path, parts=parts, load=lambda: 0.0, used=lambda before, after: 0.0)
    results = json.loads(path.read_text())
    assert set(results) == {name} and results[name]["settings"] == json.loads(json.dumps(SMALLEST[name]))
    assert page.tables(results).count("## ") >= 2
    page.draw(results, tmp_path / "results.png")
