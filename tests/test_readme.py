"""The tables of README.md are those of result.json."""

from __future__ import annotations

from synthetic import results

from warp_nb import readme
from warp_nb.original import ASSUMED_TASK, ROWS
from warp_nb.results import ROOT


def test_what_was_assumed_of_single_experiments_stands_under_the_readme_table() -> None:
    own = {f"exp{n}" for n, row in ROWS.items() if set(row.assumed) != {ASSUMED_TASK}}
    assert own == readme.ASSUMED_ENGLISH.keys() - {"all"}
    last = readme.readme_table({"task": "small", "experiments": results()}).splitlines()[-1]
    assert "exp1 (100 steps" in last and "exp4 (0.0001," in last and "temperature" in last


def test_the_readme_table_holds_the_measured_numbers() -> None:
    merged = {"task": "small", "experiments": results()}
    merged["experiments"]["exp2"] = {"status": "failed"}
    merged["experiments"]["exp1"]["summary"]["reward_policy"] = {"value": 1.2345, "low": None, "high": 2.0}
    lines = readme.readme_table(merged).splitlines()
    assert "1.23 [?, 2]" in lines[2] and "not finished" in lines[3]


def test_the_readme_table_equals_the_recomputed_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.README_MARKS.search(text)
    assert readme.filled(text, ROOT / "reports") == text, "run `make readme`"
