"""Figures hold the data they are given, named as the reader knows it, on the Axes they are given."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from synthetic import around, result

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook import palette, plots


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curves_are_named_as_in_the_original_and_hold_the_data(ax: Axes) -> None:
    found = result(T=7).history
    assert plots.training_curves(ax, found, "reward") is ax
    assert labels(ax) == ["theta1_1", "theta2_1", "theta1_2", "theta2_2"]
    for line, (iteration, run) in zip(ax.lines, [(1, 1), (1, 2), (2, 1), (2, 2)], strict=True):
        wanted = found[(found["iteration"] == iteration) & (found["run"] == run)]
        assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6, 7]
        assert np.array_equal(line.get_ydata(), wanted["reward"])
    assert (ax.get_xlabel(), ax.get_title(loc="left")) == ("шаг t", plots.COLUMNS["reward"])
    assert len(ax.collections) == 0, "a band without repetitions"


def test_the_spread_over_seeds_is_a_band(ax: Axes) -> None:
    found = result(n_seeds=3, M=1, I=1).history
    plots.training_curves(ax, found, "objective")
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(found["objective"].min())
    assert band.max() == pytest.approx(found["objective"].max())
    assert np.allclose(ax.lines[0].get_ydata(), found.groupby("step")["objective"].mean())
    assert ax.get_xlabel() == "шаг t; полоса: размах по 3 повторам"


def test_a_single_step_is_still_visible(ax: Axes) -> None:
    plots.training_curves(ax, result(T=1).history, "kl")
    assert len(ax.lines) == 4 and all(line.get_marker() in palette.MARKERS for line in ax.lines)


def test_unknown_column_is_refused(ax: Axes) -> None:
    found = result().history
    with pytest.raises(ValueError, match="no column 'rewrad'; it has seed, iteration"):
        plots.training_curves(ax, found, "rewrad")


def test_summary_forest_draws_values_with_their_intervals(ax: Axes) -> None:
    summary = result(
        held_out={"reward_difference": around(0.7, 0.1), "reward_policy": Estimate(1.0, np.nan, np.nan)}
    ).summary
    assert plots.summary_forest(ax, summary) is ax
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["SFT", "WARP", "разность"]
    assert [container.lines[0].get_xdata()[0] for container in ax.containers] == [0.1, 1.0, 0.7]
    reference, difference = (bars.get_segments()[0][:, 0].tolist() for bars in ax.collections)
    assert reference == pytest.approx([0.0, 0.2]) and difference == pytest.approx([0.6, 0.8])
    assert "95 % интервал" in ax.get_xlabel()


def test_geometry_shows_the_angle_of_every_block(ax: Axes) -> None:
    found = result(omega=70.0, n_seeds=2).geometry
    found.loc[found["seed"] == 1, ["omega", "cosine"]] = [80.0, np.cos(np.radians(80))]
    assert plots.geometry(ax, found) is ax
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["wte", "h.0", "h.1", "все веса"]
    assert labels(ax) == ["theta1_1 и theta2_1", "theta1_2 и theta2_2"]
    assert ax.containers[0].lines[0].get_xdata().tolist() == pytest.approx([75] * 4)
    assert ax.collections[0].get_segments()[0][:, 0].tolist() == pytest.approx([70, 80])
    assert "градусы" in ax.get_xlabel()


def test_an_undefined_angle_leaves_its_block_empty(ax: Axes) -> None:
    found = result().geometry
    found.loc[found["block"] == "h.0", "omega"] = np.nan
    plots.geometry(ax, found)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["wte", "h.0", "h.1", "все веса"]
    drawn = np.asarray(ax.containers[0].lines[0].get_xdata(), float)
    assert np.isnan(drawn).tolist() == [False, True, False, False]


def test_without_pairs_of_runs_the_geometry_says_so(ax: Axes) -> None:
    plots.geometry(ax, result(M=1).geometry)
    assert [text.get_text() for text in ax.texts] == ["Прогон один: углов нет"]
    assert not ax.containers and not ax.axison


def test_plane_takes_series_after_series(ax: Axes) -> None:
    rows = [
        {"eta": 0.5, "reward": around(1.0, 0.1), "kl": around(2.0, 0.2)},
        {"eta": 1.0, "reward": around(1.5, 0.1), "kl": around(4.0, 0.2)},
    ]
    assert plots.reward_kl_plane(ax, rows, "SLERP") is ax
    partly = [
        {"name": "exp1", "reward": around(0.2, 0.1), "kl": Estimate(0.1, np.nan, np.nan)},
        {"reward": around(0.3, 0.1), "kl": around(0.2, 0.1)},
    ]
    plots.reward_kl_plane(ax, partly, "LERP")
    assert [text.get_text() for text in ax.texts] == ["η = 0,5", "η = 1", "exp1", ""]
    assert labels(ax) == ["SLERP", "LERP"]
    first, second = (container.lines[0] for container in ax.containers)
    assert first.get_xdata().tolist() == [2.0, 4.0] and first.get_ydata().tolist() == [1.0, 1.5]
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()
    assert [container.has_xerr for container in ax.containers] == [True, False], "an unknown interval has no bar"
    assert [container.has_yerr for container in ax.containers] == [True, True]


def test_ticks_have_decimal_commas(ax: Axes) -> None:
    plots.reward_kl_plane(ax, [{"reward": around(0.25, 0.1), "kl": around(0.5, 0.2)}])
    ax.figure.canvas.draw()
    for axis in (ax.xaxis, ax.yaxis):
        ticks = [tick.get_text() for tick in axis.get_ticklabels()]
        assert any("," in text for text in ticks) and not any("." in text for text in ticks)


def test_panels_share_their_steps_and_are_closed_so_that_they_are_shown_once() -> None:
    with plots.panels(2, 4.0) as (figure, axes):
        assert plt.fignum_exists(figure.number) and len(axes) == 2
        plots.dressed(axes[0], "кривая", xscale="log").plot([1, 1000], [0, 1])
    assert not plt.fignum_exists(figure.number)
    assert [ax.get_xlim() for ax in axes] == [axes[0].get_xlim()] * 2
    assert (axes[0].get_title(loc="left"), axes[0].get_xscale()) == ("кривая", "log")


def test_first_seven_styles_differ_in_colour_and_in_line() -> None:
    first = list(islice(palette.styles(), 7))
    assert all(len({str(style[part]) for style in first}) == 7 for part in range(3))
    many = list(islice(palette.styles(), 42))
    assert len({(color, str(line)) for color, line, _ in many}) == 42


def test_first_four_colours_differ_for_every_eye() -> None:
    """Pairwise distance after a simulation of deuteranopia (Viénot 1999, linear RGB), at least a tenth."""
    for colors in (palette.OKABE_ITO[:4], [style.color for style in palette.RUNS.values()]):
        assert min(distances(colors)) > 0.1


def distances(colors: Any) -> list[float]:
    deuteranopia = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = [deuteranopia @ np.array(to_rgb(color)) ** 2.2 for color in colors]
    return [float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)]


def test_a_thing_has_a_style_of_its_own_in_colour_and_in_grey() -> None:
    """WARP and its end share a colour, and no other two."""
    named = palette.RUNS | palette.POLICIES
    assert len({style.color for style in named.values()}) == len(named) - 1
    policies = list(palette.POLICIES.values())
    assert len({(str(style.line), style.marker) for style in policies}) == len(policies)
    assert min(distances({style.color for style in policies})) > 0.04
    lines = [style for style in policies if style.line]
    assert len({str(style.line) for style in lines}) == len(lines), "told apart without colours"


def test_runs_keep_their_styles_whatever_else_is_drawn() -> None:
    pairs = [(run, iteration) for iteration in (1, 2, 3) for run in (1, 2, 3)]
    found = palette.run_styles([f"theta{run}_{iteration}" for run, iteration in pairs])
    assert {name: found[name] for name in palette.RUNS} == palette.RUNS
    assert len(set(map(str, found.values()))) == 9
    assert palette.run_styles(["theta2_1"]) == {"theta2_1": palette.RUNS["theta2_1"]}


# Nothing covers anything


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_legend_stands_between_the_title_and_the_axes(count: int) -> None:
    with plots.panels(1, 3.6) as (figure, (ax,)):
        for index in range(count):
            ax.plot([1, 2], [index, index + 1], label=f"кривая номер {index}")
        plots.dressed(ax, "награда", legend=True)
        figure.draw_without_rendering()
        legend, title = ax.get_legend().get_window_extent(), ax._left_title.get_window_extent()
        assert legend.y0 >= ax.get_window_extent().y1 - 1 and title.y0 >= legend.y1 - 1
        assert legend.x1 <= figure.bbox.x1 and title.y1 <= figure.bbox.y1
        assert len(labels(ax)) == count


def test_names_of_points_cover_neither_each_other_nor_a_marker() -> None:
    rows = [{"eta": eta, "reward": around(eta**0.5, 0.01), "kl": around(16 * eta**4, 0.01)} for eta in ETAS]
    with plots.panels(1, 3.8) as (figure, (ax,)):
        plots.reward_kl_plane(ax, rows)
        plots.reward_kl_plane(ax, [{"name": "конец", "reward": around(0.9, 0.01), "kl": around(9, 0.1)}], "другое")
        figure.draw_without_rendering()
        shown = [text for text in ax.texts if text.get_text() and text.get_visible()]
        boxes = [text.get_window_extent() for text in shown]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        places = ax.transData.transform([(row["kl"].value, row["reward"].value) for row in rows])
        assert not [box for box in boxes if box.count_contains(places)]
        assert {"η = 1", "конец"} <= {text.get_text() for text in shown}, "the last are named"
        assert all(ax.bbox.contains(*box.p0) and ax.bbox.contains(*box.p1) for box in boxes)


ETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.45, 0.6, 0.8, 1.0)


def test_of_equal_curves_each_is_seen(ax: Axes) -> None:
    """theta1_1, theta2_1 and theta2_2 are equal, so the first is the widest; theta1_2 lies elsewhere."""
    found = result(T=7).history
    first = found.query("iteration == 1 and run == 1").set_index("step")["reward"]
    equal = found["run"] == 2
    found.loc[equal, "reward"] = found.loc[equal, "step"].map(first)
    plots.training_curves(ax, found, "reward")
    assert [line.get_linewidth() - plots.LINE_WIDTH for line in ax.lines] == pytest.approx(
        [2 * plots.COVERED_WIDTH, plots.COVERED_WIDTH, 0, 0]
    )
    assert len({(line.get_color(), str(line.get_linestyle())) for line in ax.lines}) == 4


def test_names_for_a_legend_alone_cover_nothing(ax: Axes) -> None:
    ax.plot([], [], label="одно"), ax.plot([], [], label="другое")
    plots.dressed(ax, legend=True)
    assert len({line.get_linewidth() for line in ax.lines}) == 1 and ax.lines[0].get_linewidth() < plots.LINE_WIDTH


def test_a_common_power_of_ten_is_written_in_russian(ax: Axes) -> None:
    ax.plot([0, 1], [0, 3e-6])
    plots.dressed(ax)
    ax.figure.canvas.draw()
    assert ax.yaxis.get_offset_text().get_text() == "·10⁻⁶"
