"""Result files: where they are and how they are read. A file counts only if it is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEFAULT_TASK = "smollm"
OK, FAILED, MISSING = "ok", "failed", "missing"


def reports_of(task: str, out: Path) -> Path:
    """Return the folder of a task's reports: `out` itself for the default task."""
    return out if task == DEFAULT_TASK else out / task


def result_path(folder: Path, name: str) -> Path:
    """Return the path of the result file of the notebook `name`."""
    return folder / f"{name}.result.json"


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file; return a status alone if it is missing or incomplete."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"status": MISSING}
    except ValueError:
        return {"status": FAILED, "error": f"{path.name} is not JSON"}
    return found if isinstance(found, dict) and "status" in found else {"status": FAILED, "error": "no status"}
