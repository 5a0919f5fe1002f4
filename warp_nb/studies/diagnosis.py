"""The cells of the diagnosis: controlled trainings with planted faults, and the table of their results.

    warp-nb diagnosis                # measure the cells that the table lacks
    warp-nb diagnosis --workers 2    # in two processes, a thread each
    warp-nb diagnosis smollm exp2    # only those whose name has all these words
    warp-nb diagnosis --again        # measure all cells again

The name of a cell lists everything that is set in it. The table has its record under that name, so an interrupted
command resumes where it stopped. Settings and seeds are fixed here, before any run; `verdicts` draws the conclusions
from the table, also from one that lacks cells.

There are 184 cells: 12 trainings of a reward model, 160 of `small` (48 of them are single runs, 10 have one step a run)
and 12 of `smollm`. Where a fault makes a run deterministic, or its effect is far above the
spread over seeds, a cell has one seed. KL is taken in half precision only where `verdicts` reads it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.merge import weights_of
from warp_nb.algorithm.objective import completion_logits
from warp_nb.config import WarpConfig
from warp_nb.fast.decoding import sample
from warp_nb.fast.devices import bf16_is_fast, training_dtype
from warp_nb.fast.scoring import token_kl
from warp_nb.files import DamagedFile, building, cache_dir, fingerprint, json_values, read_record, write_json
from warp_nb.measure.checks import run_checks
from warp_nb.measure.estimates import mean_interval
from warp_nb.measure.evaluation import MEASURES, Evaluation, evaluate
from warp_nb.measure.machine import machine
from warp_nb.paths import expanded
from warp_nb.runs.facts import displacement
from warp_nb.runs.jobs import process_pool, torch_threads
from warp_nb.runs.training import Parts, derive_seed
from warp_nb.runs.warp import WarpResult, warp
from warp_nb.studies.faults import constant_reward, in_fp16, planted, raw_logit, rounded_to_bf16
from warp_nb.studies.original import ROWS
from warp_nb.tasks.gate import RewardGate
from warp_nb.tasks.imdb_gate import imdb_gate
from warp_nb.tasks.prepared import load_task
from warp_nb.tasks.reward_model import Recipe, RewardModel, reward_key, train_reward_model
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TABLE = Path("reports") / "diagnosis.json"
"""Where the command writes, relative to the current folder."""
SEEDS = (0, 1, 2)
PRECISION_SEEDS = {"small": SEEDS, "smollm": SEEDS[:1]}
"""Seeds of the sound cells whose KL is compared between precisions."""
N_EVAL_PROMPTS = 128
THREADS = 1
SWEEP_LR = (1e-5, 1e-4, 1e-3, 1e-2)
"""Learning rates of RewardTrainer; the project's model is trained with 1e-4."""
SWEEP_PAIRS = 1024
COLLAPSED = Recipe(pairs=SWEEP_PAIRS, lr=SWEEP_LR[-1])
DRIFT_LR = (1e-6, 1e-5, 1e-4, 1e-3)
CURVES = ("objective", "reward", "penalty", "kl")
"""Columns of the history; "surrogate", minus the loss, is recorded beside them."""
LR_OF_4 = (ROWS[4].settings["lr"], 6e-4)
"""Learning rates of experiment 4: the one that we assume, and the one that fits its KL, which grows as lr^1.8."""

Changes = tuple[tuple[str, Any], ...]
ONE_SEED = ("one-seed",)
GREEDY = ("greedy",)
WARM_UPS: dict[str, tuple[tuple[str, ...], Changes]] = {
    "100": ((), ()),
    "5": ((), (("warmup_steps", 5),)),
    "never-stepped": (("never-stepped",), ()),
    "once-a-run": (("once-a-run",), ()),
}
"""Faults and changes for each way in which experiment 1 may have warmed up; we assume "100", of which it runs 10."""
SUSPECTS: dict[str, tuple[str, tuple[str, ...], Changes]] = {
    "none": ("sound", (), ()),
    "collapsed": ("collapsed", (), ()),
    "collapsed-fp16": ("collapsed-fp16", (), ()),
    "never-stepped": ("sound", ("never-stepped",), ()),
    "rebuilt": ("sound", ("rebuilt",), ()),
    "one-seed": ("sound", ONE_SEED, ()),
    "one-model": ("sound", ("one-model",), ()),
    "live-init": ("sound", ("live-init",), ()),
    "bf16-weights": ("sound", ("bf16-weights",), ()),
    "greedy": ("sound", GREEDY, ()),
}
"""Name -> reward, faults and changes of the cell that shows whether a check detects the fault at step 1."""


