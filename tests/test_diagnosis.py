"""The diagnosis: what a cell is and measures, its table, and that the committed table can be measured again."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import gates
import pytest
import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification

from warp_nb import cli
from warp_nb.files import DamagedFile
from warp_nb.measure.checks import OF_THE_TEXT
from warp_nb.runs.jobs import torch_threads
from warp_nb.runs.training import FAST
from warp_nb.studies import diagnosis, readings
from warp_nb.studies.cells import (
    DRIFT_LR,
    GREEDY,
    ONE_SEED,
    SEEDS,
    SUSPECTS,
    Cell,
    RewardCell,
    at_step_one,
    cells,
    drift,
)
from warp_nb.studies.diagnosis import (
    chunks,
    faulty_task,
    fill,
    main,
    measure,
    missing,
    prepared_task,
    read_table,
    recording,
)
from warp_nb.studies.original import ROWS
from warp_nb.tasks.reward_model import RewardModel
from warp_nb.tasks.task import Task

# Cells


def test_names_are_unique_and_tell_everything() -> None:
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names) == 184, "as many as the module says"
    kinds = {task: sum(name.startswith(f"{task} ") for name in names) for task in ("reward", "small", "smollm")}
    told = (
        "184 cells: 12 trainings of a reward model, 160 of `small` (48 of them are single runs, 10 have one step a run)"
    )
    assert kinds == {"reward": 12, "small": 160, "smollm": 12} and told in " ".join(
        str(sys.modules[Cell.__module__].__doc__).split()
    )
    assert sum("baseline=" in name for name in names) == 48 and sum(" T=1 " in name for name in names) == 10
    assert Cell(2, "constant", ("greedy",), (("lr", 1e-3), ("M", 1)), 2).name == (
        "small exp2 constant greedy lr=0.001 M=1 seed=2"
    )
    assert RewardCell(1e-4, 2).name == "reward lr=0.0001 seed=2"


def test_a_cell_has_the_settings_of_its_experiment_and_its_changes() -> None:
    config = Cell(1, changes=(("warmup_steps", 5), ("M", 1)), seed=7).config(tiny.task())
    assert ROWS[1].settings | {"warmup_steps": 5, "M": 1} == config.model_dump(include=set(ROWS[1].settings))
    assert (config.seed, config.batch_size, config.dtype) == (7, 16, "float32")


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        (Cell(2), True),
        (Cell(1, faults=("never-stepped", *ONE_SEED), changes=(("warmup_steps", 5),)), True),
        (Cell(1, faults=("rebuilt",)), True),
        (Cell(2, "collapsed", GREEDY, task="smollm"), True),
        (Cell(2, "collapsed", GREEDY), False),
        (Cell(3), False),
        (Cell(4, "collapsed", GREEDY, task="smollm"), False),
        (Cell(2, faults=GREEDY), False),
        (drift("sound", 1e-4, "none", 0), False),
        *((at_step_one(name), False) for name in SUSPECTS),
    ],
)
def test_kl_is_taken_in_half_precision_where_verdicts_read_it(cell: Cell, wanted: bool) -> None:
    assert cell.in_half_precision == wanted


def tiny_task(name: str) -> Task:
    return tiny.task(gate=gates.gate)


def measured_tiny(cell: Cell) -> dict[str, Any]:
    return measure(cell, load=tiny_task, n_eval_prompts=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Measure on one thread: tests run side by side, and two threads a process then wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "THREADS", 1)
        yield


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measured_tiny(Cell(2))


@pytest.mark.slow
def test_a_cell_measures_what_the_verdicts_read(measured: dict[str, Any]) -> None:
    assert json.loads(json.dumps(measured)) == measured and measured["seconds"] > 0
    assert set(measured) >= set(read_table().cells[Cell(2).name]), "what the committed table has"
    assert set(measured["kl"]) == {"float32", "bfloat16", "mixed"} and measured["kind"] == "training"
    assert [len(curve) for curve in measured["curves"]["kl"]] == [10] * 4, "I = M = 2, ten steps"
    assert [len(curve) for curve in measured["curves"]["surrogate"]] == [10] * 4
    assert 0 < readings.kl(measured) < readings.kl(measured, "mixed")
    assert measured["moved"] > 0 and len(measured["delta_norms"]) == len(measured["unmoved"]) == 4


@pytest.mark.slow
def test_faults_and_changes_of_a_cell_are_made(measured: dict[str, Any]) -> None:
    still = measured_tiny(at_step_one("never-stepped"))
    assert still["moved"] == 0 and still["delta_norms"] == [0, 0] and "deltas-nonzero" in still["failed"]
    assert [len(curve) for curve in still["curves"]["kl"]] == [1, 1] and set(still["kl"]) == {"float32"}
    twins = measured_tiny(Cell(2, "constant", ONE_SEED))
    assert readings.same_curves(twins) and not readings.same_curves(measured)
    assert twins["evaluation"]["reward_difference"]["value"] == 0 and "reward-gate-spread" in twins["failed"]
    assert set(twins["kl"]) == {"float32"}
    assert len(measured_tiny(drift("constant", 1e-2, "none", 0))["curves"]["kl"]) == 1


def test_the_surrogate_is_minus_the_loss() -> None:
    """With a constant reward and the anchor still at the policy, r_β is the reward: the surrogate is r·mean(log π)."""
    values: list[float] = []
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    loss = recording(FAST, values).reinforce_loss(torch.tensor([0.5, 0.5]), log_probs)
    assert values == [-loss.item()] == [-1.5]
    assert list(chunks([1.0, 2.0, 3.0, 4.0], 2)) == [[1.0, 2.0], [3.0, 4.0]]


def test_weights_in_bf16_have_their_own_reference() -> None:
    task = tiny.task()
    low = faulty_task(Cell(2, faults=("bf16-weights",)), task)
    assert all(value.equal(value.bfloat16().float()) for value in low.policy.parameters())
    assert not all(value.equal(value.bfloat16().float()) for value in task.policy.parameters())
    assert faulty_task(Cell(2), task) is task
    assert faulty_task(Cell(2, "constant"), task).reward(["a"], ["b"]) == [0.0438]


def test_the_collapsed_reward_is_the_raw_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names share one trained model; its calibrated zero is dropped."""
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            num_labels=1,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    shifted = RewardModel(model, tiny.tokenizer(pad=True), offset=0.5)
    monkeypatch.setattr(diagnosis, "trained_reward", lambda recipe: shifted)
    raw, low = (diagnosis.reward_of.__wrapped__(name) for name in ("collapsed", "collapsed-fp16"))
    texts = [["the film"], [" superb"]]
    assert raw(*texts)[0] == pytest.approx(shifted(*texts)[0] + 0.5, abs=1e-6) and raw.offset == low.offset == 0
    assert (raw.model.dtype, low.model.dtype) == (torch.float32, torch.float16)


