"""What the report command was asked for, checked as a whole before anything is run, removed or replaced."""

from __future__ import annotations

import ast
import tempfile
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from warp_nb.config import ExperimentConfig, say_unknown, shortened
from warp_nb.fast.devices import choose_device
from warp_nb.studies.result_files import MAIN_TASK, reports_of
from warp_nb.tasks.prepared import resolve

REPORTS = Path("reports")
"""Where reports are by default, relative to the current folder."""
SEEDS_BY_TASK = {"small": 3}
"""Trainings per experiment of a named task; one for other tasks, and for `auto`."""
INSTEAD = {
    "task": "pass --task",
    "n_seeds": "pass --seeds",
    "out_dir": "leave it out: the runs of an interrupted report stay in .runs beside it, and the same command resumes",
    "result_file": "pass --out, the folder of the reports",
}
"""Parameters that the command sets itself -> what to do instead of giving them with -p."""
OWN = ("policy", "reward", "prompts")
"""Parameters of a task of one's own, which has no report: its folder would be that of a prepared task."""


def task_of(chosen: Namespace) -> tuple[str, str]:
    """Return the task of the reports and why `auto` means it; a named task, or one that decides nothing, has no reason.

    With a GPU `auto` is MAIN_TASK and never `gpt2`, so that the reports of all GPUs are of one task, with a hub or
    without. On a CPU it is `small`. Reports that all tasks share lie in the folder of MAIN_TASK.

    Raises:
        ValueError: `-p device` names no device of this machine.
    """
    if chosen.task != "auto":
        return chosen.task, ""
    if all(one.once for one in chosen.experiments):
        return MAIN_TASK, ""
    device = choose_device(dict(chosen.parameters).get("device", ""))
    return ("small", "this runs on a CPU") if device == "cpu" else (MAIN_TASK, f"this runs on a GPU, {device}")


def mode_of(chosen: Namespace) -> str:
    """Return the option that replaces running; empty if notebooks are run."""
    return next((f"--{name}" for name in ("render", "readme", "pdf") if getattr(chosen, name)), "")


def check_options(chosen: Namespace) -> None:
    """Check the options against each other.

    Raises:
        ValueError: an option has no effect beside another one, or its value is out of range.
    """
    mode = mode_of(chosen)
    if mode:
        given = {"-p": chosen.parameters, "--seeds": chosen.seeds, "--timeout": chosen.timeout is not None}
        without_effect = [option for option, value in given.items() if value]
        if without_effect:
            raise ValueError(f"{mode} runs nothing, so {', '.join(without_effect)} would have no effect; leave it out")
        folder = reports_of(chosen.task, chosen.out) if chosen.render else chosen.out
        nothing_yet = chosen.readme and chosen.out == REPORTS and not folder.exists()
        if not (folder.is_dir() or nothing_yet):
            raise ValueError(f"{mode} reads the reports in {str(folder)!r}, which is no folder; pass --out or --task")
    if chosen.seeds < 0:
        raise ValueError(f"--seeds must be at least 1, got {chosen.seeds}; or leave it out")
    if chosen.timeout is not None and chosen.timeout < 1:
        raise ValueError(f"--timeout must be at least 1 second, got {chosen.timeout}; or leave it out: no limit")


def notebook_parameters(chosen: Namespace) -> dict[str, dict[str, Any]]:
    """Return the parameters that each chosen experiment's notebook is run with, by the experiment's name.

    Raises:
        ValueError: a notebook is missing, the task is unknown, a parameter is not the notebook's, is given twice or is
            set by the command, a value is invalid, or the folder of the reports cannot be written.
    """
    paths = {one.name: chosen.notebooks / f"{one.name}.ipynb" for one in chosen.experiments}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise ValueError(f"no such notebook: {', '.join(missing)}; pass --notebooks with the folder that holds them")
    resolve(chosen.task)
    if chosen.seeds and all(one.once for one in chosen.experiments):
        raise ValueError(f"--seeds {chosen.seeds} would have no effect on {', '.join(paths)}; leave it out")
    given = read_values(chosen.parameters)
    seeds = chosen.seeds or (1 if chosen.why else SEEDS_BY_TASK.get(chosen.task, 1))
    found: dict[str, dict[str, Any]] = {}
    for one in chosen.experiments:
        ours = {} if one.once else {"task": chosen.task, "n_seeds": seeds}
        found[one.name] = ours | given
        try:
            check_values(stated_in(paths[one.name]), found[one.name])
        except ValueError as wrong:
            raise ValueError(f"{one.name}: {wrong}") from None
    make_writable(reports_of(chosen.task, chosen.out))
    return found


def read_values(pairs: list[list[str]]) -> dict[str, Any]:
    """Read the values of -p as papermill's command line does.

    Raises:
        ValueError: a parameter is given twice, the command sets it itself, or it is of a task of one's own.
    """
    from papermill.cli import _resolve_type

    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in INSTEAD:
            raise ValueError(f"-p {name} {value} refused: the command sets {name} itself; {INSTEAD[name]}")
        if name in OWN:
            raise ValueError(
                f"-p {name} {value} refused: a report is of a prepared task; for your own run "
                f"papermill notebooks/exp.ipynb out.ipynb -p policy DIR -p reward module:function -p prompts FILE"
            )
        if name in given:
            raise ValueError(f"-p {name} is given twice, {given[name]} and {value}; pass it once")
        given[name] = _resolve_type(value)
    return given


def stated_in(notebook: Path) -> dict[str, Any]:
    """Return the parameters of a notebook's parameters cell with their defaults; None where one is no literal."""
    import papermill

    found: dict[str, Any] = {}
    for name, about in papermill.inspect_notebook(str(notebook)).items():
        found[name] = None
        with suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(about["default"])
    return found


def check_values(stated: dict[str, Any], given: dict[str, Any]) -> None:
    """Check the given parameters against those that a notebook states, as its own cells would do later.

    Raises:
        ValueError: a name is unknown or a value is invalid.
    """
    fields = set(ExperimentConfig.model_fields)
    known = list(dict.fromkeys([*stated, *(ExperimentConfig.model_fields if fields & stated.keys() else ())]))
    unknown = [name for name in given if name not in known and name not in ("task", "n_seeds")]
    if unknown:
        raise ValueError(say_unknown(unknown, known))
    values = {name: value for name, value in stated.items() if value is not None} | given
    config = ExperimentConfig(**{name: value for name, value in values.items() if name in fields})
    choose_device(config.device)
    for name in given.keys() - fields:
        check_own(name, given[name], stated[name])


def check_own(name: str, value: Any, default: Any) -> None:
    """Check a parameter that only its notebook knows: its value is of the default's type, and `…_file` is a file."""
    fits = default is None or type(value) is type(default) or (type(value) is int and isinstance(default, float))
    if not fits:
        raise ValueError(f"{name} = {shortened(value)} refused: must be {type(default).__name__}, as {default!r} is")
    if name.endswith("_file") and value and not Path(value).is_file():
        raise ValueError(f"{name} = {shortened(value)} refused: there is no such file; pass an absolute path")


def make_writable(folder: Path) -> None:
    """Create a folder of reports if it is missing, and write a file into it for a moment.

    Raises:
        ValueError: it is a file or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"the folder {str(folder)!r} cannot be written ({error}); pass another --out") from error
