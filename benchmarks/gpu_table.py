"""The results of `benchmarks.gpu` as a table: each row beside its floor, TRL and its targets.

`python -m benchmarks.gpu_table` writes the results of `results-gpu.json` between the markers of docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import page
from benchmarks.page import amount, bracketed, number

if TYPE_CHECKING:
    from benchmarks.gpu import Row

HEAD = ["row", "before", "measured", "floor", "ratio to floor", "TRL", "TRL / ours", "target", "met or missed"]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- rows -->\n", "<!-- /rows -->"
COLD = "prepare"
"""The row that adds the reports to its own seconds."""
Results = Mapping[str, Mapping[str, Any]]


def measured(name: str, results: Results) -> Mapping[str, float] | None:
    """Return the seconds of a row (median, low, high), or None where there is no figure.

    The cold row is the sum of two commands, of which the first made the policy and the reward model.
    """
    record = results.get(name, {})
    found = None if record.get("error") else record.get("seconds")
    if name != COLD or found is None:
        return found
    made = " ".join(record["made"])
    reports = measured("reports", results)
    if record["resumed"] or "smollm2-sft-" not in made or "reward-" not in made or reports is None:
        return None
    return {key: found[key] + reports[key] for key in ("median", "low", "high")}


def judged(row: Row, record: Mapping[str, Any], seconds: Mapping[str, float]) -> list[tuple[str, bool]]:
    """Return every target of a row in words, and whether it is met."""
    found = [(f"≤ {amount(row.target, 's')}", seconds["median"] <= row.target)]
    if row.peer:
        found.append((f"≥ {number(row.peer)} × TRL", "ratio" in record and record["ratio"]["median"] >= row.peer))
    if row.floors:
        found.append((f"≤ {number(row.floors)} floors", seconds["median"] / record["floor"] <= row.floors))
    return found


def why_not(name: str, results: Results) -> str:
    """Return why a row has no figure."""
    record = results.get(name, {})
    if "error" in record:
        return f"failed: {str(record['error']).strip().splitlines()[-1]}"
    if record.get("resumed") and name in ("reports", COLD):
        return "resumed after an interruption, so no figure"
    if name == COLD and "took" in record and "reward-" not in " ".join(record["made"]):
        return "the parts were there, so nothing was cold"
    return "not measured"


def cells(name: str, row: Row, results: Results) -> list[str]:
    """Return the cells of a row, in the order of HEAD."""
    record, seconds = results.get(name, {}), measured(name, results)
    before = f"{row.hedge}{amount(row.before, 's')}" if row.before else ""
    before += f", TRL {amount(row.before_peer, 's')}" if row.before_peer else ""
    wanted = [f"≤ {amount(row.target, 's')}"] + [f"≥ {number(row.peer)} × TRL"] * bool(row.peer)
    wanted += [f"≤ {number(row.floors)} floors"] * bool(row.floors)
    if seconds is None:
        return [row.title, before, why_not(name, results), "", "", "", "", ", ".join(wanted), "open"]
    unit = 1e3 if seconds["median"] < 1 else 1
    spread = bracketed({key: seconds[key] * unit for key in ("median", "low", "high")})
    floor = record.get("floor")
    told = [row.title, before, f"{spread} {'ms' if unit > 1 else 's'}"]
    told += [amount(floor, "s"), number(seconds["median"] / floor)] if floor else ["", ""]
    told += [amount(record["peer"]["median"], "s"), bracketed(record["ratio"])] if "ratio" in record else ["", ""]
    verdicts = judged(row, record, seconds)
    met = (
        "met" if all(one for _, one in verdicts) else f"missed: {', '.join(text for text, one in verdicts if not one)}"
    )
    return [*told, ", ".join(wanted), "a trial, not judged" if is_trial(record) else met]


def is_trial(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of a trial on the CPU."""
    return bool(record["card"]["device"] == "cpu")


