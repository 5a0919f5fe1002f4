"""Figures of the lessons, and two measures that they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warp_nb.algorithm.merge import merge, slerp
from warp_nb.algorithm.objective import Rollout, completion_logits
from warp_nb.fast.scoring import token_kl
from warp_nb.notebook.numbers import format_number
from warp_nb.notebook.palette import OKABE_ITO, styles
from warp_nb.notebook.plots import WIDTH, dressed, error_arms, panels, separate_names

Between = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(d1, d2, lambda) -> the interpolated point."""
GAIN, ALONG = "прирост награды над θ_sft", "η, доля пути от $θ_{sft}$ к слитым весам"


def chord_and_arc(omega: float, lams: Sequence[float]) -> Figure:
    """Plot two unit vectors `omega` degrees apart, with LERP's points on the chord and SLERP's on the arc."""
    angle = math.radians(omega)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    way = torch.linspace(0, angle, 200)
    ways: dict[str, Between] = {"LERP: по хорде": torch.lerp, "SLERP: по дуге": slerp}
    with panels(1, 4.6, width=4.6) as (figure, (ax,)):
        ax.plot(way.cos(), way.sin(), color="0.7", linewidth=1)
        ax.plot(*zip(first.tolist(), second.tolist(), strict=True), color="0.7", linewidth=1)
        for end, name, shift in ((pair(first), "δ¹", (8, -4)), (pair(second), "δ²", (-4, 8))):
            arrow(ax, (0, 0), end, "0.3")
            ax.annotate(name, end, xytext=shift, textcoords="offset points", fontsize="large")
        for (label, between), (color, _, marker) in zip(ways.items(), styles(), strict=False):
            points = torch.stack([between(first, second, lam) for lam in lams]).T
            ax.plot(*points, color=color, linestyle="", marker=marker, markersize=8, label=label)
        ax.margins(0.12)
        labels = {"xlabel": "первая координата", "ylabel": "вторая координата"}
        dressed(ax, legend=True, aspect="equal", **labels)
    return figure