def test_the_callers_threads_come_back() -> None:
    with torch_threads(2):
        measured_tiny(at_step_one("never-stepped"))
        assert torch.get_num_threads() == 2


# The table


def test_an_interrupted_table_is_continued(tmp_path: Path) -> None:
    made: list[str] = []

    def fake(cell: Any) -> dict[str, Any]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(cell.name)
        return {"seconds": 1.0, "place": len(made)}

    wanted, path = cells()[:4], tmp_path / "table.json"
    names = [cell.name for cell in wanted]
    with pytest.raises(KeyboardInterrupt):
        fill(path, wanted, measure=fake)
    kept, made[:] = list(made), []
    fill(path, wanted[::-1][:2], measure=fake)
    assert kept == names[:2] and made == names[:1:-1], "what is there is not measured again"
    table = read_table(path)
    assert list(table.cells) == names, "in the order of the cells, in whatever order they were measured"
    assert table.machine["versions"]["torch"]
    made[:] = [""]
    with pytest.raises(KeyboardInterrupt):
        fill(path, wanted, again=True, measure=fake)
    assert made[1:] == names[:1] and read_table(path).cells[names[0]]["place"] == 2


def named(cell: Cell | RewardCell) -> dict[str, Any]:
    """Stands for the measurement of a cell in a worker."""
    return {"seconds": 1.0, "name": cell.name, "process": os.getpid()}


