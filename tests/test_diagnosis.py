"""The diagnosis: faults are planted as named, verdicts follow from the table, the table can be made again."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
import tiny

from warp_nb.config import WarpConfig
from warp_nb.fast import rollout
from warp_nb.notebook import diagnosis_cells as diagnosis_page
from warp_nb.runs import policy_gradient
from warp_nb.runs.warping import warp
from warp_nb.runs.weights import fingerprint
from warp_nb.studies import diagnosis, verdicts
from warp_nb.studies.diagnosis import SEEDS, SWEEP_LR, Cell, RewardCell, cells, measure, read_table
from warp_nb.studies.experiment import machine
from warp_nb.studies.faults import FAULTS, constant_reward, planted

CONFIG = WarpConfig(I=1, T=2, lr=1e-2, warmup_steps=0, batch_size=4, max_new_tokens=4, threads=1)


def trained(*names: str, **changes: Any) -> Any:
    with planted(names):
        return warp(CONFIG.replace(**changes), tiny.task(), progress=False)


# Faults


def test_a_scheduler_never_stepped_leaves_every_weight() -> None:
    found = trained("never-stepped")
    assert fingerprint(found.policy.state_dict()) == fingerprint(tiny.task().policy.state_dict())
    assert (found.runs.unmoved == 1).all() and (found.history.lr == 0).all()


def test_one_model_is_merged_with_itself() -> None:
    found = trained("one-model")
    assert found.geometry.omega.abs().max() < 0.1 and found.merges.delta_cosine.min() > 0.9999


def test_greedy_runs_in_order_are_one_run() -> None:
    first, second = (rows.drop(columns=["run", "seconds"]).to_numpy().tolist()
                     for _, rows in trained("greedy").history.groupby("run"))  # fmt: skip
    assert first == second


def test_faults_end_with_the_block() -> None:
    before = rollout._draw, policy_gradient.prompt_batches, policy_gradient.learning_rate
    with pytest.raises(KeyError), planted(FAULTS):
        assert policy_gradient.learning_rate(CONFIG, 1) == 0 and rollout._draw is not before[0]
        raise KeyError
    assert before == (rollout._draw, policy_gradient.prompt_batches, policy_gradient.learning_rate)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fault gremlin; choose from never-stepped"), planted(["gremlin"]):
        pass


# Cells and their table


def test_names_are_unique_and_tell_everything() -> None:
    every = cells()
    names = [cell.name for cell in every]
    assert len(set(names)) == len(names) > 100
    assert Cell(2, "constant", ("greedy",), (("lr", 1e-3), ("M", 1)), 2).name == (
        "small exp2 constant greedy lr=0.001 M=1 seed=2"
    )


def test_an_interrupted_table_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fake(cell: Any) -> dict[str, Any]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(cell.name)
        return {"seconds": 1.0}

    monkeypatch.setattr(diagnosis, "measure", fake)
    wanted, path = cells()[:4], tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        diagnosis.fill(path, wanted)
    kept, made[:] = list(made), []
    diagnosis.fill(path, wanted[::-1][:2])
    assert kept == [cell.name for cell in wanted[:2]] and sorted(made) == sorted(cell.name for cell in wanted[2:])
    assert list(read_table(path)["cells"]) == [cell.name for cell in wanted]


def test_words_that_name_no_cell_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnosis.main(["exp9"]) == 1 and "no cell is named by exp9" in capsys.readouterr().err


def test_a_cell_measures_what_the_verdicts_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_planted_faults import PAIRS

    monkeypatch.setattr(diagnosis, "load_cell_task", lambda name: tiny.task())
    monkeypatch.setattr(diagnosis, "gate_pairs", lambda: PAIRS)
    monkeypatch.setattr(diagnosis, "N_EVAL_PROMPTS", 8)
    diagnosis.gate_of.cache_clear()
    monkeypatch.setattr(Cell, "config", lambda cell, task: CONFIG.replace(**{"lr": 1e-5} | dict(cell.changes)))
    found = measure(Cell(2, "constant"))
    assert json.loads(json.dumps(found)) == found
    assert set(found["kl"]) == {"float32", "bfloat16", "mixed"} and len(found["curves"]["kl"]) == 2
    assert found["evaluation"]["reward_difference"]["value"] == 0 and "reward-gate-spread" in found["failed"]
    assert 0 < verdicts.kl(found) < verdicts.kl(found, "mixed")
    assert set(measure(diagnosis.drift("constant", 1e-2, "none", 0))["kl"]) == {"float32"}


def test_the_constant_reward_is_constant() -> None:
    assert constant_reward(["a", "b"], ["c", "d"]) == [0.0438, 0.0438]


# Verdicts


def record(reward: float = 0.5, kl: float = 1.0, curves: Any = None, **more: Any) -> dict[str, Any]:
    """A cell that was never measured: sound by default."""
    estimate = {"value": reward, "low": reward - 0.1, "high": reward + 0.1}
    measures = dict.fromkeys(("reward_reference", "reward_policy", "reward_difference"), estimate)
    both = {"kl_reference_policy": kl, "kl_policy_reference": kl}
    steps = [[0.1 * run + step for step in range(10)] for run in range(4)]
    return {
        "evaluation": measures,
        "kl": dict.fromkeys(("float32", "bfloat16", "mixed"), both),
        "curves": dict.fromkeys(("objective", "reward", "penalty", "kl"), curves or steps),
        "omega": [80.0],
        "unmoved": [0.1],
        "delta_norms": [1.0],
        "moved": 1.0,
        "parameters": 100,
        "policy_sha256": "a",
        "seed": 0,
        "failed": [],
        "seconds": 1.0,
    } | more


def healthy() -> dict[str, Any]:
    """A table in which nothing is at fault anywhere."""
    kls = {1: 1e-8, 2: 1e-5, 3: 9.0, 4: 0.1}
    table: dict[str, Any] = {}
    for cell in cells():
        if isinstance(cell, RewardCell):
            table[cell.name] = {"spread": 1.0, "pair_accuracy": 0.8, "seconds": 1.0}
        else:
            table[cell.name] = record(kl=kls[cell.experiment], seed=cell.seed)
            if cell.experiment == 1:
                table[cell.name]["kl"]["bfloat16"] = {"kl_reference_policy": 2e-3, "kl_policy_reference": 2e-3}
    return table


def test_where_nothing_is_at_fault_nothing_is_explained_but_the_noise() -> None:
    found = {verdict.name: verdict.verdict for verdict in verdicts.verdicts(healthy())}
    explained = {name for name, verdict in found.items() if verdict != verdicts.INSUFFICIENT}
    assert explained == {"шум шагов Adam, без базовой линии", "шум шагов Adam, с вычитанием среднего"}


def test_a_collapsed_reward_explains_when_every_seed_agrees() -> None:
    table = healthy()
    for seed in SEEDS[:2]:
        for number in (1, 2, 3, 4):
            table[Cell(number, "collapsed", seed=seed).name]["evaluation"]["reward_difference"] = {"value": 1e-6}
    assert verdicts.collapsed_reward(table).verdict == verdicts.UNDECIDED
    for number in (1, 2, 3, 4):
        table[Cell(number, "collapsed", seed=2).name]["evaluation"]["reward_difference"] = {"value": -1e-6}
    assert verdicts.collapsed_reward(table).verdict == verdicts.SUFFICIENT
    table[Cell(3, "collapsed", seed=0).name]["kl"] = {"float32": {"kl_policy_reference": 0.5}}
    assert verdicts.collapsed_reward(table).verdict == verdicts.UNDECIDED


def test_equal_runs_are_equal_to_the_bit_and_have_no_angle() -> None:
    table, one = healthy(), [[0.1, 0.2, 0.3]] * 4
    names = [Cell(2, changes=diagnosis.ONE_SEED, seed=seed).name for seed in SEEDS]
    for name in names:
        table[name] = record(curves=one, omega=[0.0, None])
    found = {verdict.name: verdict for verdict in verdicts.equal_runs(table)}
    assert found["один сид на все прогоны"].verdict == verdicts.SUFFICIENT
    assert "совпали до бита" in found["один сид на все прогоны"].measured
    assert found["независимые прогоны"].verdict == verdicts.INSUFFICIENT
    assert "различны с шага 1" in found["независимые прогоны"].measured
    table[names[0]] = record(curves=one, omega=[5.0])
    assert verdicts.equal_runs(table)[1].verdict == verdicts.UNDECIDED


def test_the_best_combination_is_the_one_with_most_traits() -> None:
    table = healthy()
    for seed in SEEDS:
        wanted = {
            1: (*diagnosis.WARM_UPS["never-stepped"], 0.0),
            2: ((), (), 0.02),
            3: ((), (), 100.0),
            4: ((), (), 30.0),
        }
        for number, (faults, changes, kl) in wanted.items():
            name = Cell(number, "collapsed", faults, changes + diagnosis.ONE_SEED, seed).name
            table[name] = record(reward=0.0, kl=kl, curves=[[0.1, 0.2]] * 4)
    tried = verdicts.combinations_tried(table)
    best = tried[0]
    assert len(tried) == 2 * 2 * 3 * 3
    assert (best.reward, best.seeds, best.warm_up, best.matched) == ("collapsed", "one", "never-stepped", 7)
    assert len(best.traits) == 7 and tried[-1].matched < 7
    said = diagnosis_page.best_text(table)
    assert "Перебрано 36 сочетаний" in said and "7 из 7" in said and "ещё 2" in said


def test_the_conclusion_names_causes_by_their_verdicts() -> None:
    table, nothing = healthy(), "постоянную награду не поднимет никакой lr"
    said = "\n".join(diagnosis_page.conclude(table))
    assert "**Награда не движется, хотя KL растёт.** Недостаточно: схлопнувшаяся модель награды." in said
    assert nothing not in said and "показала бы и в эксперименте 1" not in said
    for seed in SEEDS:
        for number in (1, 2, 3, 4):
            table[Cell(number, "collapsed", seed=seed).name]["evaluation"]["reward_difference"] = {"value": 1e-6}
    said = "\n".join(diagnosis_page.conclude(table))
    assert "Достаточно: схлопнувшаяся модель награды." in said and nothing in said


@pytest.mark.parametrize(("first", "said"), [(0.03, "не ноль, а 0,03"), (0.0, "")])
def test_an_arithmetic_that_makes_the_kl_of_experiment_2_makes_that_of_experiment_1_too(
    first: float, said: str
) -> None:
    table = healthy()
    for number, kl in ((1, first), (2, 0.025)):
        for seed in SEEDS:
            table[Cell(number, seed=seed).name]["kl"] = {
                "float32": {"a": 0.0},
                "bfloat16": {"a": kl},
                "mixed": {"a": kl},
            }
    found = diagnosis_page.rounding_beside_zero(table)
    assert said in found and bool(found) == bool(said) and "только такой прогрев" not in found
    for seed in SEEDS:
        faults, changes = diagnosis.WARM_UPS["never-stepped"]
        table[Cell(1, "sound", faults, changes, seed).name] = record(kl=0.0, unmoved=[1.0])
    named = (
        "только такой прогрев: планировщик начинает с lr = 0 и не вызывается."
        in diagnosis_page.rounding_beside_zero(table)
    )
    assert named == bool(said)


FIGURES = (diagnosis_page.sweep, diagnosis_page.twin_curves, diagnosis_page.drift_figure, diagnosis_page.split_figure)


def test_the_page_is_made_of_any_table() -> None:
    table = healthy()
    for figure in FIGURES:
        assert figure(table).axes
    shown = diagnosis_page.verdict_table(verdicts.verdicts(table)).data
    assert shown.count("<tr>") == len(verdicts.verdicts(table)) and "недостаточно" in shown
    assert diagnosis_page.final_rows(table).data.count("<tr>") == 12
    assert "ни одна" in diagnosis_page.step_one(table).data
    assert diagnosis_page.gate_table(table).data.count("<tr>") == len(SWEEP_LR)
    assert diagnosis_page.displacement_table(table).data.count("<tr>") == 4
    assert diagnosis_page.precision_table(table).data.count("<tr>") == 4


def test_what_the_reports_take_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "diagnosis.result.json"
    diagnosis_page.save({"cells": healthy(), "machine": machine()}, "")
    diagnosis_page.save({"cells": healthy(), "machine": machine()}, str(path))
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["status"] == "ok" and len(kept["verdicts"]) == len(verdicts.verdicts(healthy()))
    assert kept["rows"]["original"]["exp2"]["kl_reference_policy"] == 0.02546 and kept["tried"] == 36


# The committed table


def test_the_committed_notebook_says_what_the_table_does() -> None:
    shown = [
        cell.get("outputs", []) for cell in nbformat.read(diagnosis.ROOT / "notebooks" / "diagnosis.ipynb", 4).cells
    ]
    texts = [o.get("text", "") or o.data.get("text/markdown", "") for outputs in shown for o in outputs]
    cells = read_table()["cells"]
    assert diagnosis_page.conclusion(cells).data in texts, "make notebooks"
    assert f"{diagnosis_page.best_text(cells)}\n" in texts, "make notebooks"


def test_the_committed_table_is_whole() -> None:
    assert list(read_table()["cells"]) == [cell.name for cell in cells()]


def test_a_single_run_has_no_pair() -> None:
    alone = {"curves": {"objective": [[1.0, 2.0]], "reward": [[1.0, 2.0]]}}
    assert verdicts.pairs(alone) == [] and verdicts.same_curves(alone)
    assert verdicts.pairs({"curves": {"objective": [[1.0]] * 4}}) == [(0, 1), (2, 3)]


def chosen(commit: str, count: int = 2) -> list[Any]:
    """Cells of small that the commit's hash draws."""
    quick = [cell for cell in cells() if isinstance(cell, Cell) and cell.task == "small"]
    return random.Random(hashlib.sha256(commit.encode()).hexdigest()).sample(quick, count)


