"""What an executed notebook keeps."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from nbformat.v4 import new_code_cell, new_notebook, new_output

from warp_nb.report.scrubbing import WIDGET, scrub, scrubbed


def test_a_progress_bar_leaves_nothing_and_other_output_stays() -> None:
    texts = ["\r 0%|  | 0/2", "\r50%|# | 1/2\r", "      \r"]
    bar = [new_output("stream", name="stderr", text=text) for text in texts]
    said = new_output("stream", name="stdout", text="first\r\nhalf\rwhole\n")
    records = {"execution": {"iopub.status.busy": "2026"}, "papermill": {"status": "completed"}}
    cell = new_code_cell("work()", outputs=[*bar, said], metadata=records)
    (left,) = scrubbed(new_notebook(cells=[cell])).cells
    (kept,) = left.outputs
    assert kept.text == "first\r\nwhole\n" and not left.metadata


def test_the_parameters_that_name_files_of_this_machine_go_and_the_others_stay() -> None:
    source = '# Parameters\ntask = "small"\nresult_file = "/x/r.json"\nn_seeds = 3\nout_dir = "/x/runs"\n'
    injected = new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    notebook = new_notebook(cells=[injected, new_code_cell(source)], metadata={"papermill": {"input_path": "x"}})
    left = scrubbed(notebook)
    assert [cell.source for cell in left.cells] == ['# Parameters\ntask = "small"\nn_seeds = 3', source]
    assert "papermill" not in left.metadata


def test_folders_of_this_machine_become_relative() -> None:
    folders = [Path.cwd(), Path(sys.prefix), Path(tempfile.gettempdir())]
    said = "; ".join(f"{folder}/a.py" for folder in folders)
    assert scrub(f"{said}; {Path.home()}/b.py; /elsewhere/c.py") == "a.py; a.py; a.py; ~/b.py; /elsewhere/c.py"
    assert scrub(f"{Path.cwd()}-other/a.py") == f"{Path.cwd()}-other/a.py"


def test_a_widget_with_a_picture_leaves_the_picture_and_one_without_stays_with_its_state() -> None:
    view = {WIDGET: {"model_id": "x"}, "text/plain": "x"}
    pictured, bare = (new_output("display_data", data=data) for data in (view | {"image/png": "AAAA"}, view))
    for outputs, keys in (([pictured, bare], True), ([pictured], False)):
        left = scrubbed(new_notebook(cells=[new_code_cell("x", outputs=outputs)], metadata={"widgets": {"state": {}}}))
        assert left.cells[0].outputs[0].data.keys() == {"image/png", "text/plain"}
        assert [WIDGET in one.data for one in left.cells[0].outputs[1:]] == [True] * keys
        assert ("widgets" in left.metadata) is keys
