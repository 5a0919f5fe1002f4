"""results.json -> the tables between the markers of README.md, and results.png.

A part's record may hold `comparisons` (see `figures.compare`), `choices`, `phases` with `rates` (see `floor`),
`exponents` (see `growth`) and `alone`: figures that have no peer. Nothing here is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratio, spread

HERE = Path(__file__).parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
OURS, PEER, FLOOR = "#0072B2", "#E69F00", "#999999"
Results = dict[str, Any]


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def amount(value: float, unit: str) -> str:
    """Seconds as s or ms, bytes as MB (1e6) or GB (1e9)."""
    if unit == "bytes":
        return f"{number(value / 1e9)} GB" if value >= 1e9 else f"{number(value / 1e6)} MB"
    return f"{number(value)} s" if value >= 1 else f"{number(1e3 * value)} ms"


def bracketed(figure: Figure) -> str:
    """The median and, in brackets, the smallest and the largest."""
    return f"{number(figure['median'])} [{number(figure['low'])}, {number(figure['high'])}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(value: float, target: float | None, at_least: bool, unit: str = "") -> str:
    """The target and whether it is met; empty without one."""
    if target is None:
        return ""
    met = value >= target if at_least else value <= target
    told = amount(target, unit) if unit else number(target)
    return f"{'≥' if at_least else '≤'} {told}: {'met' if met else 'missed'}"


def comparisons(results: Results) -> Iterator[Figure]:
    """Every comparison of every part."""
    for part in results.values():
        yield from part.get("comparisons", [])


def peers_table(results: Results) -> str:
    """Ours beside the peers."""
    head = ["what", "ours", "peer", "peer's", "ratio", "target", "pairs"]
    return table(head, [peer_row(figure) for figure in comparisons(results)])


def peer_row(figure: Figure) -> list[str]:
    """One comparison with a peer."""
    unit, found = figure["unit"], figure["ratio"]
    ours, theirs = (amount(spread(figure[side])["median"], unit) for side in ("ours", "theirs"))
    words = "times as fast" if unit == "s" else "of the peer's"
    target = verdict(found["median"], figure["target"], at_least=unit == "s")
    return [figure["what"], ours, figure["peer"], theirs, f"{bracketed(found)} {words}", target, str(found["count"])]


def choices_table(results: Results) -> str:
    """The step as it is beside the step with one choice made the other way; the padding in its work."""
    rows, lines = [], []
    for part in results.values():
        rows += [choice_row(figure) for figure in part.get("choices", [])]
        if "padding" in part:
            prompts, after = (f"{part['padding'][name]:.1%}" for name in ("prompt_padding", "after_the_end"))
            lines.append(
                f"Of the prompts' positions {prompts} are padding, of the sampled ones {after} stand after an "
                "end-of-text token: so little can batches sorted by length and dropped finished sequences save here."
            )
    head = ["choice", "in use", "step as it is", "the other way", "the other way takes", "until the second step"]
    return "\n".join([table(head, rows), "", *lines])


def choice_row(figure: Figure) -> list[str]:
    """One choice, its seconds or its peak memory."""
    sides, unit = ("ours", "theirs"), figure["unit"]
    ours, theirs = (amount(spread(figure[side])["median"], unit) for side in sides)
    ready = " / ".join(amount(figure[f"{side}_ready"], "s") for side in sides if f"{side}_ready" in figure)
    takes = f"{bracketed(ratio(figure['theirs'], figure['ours']))} times"
    return [figure["what"], "yes" if figure["in_use"] else "no", ours, theirs, takes, ready]


def floors(results: Results) -> dict[str, Any]:
    """The parts that hold phases, by name."""
    return {name: part for name, part in results.items() if "phases" in part}


def floor_table(results: Results) -> str:
    """Each phase of a step: time, floor, ratio; a line of rates below."""
    parts = floors(results)
    head: list[str] = ["phase"]
    rows: dict[str, list[str]] = {}
    for part in parts.values():
        settings = part["settings"]
        head += [f"{settings['task']} {settings['dtype']}, ms [spread]", "floor, ms", "ratio"]
        for row in part["phases"]:
            cells = rows.setdefault(row["phase"], [row["phase"]])
            seconds = {key: 1e3 * value for key, value in row["seconds"].items()}
            told = verdict(row["ratio"] or 0.0, row.get("target"), at_least=False)
            cells += [bracketed(seconds), number(1e3 * row["floor"])]
            cells.append(f"{number(row['ratio'])}{f' ({told})' if told else ''}" if row["ratio"] else "")
    lines = [table(head, list(rows.values())), ""]
    for name, part in parts.items():
        rates, shape = part["rates"], part["shape"]
        lines.append(
            f"`{name}`: {number(rates['flop_per_s'] / 1e9)} GFLOP/s, {number(rates['bytes_per_s'] / 1e9)} GB/s; "
            f"{shape['batch']} × ({shape['prompt']} + {shape['completion']}) tokens.  "
        )
    return "\n".join(lines)


def memory_table(results: Results) -> str:
    """What is in memory at the peak of a step by `cost.step_memory`, beside the measured peak."""
    parts = {name: part["memory"] for name, part in results.items() if "memory" in part}
    names = list(dict.fromkeys(name for memory in parts.values() for name in memory))
    rows = [[name, *(amount(memory.get(name, 0), "bytes") for memory in parts.values())] for name in names]
    return table(["counted from sizes", *parts], rows)


def growth_table(results: Results) -> str:
    """Cost ~ size^k."""
    rows = [
        [
            row["what"],
            ", ".join(map(str, row["sizes"])),
            ", ".join(amount(seconds, "s") for seconds in row["seconds"]),
            bracketed(row["exponent"]),
        ]
        for part in results.values()
        for row in part.get("exponents", [])
    ]
    return table(["what grows", "sizes", "medians", "exponent"], rows)


def alone_table(results: Results) -> str:
    """Figures without a peer."""
    rows = [alone_row(figure) for part in results.values() for figure in part.get("alone", [])]
    return table(["what", "median", "spread", "times", "floor", "target"], rows)


def alone_row(figure: Figure) -> list[str]:
    """One figure without a peer, beside its floor if it has one."""
    unit, least = figure["unit"], figure["floor"]
    median, low, high = (amount(figure[key], unit) for key in ("median", "low", "high"))
    floor = f"{amount(least, unit)}, ratio {number(figure['median'] / least)}" if least else ""
    target = verdict(figure["median"], figure["target"], at_least=False, unit=unit)
    return [figure["what"], median, f"{low} to {high}", str(figure["count"]), floor, target]


def summary(part: Figure) -> list[str]:
    """The comparisons, choices and other figures of one part in words, to be printed when it is measured."""
    makers = {"comparisons": peer_row, "choices": choice_row, "alone": alone_row}
    return [", ".join(filter(None, make(figure))) for key, make in makers.items() for figure in part.get(key, [])]


def conditions(results: Results) -> str:
    """The machine and versions (a line for every distinct one), then when each part was measured."""
    rows, places = [], dict[str, list[str]]()
    for name, part in results.items():
        machine = part["machine"]
        where = f"{machine['cpu']}, {machine['processors']} processors, {machine['memory_gb']} GB, {machine['system']}"
        where += "".join(f", {package} {version}" for package, version in part["versions"].items())
        places.setdefault(where, []).append(name)
        rows.append([name, part["date"], amount(part["seconds"], "s"), f"{part['used_by_others']:.1%}"])
    lines = [f"{', '.join(names)}: {where}.\n" for where, names in places.items()]
    return "\n".join([*lines, table(["part", "begun", "took", "used by others meanwhile"], rows)])


def tables(results: Results) -> str:
    """Everything between the markers of README.md."""
    if not results:
        return "Not measured yet.\n"
    sections = [("Against peers", "comparisons", peers_table), ("A step beside its floor", "phases", floor_table)]
    sections += [("Where a step's memory goes", "memory", memory_table)]
    sections += [("What the choices of a step save", "choices", choices_table)]
    sections += [("How cost grows", "exponents", growth_table), ("Figures of our own", "alone", alone_table)]
    texts = ["![Ratios to the peers; phases beside their floors](results.png)"]
    for title, key, make in sections:
        if any(part.get(key) for part in results.values()):
            texts.append(f"## {title}\n\n{make(results)}")
    texts.append(f"## Measured when and where\n\n{conditions(results)}")
    return "\n\n".join(texts) + "\n"


def filled(readme: str, results: Results) -> str:
    """`readme` with the tables between its markers; ValueError when it has none."""
    head, found, rest = readme.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"README.md lacks the markers {BEGIN.strip()} and {END}; put them back")
    return head + BEGIN + tables(results) + END + tail


def draw(results: Results, path: Path) -> None:
    """Ratios of the timed comparisons with their spread and targets; phases beside their floors."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    timed = [figure for figure in comparisons(results) if figure["unit"] == "s"]
    parts = floors(results)
    figure, axes = plt.subplots(1, 1 + len(parts), figsize=(5 + 3 * len(parts), 3.6), layout="constrained")
    axes = [axes] if not parts else list(axes)
    draw_ratios(axes[0], timed)
    for ax, (name, part) in zip(axes[1:], parts.items(), strict=True):
        draw_phases(ax, name, part["phases"][:-1])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_ratios(ax: Any, timed: list[Figure]) -> None:
    """A point a comparison, with its spread: how many times as fast ours is."""
    from matplotlib.ticker import LogLocator, NullLocator

    for place, figure in enumerate(timed):
        found = figure["ratio"]
        reach = [[found["median"] - found["low"]], [found["high"] - found["median"]]]
        ax.errorbar(found["median"], place, xerr=reach, color=OURS, marker="o", capsize=3)
        if figure["target"]:
            ax.plot([figure["target"]] * 2, [place - 0.3, place + 0.3], color=PEER, lw=3)
    ax.axvline(1, color="black", lw=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(timed)), [f"{figure['what']}\nagainst {figure['peer']}" for figure in timed], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("times as fast as the peer (orange: target)")


def draw_phases(ax: Any, name: str, rows: list[Figure]) -> None:
    """A pair of bars a phase: time and floor."""
    for place, row in enumerate(rows):
        ax.barh(place - 0.2, 1e3 * row["seconds"]["median"], 0.4, color=OURS, label="measured" if not place else None)
        ax.barh(place + 0.2, 1e3 * row["floor"], 0.4, color=FLOOR, label="floor" if not place else None)
    ax.set_yticks(range(len(rows)), [row["phase"] for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(f"{name}, ms")
    ax.legend(fontsize=8)


def main() -> None:
    """Fill README.md and draw the picture."""
    path = HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results:
        draw(results, HERE / "results.png")


if __name__ == "__main__":
    main()
