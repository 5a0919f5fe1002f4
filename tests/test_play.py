"""The sliders of the lessons: they draw what they are moved to, and leave a picture where widgets do not run."""

from __future__ import annotations

from base64 import b64decode

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.axes import Axes
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

from warp_nb.course.play import Playground, Slider, play
from warp_nb.report.scrubbing import scrubbed

matplotlib.use("agg")
VIEW = "application/vnd.jupyter.widget-view+json"
CELL = """from warp_nb.course.play import Slider, play
play(lambda ax, mu: ax.plot([0, mu]), mu=Slider("μ", [0.5, 0.01]))"""


class Drawn:
    """A drawing function that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, float]] = []

    def __call__(self, ax: Axes, **values: float) -> None:
        self.asked.append(values)
        ax.plot([0, sum(values.values())], [0, 1])


def two(draw: Drawn) -> Playground:
    return play(draw, mu=Slider("μ, доля", [0.01, 0.1]), beta=Slider("β", [0, 1, 2], start=1))


def test_a_moved_slider_draws_its_new_value_and_leaves_the_others() -> None:
    draw = Drawn()
    mu, beta, picture = two(draw).children
    before = bytes(picture.value)
    mu.value = 0.1
    assert draw.asked == [{"mu": 0.01, "beta": 1}, {"mu": 0.1, "beta": 1}]
    assert bytes(picture.value) != before and bytes(picture.value).startswith(b"\x89PNG")
    beta.value = 2
    assert draw.asked[-1] == {"mu": 0.1, "beta": 2}


def test_words_below_the_picture_follow_the_sliders() -> None:
    box = play(Drawn(), below=lambda mu: f"<b>{mu}</b>", mu=Slider("μ", [0.1, 0.2]))
    mu, _, words = box.children
    assert words.value == "<b>0.1</b>"
    mu.value = 0.2
    assert words.value == "<b>0.2</b>"


def test_a_value_that_was_shown_is_not_drawn_again_and_no_figure_stays_open() -> None:
    draw, already = Drawn(), plt.get_fignums()
    mu, _, picture = two(draw).children
    first = bytes(picture.value)
    mu.value = 0.1
    mu.value = 0.01
    assert len(draw.asked) == 2 and bytes(picture.value) == first
    assert plt.get_fignums() == already


def test_a_slider_reacts_on_release_and_shows_russian_numbers_and_its_label() -> None:
    mu, beta, _ = two(Drawn()).children
    assert not mu.continuous_update and not beta.continuous_update
    assert [label for label, _ in mu.options] == ["0,01", "0,1"]
    assert (mu.description, mu.value, beta.value) == ("μ, доля", 0.01, 1)


def test_without_widgets_there_is_the_first_picture_and_without_pictures_the_values() -> None:
    box = two(Drawn())
    first = bytes(box.children[-1].value)
    box.children[0].value = 0.1
    bundle = box._repr_mimebundle_()
    assert b64decode(bundle["image/png"]) == first
    assert bundle["text/plain"] == "Рисунок с ползунками. μ, доля = 0,01; β = 1"
    assert bundle[VIEW]["model_id"] == box.model_id


def test_a_slider_that_cannot_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slider 'mu' starts at 3 but stops at 1, 2; add it"):
        play(Drawn(), mu=Slider("μ", [1, 2], start=3))
    with pytest.raises(ValueError, match=r"slider 'mu' starts at None but stops at nothing"):
        play(Drawn(), mu=Slider("μ", []))
    with pytest.raises(ValueError, match="at least one slider"):
        play(Drawn())


@pytest.mark.slow
def test_a_run_notebook_shows_the_picture_where_there_is_no_kernel() -> None:
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    live = notebook.cells[0].outputs[0].data
    assert VIEW in live and "widgets" in notebook.metadata
    saved = scrubbed(notebook)
    nbformat.validate(saved)
    (left,) = saved.cells[0].outputs
    assert left.data == {key: value for key, value in live.items() if key != VIEW}
    assert "widgets" not in saved.metadata
    page, _ = HTMLExporter().from_notebook_node(saved)
    assert live["image/png"].strip()[:60] in page
