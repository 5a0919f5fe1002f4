"""The tables of README.md are those of the result files and of nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic import comparison_record, diagnosis_record, results

from warp_nb.files import write_json
from warp_nb.report.catalogue import EXPERIMENTS, Experiment
from warp_nb.report.command import main
from warp_nb.report.readme import MARKS, filled_readme
from warp_nb.studies.original import ASSUMED_TASK, ROWS
from warp_nb.studies.result_files import reports_of, result_path

ROOT = Path(__file__).parents[1]
PLACE = "before\n<!-- results small -->\nstale\n<!-- /results -->\nafter\n"
KINDS = ("highlights", "results", "comparison", "diagnosis")
NOT_RUN = "Not run yet."


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table; the whole line where it is none."""
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [line]


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """What makes the lines of a kind of table of task small from result files."""

    def made(kind: str, found: dict[str, Any]) -> list[str]:
        once = {one.name for one in EXPERIMENTS if one.once}
        for name, result in found.items():
            folder = tmp_path if name in once else reports_of("small", tmp_path)
            folder.mkdir(exist_ok=True)
            write_json(result_path(folder, name), result)
        stale = f"<!-- {kind} small -->\nstale\n<!-- /{kind} -->\n"
        before, *lines, after = filled_readme(stale, tmp_path).splitlines()
        assert (before, after) == (f"<!-- {kind} small -->", f"<!-- /{kind} -->")
        return lines

    return made


def test_what_was_assumed_of_single_experiments_stands_under_the_table(table: Any) -> None:
    own = {f"exp{number}" for number, row in ROWS.items() if set(row.assumed) != {ASSUMED_TASK}}
    last = table("results", results())[-1]
    assert {one.name for one in EXPERIMENTS if f"of {one.name} (" in last} == own == {"exp1", "exp4"}
    assert "exp1 (100 steps" in last and "exp4 (0.0001," in last and "temperature of all" in last


def test_the_table_holds_the_measured_numbers_beside_the_originals(table: Any) -> None:
    made = results() | {"exp2": {"status": "failed"}}
    made["exp1"]["summary"]["reward_policy"] = {"value": 1.2345, "low": None, "high": 2.0}
    made["exp4"]["config"] |= {"lr": 1e-4, "warmup_steps": 20, "n_seeds": 3}
    head, rule, *rows, blank, about, _, declared, _, _ = table("results", made)
    first, second, third, fourth = map(cells, rows)
    assert cells(head)[1:4] == ["setting", "reward SFT", "reward WARP"] and set(rule) == {"|", "-"} and not blank
    assert {len(cells(line)) for line in (head, rule, *rows)} == {8}
    figures = ["0.1 [0, 0.2]", "1.23 [?, 2]", "0.8 [0.7, 0.9]", "2 [1.8, 2.2]", "2.1 [1.9, 2.3]"]
    assert first == ["exp1", "lr 0.0003, no warm-up", *figures, "0, 0"]
    assert second == ["exp2", "not finished", *[""] * 6]
    assert third[-1] == "89, 100" and fourth[:2] == ["exp4", "lr 0.0001, warm-up over 20"]
    assert about == "Task `small`, trainings an experiment: 1, 3. KL in nats a sequence."
    assert declared.endswith("Holm's correction for all of them: exp1 < 0.001, exp3 < 0.001, exp4 0.0017."), (
        "0.8 ± 0.1 of three trainings, t = 34.4: p = 0.00084, and two of the four remain, with the one not finished"
    )


def blocks(lines: list[str]) -> list[list[list[str]]]:
    """The tables among the lines of Markdown, each with its rows of cells, the rule left out."""
    found: list[list[list[str]]] = [[]]
    for line in lines:
        if line.startswith("|"):
            found[-1].append(cells(line))
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if rows]


def test_experiment_5_has_its_tables_at_the_fixed_kls(table: Any) -> None:
    lines = table("comparison", {"exp5": comparison_record()})
    fronts, singles, declared = blocks(lines)
    early, late = ("0.25 [0.15, 0.35]", "0.5 [0.4, 0.6]")
    assert fronts[0][0].startswith("front, 3 trainings;") and fronts[0][2:6] == ["KL 1", "KL 2", "KL 4", "KL 8"]
    ours = [f"{early} / {early}", f"{early} / {early}", f"{late} / {late}", "— / —", late]
    assert fronts[1] == ["WARP", "400", *ours] and fronts[3] == ["M = 1", "200", *ours]
    assert [row[0] for row in fronts[4:]] == ["REINFORCE", "WARP with the baseline RLOO, K = 4"]
    assert fronts[4][1:] == ["—"] * 6 and {len(row) for row in fronts} == {7}
    assert [row[:2] for row in singles[1:]] == [["WARP's last policy", "0.25"], ["best of 16, no training", "0.25"]]
    assert singles[1][2:] == [f"{late} / {late}"] * 3
    assert declared[0][0] == "declared before the run, KL 4"
    assert declared[1:] == [
        ["WARP − M = 1", f"{late} / {late}", "0.01", "0.03"],
        ["WARP − mean of WARP's own runs, not merged", "—", "—", "—"],
    ]
    assert "Everything outside the last table is exploratory." in lines[-1] and "One training" not in lines[-1]


