"""What the sliders of lessons 1 and 3 redraw; the functions draw on the Axes that `play` gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes

from warp_nb.algorithm.merge import slerp
from warp_nb.notebook.numbers import fixed, format_number
from warp_nb.notebook.plots import OKABE_ITO, dressed, styles


def paths(ax: Axes, omega: float, lam: float) -> Axes:
    """Draw the paths of LERP and SLERP between unit vectors `omega` degrees apart, and both vectors at `lam`."""
    angle = math.radians(omega)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    ax.plot([1, 0, second[0].item()], [0, 0, second[1].item()], color="0.75", linewidth=1)
    ways = {"LERP": torch.lerp, "SLERP": slerp}
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