@dataclass(frozen=True)
class Cell:
    """One training with the settings of an experiment of the original report, and the changes to them.

    Args:
        experiment: number in the original report.
        reward: sound, collapsed (the raw logit), collapsed-fp16 (the same model in fp16) or constant.
        faults: names in `faults.FAULTS`.
        changes: parameters that differ from the experiment's.
        seed: of the training.
        task: small or smollm.
    """

    experiment: int
    reward: str = "sound"
    faults: tuple[str, ...] = ()
    changes: Changes = ()
    seed: int = 0
    task: str = "small"

    @property
    def name(self) -> str:
        """The key in the table: everything that is set, in readable form."""
        changes = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.changes]
        return " ".join([self.task, f"exp{self.experiment}", self.reward, *self.faults, *changes, f"seed={self.seed}"])

    @property
    def in_half_precision(self) -> bool:
        """Whether its KL is also measured in half precision: `verdicts` compares precisions there."""
        if self.experiment > 2 or {name for name, _ in self.changes} - {"warmup_steps"}:
            return False
        return self.task == "smollm" or (
            self.reward == "sound" and not {"one-model", "live-init", *GREEDY} & set(self.faults)
        )

    def config(self, task: Task) -> WarpConfig:
        """Return the parameters of the training."""
        settings = ROWS[self.experiment].settings | dict(self.changes)
        return WarpConfig(
            **settings, batch_size=16, seed=self.seed, threads=THREADS, dtype=training_dtype("auto", task.policy)
        )


@dataclass(frozen=True)
class RewardCell:
    """One training of the reward model by TRL's RewardTrainer."""

    lr: float
    seed: int = 0

    @property
    def name(self) -> str:
        """The key in the table."""
        return f"reward lr={self.lr:g} seed={self.seed}"


@dataclass(frozen=True)
class FitArm:
    """A choice of faults that the fit tries: it needs each experiment of the original, in the variants given here.

    Args:
        reward: as that of a `Cell`.
        faults: names in `faults.FAULTS`, planted in all four experiments.
        warm_ups: names in WARM_UPS, of experiment 1.
        lrs: learning rates of experiment 4.
        seeds: of its cells; at the learning rate that is not the assumed one only the first.
        task: small or smollm.
    """

    reward: str
    faults: tuple[str, ...] = ()
    warm_ups: tuple[str, ...] = ("100",)
    lrs: tuple[float, ...] = LR_OF_4
    seeds: tuple[int, ...] = SEEDS[:1]
    task: str = "small"

    def first(self, warm_up: str) -> list[Cell]:
        """Return the cells of experiment 1, one per seed."""
        faults, changes = WARM_UPS[warm_up]
        return [Cell(1, self.reward, faults + self.faults, changes, seed, self.task) for seed in self.seeds]

    def fourth(self, lr: float) -> list[Cell]:
        """Return the cells of experiment 4."""
        changes, seeds = ((), self.seeds) if lr == LR_OF_4[0] else ((("lr", lr),), self.seeds[:1])
        return [Cell(4, self.reward, self.faults, changes, seed, self.task) for seed in seeds]

    def other(self, number: int) -> list[Cell]:
        """Return the cells of experiment 2 or 3."""
        return [Cell(number, self.reward, self.faults, (), seed, self.task) for seed in self.seeds]

    def cells(self) -> list[Cell]:
        """Return all cells of the arm."""
        parts = [*map(self.first, self.warm_ups), self.other(2), self.other(3), *map(self.fourth, self.lrs)]
        return [cell for part in parts for cell in part]


