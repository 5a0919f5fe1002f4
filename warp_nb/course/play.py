"""Sliders of the lessons: a picture that follows them where widgets run, and one saved picture where they do not.

Example:
    def draw(ax, mu):
        ax.plot([1 - (1 - mu) ** t for t in range(100)])

    play(draw, mu=Slider("μ, доля шага якоря", [0.01, 0.1, 0.5]))
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ipywidgets import HTML, Image, Layout, SelectionSlider, VBox, Widget

from warp_nb.notebook.numbers import format_number
from warp_nb.notebook.plots import panels, png

REMEMBERED = 64
"""Number of pictures that `play` remembers, so that a value that was shown before is shown at once."""
FULL = {"width": "100%", "max_width": "720px"}


class Slider(NamedTuple):
    """The label in Russian, the values that the slider stops at, and the first one to show (by default `values[0]`)."""

    label: str
    values: Sequence[float]
    start: float | None = None


class Playground(VBox):
    """A column of widgets with a picture for places where widgets do not run: GitHub, nbviewer, a saved page."""

    def __init__(self, children: Sequence[Widget], *, still: bytes, words: str) -> None:
        """Take the widgets, the PNG that replaces them, and the words that replace both."""
        super().__init__(list(children))
        self._still, self._words = still, words

    def _repr_mimebundle_(self, **settings: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**settings) or {}
        return bundle | {"image/png": b64encode(self._still).decode(), "text/plain": self._words}


def play(
    draw: Callable[..., object], *, below: Callable[..., str] | None = None, height: float = 3.6, **sliders: Slider
) -> Playground:
    """Show a slider per keyword argument and the picture that `draw(ax, **values)` makes.

    The picture is drawn when a slider is released or moved by a key, not while it is dragged. Where widgets do not
    run, the picture of the first values stays.

    Args:
        draw: draws on the Axes that it gets; its other arguments are named as the sliders.
        below: returns the HTML to show below the picture; its arguments are named as the sliders. It escapes texts.
        height: height of the figure, inches.
        sliders: the name of an argument of `draw` and its `Slider`.

    Raises:
        ValueError: there is no slider, or one does not stop at the value that it starts from.
    """
    if not sliders:
        raise ValueError("play needs at least one slider; pass e.g. mu=Slider('μ', [0.01, 0.1])")
    controls = {name: selection(name, slider) for name, slider in sliders.items()}

    @lru_cache(maxsize=REMEMBERED)
    def drawn(*values: float) -> bytes:
        with panels(1, height) as (figure, (ax,)):
            draw(ax, **dict(zip(controls, values, strict=True)))
            return png(figure)

    picture, words_below = Image(format="png", layout=Layout(**FULL)), HTML()

    def redraw(_: object = None) -> None:
        values = {name: control.value for name, control in controls.items()}
        picture.value = drawn(*values.values())
        if below is not None:
            words_below.value = below(**values)

    redraw()
    for control in controls.values():
        control.observe(redraw, "value")
    still = picture.value
    words = "; ".join(f"{slider.label} = {format_number(controls[name].value)}" for name, slider in sliders.items())
    shown = [picture] if below is None else [picture, words_below]
    return Playground([*controls.values(), *shown], still=still, words=f"Рисунок с ползунками. {words}")


def selection(name: str, slider: Slider) -> SelectionSlider:
    """Return the widget of a slider: it stops at the values, which are written in Russian, and reacts on release."""
    values = list(slider.values)
    start = values[0] if slider.start is None and values else slider.start
    if start not in values:
        stops = ", ".join(map(str, values)) or "nothing"
        raise ValueError(f"slider {name!r} starts at {start} but stops at {stops}; add it or start at one of them")
    return SelectionSlider(
        options=[(format_number(value), value) for value in values],
        value=start,
        description=slider.label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout=Layout(**FULL),
    )
