"""Figures on given Axes with Russian labels; legends stand above their Axes, so that they cover no curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Bbox

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.numbers import MINUS, SUPERSCRIPTS, plural
from warp_nb.notebook.palette import OKABE_ITO, POLICIES, Style, run_styles, styles
from warp_nb.notebook.tables import ALL_WEIGHTS
from warp_nb.runs.geometry import with_whole

WIDTH, DPI = 6.0, 120
"""Of every figure on a page: inches, dots per inch."""
TEXT: dict[Any, Any] = {"font.size": 12, "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11}
"""Points of a figure WIDTH inches wide: about 10 pixels where a telephone shows the figure 360 pixels wide."""
LINE_WIDTH, COVERED_WIDTH = 1.8, 2.4
"""Points: of a curve, and what each curve that covers it adds to its width."""
COVERED = 0.01
"""Largest distance of two curves that cover each other, as a share of the Axes."""
LEGEND_WIDTH = 1.12
"""How much wider the Axes of a single column become when their figure is laid out."""
BAND = 0.18
BLOCK_INCHES = 0.17
"""Height of a block's line in `geometry` at which the names do not overlap."""
OFFSETS = [
    (side * reach, height * reach)
    for reach in (1, 2, 3.5)
    for side, height in ((6, 6), (6, -6), (-6, 6), (-6, -6), (0, 9), (0, -9), (9, 0), (-9, 0))
]
"""Points from a marker to the nearest side of its name, the first choice first."""
COLUMNS = {
    "objective": "награда со штрафом r_β",
    "reward": "награда r(x, y)",
    "kl": "KL(политика‖якорь), нат на последовательность",
    "penalty": "штраф −β·log(π/π_ema)",
    "lr": "скорость обучения (lr)",
    "grad_norm": "норма градиента",
}
REWARDS = {"reward_reference": "SFT", "reward_policy": "WARP", "reward_difference": "разность"}
DIFFERENCE = Style(OKABE_ITO[3], "-", "D")


