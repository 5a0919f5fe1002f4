"""A sweep: the notebook of one's own parameters is run by papermill for every combination of values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from warp_nb.config import ExperimentConfig
from warp_nb.paths import expanded
from warp_nb.report.command import notebooks_folder
from warp_nb.report.execution import run
from warp_nb.report.request import INSTEAD, check_values, make_writable, stated_in
from warp_nb.studies.result_files import OK, read_result, result_path

NOTEBOOK = "exp"
"""The notebook that is run."""
SET_HERE = INSTEAD.keys() & {"out_dir", "result_file"}
"""Parameters that a sweep sets itself."""


def run_sweep(
    grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any], folder: str | Path, *, notebooks: Path | None = None
) -> list[Path]:
    """Run an experiment for every combination of values, and return their result files, the last name varying fastest.

    Every combination has a folder in `folder`, named by its values, with the executed notebook exp.ipynb and
    exp.result.json. A combination that has a finished result of the same settings is not run again, and an interrupted
    one resumes. Weights are not saved: run the chosen combination again with `out_dir`.

    Args:
        grid: parameter -> values, e.g. {"lr": [1e-4, 3e-4], "T": [10, 50]}.
        fixed: parameters of all combinations.
        folder: folder of the sweep, which is made.
        notebooks: folder of exp.ipynb; by default as for `warp-nb report`.

    Raises:
        ValueError: a name or a value is no parameter's, or is in both; nothing has been run then.
        RuntimeError: experiments failed, after all others were run; the message has each with its error.
    """
    source, place = notebooks or notebooks_folder(), expanded(folder)
    wanted = combinations_of(grid, fixed, stated_in(source / f"{NOTEBOOK}.ipynb"))
    make_writable(place)
    failed = []
    for label, parameters in wanted.items():
        home = place / label
        home.mkdir(exist_ok=True)
        if not is_done(result_path(home, NOTEBOOK), source, parameters):
            status = run(NOTEBOOK, source, home, parameters, command=f"sweep {label}")
            if status != OK:
                failed.append(f"{label}: {read_result(result_path(home, NOTEBOOK)).get('error', status)}")
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(wanted)} experiments failed: {'; '.join(failed)}")
    return [result_path(place / label, NOTEBOOK) for label in wanted]


def combinations_of(
    grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any], stated: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the parameters of every combination by its label; all are checked against those that exp.ipynb states."""
    ours, both = sorted(SET_HERE & {*grid, *fixed}), sorted(grid.keys() & fixed.keys())
    if ours or both:
        why = f"the sweep sets {', '.join(ours)} itself" if ours else f"{', '.join(both)} stands in grid and in fixed"
        raise ValueError(f"{why}; leave it out of one of them" if both and not ours else f"{why}; leave it out")
    single = [name for name, values in grid.items() if isinstance(values, str) or not list(values)]
    if single or not grid:
        raise ValueError(
            f"grid must hold a list of values for each parameter, got {dict(grid)}; e.g. {{'T': [10, 50]}}"
        )
    found = {}
    for values in product(*grid.values()):
        parameters = {**fixed, **dict(zip(grid, values, strict=True))}
        check_values(stated, parameters)
        read = ExperimentConfig(**parameters)
        found[label_of({name: getattr(read, name) for name in grid})] = parameters
    return found


def label_of(values: Mapping[str, Any]) -> str:
    """Return the name of a combination's folder, e.g. lr=0.0001,T=50."""
    return re.sub(r"[^\w.=,+-]", "_", ",".join(f"{name}={value}" for name, value in values.items()))[:200]


def is_done(path: Path, notebooks: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether a finished result has the settings that the notebook would run with now."""
    found = read_result(path)
    if found["status"] != OK:
        return False
    values = {name: value for name, value in stated_in(notebooks / f"{NOTEBOOK}.ipynb").items() if value is not None}
    values = {name: value for name, value in {**values, **parameters}.items() if name in ExperimentConfig.model_fields}
    config = ExperimentConfig(**values).model_dump(exclude={"out_dir"} | ({"dtype"} if is_auto(values) else set()))
    return all(found.get("config", {}).get(name) == value for name, value in config.items())


def is_auto(values: Mapping[str, Any]) -> bool:
    """Return whether the arithmetic of training is chosen by the machine, so that a result names another one."""
    return values.get("dtype", "auto") == "auto"
