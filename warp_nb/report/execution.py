"""Execution of one notebook by papermill, into an executed copy and a result file.

A run counts only if its notebook wrote a result file with "status": "ok" at its very end: neither an
exit code nor notebook metadata says that. `<name>.result.json` is deleted first and written last.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode

from warp_nb.files import write_json
from warp_nb.report.kernels import EncryptedKernelManager
from warp_nb.report.scrubbing import scrub, write_scrubbed
from warp_nb.studies.result_files import FAILED, OK, read_result, result_path


def runs_folder(name: str, notebooks: Path, folder: Path, parameters: dict[str, Any]) -> Path:
    """Return the folder that keeps the finished runs of an interrupted experiment with exactly these settings."""
    settings = json.dumps(parameters, sort_keys=True) + (notebooks / f"{name}.ipynb").read_text(encoding="utf-8")
    return folder / ".runs" / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:10]}"


def run(
    name: str, notebooks: Path, folder: Path, parameters: dict[str, Any], *, command: str, timeout: int | None = None
) -> str:
    """Execute notebooks/<name>.ipynb into `folder`, at most `timeout` seconds per cell; return the status.

    Writes <name>.ipynb and <name>.result.json, each atomically. The notebook's standard error, with the progress bars
    and their remaining time, goes to this process's standard error.
    """
    import papermill

    kept = result_path(folder, name)
    kept.unlink(missing_ok=True)
    runs = runs_folder(name, notebooks, folder, parameters)
    started = time.perf_counter()
    error = ""
    with tempfile.TemporaryDirectory() as scratch:
        executed, written = Path(scratch) / f"{name}.ipynb", Path(scratch) / "result.json"
        ours = {"result_file": str(written), "out_dir": str(runs)}
        source = str(notebooks / f"{name}.ipynb")
        try:
            known = papermill.inspect_notebook(source)
            papermill.execute_notebook(
                source,
                str(executed),
                parameters=parameters | {key: value for key, value in ours.items() if key in known},
                kernel_name="python3",
                kernel_manager_class=EncryptedKernelManager,
                progress_bar=False,
                stderr_file=sys.stderr,
                execution_timeout=timeout,
            )
        except Exception as stopped:  # papermill passes on many kinds: of a cell, a kernel that died or never started
            error = cause(stopped)
        notebook = nbformat.read(executed, as_version=4) if executed.exists() else None
        result = read_result(written)
        if error or result["status"] != OK:
            error = error or "тетрадь не записала результат в конце"
            result = {"status": FAILED, "error": scrub(f"{error}{stopped_in(notebook)}")}
        result["run"] = {"command": command, "seconds": time.perf_counter() - started} | computer()
        if notebook is not None:
            link_back_(notebook, notebooks, folder)
            write_scrubbed(folder / f"{name}.ipynb", notebook)
    write_json(kept, result)
    if result["status"] == OK:
        shutil.rmtree(runs, ignore_errors=True)
        with suppress(OSError):  # another experiment's runs are there
            runs.parent.rmdir()
    return str(result["status"])


def cause(error: Exception) -> str:
    """Return the type and message of an error; for the error of a cell, those that its code raised."""
    return f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"


def link_back_(notebook: NotebookNode, notebooks: Path, folder: Path) -> None:
    """Rewrite links to files in `notebooks` so that they work from `folder`, in place."""

    def moved(link: re.Match[str]) -> str:
        place, mark, heading = link[1].partition("#")
        if not (notebooks / unquote(place)).is_file():
            return link[0]
        return f"]({Path(os.path.relpath(notebooks / place, folder)).as_posix()}{mark}{heading})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(([^)\s]+)\)", moved, cell.source)


def stopped_in(notebook: NotebookNode | None) -> str:
    """Return " (cell N: first line)" in Russian for the last code cell that started; empty when none did.

    Only the start that papermill recorded counts: the cells of a dead kernel are all "completed".
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"] if notebook is not None else []
    begun = [place for place, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return ""
    first = next((line for line in cells[begun[-1]].source.splitlines() if line.strip()), "")
    return f" (ячейка [{begun[-1] + 1}]: {first})"


def computer() -> dict[str, Any]:
    """Cores and memory (GB) of this machine; what the kernel knows of it is in the result."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else math.nan
    return {"cores": os.cpu_count(), "memory_gb": round(memory, 1)}
