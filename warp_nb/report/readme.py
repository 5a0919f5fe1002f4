"""The tables of README.md, made from result.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from warp_nb.report.results import COMPARISON, DIAGNOSIS, OK, reports_of
from warp_nb.studies.original import ROWS

README_MARKS = re.compile(r"(<!-- (results|comparison|diagnosis) (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
NOT_RUN = "Not run yet.\n"
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


def comparison_table(merged: dict[str, Any]) -> str:
    """Markdown table of experiment 5, from result.json."""
    result = merged.get(COMPARISON, {})
    if result.get("status") != OK:
        return NOT_RUN
    lines = [
        "| arm | steps | reward gained at η = 1 | KL(policy‖sft) at η = 1 | perplexity under θ_sft at η = 1 "
        "| text still reads at η = 1, in all trainings | reward gained at equal KL | WARP ahead of it at equal KL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in result["summary"].items():
        ends = [found[name][-1] for name in ("reward_difference", "kl_policy_reference", "perplexity_policy")]
        figures = " | ".join(map(_english, ends))
        reads, gain = "yes" if found["readable"][-1] else "no", _english(found["gain_at_equal_kl"])
        ahead = _english(result["advantage"][arm]) if arm in result["advantage"] else ""
        lines.append(f"| {arm} | {found['steps']} | {figures} | {reads} | {gain} | {ahead} |")
    config, first = result["config"], next(iter(result["summary"].values()))
    own = _english(first["perplexity_reference"][-1])
    kls = ", ".join(f"{kl:.3g}" for kl in first["equal_kl"]) or "there is none"
    lines += [
        "",
        f"Task `{merged['task']}`, trainings: {config['n_seeds']}; T = {config['T']}, lr {config['lr']:g} after a "
        f"warm-up over {config['warmup_steps']} steps of each run. Equal KL, nats, is the largest that every front "
        f"reaches with text that still reads: {kls}. SFT's own perplexity: {own}.",
    ]
    if config["n_seeds"] == 1:
        lines[-1] += " Intervals are over prompts and do not cover another training."
    return "\n".join(lines) + "\n"


def diagnosis_table(merged: dict[str, Any]) -> str:
    """Markdown table of the verdicts and the best-fitting combination, from result.json."""
    result = merged.get(DIAGNOSIS, {})
    if result.get("status") != OK:
        return NOT_RUN
    lines = ["| hypothesis | verdict | prediction met |", "|---|---|---|"]
    lines += [
        f"| {verdict['english']} | {verdict['verdict_english']} "
        f"| {sum(verdict['outcomes'])} of {len(verdict['outcomes'])} |"
        for verdict in result["verdicts"]
    ]
    best = result["best"]
    lines += [
        "",
        f"Best fit of {result['tried']} combinations tried, {best['matched']} of the original's {len(best['traits'])} "
        f"traits, as good as {result['as_good']} others: reward {best['reward']}, seeds {best['seeds']}, warm-up "
        f"{best['warm_up']}, scoring {best['scoring']}.",
    ]
    return "\n".join(lines) + "\n"


TABLES = {"results": readme_table, "comparison": comparison_table, "diagnosis": diagnosis_table}


def filled(readme: str, reports: Path) -> str:
    """README text with every marked table made again from its task's result.json, where there is one."""

    def table(found: re.Match[str]) -> str:
        path = reports_of(found[3], reports) / "result.json"
        text = TABLES[found[2]](json.loads(path.read_text(encoding="utf-8"))) if path.exists() else NOT_RUN
        return f"{found[1]}{text}{found[4]}"

    return README_MARKS.sub(table, readme)
