"""Figures on given Axes with Russian labels; colours suit colour blindness, line styles suit grey print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle, islice
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.numbers import plural
from warp_nb.notebook.tables import ALL_WEIGHTS
from warp_nb.runs.geometry import with_whole

WIDTH, DPI = 6.0, 120
"""Of every figure on a page: inches, dots per inch."""
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BAND = 0.18
BLOCK_INCHES = 0.17
"""Height of a block's line in `geometry` at which the names do not overlap."""
COLUMNS = {
    "objective": "награда со штрафом r_β",
    "reward": "награда r(x, y)",
    "kl": "KL(политика‖якорь), нат на последовательность",
    "penalty": "штраф −β·log(π/π_ema)",
    "lr": "скорость обучения (lr)",
    "grad_norm": "норма градиента",
}
REWARDS = {"reward_reference": "SFT", "reward_policy": "WARP", "reward_difference": "разность"}


@contextmanager
def panels(
    rows: int, height: float, *, width: float = WIDTH, columns: int = 1, **settings: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of `rows` by `columns` panels; it is closed when the block ends, so that it is shown once."""
    settings.setdefault("sharex", columns == 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), dpi=DPI, layout="constrained", squeeze=False, **settings
    )
    yield figure, list(axes.flat)
    plt.close(figure)


def training_curves(ax: Axes, history: pd.DataFrame, column: str = "objective") -> Axes:
    """Draw one curve per run, named as in the original report: theta1_2 is run 1 of iteration 2.

    Several seeds give the mean and a band from the smallest to the largest value.
    """
    _known(history, column)
    seeds = history["seed"].nunique()
    runs = history.groupby(["iteration", "run"])
    for ((iteration, run), rows), style in zip(runs, styles(), strict=False):
        _curve(ax, rows.groupby("step")[column], style, label=f"theta{run}_{iteration}", band=seeds > 1)
    spread = f"полоса: размах по {seeds} {plural(seeds, 'повтору', 'повторам', 'повторам')}"
    return _over_steps(ax, "шаг t", column, spread if seeds > 1 else "")


def compare_experiments(ax: Axes, histories: Mapping[str, pd.DataFrame], column: str = "objective") -> Axes:
    """Draw one curve per experiment: the mean over its runs and seeds, with a gap between its iterations."""
    many = False
    for (name, history), style in zip(histories.items(), styles(), strict=False):
        _known(history, column)
        several = history.groupby(["seed", "run"]).ngroups > 1
        many = many or several
        for index, (_, rows) in enumerate(history.groupby("iteration")):
            step = index * history["step"].max() + rows["step"]
            _curve(ax, rows.groupby(step)[column], style, label="" if index else name, band=several)
    title = "полоса: размах по прогонам" if many else ""
    return _over_steps(ax, "шаг, итерации подряд", column, title)


def summary_forest(ax: Axes, summary: Mapping[str, Estimate]) -> Axes:
    """Draw the held-out reward before and after and the paired difference, with 95 % intervals."""
    for place, ((name, label), (color, _, marker)) in enumerate(zip(REWARDS.items(), styles(), strict=False)):
        style: dict[str, Any] = {"fmt": marker, "color": color, "capsize": 4, "markersize": 7, "label": label}
        ax.errorbar(summary[name].value, place, xerr=error_arms([summary[name]]), **style)
    ax.axvline(0, color="0.5", linewidth=1, zorder=0)
    ax.set_yticks(range(len(REWARDS)), list(REWARDS.values()))
    ax.set(ylim=(len(REWARDS) - 0.5, -0.5), xlabel="награда на отложенных началах, 95 % интервал")
    ax.xaxis.set_major_formatter(RussianFormatter())
    ax.grid(axis="x", alpha=0.3)
    return ax


def geometry(ax: Axes, table: pd.DataFrame) -> Axes:
    """Draw the angle between the task vectors of two runs in each block and over all weights, below a line.

    One series per iteration and pair of runs.

    Several seeds give the mean angle, with whiskers from the smallest to the largest.
    """
    if table.empty:
        ax.text(0.5, 0.5, "Прогон один: углов нет", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return ax
    table = with_whole(table, ALL_WEIGHTS)
    blocks = list(dict.fromkeys(table["block"]))
    pairs = list(table.groupby(["iteration", "run_a", "run_b"]))
    for index, ((key, rows), (color, _, marker)) in enumerate(zip(pairs, styles(), strict=False)):
        iteration, first, second = key
        spread = rows.groupby("block")["omega"].agg(["mean", "min", "max"]).reindex(blocks)
        arms = [spread["mean"] - spread["min"], spread["max"] - spread["mean"]]
        places = [place + 0.6 * ((index + 0.5) / len(pairs) - 0.5) for place in range(len(blocks))]
        label = f"theta{first}_{iteration} и theta{second}_{iteration}"
        ax.errorbar(spread["mean"], places, xerr=arms, fmt=marker, color=color, capsize=3, label=label)
    ax.axvline(90, color="0.5", linewidth=1, linestyle="--", zorder=0)
    ax.axhline(blocks.index(ALL_WEIGHTS) - 0.5, color="0.5", linewidth=1, zorder=0)
    ax.set_yticks(range(len(blocks)), blocks)
    ax.set(ylim=(len(blocks) - 0.5, -0.5), xlim=(0, 180), xticks=range(0, 181, 30))
    ax.set_xlabel("угол Ω между векторами задачи, градусы")
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def reward_kl_plane(ax: Axes, rows: Sequence[Mapping[str, Any]], label: str = "") -> Axes:
    """Draw reward over KL(policy || sft), with intervals; rows hold `reward` and `kl`, optionally `eta` or `name`.

    A second call on the same Axes adds another series in the next style.
    """
    color, line, marker = next(islice(styles(), len(ax.containers), None))
    kl, reward = [row["kl"] for row in rows], [row["reward"] for row in rows]
    x, y = ([estimate.value for estimate in side] for side in (kl, reward))
    style: dict[str, Any] = {"fmt": marker, "linestyle": line, "color": color, "capsize": 3, "label": label or None}
    ax.errorbar(x, y, xerr=error_arms(kl), yerr=error_arms(reward), **style)
    for row in rows:
        name = row.get("name", f"η = {row['eta']:g}".replace(".", ",") if "eta" in row else "")
        place = (row["kl"].value, row["reward"].value)
        ax.annotate(name, place, xytext=(5, 5), textcoords="offset points", fontsize="small")
    labels = {"xlabel": "KL(warp‖sft), нат на последовательность", "ylabel": "награда на отложенных началах"}
    return dressed(ax, legend="best" if label else None, **labels)


def styles() -> Iterator[tuple[str, Any, str]]:
    """Yield (colour, line, marker) without end: the first seven differ in all three, the first 42 in some."""
    for index, color in enumerate(cycle(OKABE_ITO)):
        turn = index // len(OKABE_ITO)
        yield color, LINES[(index + turn) % len(LINES)], MARKERS[(index + turn) % len(MARKERS)]


def _curve(ax: Axes, values: Any, style: tuple[str, Any, str], *, label: str, band: bool) -> None:
    """Draw the mean over the steps and, if there is a spread, its band; a single step is a point."""
    spread, (color, line, marker) = values.agg(["mean", "min", "max"]), style
    point = marker if len(spread) == 1 else None
    ax.plot(spread.index, spread["mean"], color=color, linestyle=line, marker=point, linewidth=1.8, label=label)
    if band:
        ax.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=BAND, linewidth=0)


def dressed(ax: Axes, title: str = "", *, legend: Any = None, **settings: Any) -> Axes:
    """Add a title at the left, a pale grid, and decimal commas on linear axes.

    `legend` is the location of a legend, none by default; `settings` are passed to `Axes.set`.
    """
    ax.set(**settings)
    ax.set_title(title, loc="left", fontsize="medium")
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "linear":
            axis.set_major_formatter(RussianFormatter())
    ax.grid(alpha=0.3)
    if legend:
        ax.legend(fontsize="small", loc=legend)
    return ax


class RussianFormatter(ScalarFormatter):
    """Ticks with a decimal comma."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return super().__call__(x, pos).replace(".", ",")


def _over_steps(ax: Axes, xlabel: str, column: str, title: str) -> Axes:
    """Add labels, grid and legend; the column is named in the title, where a long name has room."""
    dressed(ax, COLUMNS.get(column, column), xlabel=xlabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small", title=title or None, title_fontsize="small")
    return ax


def error_arms(estimates: Sequence[Estimate]) -> list[list[float]] | None:
    """Return the lengths of the error bars of a series; None if an interval is unknown."""
    arms = [[one.value - one.low for one in estimates], [one.high - one.value for one in estimates]]
    return arms if all(length >= 0 for side in arms for length in side) else None


def png(figure: Figure, **settings: Any) -> bytes:
    """Return the figure as a PNG that does not name the software; `settings` are passed to `savefig`."""
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": ""}, **settings)
    return stream.getvalue()


def _known(history: pd.DataFrame, column: str) -> None:
    if column not in history:
        raise ValueError(f"history has no column {column!r}; it has {', '.join(history.columns)}")
