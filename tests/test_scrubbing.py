"""What an executed notebook keeps."""

from __future__ import annotations

from pathlib import Path

import nbformat

from warp_nb import report


def test_a_progress_bar_leaves_nothing_and_other_output_stays(tmp_path: Path) -> None:
    texts = ["\r 0%|  | 0/2", "\r50%|# | 1/2\r", "      \r"]
    bar = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in texts]
    said = nbformat.v4.new_output("stream", name="stdout", text="first\r\nhalf\rwhole\n")
    records = {"execution": {"iopub.status.busy": "2026"}, "papermill": {"status": "completed"}}
    cell = nbformat.v4.new_code_cell("work()", outputs=[*bar, said], metadata=records)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "exp.ipynb")
    assert report.main(["--scrub", "--notebooks", str(tmp_path)]) == 0
    (left,) = nbformat.read(tmp_path / "exp.ipynb", as_version=4).cells
    (kept,) = left.outputs
    assert kept.text == "first\r\nwhole\n" and not left.metadata
