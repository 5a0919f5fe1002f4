"""Write the texts of `smollm` before and after training that lesson 0 shows, from the committed result files.

    python scripts/lesson_texts.py

The rule is fixed before anyone reads the texts: of every experiment the first COUNT prompts of its result file, in the
file's order, so of the held-out prompts; of experiment 5 those of WARP, at the eta whose KL is nearest to the declared
one. Run it after `make reports`; `tests/test_texts.py` fails while the texts differ from the reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warp_nb.files import read_record, write_json

ROOT = Path(__file__).resolve().parents[1]
REPORTS, TEXTS = ROOT / "reports", ROOT / "warp_nb" / "course" / "texts.json"
EXPERIMENTS = ("exp1", "exp2", "exp3", "exp4", "exp5")
ARM, COUNT = "WARP", 8
MEASURES = (
    *("reward_reference", "reward_policy", "reward_difference", "kl_policy_reference"),
    *("perplexity_reference", "perplexity_policy", "distinct_reference", "distinct_policy"),
)
SETTINGS = ("I", "M", "T", "lr", "warmup_steps", "beta", "eta")
SAMPLE = ("prompt", "reference", "policy", "reward_reference", "reward_policy")


def texts_of(folder: Path) -> dict[str, Any]:
    """Return the rule and, per experiment, command, settings, measures and samples, from the result files in `folder`.

    Raises:
        FileNotFoundError: a result file is missing.
        DamagedFile: a result file is damaged.
        KeyError: a result file is not that of a finished experiment.
    """
    rule = f"the first {COUNT} prompts of each result file, in its order; made by scripts/lesson_texts.py"
    return {"rule": rule, "runs": {name: run_of(folder / f"{name}.result.json") for name in EXPERIMENTS}}


def run_of(path: Path) -> dict[str, Any]:
    """Return what is stored of one experiment; `shown_eta` is None where the policy is the experiment's own result."""
    found = read_record(path)
    eta, measures, samples = at_declared_kl(found) if "arms" in found else (None, found["summary"], found["samples"])
    return {
        "command": found["run"]["command"],
        "task": found["task"]["task"],
        "settings": {name: found["config"][name] for name in SETTINGS},
        "shown_eta": eta,
        "prompts": found["config"]["n_eval_prompts"],
        "measures": {name: measures[name] for name in MEASURES},
        "samples": [{key: sample[key] for key in SAMPLE} for sample in samples[:COUNT]],
    }


def at_declared_kl(found: dict[str, Any]) -> tuple[float, dict[str, Any], list[dict[str, Any]]]:
    """Return eta, measures and samples of the arm, of its first seed, in a result of experiment 5."""
    measured, summary = found["arms"][ARM]["measured"][0], found["summary"][ARM]
    if "samples" not in measured:  # a comparison of an earlier version
        matched = measured["matched"]
        return matched["eta"], matched, matched["samples"]
    eta = measured["samples"]["eta"]
    place = summary["etas"].index(eta)
    return eta, {name: summary[name][place] for name in MEASURES}, measured["samples"]["samples"]


if __name__ == "__main__":
    write_json(TEXTS, texts_of(REPORTS))