FIT = (
    FitArm("collapsed", GREEDY, ("100", "never-stepped"), task="smollm"),
    FitArm("collapsed", ONE_SEED, ("never-stepped",), LR_OF_4[1:], task="smollm"),
    FitArm("collapsed", GREEDY, ("100", "5", "never-stepped", "once-a-run")),
    FitArm("collapsed", ONE_SEED, ("100", "5", "never-stepped")),
    FitArm("collapsed", seeds=SEEDS),
    FitArm("collapsed", (*GREEDY, "rebuilt")),
    FitArm("collapsed", (*GREEDY, "live-init")),
    FitArm("collapsed", (*GREEDY, "bf16-weights")),
    FitArm("collapsed-fp16", GREEDY),
    FitArm("sound", GREEDY),
    FitArm("sound", ONE_SEED, ("100", "5", "never-stepped"), seeds=SEEDS),
    FitArm("sound", (), ("100", "5", "never-stepped"), seeds=SEEDS),
)
"""The arms of the fit: the main ones on `smollm`, whose KLs are of the original's size, the others on `small`."""


def cells() -> list[Cell | RewardCell]:
    """Return all cells, in the order in which they are measured."""
    found: list[Cell | RewardCell] = [RewardCell(lr, seed) for lr in SWEEP_LR for seed in SEEDS]
    found += [cell for arm in FIT if arm.task == "small" for cell in arm.cells()]
    found += [Cell(2, "sound", ("one-model",), (), seed) for seed in SEEDS]
    found += [Cell(2, "sound", ONE_SEED, (("M", 1),), seed) for seed in SEEDS]
    found += [Cell(1, "sound", (fault,)) for fault in ("once-a-run", "rebuilt", "bf16-weights")]
    found += [Cell(2, "sound", (fault,)) for fault in ("live-init", "bf16-weights")]
    found += [
        drift(reward, lr, baseline, seed)
        for seed in SEEDS
        for lr in DRIFT_LR
        for reward in ("sound", "constant")
        for baseline in ("none", "mean")
    ]
    found += [at_step_one(name) for name in SUSPECTS]
    found += [Cell(number, seed=seed, task="smollm") for number in (1, 2) for seed in PRECISION_SEEDS["smollm"]]
    return found + [cell for arm in FIT if arm.task == "smollm" for cell in arm.cells()]


def at_step_one(suspect: str) -> Cell:
    """Return the cell of experiment 2 with one iteration and one step per run."""
    reward, faults, changes = SUSPECTS[suspect]
    return Cell(2, reward, faults, (*changes, ("I", 1), ("T", 1)))


def drift(reward: str, lr: float, baseline: str, seed: int) -> Cell:
    """Return the cell of a single run, which shows how far Adam moves with or without a reward to learn."""
    return Cell(2, reward, (), (("I", 1), ("M", 1), ("lr", lr), ("baseline", baseline)), seed)


# Measuring


@cache
def prepared_task(name: str) -> Task:
    """Load the task once."""
    return load_task(name, "cpu")


@cache
def trained_reward(recipe: Recipe) -> RewardModel:
    """Load the embedded reward model of another recipe; it is trained once and cached."""
    recipe = replace(recipe, bf16=bf16_is_fast())
    target = cache_dir() / f"reward-{reward_key(recipe)}"
    with building(target) as folder:
        if folder is not None:
            train_reward_model(folder, recipe=recipe)
    return RewardModel.load(target)


@cache
def gate_of(gate: Callable[[Any], RewardGate], reward: Any) -> RewardGate:
    """Measure the gate of a reward function once."""
    return gate(reward)


def measure(
    cell: Cell | RewardCell, load: Callable[[str], Task] = prepared_task, n_eval_prompts: int = N_EVAL_PROMPTS
) -> dict[str, Any]:
    """Measure a cell and return its record for the table, plain JSON values; `load` loads a task by its name."""
    started = time.perf_counter()
    with torch_threads(THREADS):
        if isinstance(cell, RewardCell):
            gate = imdb_gate(trained_reward(Recipe(pairs=SWEEP_PAIRS, lr=cell.lr, seed=cell.seed)))
            found = {"kind": "reward", "lr": cell.lr, "seed": cell.seed} | vars(gate)
        else:
            found = measure_training(cell, load(cell.task), n_eval_prompts)
    return json_values(found | {"seconds": time.perf_counter() - started})