@contextmanager
def panels(
    rows: int, height: float, *, width: float = WIDTH, columns: int = 1, **settings: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of `rows` by `columns` panels; it is closed when the block ends, so that it is shown once."""
    settings.setdefault("sharex", columns == 1)
    with plt.rc_context(TEXT):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), dpi=DPI, layout="constrained", squeeze=False, **settings
        )
        yield figure, list(axes.flat)
        plt.close(figure)


def training_curves(ax: Axes, history: pd.DataFrame, column: str = "objective", *, legend: bool = True) -> Axes:
    """Draw one curve per run, named as in the original report: theta1_2 is run 1 of iteration 2.

    Several seeds give the mean and a band from the smallest to the largest value.
    """
    _known(history, column)
    seeds = history["seed"].nunique()
    runs = {f"theta{run}_{iteration}": rows for (iteration, run), rows in history.groupby(["iteration", "run"])}
    for name, style in run_styles(list(runs)).items():
        _curve(ax, runs[name].groupby("step")[column], style, label=name, band=seeds > 1)
    spread = f"полоса: размах по {seeds} {plural(seeds, 'повтору', 'повторам', 'повторам')}"
    return _over_steps(ax, "шаг t", column, spread if seeds > 1 else "", legend=legend)


def summary_forest(ax: Axes, summary: Mapping[str, Estimate]) -> Axes:
    """Draw the held-out reward before and after and the paired difference, with 95 % intervals."""
    for place, (name, label) in enumerate(REWARDS.items()):
        look = POLICIES.get(label, DIFFERENCE)
        style: dict[str, Any] = {"fmt": look.marker, "color": look.color, "capsize": 4, "markersize": 7, "label": label}
        ax.errorbar(summary[name].value, place, xerr=error_arms([summary[name]]), **style)
    ax.axvline(0, color="0.5", linewidth=1, zorder=0)
    ax.set_yticks(range(len(REWARDS)), list(REWARDS.values()))
    ax.set(ylim=(len(REWARDS) - 0.5, -0.5), xlabel="награда на отложенных промптах, 95 % интервал")
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
    legend_above(ax, columns=1)
    return ax


def reward_kl_plane(
    ax: Axes, rows: Sequence[Mapping[str, Any]], label: str = "", *, style: Style | None = None
) -> Axes:
    """Draw reward over KL(policy || sft), with intervals; rows hold `reward` and `kl`, optionally `eta` or `name`.

    A second call on the same Axes adds another series, in the next style if none is given. A name that would cover
    another stands farther away, and where there is no room it is left out.
    """
    chosen = style or next(one for place, one in enumerate(styles()) if place == len(ax.containers))
    kl, reward = [row["kl"] for row in rows], [row["reward"] for row in rows]
    x, y = ([estimate.value for estimate in side] for side in (kl, reward))
    lines: dict[str, Any] = {"fmt": chosen.marker, "linestyle": chosen.line, "color": chosen.color, "capsize": 3}
    ax.errorbar(x, y, xerr=error_arms(kl), yerr=error_arms(reward), linewidth=LINE_WIDTH, label=label or None, **lines)
    for row in rows:
        name = row.get("name", f"η = {row['eta']:g}".replace(".", ",") if "eta" in row else "")
        place = (row["kl"].value, row["reward"].value)
        look: dict[str, Any] = {
            "textcoords": "offset points",
            "color": chosen.color,
            "fontsize": TEXT["legend.fontsize"],
        }
        ax.annotate(name, place, xytext=OFFSETS[0], **look)
    labels = {"xlabel": "KL(warp‖sft), нат на последовательность", "ylabel": "награда на отложенных промптах"}
    dressed(ax, legend=bool(label), **labels)
    separate_names(ax)
    return ax


def separate_names(ax: Axes) -> None:
    """Move the names of points so that none covers another name, a marker or a curve; the last drawn choose first."""
    cast("Figure", ax.get_figure(root=True)).draw_without_rendering()
    names = [text for text in ax.texts if isinstance(text, Annotation) and text.get_text()]
    lines = [dense(line) for line in ax.lines if line.get_transform() is ax.transData]
    points = np.concatenate([np.empty((0, 2)), *lines])
    taken: list[Bbox] = []
    for name in reversed(names):
        name.set_visible(True)
        free = []
        for rank, offset in enumerate(OFFSETS):
            put(name, offset)
            box = name.get_window_extent().padded(1)
            outside = not (ax.bbox.contains(*box.p0) and ax.bbox.contains(*box.p1))
            if not outside and not any(box.overlaps(other) for other in taken):
                free.append((box.count_contains(points), rank, offset))
        name.set_visible(bool(free))
        if free:
            put(name, min(free)[2])
            taken.append(name.get_window_extent().padded(1))


def put(name: Annotation, offset: tuple[float, float]) -> None:
    """Place a name by the offset of its nearest side from its point."""
    x, y = offset
    name.set_position(offset)
    name.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    name.set_verticalalignment("bottom" if y > 0 else "top" if y < 0 else "center")


def dense(line: Line2D) -> np.ndarray:
    """Return points along a drawn line in pixels, [N, 2], close enough to find what the line crosses."""
    data = np.column_stack([np.asarray(side, float) for side in line.get_data()])
    places = line.get_transform().transform(data[np.isfinite(data).all(1)])
    if line.get_linestyle() == "None" or len(places) < 2:
        return places
    along = np.linspace(0, len(places) - 1, 40 * (len(places) - 1) + 1)
    return np.column_stack([np.interp(along, range(len(places)), places[:, side]) for side in range(2)])


def _curve(ax: Axes, values: Any, style: Style, *, label: str, band: bool) -> None:
    """Draw the mean over the steps and, if there is a spread, its band; a single step is a point."""
    spread, (color, line, marker) = values.agg(["mean", "min", "max"]), style
    point = marker if len(spread) == 1 else None
    ax.plot(spread.index, spread["mean"], color=color, linestyle=line, marker=point, linewidth=LINE_WIDTH, label=label)
    if band:
        ax.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=BAND, linewidth=0)


def dressed(ax: Axes, title: str = "", *, legend: bool = False, **settings: Any) -> Axes:
    """Add a title at the left, a pale grid, and decimal commas on linear axes; curves that others cover become wider.

    `legend` puts a legend between the title and the curves; `settings` are passed to `Axes.set`.
    """
    ax.set(**settings)
    ax.set_title(title, loc="left", fontsize="medium")
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "linear":
            axis.set_major_formatter(RussianFormatter())
    ax.grid(alpha=0.3)
    show_covered(ax)
    if legend:
        legend_above(ax)
    return ax


def legend_above(ax: Axes, columns: int = 0) -> None:
    """Put a legend between the title and the Axes, in as many columns as fit by default; without labels none."""
    handles, names = ax.get_legend_handles_labels()
    if not names:
        return
    size = plt.rcParams["legend.fontsize"]
    points = size if isinstance(size, int | float) else plt.rcParams["font.size"]
    if not columns:
        width = cast("Figure", ax.get_figure(root=True)).get_figwidth() * ax.get_position().width * LEGEND_WIDTH
        columns = max(1, min(len(names), int(72 * width / points / (0.54 * max(map(len, names)) + 3.6))))
    rows = -(-len(names) // columns)
    columns = -(-len(names) // rows)
    look = {"handlelength": 2.2, "handletextpad": 0.5, "columnspacing": 1.2, "labelspacing": 0.3, "borderpad": 0.2}
    ax.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.1,
        ncols=columns,
        frameon=False,
        **look,
    )
    ax.set_title(ax.get_title(loc="left"), loc="left", fontsize="medium", pad=points * (1.35 * rows + 0.8))


def show_covered(ax: Axes) -> None:
    """Widen each curve by the number of later curves that cover it, so that all of several equal curves are seen."""
    ax.get_xlim(), ax.get_ylim()  # settles the limits
    to_axes = ax.transScale + ax.transLimits
    curves = [line for line in ax.lines if line.get_transform() is ax.transData and line.get_linestyle() != "None"]
    places = [to_axes.transform(np.column_stack([np.asarray(side, float) for side in c.get_data()])) for c in curves]
    for index, curve in enumerate(curves):
        above = sum(covers(places[index], other) for other in places[index + 1 :])
        if above:
            curve.set_linewidth(LINE_WIDTH + COVERED_WIDTH * above)


def covers(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two curves [N, 2] are nowhere farther apart than COVERED."""
    return len(one) > 0 and one.shape == other.shape and bool(np.nanmax(np.abs(one - other), initial=0.0) <= COVERED)


class RussianFormatter(ScalarFormatter):
    """Ticks with a decimal comma, and their common power of ten as ·10⁻⁶."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return super().__call__(x, pos).replace(".", ",")

    def get_offset(self) -> str:
        offset = str(super().get_offset()).replace(MINUS, "-").replace(".", ",")
        shift, _, power = offset.rpartition("1e")
        return f"{shift}·10{power.translate(SUPERSCRIPTS)}" if power and not shift else offset


def _over_steps(ax: Axes, xlabel: str, column: str, spread: str, *, legend: bool) -> Axes:
    """Add labels, grid and legend; the column is named in the title, where a long name has room."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    label = "; ".join(filter(None, (xlabel, spread)))
    return dressed(ax, COLUMNS.get(column, column), legend=legend, xlabel=label)


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