def test_a_single_training_of_an_earlier_version_claims_no_more_than_it_holds(table: Any) -> None:
    figures = [
        {
            "reward_difference": {"value": gain},
            "kl_policy_reference": {"value": kl},
            "variety_reference": 0.8,
            "variety_policy": 0.4,
        }
        for gain, kl in ((1.0, 1.0), (2.0, 4.0))
    ]
    made = comparison_record() | {"arms": {"WARP": {"measured": [{"front": figures, "end": figures[0]}]}}}
    del made["equal_kl"]
    made["config"]["n_seeds"] = 1
    lines = table("comparison", {"exp5": made})
    fronts, singles, declared = blocks(lines)
    assert fronts[0][0].startswith("front, one training;") and singles[0][0] == "policy, one training"
    assert fronts[1] == ["WARP", "400", "1 / —", "1.41 / —", "2 / —", "— / —", "0.5"]
    assert [row[2:] for row in fronts[2:]] == [["—"] * 5] * 4
    assert singles[1:] == [
        ["WARP's last policy", "1", "1 / —", "1 / —", "0 / —"],
        ["best of N, no training", "—", "—", "—", "—"],
    ]
    assert declared[0][0] == "declared after this run, so exploratory, KL 4"
    assert [row[1:] for row in declared[1:]] == [["—"] * 3] * 3
    assert "no intervals" in lines[-1] and "`make exp5 TASK=small` measures it." in lines[-1]


def test_the_diagnosis_has_its_table(table: Any) -> None:
    head, _, row, _, best = table("diagnosis", {"diagnosis": diagnosis_record()})
    assert dict(zip(cells(head), cells(row), strict=True)) == {
        "hypothesis": "a hypothesis",
        "verdict": "undecided",
        "prediction met": "2 of 3",
    }
    assert "Best fit of 36 combinations enumerated before: 1 of the original's 2 traits, 1 of which could be" in best
    shown = diagnosis_record() | {"missing": 3}
    shown["verdicts"] = [shown["verdicts"][0] | {"verdict_english": "not measured", "outcomes": []}]
    _, _, row, _, partial, _ = table("diagnosis", {"diagnosis": shown})
    assert cells(row)[1:] == ["not measured", ""] and "3 cells are not measured yet: `warp-nb diagnosis`" in partial


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_never_run_is_said_so(kind: str, table: Any) -> None:
    assert table(kind, {}) == [NOT_RUN]


def committed(folder: Path) -> Path:
    """Write the committed result files into `folder`; return it, empty where git knows nothing."""
    git = ["git", "-C", str(ROOT)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", "HEAD", "reports"], capture_output=True, text=True, check=False
    )
    for name in listed.stdout.split():
        if name.endswith(".result.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            whole = subprocess.run([*git, "show", f"HEAD:{name}"], capture_output=True, check=True)
            (folder / name).write_bytes(whole.stdout)
    return folder / "reports"


def test_the_committed_tables_are_those_of_the_committed_result_files(tmp_path: Path) -> None:
    """Or of those in `reports/` that are to be committed; whoever only ran `make reports` has others there."""
    for path in (ROOT / "reports").rglob("*.result.json"):
        copy = tmp_path / "here" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [*map(cells, text.splitlines())]
    again = [filled_readme(text, folder) for folder in (tmp_path / "here" / "reports", committed(tmp_path / "git"))]
    assert {found[2] for found in MARKS.finditer(text)} == {*KINDS}
    matching = [one for one in again if [*map(cells, one.splitlines())] == rows]
    assert matching and NOT_RUN not in matching[0], "run `make readme`"


def test_the_command_fills_the_readme_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(PLACE)
    sixth = Experiment("exp6", "6", "lr = 1e-5")
    assert main(["--readme"], experiments=(*EXPERIMENTS, sixth)) == 0
    assert Path("README.md").read_text() == PLACE.replace("stale", NOT_RUN)
    Path("reports/small").mkdir(parents=True)
    write_json(Path("reports/small/exp6.result.json"), results()["exp1"])
    assert main(["--readme"], experiments=(*EXPERIMENTS, sixth)) == 0
    before, mark, *table, end, after = Path("README.md").read_text().splitlines()
    assert [before, mark, end, after] == [line for line in PLACE.splitlines() if line != "stale"]
    assert [cells(line)[0] for line in table[2:7]] == ["exp1", "exp2", "exp3", "exp4", "exp6"]
    assert cells(table[6])[-1] == "" and cells(table[2])[1] == "not finished"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"README.md", "exp6.result.json"}