@pytest.mark.slow
def test_workers_measure_every_cell_once_in_their_own_processes(tmp_path: Path) -> None:
    wanted, path = cells()[:6], tmp_path / "table.json"
    fill(path, wanted[:1], measure=named)
    fill(path, wanted, workers=2, measure=named)
    found = read_table(path).cells
    assert [*found] == [one["name"] for one in found.values()] == [cell.name for cell in wanted]
    assert found[wanted[0].name]["process"] == os.getpid() not in {found[one.name]["process"] for one in wanted[1:]}


@pytest.mark.slow
def test_what_workers_measured_before_one_failed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(ValueError, match="no such fault"):
        fill(path, cells()[:4], workers=2, measure=failing_at_the_third)
    assert set(read_table(path).cells) < {cell.name for cell in cells()[:4]}


def failing_at_the_third(cell: Cell | RewardCell) -> dict[str, Any]:
    if cell == cells()[2]:
        raise ValueError("no such fault")
    return {"seconds": 1.0}


def test_workers_are_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--workers", "0"])
    assert "--workers must be at least 1, got 0" in capsys.readouterr().err


def test_a_missing_table_is_empty(tmp_path: Path) -> None:
    assert read_table(tmp_path / "none.json").cells == {}


def test_the_command_measures_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = json.dumps({"machine": {}, "cells": {cell.name: {"seconds": 1.0} for cell in cells()}})
    path = tmp_path / "reports" / "diagnosis.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    assert main([]) == main(["exp2", "--table", str(path)]) == 0
    said = f"the report of this table: warp-nb report diagnosis -p table_file {path}\n"
    assert path.read_text(encoding="utf-8") == text and capsys.readouterr() == (2 * said, "")


def test_a_new_table_begins_with_what_the_package_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["baseline=mean"]) == 0, "nothing had to be measured"
    assert read_table(tmp_path / "reports" / "diagnosis.json") == read_table()


def test_words_that_name_no_cell_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp9"]) == 1 and capsys.readouterr().err == "no cell is named by exp9\n"
    assert main(["exp2", "gremlin"]) == 1 and "no cell is named by exp2 gremlin" in capsys.readouterr().err


# The committed table: what of it another machine must find again

NORM = 0.1
"""Share by which the length of a task vector may differ: 0.044 between seeds, 0.026 on another processor."""
MOVED = 0.1
"""The same of the displacement after the last LITI: 0.039 between seeds, 0.045 on another processor."""
KL_FACTOR, KL_FACTOR_OF_3, KL_ROUNDING = readings.FACTOR, 12.0, 1e-6
"""Within what a verdict reads KLs; 1.5 on another processor. Runs of experiment 3 are chaotic: there it is wider.

Below a millionth of a nat fp32 shows rounding alone."""
CHAOTIC = 5e-4
"""From this learning rate on a run hangs on single tokens, as in experiment 3."""
ANGLE = 12.0
"""Degrees, of the median over the blocks of an iteration and pair: 10.8 between seeds, 5.8 on another processor."""
UNMOVED = 0.01
"""Share of weights: 0.0079 between seeds, 0.0001 on another processor."""
REWARD, PERPLEXITY = 0.05, 0.05
"""θ_sft's reward and, as a share, its perplexity, on the same prompts: 0.006 and 0.010 on another processor."""
SAMPLED = {*OF_THE_TEXT, "objective-split"}
"""Checks whose outcome depends on the very tokens that were sampled."""