ARITHMETIC = ("reward_reference", "perplexity_reference")
"""Of θ_sft, which no cell trains: equal to the bit where the processor rounds as the table's did."""


@pytest.mark.slow
def test_two_cells_of_the_table_are_measured_again() -> None:
    """Drawn by the commit: to the bit where the arithmetic is the table's, elsewhere to what a verdict reads."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=diagnosis.ROOT, capture_output=True, text=True).stdout
    table = read_table()
    for cell in chosen(commit):
        kept, again = table["cells"][cell.name], measure(cell)
        same = all(again["evaluation"][name] == kept["evaluation"][name] for name in ARITHMETIC)
        print(f"{cell.name}: {'to the bit' if same else 'to what a verdict reads'}")
        if same:
            assert again["policy_sha256"] == kept["policy_sha256"] and again["curves"] == kept["curves"]
            assert again["kl"] == kept["kl"] and again["evaluation"] == kept["evaluation"]
        assert verdicts.kl(again) == pytest.approx(verdicts.kl(kept), rel=2.0, abs=1e-6)
        assert verdicts.same_curves(again) == verdicts.same_curves(kept)
        change, before = (one["evaluation"]["reward_difference"]["value"] for one in (again, kept))
        assert (abs(change) <= verdicts.CONSTANT) == (abs(before) <= verdicts.CONSTANT)