def tips(init: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> Figure:
    """Plot theta^1 and theta^2 of a layer from zero, to scale, and their enlarged tips; vectors [N], true angles.

    The left panel is the plane of theta^1 and theta^2, the right one that of their task vectors.
    """
    left, right = _in_plane(first, second), _in_plane(first - init, second - init)
    names = (("θ¹", "θ²"), ("δ¹", "δ²"))  # the first of a pair lies along x
    with panels(1, 3.9, width=1.35 * WIDTH, columns=2) as (figure, (whole, near)):
        titles = ("Полные веса от нуля", "Концы вблизи, от $θ_{init}$")
        for ax, ends, labels, title in zip((whole, near), (left, right), names, titles, strict=True):
            for end, label, (color, line, _) in zip(ends, labels, styles(), strict=False):
                arrow(ax, (0, 0), end, color, line=line)
                ax.plot([], [], color=color, linestyle=line, label=f"{label}, длина {format_number(math.hypot(*end))}")
            axis_labels = {"xlabel": f"вдоль {labels[0]}", "ylabel": f"поперёк {labels[0]}"}
            dressed(ax, title, legend=True, aspect="equal", **axis_labels)
        reach = 1.1 * math.hypot(*left[0])
        whole.set(xlim=(-0.03 * reach, reach), ylim=(-0.5 * reach, 0.53 * reach))
        size = 1.2 * max(math.hypot(*end) for end in right)
        near.set(xlim=(-0.3 * size, 1.2 * size), ylim=(-0.3 * size, 1.25 * size))
        near.plot(0, 0, "o", color="black", markersize=5)
        near.annotate("$θ_{init}$", (0, 0), xytext=(-12, -16), textcoords="offset points")
    return figure


def _in_plane(first: torch.Tensor, second: torch.Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rotate two vectors [N] into a plane, the first along x; lengths and the angle between them are kept."""
    first, second = first.double(), second.double()
    norm = first.norm()
    along = (second @ first / norm).item()
    across = (second - along / norm * first).norm().item()
    return (norm.item(), 0.0), (along, across)


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, *, line: str = "-", width: float = 1.8
) -> None:
    """Draw an arrow in data coordinates."""
    style = {"arrowstyle": "-|>", "color": color, "linestyle": line, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, xytext=start, arrowprops=style)
    ax.plot(*zip(start, end, strict=True), alpha=0)


@torch.no_grad()
def sequence_kl(model: torch.nn.Module, other: torch.nn.Module, rollout: Rollout) -> float:
    """Return KL(model || other) along the sampled text, exact over the vocabulary: batch mean, nats per sequence."""
    logits, others = (completion_logits(side, rollout) for side in (model, other))
    return token_kl(logits, others, rollout.completion_mask, rollout.temperature).sum(1).mean().item()


def kl_along(etas: Sequence[float], kls: Sequence[float]) -> Figure:
    """Plot KL over eta and the straight line from the first point to the last."""
    with panels(1, 3.4) as (figure, (ax,)):
        ax.plot(etas, kls, color=OKABE_ITO[0], marker="o", label="измерено")
        ax.plot(*straight(etas, kls), color="0.5", linestyle="--", label="если бы росла по прямой")
        dressed(ax, "KL($θ_{sft}$‖θ(η)), нат на последовательность", legend=True, xlabel=ALONG)
    return figure


def collapse(losses: Mapping[str, Sequence[float]], scores: Mapping[str, Sequence[float]]) -> Figure:
    """Plot reward models: loss over the steps with ln 2, and the sorted scores of the same texts minus their mean."""
    apart = {name: sorted(value - fmean(values) for value in values) for name, values in scores.items()}
    with panels(2, 5.6, sharex=False) as (figure, axes):
        for ax, curves in zip(axes, (losses, apart), strict=True):
            for (label, values), (color, line, _) in zip(curves.items(), styles(), strict=False):
                ax.plot(range(1, len(values) + 1), values, color=color, linestyle=line, label=label)
        axes[0].axhline(math.log(2), color="0.5", linewidth=1, linestyle=":", label="ln 2, ответ «пополам»")
        dressed(axes[0], "функция потерь, среднее по парам батча, нат", legend=True, xlabel="шаг")
        order = "место отзыва по возрастанию оценки"
        dressed(axes[1], "оценка отложенного отзыва минус средняя оценка", xlabel=order)
    return figure


def outputs(x: torch.Tensor, values: Mapping[str, torch.Tensor]) -> Figure:
    """Plot networks of one input: the outputs [N, 1] of each over its inputs [N, 1]."""
    with panels(1, 3.2) as (figure, (ax,)):
        for (label, found), (color, line, _) in zip(values.items(), styles(), strict=False):
            ax.plot(x[:, 0].tolist(), found[:, 0].tolist(), color=color, linestyle=line, linewidth=2, label=label)
        dressed(ax, legend=True, xlabel="вход сети", ylabel="выход сети")
    return figure


def preference(differences: Sequence[float]) -> Figure:
    """Plot the Bradley-Terry probability over the difference of two rewards, with points at `differences`."""
    across = torch.linspace(-5, 5, 201)
    with panels(1, 3.0) as (figure, (ax,)):
        ax.plot(across.tolist(), torch.sigmoid(across).tolist(), color=OKABE_ITO[0])
        ax.plot(differences, torch.sigmoid(torch.tensor(differences)).tolist(), "o", color=OKABE_ITO[1])
        ax.axhline(0.5, color="0.6", linewidth=1, linestyle=":")
        dressed(ax, xlabel="разность наград $r_a - r_b$", ylabel="P(a лучше b)", ylim=(0, 1))
    return figure


def two_sides(scores: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the scores of the sides of pairs as outlined histograms over the same bins."""
    every = [score for side in scores.values() for score in side]
    bins = torch.linspace(min(every), max(every), 21).tolist()
    with panels(1, 3.0) as (figure, (ax,)):
        for (label, side), (color, line, _) in zip(scores.items(), styles(), strict=False):
            ax.hist(side, bins, histtype="step", color=color, linestyle=line, linewidth=2, label=label)
        dressed(ax, legend=True, xlabel="оценка модели награды", ylabel="число отрывков")
    return figure


def finite_differences(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a scalar function by central differences of 1e-4 in float64, in the shape of `at`."""
    start, h = at.detach().double(), 1e-4
    steps = h * torch.eye(start.numel(), dtype=torch.float64).view(-1, *start.shape)
    return torch.stack([(function(start + s) - function(start - s)) / (2 * h) for s in steps]).view_as(start)


def gradient_errors(sizes: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the relative error of sampled gradients over the number of samples, on log axes, with 1/sqrt(n)."""
    first = next(iter(errors.values()))[0]
    law = [first * math.sqrt(sizes[0] / n) for n in sizes]
    with panels(1, 3.8) as (figure, (ax,)):
        for (label, values), (color, line, marker) in zip(errors.items(), styles(), strict=False):
            ax.plot(sizes, values, color=color, linestyle=line, marker=marker, label=label)
        ax.plot(sizes, law, color="0.5", linestyle=":", label="наклон 1/√n")
        labels = {"xlabel": "число продолжений n", "ylabel": "относительная ошибка градиента"}
        dressed(ax, legend=True, xscale="log", yscale="log", **labels)
        ax.set_xticks(sizes, [format_number(n) for n in sizes])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda value, _: format_number(value))
    return figure


def pushed(objective: Sequence[float], change: Sequence[float]) -> Figure:
    """Plot the change of log pi of each completion of a batch in one step, nats, over its r_beta."""
    with panels(1, 3.6) as (figure, (ax,)):
        ax.plot(objective, change, color=OKABE_ITO[0], marker="o", linestyle="")
        ax.axhline(0, color="0.5", linewidth=1)
        ax.axvline(0, color="0.5", linewidth=1)
        dressed(ax, xlabel="$r_β$ продолжения", ylabel="изменение log π за шаг, нат")
    return figure


def jump(mus: Sequence[float], steps: int) -> Figure:
    """Plot an anchor at 0 that follows a weight after its jump to 1, one curve per mu; half-way points are marked."""
    with panels(1, 3.4) as (figure, (ax,)):
        ax.plot([0, 0, steps], [0, 1, 1], color="0.4", linestyle=":", label="вес политики")
        for mu, (color, line, marker) in zip(mus, styles(), strict=False):
            half = math.log(0.5) / math.log(1 - mu)
            label = f"якорь, μ = {format_number(mu)}; полпути за {format_number(half, 2)} шагов"
            ax.plot([1 - (1 - mu) ** t for t in range(steps + 1)], color=color, linestyle=line, label=label)
            ax.plot(half, 0.5, marker=marker, color=color)
        ax.axhline(0.5, color="0.8", linewidth=1, zorder=0)
        dressed(ax, legend=True, xlabel="шаг t", ylabel="значение веса")
    return figure


def three_anchors(curves: Mapping[str, Sequence[Mapping[str, float]]], limit: Mapping[str, float]) -> Figure:
    """Plot reward and KL to theta_sft over the steps, a line per anchor; `limit` is the closed form of a fixed one."""
    titles = {"reward": "средняя награда", "kl_sft": "KL(π‖$π_{sft}$), нат"}
    with panels(2, 5.6) as (figure, axes):
        for ax, (column, title) in zip(axes, titles.items(), strict=True):
            for (label, rows), (color, line, _) in zip(curves.items(), styles(), strict=False):
                ax.plot([row[column] for row in rows], color=color, linestyle=line, label=label)
            ax.axhline(limit[column], color="0.5", linewidth=1, linestyle=":", label="предел, π* по формуле")
            dressed(ax, title, legend=ax is axes[0])
        axes[1].set_xlabel("шаг t")
    return figure


def path(track: Sequence[tuple[int, torch.Tensor, torch.Tensor]], end: torch.Tensor, goal: torch.Tensor) -> Figure:
    """Plot WARP on two weights: `track` has (i, theta_init [2], theta^m [2]) of each run, `end` is the last theta_init.

    Thin arrows are runs, squares are theta_slerp, and a thick line goes from each theta_init to the next.
    """
    iterations = sorted({i for i, _, _ in track})
    starts = [next(init for i, init, _ in track if i == iteration) for iteration in iterations]
    with panels(1, 5.0) as (figure, (ax,)):
        for iteration, start, (color, _, _) in zip(iterations, starts, styles(), strict=False):
            runs = [theta for i, _, theta in track if i == iteration]
            merged = merge({"w": start}, [{"w": theta} for theta in runs])["w"]
            for theta in runs:
                arrow(ax, pair(start), pair(theta), color, width=1)
            label = "" if iteration > iterations[0] else "$θ_{slerp}$ итерации i"
            ax.plot(*pair(merged), marker="s", color=color, markersize=8, linestyle="", label=label)
            ax.annotate(f"i = {iteration}", pair(merged), xytext=(8, 6), textcoords="offset points", color=color)
        ways = [pair(point) for point in (*starts, end)]
        ax.plot(*zip(*ways, strict=True), color="black", marker="o", linewidth=2.5, label="$θ_{init}$")
        ax.plot(*pair(goal), marker="*", color="0.3", markersize=16, linestyle="", label="цель")
        dressed(ax, legend=True, aspect="equal", xlabel="первый вес", ylabel="второй вес")
        separate_names(ax)
    return figure


def pair(point: torch.Tensor) -> tuple[float, float]:
    """Return a point [2] as two numbers."""
    return point[0].item(), point[1].item()


def along_the_front(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the gain of reward and the KL over eta, with intervals and straight lines from the first point to the last.

    Rows have eta and the Estimates gain (over theta_sft) and kl (to theta_sft, nats a sequence).
    """
    etas = [row["eta"] for row in rows]
    titles = {"gain": GAIN, "kl": "KL(warp‖sft), нат на последовательность"}
    with panels(2, 5.8) as (figure, axes):
        for ax, (name, title) in zip(axes, titles.items(), strict=True):
            values = [row[name] for row in rows]
            middle = [value.value for value in values]
            color = OKABE_ITO[0]
            ax.errorbar(etas, middle, yerr=error_arms(values), fmt="o-", color=color, capsize=3, label="измерено")
            ax.plot(*straight(etas, middle), color="0.5", linestyle="--", label="если бы росла по прямой")
            dressed(ax, title, legend=ax is axes[0])
        axes[1].set_xlabel(ALONG)
    return figure


def straight(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the ends of the line from the first point to the last."""
    return [x[0], x[-1]], [y[0], y[-1]]


def two_kls(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Plot the KL of the policy to its anchor and to theta_sft over the steps of a run; rows have kl_anchor, kl_sft."""
    columns = {"kl_sft": "до $θ_{sft}$", "kl_anchor": "до якоря"}
    with panels(1, 3.6) as (figure, (ax,)):
        for (column, label), (color, line, marker) in zip(columns.items(), styles(), strict=False):
            steps = range(1, len(rows) + 1)
            ax.plot(steps, [row[column] for row in rows], color=color, linestyle=line, marker=marker, label=label)
        dressed(ax, legend=True, xlabel="шаг t", ylabel="KL, нат на последовательность")
    return figure
