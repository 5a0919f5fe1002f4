"""What the sliders of the lessons draw."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib
import pytest
import torch
from synthetic import SAMPLE, result

from warp_nb.course.figures import GAIN
from warp_nb.course.play_figures import about_point, chances, eaten, front_plane, paths, shared_and_noise
from warp_nb.measure.estimates import Estimate
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


def test_the_penalty_is_the_band_between_reward_and_what_is_left() -> None:
    rows = [{"reward": 0.2, "penalty": 0.0}, {"reward": 0.4, "penalty": 0.1}]
    with panels(1, 3.6) as (_, (ax,)):
        eaten(ax, rows, limit=0.3)
    reward, left, limit = ax.lines
    assert list(reward.get_ydata()) == [0.2, 0.4]
    assert list(left.get_ydata()) == pytest.approx([0.2, 0.3])
    assert list(limit.get_ydata()) == [0.3, 0.3]
    (band,) = ax.collections
    assert band.get_datalim(ax.transData).bounds == pytest.approx((0, 0.2, 1, 0.2))


def test_merging_shrinks_the_noise_and_slerp_keeps_the_length() -> None:
    common, *noises = torch.eye(3)
    with panels(1, 3.6) as (_, (ax,)):
        shared_and_noise(ax, torch.stack([common + 3 * noise for noise in noises]), common)
    ends = [(line.get_xdata()[1], line.get_ydata()[1]) for line in ax.lines]
    assert ends[0] == pytest.approx((1, 3)) and ends[1] == pytest.approx((1, 3 / math.sqrt(2)))
    assert math.hypot(*ends[2]) == pytest.approx(math.sqrt(10), rel=1e-5)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == ["один прогон: доля 0,32", "LERP, среднее: доля 0,43", "SLERP: доля 0,43"]


ROWS = [
    {"eta": 0, "gain": Estimate(0, 0, 0), "kl": Estimate(0, 0, 0)},
    {"eta": 0.5, "gain": Estimate(0.6, 0.4, 0.8), "kl": Estimate(1, 0.9, 1.1)},
]


def test_the_ring_is_at_the_chosen_point_and_what_is_beyond_the_budget_is_grey() -> None:
    for budget, spans in ((0.4, 1), (9, 0)):
        with panels(1, 3.6) as (_, (ax,)):
            front_plane(ax, ROWS, eta=0.5, budget=budget)
        assert [*zip(*ax.lines[-1].get_data(), strict=True)] == [(1, 0.6)]
        assert ax.get_ylabel() == GAIN and len(ax.patches) == spans
    with panels(1, 3.6) as (_, (ax,)):
        front_plane(ax, ROWS, eta=0, budget=0.4)
    assert ax.patches[0].get_x() == 0.4


def test_what_is_said_of_a_point_has_its_numbers_and_escapes_its_samples() -> None:
    found = replace(result().evaluations[0], samples=[SAMPLE | {"policy": "<script>x</script>"}])
    words = about_point(ROWS[1] | {"evaluation": found})
    assert "+0,60" in words and "&lt;script&gt;x" in words and "<script" not in words
