"""Clean-up of an executed notebook: no progress bars, time stamps or paths of this machine."""

from __future__ import annotations

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from warp_nb.files import write_text
from warp_nb.report.page import each_string

HIDDEN_PARAMETERS = ("result_file", "out_dir")
WIDGET = "application/vnd.jupyter.widget-view+json"


def scrubbed(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without papermill's records, time stamps and paths of this machine.

    Of a widget that has a picture only the picture stays, since no kernel is there to move it. Outputs are as a
    terminal would show them at the end: text that a carriage return overwrote is removed.
    """
    whole = nbformat.from_dict(each_string(notebook, scrub))
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(whole, {})
    notebook.metadata.pop("papermill", None)
    hidden = re.compile(rf"^(?:{'|'.join(HIDDEN_PARAMETERS)})\b.*\n?", re.MULTILINE)
    for cell in notebook.cells:
        for record in ("papermill", "execution"):
            cell.metadata.pop(record, None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.output_type != "stream" or one.text.strip()]
            for data in (one.data for one in cell.outputs if "image/png" in one.get("data", {})):
                data.pop(WIDGET, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = hidden.sub("", cell.source).rstrip("\n")
    if not any(WIDGET in one.get("data", {}) for cell in notebook.cells for one in cell.get("outputs", [])):
        notebook.metadata.pop("widgets", None)
    return notebook


def write_scrubbed(path: Path, notebook: NotebookNode) -> None:
    """Write the scrubbed notebook atomically."""
    write_text(path, nbformat.writes(scrubbed(notebook)) + "\n")


def scrub(text: str) -> str:
    """Remove the folders of this machine from `text`."""
    package = str(Path(str(files("warp_nb"))).parent)
    folders = {package: "", str(Path.cwd()): "", tempfile.gettempdir(): "", sys.prefix: "", str(Path.home()): "~/"}
    for folder, instead in sorted(folders.items(), key=lambda item: -len(item[0])):
        if len(folder) > 1:
            text = text.replace(f"{folder}/", instead)
    return text
