"""Figures of the lessons that a slider redraws: a function of the sliders' values, or of what they give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from warp_nb.algorithm.merge import slerp
from warp_nb.notebook.numbers import fixed, format_number
from warp_nb.notebook.plots import OKABE_ITO, WIDTH, dressed, panels, styles


def paths_and_lengths(omega: float, lam: float) -> Figure:
    """Plot LERP and SLERP of two unit vectors `omega` degrees apart: their paths, their lengths, and both at `lam`."""
    angle = math.radians(omega)
    ends = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    lams = torch.linspace(0, 1, 101).tolist()
    with panels(1, 3.6, width=1.35 * WIDTH, columns=2) as (figure, (plane, lengths)):
        for end in ends:
            plane.plot([0, end[0].item()], [0, end[1].item()], color="0.7", linewidth=1)
        for (name, between), (color, line, marker) in zip(
            {"LERP": torch.lerp, "SLERP": slerp}.items(), styles(), strict=False
        ):
            way = torch.stack([between(*ends, at) for at in lams])
            point = between(*ends, lam)
            plane.plot(*way.T.tolist(), color=color, linestyle=line)
            plane.plot(*point.tolist(), color=color, marker=marker, markersize=9)
            label = f"{name}: длина {fixed(point.norm().item(), 2)}"
            lengths.plot(lams, way.norm(dim=1).tolist(), color=color, linestyle=line, label=label)
            lengths.plot(lam, point.norm().item(), color=color, marker=marker, markersize=9)
        title = f"Ω = {format_number(omega)}°, λ = {format_number(lam)}"
        dressed(
            plane, title, aspect="equal", xlim=(-1.1, 1.2), ylim=(-0.1, 1.2), xlabel="вдоль δ¹", ylabel="поперёк δ¹"
        )
        dressed(lengths, "Длина слитого вектора", ylim=(0, 1.45), xlabel="λ", legend="upper right")
    return figure


def chances(texts: Sequence[str], shares: Sequence[float], title: str) -> Figure:
    """Plot the probability of every text as a bar with its value, in the order given."""
    with panels(1, 3.0) as (figure, (ax,)):
        bars = ax.barh(texts, shares, color=OKABE_ITO[0])
        ax.bar_label(bars, [fixed(share, 2) for share in shares], padding=3, fontsize="small")
        ax.invert_yaxis()
        dressed(ax, title, xlim=(0, 1), xlabel="вероятность продолжения")
    return figure
