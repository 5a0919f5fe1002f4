"""What an executed notebook keeps."""

from __future__ import annotations

import nbformat

from warp_nb.report.scrubbing import scrubbed


def test_a_progress_bar_leaves_nothing_and_other_output_stays() -> None:
    texts = ["\r 0%|  | 0/2", "\r50%|# | 1/2\r", "      \r"]
    bar = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in texts]
    said = nbformat.v4.new_output("stream", name="stdout", text="first\r\nhalf\rwhole\n")
    records = {"execution": {"iopub.status.busy": "2026"}, "papermill": {"status": "completed"}}
    cell = nbformat.v4.new_code_cell("work()", outputs=[*bar, said], metadata=records)
    (left,) = scrubbed(nbformat.v4.new_notebook(cells=[cell])).cells
    (kept,) = left.outputs
    assert kept.text == "first\r\nwhole\n" and not left.metadata