def departures(again: dict[str, Any], kept: dict[str, Any], *, same_prompts: bool = True) -> set[str]:
    """What of a record is not found again.

    Another processor rounds otherwise, so it samples other tokens, as another seed does. What is left then are figures
    within the tolerances above, and what is exact on any machine: before the first update the policy is its anchor;
    runs are equal or not; the reward stands still or not; which checks of the instrument fail. Where θ_sft's own
    figures are the kept ones to the bit, the arithmetic is the table's, and so are the curves of the first iteration;
    but records without the surrogate were measured on two threads, which add in another order.
    """
    near = math.isclose
    found = {
        "parameters": again["parameters"] == kept["parameters"],
        "runs": [steps_of(again), len(again["omega"])] == [steps_of(kept), len(kept["omega"])],
        "before-update": all(run[0] == 0 for name in ("penalty", "kl") for run in again["curves"][name]),
        "equal-runs": readings.same_curves(again) == readings.same_curves(kept),
        "still": stands_still(again) == stands_still(kept),
        "failed": set(again["failed"]) - SAMPLED == set(kept["failed"]) - SAMPLED,
        "norms": alike(again["delta_norms"], kept["delta_norms"], lambda a, b: near(a, b, rel_tol=NORM)),
        "moved": near(again["moved"], kept["moved"], rel_tol=MOVED),
        "unmoved": alike(again["unmoved"], kept["unmoved"], lambda a, b: abs(a - b) <= UNMOVED),
        "angles": alike(angles(again), angles(kept), same_angle),
        "kl": "float32" in again["kl"] and all(same_kl(again, kept, name) for name in again["kl"]),
    }
    if same_prompts:
        reward, perplexity = ("reward_reference", "perplexity_reference")
        values = {name: [one["evaluation"][name]["value"] for one in (again, kept)] for name in (reward, perplexity)}
        found["reward"] = near(*values[reward], rel_tol=0, abs_tol=REWARD)
        found["perplexity"] = near(*values[perplexity], rel_tol=PERPLEXITY)
        same_arithmetic = "surrogate" in kept["curves"] and all(one == other for one, other in values.values())
        found["bits"] = not same_arithmetic or first_iteration(again) == first_iteration(kept)
    return {name for name, holds in found.items() if not holds}


def alike(again: list[Any], kept: list[Any], near: Callable[[Any, Any], bool]) -> bool:
    """Whether the figures are as many and each is near its own."""
    return len(again) == len(kept) and all(near(one, other) for one, other in zip(again, kept, strict=True))


def steps_of(record: dict[str, Any]) -> list[int]:
    """How many steps each run has."""
    return [len(run) for run in record["curves"]["objective"]]


def stands_still(record: dict[str, Any]) -> bool:
    """Whether the reward is the original's, which never moved."""
    return abs(record["evaluation"]["reward_difference"]["value"]) <= readings.STILL