def measure_training(cell: Cell, task: Task, n_eval_prompts: int) -> dict[str, Any]:
    """Record curves, displacement, geometry, evaluation in fp32, KLs in half precision if needed, failed checks."""
    task = faulty_task(cell, task)
    config, surrogate = cell.config(task), list[float]()
    result = warp(config, task, progress=False, parts=recording(planted(cell.faults), surrogate))
    settings: dict[str, Any] = {
        "n_prompts": n_eval_prompts,
        "seed": derive_seed(cell.seed, "evaluation"),
        "sampling": task.sampling(config.max_new_tokens, config.temperature),
    }
    evaluation = evaluate(result.policy, task.policy, task, **settings)
    tables = [getattr(result, name).assign(seed=cell.seed) for name in ("history", "runs", "merges")]
    gate = gate_of(task.gate, task.reward) if task.gate else None
    checks = run_checks(gate, *tables, evaluations=[evaluation], config=config)
    end = weights_of(result.policy)
    return {
        "kind": "training",
        "experiment": cell.experiment,
        "reward": cell.reward,
        "faults": list(cell.faults),
        "changes": dict(cell.changes),
        "seed": cell.seed,
        "task": cell.task,
        "curves": run_curves(result) | {"surrogate": list(chunks(surrogate, config.T))},
        "delta_norms": result.runs["delta_norm"].tolist(),
        "unmoved": result.runs["unmoved"].tolist(),
        "moved": displacement(weights_of(task.policy), end)["delta_norm"],
        "parameters": task.policy.num_parameters(),
        "omega": result.geometry["omega"].tolist() if len(result.geometry) else [],
        "cosine": result.merges["delta_cosine"].tolist(),
        "policy_sha256": fingerprint(end),
        "evaluation": {name: vars(evaluation.measures()[name]) for name in MEASURES},
        "kl": {"float32": both_kls(evaluation)}
        | (half_precision_kls(result.policy, task, settings) if cell.in_half_precision else {}),
        "failed": [check.name for check in checks if check.failed],
    }


def faulty_task(cell: Cell, task: Task) -> Task:
    """Return the task with the cell's reward, and with θ_sft rounded to bf16 if its weights are kept so."""
    if cell.reward != "sound":
        task = replace(task, reward=reward_of(cell.reward))
    return replace(task, policy=rounded_to_bf16(task.policy)) if "bf16-weights" in cell.faults else task


@cache
def reward_of(name: str) -> Callable[..., list[float]]:
    """Return the reward function of a cell that has not the task's own."""
    if name == "constant":
        return constant_reward
    collapsed = raw_logit(trained_reward(COLLAPSED))
    return in_fp16(collapsed) if name == "collapsed-fp16" else collapsed


def recording(parts: Parts, surrogate: list[float]) -> Parts:
    """Append minus the loss of every step, the mean of r_β·log π, to `surrogate`."""

    def recorded(*args: Any) -> torch.Tensor:
        loss = parts.reinforce_loss(*args)
        surrogate.append(-loss.item())
        return loss

    return replace(parts, reinforce_loss=recorded)


def chunks(values: list[float], size: int) -> Iterator[list[float]]:
    """Yield consecutive lists of `size` values."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def run_curves(result: WarpResult) -> dict[str, list[list[float]]]:
    """Return for each column of CURVES one list per run, in the order (iteration, run)."""
    runs = [rows for _, rows in result.history.groupby(["iteration", "run"])]
    return {column: [rows.sort_values("step")[column].tolist() for rows in runs] for column in CURVES}


def both_kls(evaluation: Evaluation) -> dict[str, float]:
    """Return KL(sft || policy) and KL(policy || sft), nats per sequence."""
    return {name: getattr(evaluation, name).value for name in ("kl_reference_policy", "kl_policy_reference")}


@torch.no_grad()
def half_precision_kls(policy: PreTrainedModel, task: Task, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure both KLs again, as code that scores in half precision would.

    bfloat16: weights and activations of both models. mixed: of θ_sft only, as if the reference were loaded in half
    precision and the policy in fp32. The softmax is always in fp32.
    """
    prompts, sampling = task.eval_prompts[: settings["n_prompts"]], settings["sampling"]
    low = {"reference": copy.deepcopy(task.policy).bfloat16(), "policy": copy.deepcopy(policy).bfloat16()}
    sides = {"bfloat16": low, "mixed": low | {"policy": policy}}
    found: dict[str, dict[str, float]] = {}
    for name, models in sides.items():
        found[name] = {}
        for one, other in (("reference", "policy"), ("policy", "reference")):
            noise, sums = torch.Generator().manual_seed(settings["seed"]), []
            for start in range(0, len(prompts), 32):
                given = task.encode(prompts[start : start + 32], sampling)
                drawn = sample(models[one], *given, sampling, generator=noise)
                p, q = (completion_logits(models[side], drawn).float() for side in (one, other))
                sums += token_kl(p, q, drawn.completion_mask, drawn.temperature).sum(1).tolist()
            found[name][f"kl_{one}_{other}"] = mean_interval(sums).value
    return found


