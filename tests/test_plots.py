from itertools import islice

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from synthetic import around, result

from warp_nb.measure.evaluation import Estimate
from warp_nb.notebook import plots

matplotlib.use("agg")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curves_are_named_as_in_the_original_and_hold_the_data(ax):
    found = result(T=7).history
    assert plots.training_curves(ax, found, "reward") is ax
    assert labels(ax) == ["theta1_1", "theta2_1", "theta1_2", "theta2_2"]
    wanted = found[(found["iteration"] == 1) & (found["run"] == 2)]
    assert np.array_equal(ax.lines[1].get_ydata(), wanted["reward"])
    assert list(ax.lines[1].get_xdata()) == [1, 2, 3, 4, 5, 6, 7]
    assert ax.get_xlabel() == "шаг t" and "награда" in ax.get_title(loc="left")
    assert len(ax.collections) == 0


def test_the_spread_over_seeds_is_a_band(ax):
    found = result(n_seeds=3, M=1, I=1).history
    plots.training_curves(ax, found, "objective")
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(found["objective"].min())
    assert band.max() == pytest.approx(found["objective"].max())
    assert np.allclose(ax.lines[0].get_ydata(), found.groupby("step")["objective"].mean())
    assert ax.get_legend().get_title().get_text() == "полоса: размах по 3 повторам"


def test_a_single_step_is_still_visible(ax):
    plots.training_curves(ax, result(T=1).history, "kl")
    assert all(line.get_marker() not in ("None", None, "") for line in ax.lines)
    assert "нат на последовательность" in ax.get_title(loc="left")


def test_unknown_column_is_refused(ax):
    with pytest.raises(ValueError, match="no column 'rewrad'; it has seed, iteration"):
        plots.training_curves(ax, result().history, "rewrad")


def test_experiments_run_through_their_iterations(ax):
    histories = {"exp1": result().history, "exp2": result(T=5, M=1).history}
    assert plots.compare_experiments(ax, histories) is ax
    assert labels(ax) == ["exp1", "exp2"]
    steps = [list(line.get_xdata()) for line in ax.lines]
    assert steps == [list(range(1, 11)), list(range(11, 21)), list(range(1, 6)), list(range(6, 11))]
    step_12 = histories["exp1"].query("iteration == 2 and step == 2")["objective"].mean()
    assert ax.lines[1].get_ydata()[1] == pytest.approx(step_12)
    assert ax.lines[0].get_color() == ax.lines[1].get_color() != ax.lines[2].get_color()
    assert len(ax.collections) == 2, "a band an iteration for two runs, none for one"


def test_summary_forest_draws_values_with_their_intervals(ax):
    summary = result(
        held_out={"reward_difference": around(0.7, 0.1), "reward_policy": Estimate(1.0, np.nan, np.nan)}
    ).summary
    assert plots.summary_forest(ax, summary) is ax
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["SFT", "WARP", "разность"]
    segments = ax.collections[-1].get_segments()[0]
    assert segments[:, 0].tolist() == pytest.approx([0.6, 0.8])
    assert "95 % интервал" in ax.get_xlabel()


def test_geometry_shows_the_angle_of_every_block(ax):
    found = result(omega=70.0, n_seeds=2).geometry
    found.loc[found["seed"] == 1, "omega"] = 80.0
    assert plots.geometry(ax, found) is ax
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["wte", "h.0", "h.1"]
    assert labels(ax) == ["theta1_1 и theta2_1", "theta1_2 и theta2_2"]
    assert ax.collections[0].get_segments()[0][:, 0].tolist() == pytest.approx([70, 80])
    assert "градусы" in ax.get_xlabel()


def test_geometry_with_undefined_angles_or_none(ax):
    plots.geometry(ax, result(omega=np.nan).geometry)
    ax.clear()
    plots.geometry(ax, result(M=1).geometry)
    assert [text.get_text() for text in ax.texts] == ["Прогон один: углов нет"]


def test_plane_takes_series_after_series(ax):
    rows = [
        {"eta": 0.5, "reward": around(1.0, 0.1), "kl": around(2.0, 0.2)},
        {"eta": 1.0, "reward": around(1.5, 0.1), "kl": around(4.0, 0.2)},
    ]
    assert plots.reward_kl_plane(ax, rows, "SLERP") is ax
    plots.reward_kl_plane(
        ax, [{"name": "exp1", "reward": around(0.2, 0.1), "kl": Estimate(0.1, np.nan, np.nan)}], "LERP"
    )
    assert [text.get_text() for text in ax.texts] == ["η = 0,5", "η = 1", "exp1"]
    assert labels(ax) == ["SLERP", "LERP"]
    first, second = (container.lines[0] for container in ax.containers)
    assert first.get_xdata().tolist() == [2.0, 4.0] and first.get_ydata().tolist() == [1.0, 1.5]
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()


def test_ticks_have_decimal_commas(ax):
    plots.reward_kl_plane(ax, [{"reward": around(0.25, 0.1), "kl": around(0.5, 0.2)}])
    ax.figure.canvas.draw()
    ticks = [tick.get_text() for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_ticklabels()]
    assert any("," in text for text in ticks) and not any("." in text for text in ticks)


def test_first_seven_styles_differ_in_colour_and_in_line():
    first = list(islice(plots.styles(), 7))
    assert len({color for color, _, _ in first}) == len({str(line) for _, line, _ in first}) == 7
    many = list(islice(plots.styles(), 42))
    assert len({(color, str(line)) for color, line, _ in many}) == 42


def test_first_four_colours_differ_for_every_eye():
    """Pairwise distance after a simulation of deuteranopia (Viénot 1999, linear RGB), at least a tenth."""
    deuteranopia = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = [deuteranopia @ np.array(to_rgb(color)) ** 2.2 for color in plots.OKABE_ITO[:4]]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 0.1
