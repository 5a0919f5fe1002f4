"""The benchmarks' arithmetic, refusals and page; nothing here depends on a clock."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from benchmarks import __main__ as bench
from benchmarks import choices, figures, floor, merge, page, sides, step
from benchmarks.machine import LIMIT, Clock, others, refuse_load
from warp_nb import WarpConfig
from warp_nb.fast import decoder
from warp_nb.measure.cost import seconds, sizes_of, step_work
from warp_nb.runs import policy_gradient
from warp_nb.runs.policy_gradient import train_run

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


def test_nothing_is_measured_on_a_loaded_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measured_load", lambda: 0.5)
    monkeypatch.setitem(sys.modules, "benchmarks.merge", types.SimpleNamespace(run=lambda say, **_: pytest.fail("ran")))
    assert bench.main(["merge", "--results", str(tmp_path / "results.json")]) == 1
    assert "50%" in capsys.readouterr().err and not list(tmp_path.iterdir())


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([0.0, 0.0, 0.5])
    monkeypatch.setattr(bench, "measured_load", lambda: next(loads))
    monkeypatch.setattr(bench, "others", lambda before, after: 0.0)
    for module in ("merge", "growth", "startup"):
        fake = types.SimpleNamespace(run=lambda say, module=module, **_: {"alone": [], "made_by": module})
        monkeypatch.setitem(sys.modules, f"benchmarks.{module}", fake)
    path = tmp_path / "results.json"
    assert bench.main(["merge", "growth", "startup", "--results", str(path)]) == 1
    kept = json.loads(path.read_text())
    assert {name: part["made_by"] for name, part in kept.items()} == {"merge": "merge", "growth": "growth"}


def test_every_part_has_its_module() -> None:
    for module, _ in bench.PARTS.values():
        assert (bench.HERE / f"{module}.py").exists()


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
    names = ", ".join(f"benchmarks.{module}" for module, _ in bench.PARTS.values())
    code = (
        f"import sys, benchmarks.__main__, {names}; print(sorted({{'torch', 'pandas', 'warp_nb'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sides.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unequal_work_is_refused() -> None:
    same = {"prompt_tokens": 13.0, "tokens": 24.0}
    step.same_work(same, same | {"tokens": 23.9})
    with pytest.raises(RuntimeError, match="not the same work"):
        step.same_work(same, same | {"tokens": 20.0})


def test_the_recipe_of_mergekit_names_what_is_read() -> None:
    assert [Path(model["model"]).name for model in merge.recipe("folder")["models"]] == list(merge.NAMES[1:])


# phases and floors


@pytest.mark.parametrize("name", floor.WRAPPED)
def test_what_is_wrapped_exists(name: str) -> None:
    assert callable(floor.wrapped(name)[2])


def test_a_name_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(floor.WRAPPED, "ema", ("warp_nb.runs.policy_gradient", "no_such_name"))
    with pytest.raises(AttributeError, match=r"policy_gradient\.no_such_name is gone.*adapt WRAPPED"), floor.recorded():
        pytest.fail("nothing may run")


def test_a_real_step_passes_through_everything_wrapped() -> None:
    task, rows = tiny.task(), []
    before = {name: floor.wrapped(name)[2] for name in floor.WRAPPED}
    with floor.recorded() as events:

        def on_step(row: dict[str, float]) -> None:
            rows.append(floor.phases(events))
            events.clear()

        config = WarpConfig(T=2, batch_size=4, max_new_tokens=5)
        train_run(task, config, task.policy.state_dict(), 1, 1, on_step)
    assert len(rows) == 2 and all(set(row) == set(floor.PHASES) and min(row.values()) > 0 for row in rows)
    assert {name: floor.wrapped(name)[2] for name in floor.WRAPPED} == before


def test_phases_of_a_planted_step() -> None:
    events = [
        floor.Event("draw", 2.0, 3.0, False),
        floor.Event("draw", 5.0, 6.0, False),
        floor.Event("sample", 1.0, 7.0, False),
        floor.Event("logits", 10.0, 14.0, True),
        floor.Event("log_probs", 14.0, 15.0, True),
        floor.Event("logits", 15.0, 17.0, False),
        floor.Event("loss", 9.5, 18.5, True),
        floor.Event("backward", 20.0, 28.0, True),
        floor.Event("norm", 28.0, 28.5, True),
        floor.Event("optimizer", 29.0, 30.0, True),
        floor.Event("ema", 31.0, 31.25, True),
    ]
    wanted = {"prefill": 2, "decode": 4, "forward": 5, "anchor": 4, "backward": 8, "optimizer": 1.5, "ema": 0.25}
    assert floor.phases(events) == wanted
    whole = floor.with_rest(floor.phases(events), 31.0)
    assert whole["step"] == 31.0 and whole[floor.REST] == pytest.approx(31 - sum(wanted.values()))
    with pytest.raises(ValueError, match=r"no longer calls ema; adapt WRAPPED"):
        floor.phases(events[:-1])


@pytest.mark.parametrize("bf16", [False, True])
def test_the_phases_have_the_operations_and_bytes_of_the_step(bf16: bool) -> None:
    model, shape = tiny.llama(50), (4, 6, 8)
    sizes = sizes_of(model)
    work = step_work(sizes, *shape, bf16)
    for rates in ({"flop_per_s": 1.0, "bytes_per_s": math.inf}, {"flop_per_s": math.inf, "bytes_per_s": 1.0}):
        found = floor.phase_floors(sizes, *shape, bf16, rates)
        assert set(found) == set(floor.PHASES)
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


@pytest.mark.parametrize("other", sorted({*choices.MADE.values(), *choices.LEFT_OUT.values()} - {"fp32"}))
def test_the_other_way_is_another_way_to_the_same_step(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, holders = WarpConfig(T=2, batch_size=4, max_new_tokens=3), (policy_gradient, decoder, decoder.LlamaDecoder)
    task = tiny.task(policy=tiny.llama(len(tiny.tokenizer())))
    plain = train_run(task, config, task.policy.state_dict(), 1, 1).history
    for holder in holders:
        for name, value in list(vars(holder).items()):
            if not name.startswith("__"):
                monkeypatch.setattr(holder, name, value)  # what is exchanged now is put back at the end
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    before = [dict(vars(holder)) for holder in holders]
    getattr(choices, other)()
    assert before != [dict(vars(holder)) for holder in holders]
    found = train_run(task, config, task.policy.state_dict(), 1, 1).history
    for row, wanted in zip(found, plain, strict=True):
        for name in ("reward", "kl", "grad_norm"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5)


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
    phases = [
        {"phase": name, "seconds": figures.spread([0.4]), "floor": 0.1, "ratio": 4.0, "target": 3.0}
        for name in ("decode", "step")
    ]
    rest = {"phase": floor.REST, "seconds": figures.spread([0.0123]), "floor": 0.0, "ratio": None}
    phases.insert(1, rest)
    shape = {"batch": 32, "prompt": 13, "completion": 24}
    memory = {"gradients": 42e6, "measured peak": 1.21e9}
    rates = {"flop_per_s": 1.5e11, "bytes_per_s": 4e10}
    grown = {"what": "T", "sizes": [1, 2, 4], "seconds": [1, 2, 4], "exponent": figures.spread([1.0, 1.1])}
    chosen = figures.compare("packing", "s", "unpacked", [1.0, 2.0], [4.0, 5.0])
    chosen |= {"ours_ready": 3.0, "theirs_ready": 60.0, "in_use": True}
    padding = {"prompt_padding": 0.01, "after_the_end": 0.002}
    return {
        "step-small": about | {"comparisons": compared},
        "choices": about | {"choices": [chosen], "padding": padding},
        "floor-small": about | {"phases": phases, "rates": rates, "shape": shape, "memory": memory},
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