def table(results: Results, rows: Mapping[str, Row]) -> str:
    """Return the table of all rows, and below it what each step holds and where it was measured."""
    lines = [page.table(HEAD, [cells(name, row, results) for name, row in rows.items()]), ""]
    for name in rows:
        lines += [f"- `{name}`: {text}." for text in details(results.get(name, {}))]
    places = {
        f"{record['card']['gpu']}, {record['machine']['processors']} processors ({record['machine']['cpu']}), "
        + ", ".join(f"{package} {version}" for package, version in record["versions"].items()): None
        for record in results.values()
        if "card" in record
    }
    return "\n".join([*lines, *places])


def details(record: Mapping[str, Any]) -> list[str]:
    """Describe a row's record beside its seconds: capture, launches, memory, phases, parts of the reports."""
    found = []
    if "eager" in record:
        found.append(f"eager, because {record['eager']}" if record["eager"] else "captured in CUDA graphs")
    if record.get("weights"):
        found.append(f"weights: {record['weights']}")
    if "unseen" in record:
        return [*found, f"profile and phases failed: {record['unseen'].strip().splitlines()[-1]}"]
    if "profile" in record:
        found.append(in_words(record["profile"], record["seconds"]["median"]))
    if record.get("peak_device"):
        theirs = f", TRL {amount(record['peer']['peak_device'], 'bytes')}" if "peer" in record else ""
        found.append(f"peak of torch's memory {amount(record['peak_device'], 'bytes')}{theirs}")
    if "phases" in record:
        told = ", ".join(
            f"{phase} {amount(values['median'], 's')} (floor {amount(record['floors'][phase], 's')})"
            for phase, values in record["phases"].items()
        )
        found.append(f"phases, in steps of their own: {told or 'not measured, the optimizer called no hook'}")
    if "again" in record:
        found.append(f"with the reference's side saved {amount(record['again']['median'], 's')}")
    if "notebooks" in record:
        found += [
            f"{name} {amount(parts['whole'], 's')}, of it the experiment {amount(parts['experiment'], 's')}, its steps "
            f"{amount(parts['steps'], 's')}"
            for name, parts in record["notebooks"].items()
        ]
    return found


def in_words(profile: Mapping[str, float], step: float) -> str:
    """Describe the profile of a step that takes `step` seconds when it is not profiled."""
    if not profile:
        return "launches and busy share not measured (no CUDA device, or torch's profiler lacks CUPTI)"
    counts = ", ".join(
        f"{profile[name]:.0f} {name}" for name in ("kernel launches", "graph launches", "copies", "kernels")
    )
    return f"{counts}; GPU busy {amount(profile['busy'], 's')}, {profile['busy'] / step:.0%} of a step"


def lines_of(name: str, results: Results, rows: Mapping[str, Row]) -> list[str]:
    """Return a row in words, to be printed when it is measured."""
    told = [f"{head} {cell}" for head, cell in zip(HEAD[2:], cells(name, rows[name], results)[2:], strict=True) if cell]
    return ["; ".join(told), *details(results[name])]


def verdict_lines(results: Results, rows: Mapping[str, Row]) -> list[str]:
    """Return one line a row: its figure and whether its targets are met."""
    found = []
    for name, row in rows.items():
        every = cells(name, row, results)
        found.append(f"{row.title}: {every[2]} (target {every[7]}): {every[8]}")
    return found


def filled(text: str, results: Results, rows: Mapping[str, Row]) -> str:
    """Return the text of a page with the table of the results between its markers.

    Raises:
        ValueError: it has no markers.
    """
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"the page lacks the markers {BEGIN.strip()} and {END}; put them back")
    return f"{head}{BEGIN}{table(results, rows).strip()}\n{END}{tail}"


def main() -> None:
    """Fill docs/gpu.md."""
    from benchmarks.gpu import RESULTS, ROWS, read

    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), read(RESULTS), ROWS), encoding="utf-8")


if __name__ == "__main__":
    main()
