"""Result files: where they are and how they are read. A file counts only if it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warp_nb.files import DamagedFile, read_record
from warp_nb.studies.equal_kl import summary_of_record
from warp_nb.studies.records import RECORDS, EarlierComparison, fault_of

MAIN_TASK = "smollm"
"""The task of the full size, whose reports lie in the folder of reports itself."""
OK, FAILED, MISSING = "ok", "failed", "missing"


def reports_of(task: str, out: Path) -> Path:
    """Return the folder of a task's reports: `out` itself for MAIN_TASK, else a folder in it."""
    return out if task == MAIN_TASK else out / task


def result_path(folder: Path, name: str) -> Path:
    """Return the path of the result file of the notebook `name`."""
    return folder / f"{name}.result.json"


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file; return a status, with an error, if it is missing, damaged or has no status."""
    try:
        found = read_record(path)
    except FileNotFoundError:
        return {"status": MISSING}
    except DamagedFile as error:
        return {"status": FAILED, "error": str(error).replace(str(path), path.name, 1)}
    if found.get("status") not in (OK, FAILED, MISSING):
        return {"status": FAILED, "error": f"{path.name} has no status"}
    return found


def read_result_of(section: str, path: Path) -> dict[str, Any]:
    """Read the result file of an experiment; one that lacks what its pages show, or holds it otherwise, has failed.

    A comparison of an earlier version is compared again, at the KLs of equal_kl.py, from the means in its file. Its
    conclusion is left out: it was drawn at a KL that the outcome chose.

    Args:
        section: the experiment's section (see RECORDS); a file of another section is taken as it is.
        path: the file.
    """
    found = read_result(path)
    if found["status"] != OK or section not in RECORDS:
        return found
    earlier = section == "comparison" and "equal_kl" not in found
    fault = fault_of(EarlierComparison if earlier else RECORDS[section], found)
    if fault:
        return {"status": FAILED, "error": f"{path.name} is incomplete ({fault}); run it again"}
    return compared_again(found) if earlier else found


def compared_again(found: dict[str, Any]) -> dict[str, Any]:
    """Compare a result of an earlier version at equal KL again; drop what it said of the KL that its outcome chose."""
    chosen = {"gain_at_equal_kl", "equal_kl"}
    summary = {
        arm: {name: value for name, value in measures.items() if name not in chosen}
        for arm, measures in found["summary"].items()
    }
    kept = {name: value for name, value in found.items() if name != "advantage"}
    return kept | {"summary": summary, "equal_kl": summary_of_record(found), "conclusion": []}
