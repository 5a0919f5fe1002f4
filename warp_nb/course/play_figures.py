"""What the sliders of the lessons redraw; the functions draw on the Axes that `play` gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from matplotlib.axes import Axes

from warp_nb.algorithm.merge import slerp
from warp_nb.course.figures import GAIN, Between
from warp_nb.notebook.numbers import fixed, format_estimate, format_number
from warp_nb.notebook.palette import OKABE_ITO, styles
from warp_nb.notebook.plots import dressed, reward_kl_plane
from warp_nb.notebook.tables import table


def paths(ax: Axes, omega: float, lam: float) -> Axes:
    """Draw the paths of LERP and SLERP between unit vectors `omega` degrees apart, and both vectors at `lam`."""
    angle = math.radians(omega)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    ax.plot([1, 0, second[0].item()], [0, 0, second[1].item()], color="0.75", linewidth=1)
    ways: dict[str, Between] = {"LERP": torch.lerp, "SLERP": slerp}
    for (name, between), (color, line, marker) in zip(ways.items(), styles(), strict=False):
        way = torch.stack([between(first, second, step / 100) for step in range(101)])
        point = between(first, second, lam)
        ax.plot(*way.T.tolist(), color=color, linestyle=line)
        label = f"{name}: длина {fixed(point.norm().item(), 2)}"
        ax.plot([0, point[0].item()], [0, point[1].item()], color=color, marker=marker, markevery=[1], label=label)
    dressed(ax, f"Ω = {format_number(omega)}°, λ = {format_number(lam)}", xlim=(-1.1, 1.1), ylim=(-0.1, 1.1))
    ax.set(xlabel="вдоль δ¹", ylabel="поперёк δ¹", aspect="equal")
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    return ax


def chances(ax: Axes, texts: Sequence[str], shares: Sequence[float]) -> Axes:
    """Draw the probability of every text as a bar with its value, from the top in the order given."""
    bars = ax.barh(range(len(texts)), shares, color=OKABE_ITO[0])
    ax.bar_label(bars, [fixed(share, 2) for share in shares], padding=3, fontsize="small")
    ax.invert_yaxis()
    dressed(ax, xlim=(0, 1), xlabel="вероятность продолжения")
    ax.set_yticks(range(len(texts)), texts)
    return ax


def eaten(ax: Axes, rows: Sequence[Mapping[str, float]], limit: float) -> Axes:
    """Draw reward and regularised reward over the steps of a run, the penalty as the band between, and a limit.

    Rows hold the means `reward` and `penalty`, beta times the KL to the anchor.
    """
    reward = [row["reward"] for row in rows]
    left = [row["reward"] - row["penalty"] for row in rows]
    ax.fill_between(range(len(rows)), left, reward, color=OKABE_ITO[1], alpha=0.3, linewidth=0, label="штраф β·KL")
    ax.plot(reward, color=OKABE_ITO[0], label="награда")
    ax.plot(left, color=OKABE_ITO[1], linestyle="--", label="$r_β$, награда минус штраф")
    ax.axhline(limit, color="0.5", linewidth=1, linestyle=":", label="предел с неподвижным якорем")
    dressed(ax, xlabel="шаг t", ylabel="среднее по продолжениям", ylim=(-0.05, 0.55), legend=True)
    return ax


def shared_and_noise(ax: Axes, deltas: torch.Tensor, common: torch.Tensor) -> Axes:
    """Draw task vectors [M, N] merged by LERP and SLERP beside the first of them: noise over the shared part.

    `common` [N] is the unit vector of the shared direction. The label gives the cosine of the angle to it.
    """
    arc = deltas[0]
    for m, delta in enumerate(deltas[1:], start=2):
        arc = slerp(arc, delta, 1 / m)
    merged = {"один прогон": deltas[0], "LERP, среднее": deltas.mean(0), "SLERP": arc}
    for (name, vector), (color, line, marker) in zip(merged.items(), styles(), strict=False):
        along = (vector @ common).item()
        across = (vector - along * common).norm().item()
        label = f"{name}: доля {fixed(along / math.hypot(along, across), 2)}"
        style = {"color": color, "linestyle": line, "marker": marker, "markevery": [1]}
        ax.plot([0, along], [0, across], **style, markersize=8, linewidth=2, label=label)
    dressed(ax, xlim=(0, 3.6), ylim=(0, 4.8), xlabel="общая часть", ylabel="длина шума", legend=True)
    return ax


def front_plane(ax: Axes, rows: Sequence[Mapping[str, Any]], *, eta: float, budget: float = math.inf) -> Axes:
    """Draw the gain of reward over KL with intervals, a ring at `eta`, and in grey what is beyond a budget of KL, nats.

    Rows have eta and the Estimates gain (over theta_sft) and kl (to theta_sft, nats a sequence).
    """
    unnamed = {"name": ""}  # θ_sft, at zero: its name would stand on its neighbour's
    places = [{**row, "reward": row["gain"]} | (unnamed if row["eta"] == 0 else {}) for row in rows]
    reward_kl_plane(ax, places)
    ax.set_ylabel(GAIN)
    (chosen,) = (row for row in rows if row["eta"] == eta)
    place = chosen["kl"].value, chosen["gain"].value
    ax.plot(*place, marker="o", markersize=16, fillstyle="none", color="black", markeredgewidth=2)
    end = ax.get_xlim()[1]
    if budget < end:
        ax.axvspan(budget, end, color="0.85", zorder=0)
        ax.set_xlim(right=end)
    return ax


def about_point(row: Mapping[str, Any]) -> str:
    """Return HTML for a point of the front: gain, KL, perplexity, samples; the text of models is escaped.

    The row is as in `front_plane`, with its `evaluation`.
    """
    found = row["evaluation"]
    values = {
        GAIN: format_estimate(row["gain"], signed=True),
        "KL(warp‖sft), нат": format_estimate(row["kl"]),
        "перплексия по θ_sft": format_estimate(found.perplexity_policy),
    }
    lines = "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in values.items())
    samples = [
        {"Промпт": sample["prompt"], "Продолжение": sample["policy"], "Награда": format_number(sample["reward_policy"])}
        for sample in found.samples
    ]
    return f"<ul>{lines}</ul>{table(samples).data}"
