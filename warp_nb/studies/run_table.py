"""Result files of any number of experiments as one table: what differs between their settings, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.paths import expanded
from warp_nb.studies.records import CheckRow, Summary, Taken, fault_of
from warp_nb.studies.result_files import OK, read_result

if TYPE_CHECKING:
    import pandas as pd

MEASURED = {"reward": "reward_policy", "gain": "reward_difference", "kl": "kl_policy_reference"}
"""Column -> measure; the ends of its 95 % interval have columns of their own, e.g. reward_low."""
SHOWN_ONCE = ("seed", "out_dir", "threads", "device", "save_every", "snapshot_every", "keep_anchors")
"""Settings that are no reason for a column: they change nothing, or nothing but the noise."""


class TaskAbout(Taken):
    task: str
    reward: str


class RunRecord(Taken):
    """The part of an experiment's result file that a table takes."""

    task: TaskAbout
    config: dict[str, Any]
    summary: Summary
    checks: list[CheckRow]


def run_table(files: Sequence[str | Path]) -> pd.DataFrame:
    """Return one row per result file: file, task, reward's name, differing settings, measures with intervals, checks.

    Columns: file, task, scored_by, every setting whose value differs between the files, n_seeds, then reward, gain and
    kl, each with _low and _high (95 % interval, NaN where unknown; nats per sequence for kl), and failed, the names of
    the checks that failed.

    Args:
        files: as `notebook.save` or `result_file` write them.

    Raises:
        ValueError: there is none, or a file is missing, damaged or of something else than an experiment.
    """
    import pandas as pd

    paths = [expanded(file) for file in files]
    if not paths:
        raise ValueError("there is no result file to compare; pass at least one, e.g. compare(['exp4.result.json'])")
    found = [(path, read_run(path)) for path in paths]
    varied = varied_settings([record["config"] for _, record in found])
    return pd.DataFrame([row_of(path, record, varied) for path, record in found])


def read_run(path: Path) -> dict[str, Any]:
    """Read the result file of an experiment; raise ValueError, with the remedy, if it is none."""
    found = read_result(path)
    if found["status"] != OK:
        why = found.get("error", "it is not there")
        raise ValueError(f"{path} holds no finished result ({why}); run the experiment again")
    if "equal_kl" in found:
        raise ValueError(
            f"{path} is a comparison of several ways to train (experiment 5), not one experiment; its own page "
            "compares their fronts, so leave it out here"
        )
    fault = fault_of(RunRecord, found)
    if fault:
        raise ValueError(f"{path} is no result of an experiment ({fault}); pass files that `notebook.save` wrote")
    return found


def varied_settings(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the settings whose values differ between the configurations; n_seeds has a column anyway."""
    names = dict.fromkeys(name for config in configs for name in config)
    left_out = {"n_seeds", *SHOWN_ONCE}
    return [name for name in names if name not in left_out and len({repr(one.get(name)) for one in configs}) > 1]


def row_of(path: Path, record: dict[str, Any], varied: Sequence[str]) -> dict[str, Any]:
    """Return the row of a result file."""
    config = record["config"]
    row: dict[str, Any] = {"file": str(path), "task": record["task"]["task"], "scored_by": record["task"]["reward"]}
    row |= {name: config.get(name) for name in varied if name != "task"} | {"n_seeds": config.get("n_seeds", 1)}
    for column, measure in MEASURED.items():
        one = record["summary"][measure]
        ends = {f"{column}{end}": one[name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))}
        row |= {name: float("nan") if value is None else value for name, value in ends.items()}
    failed = [one["name"] for one in record["checks"] if one["applies"] and not one["passed"]]
    return row | {"failed": ", ".join(failed)}
