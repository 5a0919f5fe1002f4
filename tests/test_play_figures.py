"""What the sliders of lessons 1 and 3 draw."""

from __future__ import annotations

import math

import matplotlib
import pytest

from warp_nb.course.play_figures import chances, paths
from warp_nb.notebook.plots import panels

matplotlib.use("agg")


def test_paths_end_at_their_vectors_and_say_their_lengths() -> None:
    with panels(1, 3.6) as (_, (ax,)):
        paths(ax, 60, 0.5)
    _, lerp, at_lerp, slerp, at_slerp = ax.lines
    for way in (lerp, slerp):
        assert [way.get_xdata()[0], way.get_xdata()[-1]] == pytest.approx([1, 0.5])
    assert math.hypot(at_lerp.get_xdata()[1], at_lerp.get_ydata()[1]) == pytest.approx(math.cos(math.pi / 6))
    assert math.hypot(at_slerp.get_xdata()[1], at_slerp.get_ydata()[1]) == pytest.approx(1)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == ["LERP: длина 0,87", "SLERP: длина 1,00"]


def test_a_bar_is_as_long_as_its_probability() -> None:
    with panels(1, 3.6) as (_, (ax,)):
        chances(ax, ["да", "нет"], [0.25, 0.75])
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.75]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["да", "нет"]
    assert [text.get_text() for text in ax.texts] == ["0,25", "0,75"] and ax.yaxis_inverted()
