"""The banner of an experiment: what will run, where and for how long. It is shown before anything is trained or drawn,
so nothing here imports matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from IPython.display import HTML

from warp_nb.config import ExperimentConfig
from warp_nb.fast.capture import why_eager
from warp_nb.fast.devices import arithmetic, training_dtype
from warp_nb.measure.machine import machine
from warp_nb.notebook.prose import filled
from warp_nb.notebook.tables import TABLE_WORDS, table
from warp_nb.studies.records import TimedRecord, fault_of
from warp_nb.studies.result_files import OK, read_result, reports_of
from warp_nb.tasks.prepared import LOADERS, resolve
from warp_nb.tasks.task import Task, describe

LENGTHS = ("batch_size", "max_new_tokens", "n_eval_prompts")
"""Parameters on which the duration of a step and of the evaluation depends."""


def banner(config: ExperimentConfig, task: Task, steps: int = 0) -> HTML:
    """Show the task and why, device, versions and cost as a table; `steps` replaces n_seeds * I * M * T."""
    steps = steps or config.n_seeds * config.I * config.M * config.T
    dtype = training_dtype(config.dtype, task.policy)
    with arithmetic(dtype, task.policy.device):
        eager = why_eager(task.policy)
    facts = {
        "about": describe(task),
        "why": reason(config, task),
        "device": task.policy.device,
        "machine": machine(),
        "dtype": dtype,
        "eager": eager,
        "config": config,
        "steps": steps,
        "time": None if config.own else time_elsewhere(config, task.name, steps),
    }
    rows = {name: filled(value, facts) for name, value in TABLE_WORDS["banner"].items()}
    return table([{"Что": name, "Значение": value} for name, value in rows.items() if value])


def reason(config: ExperimentConfig, task: Task) -> str:
    """Return why `config` has this task: `policy` or `function` for a user's, for a prepared one see `resolve`.

    Of a prepared one that was loaded by another name it is `other`, of a task that was made without `config` empty.
    """
    if config.own:
        return "policy" if config.policy else "function"
    if task.name not in LOADERS:
        return ""
    name, _, why = resolve(config.task, config.device)
    return why if name == task.name else "other"


def time_elsewhere(
    config: ExperimentConfig, task: str, steps: int, near: Path | None = None
) -> tuple[float, str] | None:
    """Estimate the duration from a result with this task and text length: (seconds, processor); None without one.

    It searches the folder `reports` in `near` (default: the current folder) and in the folders above it.
    """
    start = (near or Path.cwd()).absolute()
    folders = [reports_of(task, folder / "reports") for folder in (start, *start.parents)]
    for found in map(read_result, (path for folder in folders for path in sorted(folder.glob("exp*.result.json")))):
        if found["status"] != OK or fault_of(TimedRecord, found):
            continue
        theirs = found["config"]
        if all(theirs.get(key) == getattr(config, key) for key in LENGTHS):
            taken = [row["seconds"] for row in found["history"]]
            beside = max(0.0, found["seconds"] - sum(taken)) / theirs["n_seeds"]
            where = found["machine"]["gpu"] or found["machine"]["cpu"]
            return steps * median(taken) + config.n_seeds * beside, where
    return None
