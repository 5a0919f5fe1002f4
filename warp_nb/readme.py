"""The tables of README.md, made from result.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from warp_nb.original import ROWS
from warp_nb.results import OK, reports_of

README_MARKS = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)
ASSUMED_ENGLISH = {
    "exp1": f"warm-up of exp1 ({ROWS[1].settings['warmup_steps']} steps, as in the paper)",
    "exp4": f"lr of exp4 ({ROWS[4].settings['lr']:g}, named in its last sentence)",
    "all": "task, batch size, completion length and temperature of all",
}
"""`OriginalRow.assumed` for README.md."""


def readme_table(merged: dict[str, Any]) -> str:
    """Markdown table of the experiments for README.md, from result.json."""
    lines = [
        "| | setting | reward SFT | reward WARP | difference | KL(sft‖warp) | KL(warp‖sft) "
        "| original's KLs (another model) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in merged["experiments"].items():
        original = ROWS[int(name[3:])]
        if result["status"] != OK:
            lines.append(f"| {name} | not finished | | | | | | |")
            continue
        config, summary = result["config"], result["summary"]
        warmup = f"warm-up over {config['warmup_steps']}" if config["warmup_steps"] else "no warm-up"
        figures = " | ".join(_english(summary[measure]) for measure in original.measures())
        lines.append(
            f"| {name} | lr {config['lr']:g}, {warmup} | {figures} "
            f"| {original.kl_reference_policy:.3g}, {original.kl_policy_reference:.3g} |"
        )
    seeds = sorted({r["config"]["n_seeds"] for r in merged["experiments"].values() if r["status"] == OK})
    counts = ", ".join(map(str, seeds))
    lines += ["", f"Task `{merged['task']}`, trainings an experiment: {counts}. KL in nats a sequence."]
    lines += ["", f"Assumed, since the original does not say: {'; '.join(ASSUMED_ENGLISH.values())}."]
    return "\n".join(lines) + "\n"


def _english(estimate: dict[str, float | None]) -> str:
    value, low, high = ("?" if estimate[key] is None else f"{estimate[key]:.3g}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def filled(readme: str, reports: Path) -> str:
    """README text with every marked table made again from its task's result.json, where there is one."""

    def table(found: re.Match[str]) -> str:
        path = reports_of(found[2], reports) / "result.json"
        text = readme_table(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else "Not run yet.\n"
        return f"{found[1]}{text}{found[3]}"

    return README_MARKS.sub(table, readme)
