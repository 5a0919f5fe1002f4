"""The live plot: one output, drawn again at most once a second and rarely enough, with all steps at the end."""

from __future__ import annotations

from typing import Any

import pytest

from warp_nb.notebook import live_plot
from warp_nb.notebook.live_plot import LivePlot

ROW = {"iteration": 1, "run": 1, "reward": 0.1, "objective": 0.2, "kl": 0.3}


class Shown:
    """What IPython's display got: the number of lines of each figure, and how often it was made or replaced."""

    def __init__(self) -> None:
        self.made, self.points = 0, []

    def __call__(self, figure: Any, display_id: bool) -> Shown:
        self.made += 1
        self.update(figure)
        return self

    def update(self, figure: Any) -> None:
        self.points.append(len(figure.axes[0].lines[0].get_xdata()))


@pytest.mark.parametrize(("drawing", "drawn"), [(0.0, [1, 5, 9, 13, 17, 20]), (0.125, [1, 11, 20])])
def test_it_is_drawn_once_a_second_and_takes_little_time(
    drawing: float, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 0.25 s: drawings that take no time come once a second; those of 0.125 s after 2.5 s."""
    shown, now = Shown(), [0.0]
    monkeypatch.setattr(live_plot, "display", shown)

    def slow(*args: Any, **settings: Any) -> Any:
        now[0] += drawing / len(live_plot.LIVE_COLUMNS)
        return curves(*args, **settings)

    curves = live_plot.training_curves
    monkeypatch.setattr(live_plot, "training_curves", slow)
    with LivePlot(clock=lambda: now[0]) as plot:
        for step in range(1, 21):
            plot(ROW | {"step": step})
            now[0] += 0.25
    assert shown.points == drawn and shown.made == 1


def test_without_steps_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_plot, "display", lambda *_, **__: pytest.fail("shown"))
    with LivePlot():
        pass