def angles(record: dict[str, Any]) -> list[float | None]:
    """The median angle over the blocks of each iteration; None where no block has one."""
    size = max(1, len(record["omega"]) // len(record["cosine"]))
    known = [[one for one in part if one is not None] for part in chunks(record["omega"], size)]
    return [median(part) if part else None for part in known]


def same_angle(one: float | None, other: float | None) -> bool:
    """An unknown angle (of a zero task vector) is no angle."""
    return one is other if one is None or other is None else abs(one - other) <= ANGLE


def same_kl(again: dict[str, Any], kept: dict[str, Any], scoring: str) -> bool:
    """Whether the larger of the two KLs is the same within its factor, or lost in rounding in both."""
    low, high = sorted(readings.kl(record, scoring) for record in (again, kept))
    lr = kept["changes"].get("lr", ROWS[kept["experiment"]].settings["lr"])
    return high <= KL_ROUNDING or high <= (KL_FACTOR_OF_3 if lr >= CHAOTIC else KL_FACTOR) * low


def first_iteration(record: dict[str, Any]) -> dict[str, list[list[float]]]:
    """The curves of the runs that begin at θ_sft."""
    count = len(record["curves"]["objective"]) // record["changes"].get("I", 2)
    return {name: runs[:count] for name, runs in record["curves"].items()}


TABLE = read_table().cells
TRAININGS = [cell for cell in cells() if isinstance(cell, Cell) and cell.name in TABLE]


def test_the_committed_table_holds_cells_and_nothing_else() -> None:
    assert list(TABLE) == [cell.name for cell in cells() if cell.name in TABLE] and len(TABLE) > 100
    assert len(missing(TABLE)) == len(cells()) - len(TABLE)
    records = [TABLE[cell.name] for cell in TRAININGS]
    assert all(len(one["delta_norms"]) == len(one["unmoved"]) == len(steps_of(one)) > 0 for one in records)


def test_a_record_departs_in_nothing_from_itself() -> None:
    assert {cell.name: departures(TABLE[cell.name], TABLE[cell.name]) for cell in TRAININGS} == {
        cell.name: set() for cell in TRAININGS
    }


def test_the_tolerances_hold_between_the_seeds_of_the_table() -> None:
    """Another seed samples other tokens, as another arithmetic does; it has other prompts, too."""
    seeds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in TRAININGS:
        seeds[replace(cell, seed=0).name].append(TABLE[cell.name])
    pairs = [(name, one, other) for name, group in seeds.items() for one, other in combinations(group, 2)]
    assert len(pairs) >= 90
    assert {name for name, one, other in pairs if departures(one, other, same_prompts=False)} == set()


@pytest.mark.parametrize(
    ("sound", "faulty", "told"),
    [
        pytest.param(Cell(1), Cell(1, changes=(("warmup_steps", 5),)), {"norms", "moved"}, id="warm-up"),
        pytest.param(Cell(1), Cell(1, faults=("never-stepped",)), {"norms", "moved", "unmoved"}, id="never stepped"),
        pytest.param(Cell(1), Cell(2), {"norms", "moved", "kl"}, id="no warm-up"),
        pytest.param(Cell(4), Cell(4, faults=ONE_SEED), {"equal-runs", "failed"}, id="one seed"),
        pytest.param(Cell(2), Cell(2, faults=("one-model",)), {"angles", "failed"}, id="one model"),
        pytest.param(Cell(2), Cell(2, faults=("greedy",)), {"equal-runs", "angles"}, id="greedy"),
        pytest.param(Cell(4), Cell(4, "collapsed"), {"reward", "failed", "still"}, id="collapsed reward"),
        pytest.param(
            drift("sound", 1e-4, "none", 0), drift("constant", 1e-4, "none", 0), {"reward", "still"}, id="constant"
        ),
        pytest.param(
            drift("constant", 1e-4, "none", 0), drift("constant", 1e-4, "mean", 0), {"norms", "kl"}, id="baseline"
        ),
        *(
            pytest.param(
                drift("sound", low, "none", 0), drift("sound", high, "none", 0), {"norms", "moved", "kl"}, id="ten lr"
            )
            for low, high in pairwise(DRIFT_LR[1:])
        ),
    ],
)
def test_a_fault_departs(sound: Cell, faulty: Cell, told: set[str]) -> None:
    names = [[replace(cell, seed=seed).name for cell in (sound, faulty)] for seed in SEEDS]
    seen = [[TABLE[one], TABLE[other]] for one, other in names if one in TABLE and other in TABLE]
    if not seen:
        pytest.skip("the table lacks these cells")
    for kept, again in seen:
        assert told <= departures(again, kept)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"moved": 1.12}, ["moved"]),
        ({"delta_norms": 1.12}, ["norms"]),
        ({"delta_norms": 0.88}, ["norms"]),
        ({"unmoved": 0.02}, ["unmoved"]),
        ({"omega": 20.0}, ["angles"]),
        ({"kl": 3.5}, ["kl"]),
        ({"kl": 0.25}, ["kl"]),
        ({"kl": 0.0}, ["kl"]),
        ({"penalty": 1e-6}, ["before-update", "bits"]),
        ({"reward_reference": 0.1}, ["reward"]),
        ({"perplexity_reference": 4.0}, ["perplexity"]),
        ({"objective": 1e-7}, ["bits"]),
    ],
    ids=str,
)
def test_a_figure_beyond_its_tolerance_departs_alone(change: dict[str, float], told: list[str]) -> None:
    kept = TABLE[Cell(4).name]
    kept = kept | {"curves": kept["curves"] | {"surrogate": kept["curves"]["objective"]}}
    again = json.loads(json.dumps(kept))
    ((name, by),) = change.items()
    if name in ("moved", "delta_norms"):
        again[name] = [value * by for value in kept[name]] if name == "delta_norms" else kept[name] * by
    elif name in ("unmoved", "omega"):
        again[name] = [value + by for value in kept[name]]
    elif name == "kl":
        again["kl"]["float32"] = {side: value * by for side, value in kept["kl"]["float32"].items()}
    elif name in kept["evaluation"]:
        again["evaluation"][name]["value"] += by
    else:
        again["curves"][name][0][0] += by
    assert departures(again, kept) == set(told)