# The table


@dataclass
class CellTable:
    """Results of the cells: `cells` maps the name of a cell to its record; `machine` is what the last one ran on."""

    machine: dict[str, Any]
    cells: dict[str, dict[str, Any]]


def read_table(path: str | Path = "") -> CellTable:
    """Read the table in a file, empty if there is no file; without a path, the table that the package ships."""
    if not path:
        path = Path(str(files("warp_nb.studies") / "diagnosis.json"))
    path = expanded(path)
    try:
        found = read_record(path)
    except FileNotFoundError:
        return CellTable(machine(), {})
    parts = [found.get("machine"), found.get("cells")]
    if not all(isinstance(one, dict) for one in (*parts, *(parts[1] or {}).values())):
        raise DamagedFile(f"{path} is no table of the diagnosis (it lacks machine or cells); delete it or name another")
    return CellTable(found["machine"], found["cells"])


def missing(table: dict[str, dict[str, Any]]) -> list[Cell | RewardCell]:
    """Return the cells that the records of a table lack."""
    return [cell for cell in cells() if cell.name not in table]


def fill(
    path: Path,
    wanted: Sequence[Cell | RewardCell],
    *,
    again: bool = False,
    workers: int = 1,
    measure: Callable[[Cell | RewardCell], dict[str, Any]] = measure,
) -> None:
    """Measure the cells that the table lacks (all of them with `again`); each is written as soon as it is measured."""
    table = read_table(path)
    due = [cell for cell in wanted if again or cell.name not in table.cells]
    started = time.perf_counter()
    for place, (cell, record) in enumerate(as_ready(due, workers, measure), start=1):
        table.cells[cell.name] = record
        write_json(path, {"machine": machine(), "cells": ordered(table.cells)})
        left = (time.perf_counter() - started) / place * (len(due) - place)
        print(f"[{place}/{len(due)}] {cell.name}: about {left / 60:.0f} min left", flush=True)


def as_ready(
    due: Sequence[Cell | RewardCell], workers: int, measure: Callable[[Cell | RewardCell], dict[str, Any]]
) -> Iterator[tuple[Cell | RewardCell, dict[str, Any]]]:
    """Yield each cell with its record: one after another here, or as they are ready from `workers` processes."""
    if workers == 1:
        for cell in due:
            yield cell, measure(cell)
        return
    with process_pool(workers) as pool:
        futures = {pool.submit(measure, cell): cell for cell in due}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ordered(found: dict[str, Any]) -> dict[str, Any]:
    """Sort records in the order of `cells`, so that a table filled in parts is the same file."""
    names: Iterable[str] = [cell.name for cell in cells()]
    return {name: found[name] for name in names if name in found}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure cells of the diagnosis."""
    parser = argparse.ArgumentParser(prog="warp-nb diagnosis", description=main.__doc__)
    parser.add_argument("words", nargs="*", help="measure only cells whose name holds all of them")
    told = f"JSON file that is read and written ({TABLE}); a new one begins with what the package ships"
    parser.add_argument("--table", type=expanded, default=TABLE, help=told)
    parser.add_argument("--again", action="store_true", help="measure also what the table has")
    parser.add_argument("--workers", type=int, default=1, help="processes that measure, a thread each (1)")
    chosen = parser.parse_args(argv)
    if chosen.workers < 1:
        parser.error(f"--workers must be at least 1, got {chosen.workers}")
    wanted = [cell for cell in cells() if set(chosen.words) <= set(cell.name.split())]
    if not wanted:
        print(f"no cell is named by {' '.join(chosen.words)}", file=sys.stderr)
        return 1
    chosen.table.parent.mkdir(parents=True, exist_ok=True)
    if not chosen.table.exists():
        write_json(chosen.table, vars(read_table()))
    fill(chosen.table, wanted, again=chosen.again, workers=chosen.workers)
    print(f"the report of this table: warp-nb report diagnosis -p table_file {chosen.table.absolute()}")
    return 0
