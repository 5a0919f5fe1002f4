"""What an executed notebook keeps: no progress bars, time stamps or paths of this machine."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from warp_nb.report.page import each_string
from warp_nb.report.results import ROOT

if TYPE_CHECKING:
    from nbformat import NotebookNode

HIDDEN_PARAMETERS = ("result_file", "out_dir")


def scrubbed(notebook: NotebookNode) -> NotebookNode:
    """The notebook without papermill's records, time stamps and paths of this machine."""
    from nbformat import from_dict

    notebook = from_dict(each_string(notebook, scrub))
    notebook.metadata.pop("papermill", None)
    hidden = re.compile(rf"^(?:{'|'.join(HIDDEN_PARAMETERS)})\b.*\n?", re.MULTILINE)
    for cell in notebook.cells:
        for record in ("papermill", "execution"):
            cell.metadata.pop(record, None)
        if cell.cell_type == "code":
            cell.outputs = settled(cell.outputs)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = hidden.sub("", cell.source).rstrip("\n")
    return notebook


def settled(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Outputs as a terminal would show them at the end: what a carriage return overwrote is gone."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def scrub(text: str) -> str:
    """`text` without the folders of this machine."""
    folders = {str(ROOT): "", tempfile.gettempdir(): "", sys.prefix: "", str(Path.home()): "~/"}
    for folder, instead in sorted(folders.items(), key=lambda item: -len(item[0])):
        if len(folder) > 1:
            text = text.replace(f"{folder}/", instead)
    return text