@pytest.mark.parametrize("left", [0, 1, 3])
@pytest.mark.parametrize(
    ("name", "told"), [("delta_norms", {"norms"}), ("unmoved", {"unmoved"}), ("omega", {"runs", "angles"})]
)
def test_a_figure_that_is_missing_departs(name: str, told: set[str], left: int) -> None:
    kept = TABLE[Cell(4).name]
    short = kept | {name: kept[name][:left]}
    assert departures(short, kept) == departures(kept, short) == told


# Measured again

DRAWN = 20261128
"""A fixed seed, so that every call with one table measures the same cells."""


def drawn(seed: int = DRAWN) -> list[Cell]:
    """Two cells of `small`, whichever the table has."""
    return random.Random(seed).sample([cell for cell in TRAININGS if cell.task == "small"], 2)


def test_the_same_cells_are_drawn_every_time() -> None:
    assert drawn() == drawn() and len({cell.name for cell in drawn()}) == 2 and drawn(DRAWN + 1) != drawn()


@pytest.mark.slow
@pytest.mark.parametrize("cell", drawn(), ids=lambda cell: cell.name)
def test_a_cell_measured_again_departs_in_nothing(cell: Cell) -> None:
    assert departures(measure(cell), TABLE[cell.name]) == set()


def negated(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """The prepared reward with the sign turned."""
    return [-value for value in prepared_task("small").reward(prompts, completions)]


@pytest.mark.slow
def test_a_planted_fault_is_seen_when_a_cell_is_measured_again() -> None:
    cell = at_step_one("none")
    faster = replace(cell, changes=(*cell.changes, ("lr", 1.2 * ROWS[2].settings["lr"])))
    assert departures(measure(faster), TABLE[cell.name]) == {"norms", "moved"}
    turned = measure(cell, load=lambda name: replace(prepared_task(name), reward=negated))
    assert departures(turned, TABLE[cell.name]) == {"reward", "failed"}


@pytest.mark.parametrize("text", ["[]", '{"status": "ok"}', '{"machine": {}, "cells": {"a": 1}}', "[" * 100_000, ""])
def test_a_table_that_is_none_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(DamagedFile, match=r"table\.json is (damaged|no table)"):
        diagnosis.read_table(path)
    assert cli.main(["diagnosis", "--table", str(path)]) == 1
    assert "table.json is " in capsys.readouterr().err and path.read_text() == text


def test_a_tilde_in_the_path_of_a_table_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "table.json").write_text('{"machine": {"cpu": "Z80"}, "cells": {}}')
    assert diagnosis.read_table("~/table.json").machine == {"cpu": "Z80"}
