"""The schemes of lesson 0: drawn on the Axes they are given, inside it, with the package's own geometry."""

from __future__ import annotations

import math
from collections.abc import Callable

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes

from warp_nb.course import schemes

matplotlib.use("agg")
HEIGHTS = {schemes.rlhf_stages: 4.4, schemes.one_run: 4.8, schemes.fan_of_runs: 3.0}
PHONE = 350
"""Pixels that a page of 390 px leaves for a picture."""


@pytest.fixture
def ax(request: pytest.FixtureRequest) -> Axes:
    figure, found = plt.subplots(figsize=(schemes.SCHEME_WIDTH, HEIGHTS[request.param]), layout="constrained")
    request.addfinalizer(lambda: plt.close(figure))
    assert request.param(found) is found
    figure.canvas.draw()
    return found


@pytest.mark.parametrize("ax", HEIGHTS, indirect=True, ids=lambda draw: draw.__name__)
def test_texts_are_inside_the_picture_apart_and_legible_on_a_phone(ax: Axes) -> None:
    texts = [text for text in ax.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 <= ax.figure.bbox.x1 and box.y1 <= ax.figure.bbox.y1 for box in boxes)
    near = [
        (a.get_text(), b.get_text())
        for i, a in enumerate(texts)
        for j, b in enumerate(texts[:i])
        if boxes[i].overlaps(boxes[j])
    ]
    assert near == []
    pixels = [text.get_fontsize() / 72 * PHONE / schemes.SCHEME_WIDTH for text in texts]
    assert len(texts) >= 7 and min(pixels) >= 11


def drawn(draw: Callable[[Axes], object]) -> Axes:
    figure, ax = plt.subplots()
    draw(ax)
    plt.close(figure)
    return ax


def test_the_fan_has_the_lengths_of_slerp_and_liti() -> None:
    start, found = torch.tensor([0.5, 0.25], dtype=torch.float64), {}
    drawn(lambda ax: found.update(zip(("merged", "after"), schemes.fan(ax, start, 110, 1), strict=True)))
    merged, after = found["merged"] - start, found["after"] - start
    assert merged.norm().item() == pytest.approx(1) and after.norm().item() == pytest.approx(0.5)
    assert math.degrees(math.atan2(*reversed(merged.tolist()))) == pytest.approx(110)
