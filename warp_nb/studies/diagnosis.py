"""The cells of the diagnosis are measured here, and read from the table of their results.

    warp-nb diagnosis                # measure the cells that the table lacks
    warp-nb diagnosis --workers 2    # in two processes, a thread each
    warp-nb diagnosis smollm exp2    # only those whose name has all these words
    warp-nb diagnosis --again        # measure all cells again

The table has the record of a cell (see `cells`) under its name, so an interrupted command resumes where it stopped.
`verdicts` draws the conclusions from the table, also from one that lacks cells.
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
from warp_nb.fast.decoding import sample
from warp_nb.fast.devices import bf16_is_fast
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
from warp_nb.studies.cells import SWEEP_LR, THREADS, Cell, RewardCell, cells
from warp_nb.studies.faults import constant_reward, in_fp16, planted, raw_logit, rounded_to_bf16
from warp_nb.tasks.gate import RewardGate
from warp_nb.tasks.imdb_gate import imdb_gate
from warp_nb.tasks.prepared import load_task
from warp_nb.tasks.reward_model import Recipe, RewardModel, reward_key, train_reward_model
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TABLE = Path("reports") / "diagnosis.json"
"""Where the command writes, relative to the current folder."""
N_EVAL_PROMPTS = 128
SWEEP_PAIRS = 1024
COLLAPSED = Recipe(pairs=SWEEP_PAIRS, lr=SWEEP_LR[-1])
CURVES = ("objective", "reward", "penalty", "kl")
"""Columns of the history; "surrogate", minus the loss, is recorded beside them."""


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
