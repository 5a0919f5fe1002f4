"""The tables of README.md are those of result.json."""

from __future__ import annotations

from synthetic import comparison_record, diagnosis_record, results

from warp_nb.report import readme
from warp_nb.report.results import ROOT
from warp_nb.studies.original import ASSUMED_TASK, ROWS


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
    assert {found[2] for found in readme.README_MARKS.finditer(text)} == readme.TABLES.keys()
    assert readme.filled(text, ROOT / "reports") == text, "run `make readme`"


def test_experiment_5_and_the_diagnosis_have_their_tables() -> None:
    merged = {"task": "small", "exp5": comparison_record(), "diagnosis": diagnosis_record()}
    lines = readme.comparison_table(merged).splitlines()
    assert (
        lines[2].startswith("| WARP | 400 | 0.5 [0.4, 0.6]")
        and lines[2].endswith("| no | 0.5 [0.4, 0.6] |  |")
        and "1.5, 2.5, 3.5" in lines[-1]
    )
    said = readme.diagnosis_table(merged)
    assert "| a hypothesis | undecided | 2 of 3 |" in said and "1 of the original's 1 traits" in said
    empty = {"task": "small", "exp5": {"status": "missing"}, "diagnosis": {"status": "failed"}}
    assert readme.comparison_table(empty) == readme.diagnosis_table(empty) == "Not run yet.\n"
