"""Schemes of lesson 0: RLHF in three stages, one run of WARP, two iterations and the front.

A function draws on an Axes of about `SCHEME_WIDTH` inches and returns it; the texts are legible on a page of 390 px.
"""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from warp_nb.algorithm.merge import liti, merge
from warp_nb.course.figures import pair
from warp_nb.notebook.palette import OKABE_ITO

SCHEME_WIDTH = 4.4
"""Inches of a scheme."""
DATA, TRAINED, JUDGE, ANCHOR = "0.92", "#CFE3F2", "#F9DCC8", "#CFEADF"
"""Fills of boxes: data, the trained policy, what judges it, the anchor; pale colours of OKABE_ITO."""
Point = tuple[float, float]


def box(ax: Axes, at: Point, text: str, fill: str) -> Point:
    """Draw a text in a rounded box around `at`; return `at`."""
    style = {"boxstyle": "round,pad=0.45", "facecolor": fill, "edgecolor": "0.35"}
    ax.text(*at, text, ha="center", va="center", fontsize=11, bbox=style, zorder=3)
    return at


def flow(ax: Axes, start: Point, end: Point, *, dashed: bool = False, bend: float = 0.0) -> None:
    """Draw an arrow from one point to another; `bend` curves it to its right."""
    line = "--" if dashed else "-"
    style = {"arrowstyle": "-|>", "linewidth": 1.6, "linestyle": line, "color": "0.25", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, xytext=start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"}, zorder=2)


def note(ax: Axes, at: Point, text: str, side: str = "center") -> None:
    """Write beside an arrow; `side` is the alignment of the text: left, center or right."""
    ax.text(*at, text, ha=side, va="center", fontsize=10, color="0.15", zorder=4)


def blank(ax: Axes, height: float) -> Axes:
    """Prepare an Axes of 10 by `height` units without ticks."""
    ax.set(xlim=(0, 10), ylim=(0, height))
    ax.set_axis_off()
    return ax


def rlhf_stages(ax: Axes) -> Axes:
    """Draw SFT, the reward model, and the loop of RL that uses both; the Axes is about as high as wide."""
    blank(ax, 10)
    ax.add_patch(FancyBboxPatch((0.1, 0.1), 9.8, 4.2, boxstyle="round,pad=0,rounding_size=0.3", fill=False, ls=":"))
    policy, judge = (2.6, 3.3), (7.4, 3.3)
    for place, data, model, fill in (
        (2.4, "готовые тексты", "1. SFT: модель $θ_{sft}$\nпродолжает тексты", TRAINED),
        (7.6, "пары текстов:\nкакой лучше", "2. Модель награды $r$\nставит тексту число", JUDGE),
    ):
        box(ax, (place, 9.2), data, DATA)
        box(ax, (place, 6.6), model, fill)
        flow(ax, (place, 8.5), (place, 7.4))
        flow(ax, (place, 5.8), (place, 3.85))
    note(ax, (2.65, 4.85), "исходные веса", "left")
    note(ax, (7.85, 4.85), "судья", "left")
    box(ax, policy, "политика $π_θ$", TRAINED)
    box(ax, judge, "награда $r(x, y)$", JUDGE)
    flow(ax, (4.15, 3.5), (5.65, 3.5))
    note(ax, (4.9, 3.95), "текст $y$")
    flow(ax, (7.4, 2.75), (3.0, 2.75), bend=-0.3)
    note(ax, (5.3, 1.45), "шаг: награда растёт")
    box(ax, (1.4, 0.9), "промпт $x$", DATA)
    flow(ax, (1.5, 1.5), (2.2, 2.75))
    ax.text(9.6, 0.55, "3. RL: много шагов", ha="right", va="center", fontsize=11, fontweight="bold")
    return ax


def one_run(ax: Axes) -> Axes:
    """Draw a step of a run of WARP: policy, anchor, reward, penalty, update; the Axes is a little higher than wide."""
    blank(ax, 11.5)
    policy, anchor = (3.2, 8.4), (7.9, 8.4)
    box(ax, (3.2, 10.8), "промпт $x$", DATA)
    box(ax, policy, "политика $θ$", TRAINED)
    box(ax, anchor, "якорь $θ_{ema}$", ANCHOR)
    box(ax, (3.2, 6.1), "продолжение $y$", DATA)
    box(ax, (3.2, 3.6), "награда\n$r(x, y)$", JUDGE)
    box(ax, (7.4, 3.6), r"штраф $\beta\cdot\log\frac{\pi_\theta(y)}{\pi_{ema}(y)}$", ANCHOR)
    box(ax, (5.2, 0.8), r"$r_\beta$ = награда − штраф", JUDGE)
    flow(ax, (3.2, 10.35), (3.2, 8.9))
    flow(ax, (3.2, 7.95), (3.2, 6.6))
    flow(ax, (3.2, 5.65), (3.2, 4.35))
    flow(ax, (4.4, 5.65), (6.4, 4.2))
    flow(ax, (7.9, 7.95), (7.9, 4.2))
    flow(ax, (3.2, 2.9), (4.3, 1.3))
    flow(ax, (7.4, 3.0), (6.2, 1.3))
    flow(ax, (4.5, 8.4), (6.5, 8.4), dashed=True)
    note(ax, (5.5, 9.5), "EMA: идёт следом,\nдоля $μ$ за шаг")
    ax.plot([2.9, 0.4, 0.4], [0.8, 0.8, 8.4], color="0.25", linewidth=1.6, zorder=2)
    flow(ax, (0.4, 8.4), (1.9, 8.4))
    ax.text(0.1, 4.6, "шаг по градиенту $r_β$", rotation=90, ha="right", va="center", fontsize=10, color="0.15")
    return ax


def fan(ax: Axes, start: torch.Tensor, direction: float, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw iteration `number`: two runs of length 1 at 45° to `direction` (degrees); return merged weights and LITI's.

    SLERP and LITI are the package's functions, so points and lengths are right.
    """
    color = OKABE_ITO[number - 1]
    angles = (math.radians(direction + turn) for turn in (45, -45))
    runs = [start + torch.tensor([math.cos(angle), math.sin(angle)], dtype=start.dtype) for angle in angles]
    merged = merge({"w": start}, [{"w": run} for run in runs])["w"]
    after = liti({"w": start}, {"w": merged}, 0.5)["w"]
    for m, run in enumerate(runs, start=1):
        style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", pair(run), xytext=pair(start), arrowprops=style)
        x, y = pair(run + 0.06 * (run - start))
        ax.text(x, y, f"прогон {m}", ha="right" if m == 1 else "left", va="center", fontsize=10.5, color=color)
    arc = [math.radians(direction + turn) for turn in range(-45, 46)]
    x, y = pair(start)
    ax.plot([x + math.cos(a) for a in arc], [y + math.sin(a) for a in arc], color=color, linewidth=1, linestyle=":")
    ax.plot(*zip(pair(start), pair(merged), strict=True), color=color, linewidth=1.4, linestyle="--")
    ax.plot(*pair(merged), marker="s", markersize=9, color=color)
    (x, y), side = pair(merged), {1: "right"}.get(number, "left")
    x, y = (x - 0.08, y) if side == "right" else (x - 0.05, y + 0.13)  # beside the next iteration's run, or above
    ax.text(x, y, f"SLERP, i = {number}", ha=side, va="center", fontsize=10.5, color=color)
    return merged, after


def fan_of_runs(ax: Axes) -> Axes:
    """Draw two iterations of WARP in a plane of weights and the front; the Axes is about as high as wide."""
    sft = torch.zeros(2, dtype=torch.float64)
    _, next_init = fan(ax, sft, 110, 1)
    last, _ = fan(ax, next_init, 62, 2)
    ax.plot(*zip(pair(sft), pair(last), strict=True), color="0.75", linewidth=6, solid_capstyle="round", zorder=0)
    for point, text, (x, y), side in (
        (sft, "$θ_{sft}$", (0.0, -0.13), "center"),
        (next_init, "LITI, i = 1", (-0.09, 0.0), "right"),
        (0.35 * last, "фронт: точку на нём\nвыбирают в конце", (0.28, -0.28), "left"),
    ):
        ax.text(pair(point)[0] + x, pair(point)[1] + y, text, ha=side, va="center", fontsize=10.5)
    ax.plot([0.35 * pair(last)[0] + 0.04, 0.36], [0.35 * pair(last)[1], 0.28], color="0.5", linewidth=1)
    ax.plot(*zip(pair(sft), pair(next_init), strict=True), marker="o", markersize=9, color="black", linestyle="")
    ax.set(xlim=(-1.45, 1.45), ylim=(-0.25, 1.62), aspect="equal")
    ax.set_axis_off()
    return ax
