"""Every gap of the lessons: its solution passes, every mistake is told by its own words, right functions are kept."""

from __future__ import annotations

import inspect
import math
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from filling import filled

from warp_nb.algorithm.merge import slerp
from warp_nb.course import exercises
from warp_nb.course.exercises import check, diagnosis, kept, mine, pieces, solution, stub, whose
from warp_nb.course.gaps import GAPS, Gap, Mistake, defined, mistaken
from warp_nb.course.solutions import pair_accuracy

EACH = pytest.mark.parametrize("gap", GAPS.values(), ids=lambda gap: gap.name)
MISTAKES = [
    pytest.param(gap, mistake, id=f"{gap.name}-{number}")
    for gap in GAPS.values()
    for number, mistake in enumerate(gap.mistakes)
]
READERS = """
def pair_accuracy(chosen, rejected):
    difference = chosen - rejected
    return sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in difference.tolist()) / len(difference)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    return tmp_path


def of_file(folder: Path, source: str, name: str) -> exercises.Function:
    """A function whose source can be read, as a notebook's can."""
    path = folder / f"{name}_cell.py"
    path.write_text(source)
    namespace = {"torch": torch, "F": torch.nn.functional, "math": math}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace[name]


@EACH
def test_the_solution_runs_in_every_case(gap: Gap) -> None:
    assert diagnosis(gap, gap.solution) == ""
    observed = [exercises.observe(gap, gap.solution, case) for case in gap.cases()]
    assert observed and not [one for one in observed if isinstance(one, exercises.Raised)]


@pytest.mark.parametrize(("gap", "mistake"), MISTAKES)
def test_every_mistake_is_told_by_its_own_words(gap: Gap, mistake: Mistake) -> None:
    assert diagnosis(gap, mistaken(gap, mistake)) == mistake.says


@EACH
def test_a_gap_has_five_mistakes_that_differ(gap: Gap) -> None:
    assert len({mistake.says for mistake in gap.mistakes}) == len(gap.mistakes) >= 5


@pytest.mark.parametrize("lesson", range(1, 7))
def test_two_to_four_gaps_a_lesson(lesson: int) -> None:
    assert 2 <= sum(gap.lesson == lesson for gap in GAPS.values()) <= 4


@EACH
def test_the_stub_is_the_head_of_the_solution_and_says_that_it_is_unfilled(
    gap: Gap, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = of_file(cache, stub(gap.name), gap.name)
    every = [*inspect.signature(gap.solution).parameters]
    assert [*inspect.signature(function).parameters] == every[: len(gap.parameters)] == gap.parameters
    assert exercises.unfilled(inspect.getsource(function))
    check(function)
    assert capsys.readouterr().out.startswith(f"○ {gap.name}: пропуск ещё не заполнен")
    assert not kept(gap.name).exists() and mine(gap.name) is gap.solution


def test_a_right_function_is_kept_and_used_later(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(of_file(cache, READERS, "pair_accuracy"))
    assert capsys.readouterr().out == "✓ pair_accuracy: верно, 2 случая.\n"
    assert mine("pair_accuracy") is not pair_accuracy
    assert mine("pair_accuracy")(torch.tensor([1.0]), torch.tensor([0.0])) == 1.0
    assert "ваша" in whose().data and "готовая" in whose().data


def test_pieces_call_the_readers_functions(cache: Path) -> None:
    source = """def liti(init, merged, eta):
        weights = [eta] * len(init)
        return dict(zip(init, map(torch.lerp, init.values(), merged.values(), weights)))
    """
    check(of_file(cache, source, "liti"))
    functions, weights = pieces(), {"w": torch.tensor([1.0])}
    end, merged = functions.algorithm_1(weights, lambda init, i, m: {"w": init["w"] + m}, I=1, M=2, eta=0.5)
    assert merged["w"].item() == pytest.approx(2.5) and end["w"].item() == pytest.approx(1.75)
    assert "lerp" in functions.liti.__code__.co_names
    assert functions.front.__globals__["liti"] is functions.liti
    assert functions.slerp.__globals__ is functions.front.__globals__


def test_a_function_that_needs_other_names_of_the_notebook_is_right_and_not_kept(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "def pair_accuracy(chosen, rejected):\n    return helper(chosen, rejected)\n"
    function = of_file(cache, source, "pair_accuracy")
    function.__globals__["helper"] = pair_accuracy
    check(function)
    said = capsys.readouterr().out
    assert "✓" in said and "другие имена" in said
    assert mine("pair_accuracy") is pair_accuracy


def test_a_kept_function_that_is_no_longer_right_is_not_used() -> None:
    kept("slerp").parent.mkdir(parents=True)
    for text in ("def slerp(d1, d2, lam):\n    return d1\n", "def slerp(", "x = 1\n", "raise TypeError\n", "\xff"):
        kept("slerp").write_text(text, encoding="latin-1")
        assert mine("slerp") is slerp


PLANTED = READERS + "print('run')\n"


def test_only_code_that_nobody_else_can_have_written_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kept("pair_accuracy")
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(PLANTED)
    path.chmod(0o600)
    assert mine("pair_accuracy") is not pair_accuracy and capsys.readouterr().out == "run\n"
    for one, mode, sound in (
        (path, 0o620, 0o600),
        (path, 0o602, 0o600),
        (path.parent, 0o770, 0o700),
        (path.parent, 0o777, 0o700),
    ):
        one.chmod(mode)
        assert mine("pair_accuracy") is pair_accuracy
        pieces()
        one.chmod(sound)
    monkeypatch.setattr("os.getuid", lambda: path.stat().st_uid + 1)
    assert mine("pair_accuracy") is pair_accuracy
    pieces()
    assert capsys.readouterr().out == "", "it was run"


def test_a_function_is_saved_for_this_user_alone_under_any_umask(cache: Path) -> None:
    before = os.umask(0)
    try:
        check(of_file(cache, READERS, "pair_accuracy"))
    finally:
        os.umask(before)
    assert kept("pair_accuracy").stat().st_mode & 0o777 == 0o600
    assert kept("pair_accuracy").parent.stat().st_mode & 0o777 == 0o700 and mine("pair_accuracy") is not pair_accuracy


def test_a_function_that_cannot_be_saved_is_right_all_the_same(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cache that cannot be written; a folder of lessons that others may write."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(exercises.KEPT, str(tmp_path / "file" / "lessons"))
    check(of_file(cache, READERS, "pair_accuracy"))
    assert "✓ pair_accuracy: верно, 2 случая.\n  Сохранить функцию не удалось (" in capsys.readouterr().out
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv(exercises.KEPT, str(tmp_path / "open"))
    check(of_file(cache, READERS, "pair_accuracy"))
    assert f"код оттуда не выполняется (chmod go-w {tmp_path / 'open'})" in capsys.readouterr().out
    assert mine("pair_accuracy") is pair_accuracy


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "ничего не вернула"),
        ("return 1 / 0", "ошибка ZeroDivisionError"),
        ("return F.logsigmoid(rejected - chosen)", "форма (3,), а нужна ()"),
        ("return -F.logsigmoid(2 * (chosen - rejected)).mean()", "случай 1: [[1; 0,5; −2]; [0; 2; −1]]"),
        ("return (-F.logsigmoid(chosen - rejected).mean()).detach()", "градиент None"),
        ("return -F.logsigmoid(chosen - rejected).mean().item()", "тип float, а нужен Tensor"),
        ("return -F.logsigmoid(chosen - rejected).mean() + 2e-4", "вышло 1,1095, а нужно 1,1093"),
    ],
)
def test_another_mistake_is_told_by_what_came_out(
    cache: Path, capsys: pytest.CaptureFixture[str], body: str, said: str
) -> None:
    check(of_file(cache, f"def bradley_terry_loss(chosen, rejected):\n    {body}\n", "bradley_terry_loss"))
    shown = capsys.readouterr().out
    assert shown.startswith("✗ bradley_terry_loss: ") and said in shown
    assert not kept("bradley_terry_loss").exists()


def test_an_argument_that_came_out_wrong_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "for old, new in zip(anchor.parameters(), policy.parameters()):\n        old.data.lerp_(new.data, mu / 2)"
    check(of_file(cache, f"def ema_update_(anchor, policy, mu):\n    {body}\n", "ema_update_"))
    said = capsys.readouterr().out
    assert "после вызова аргумент 1 не тот, что нужно: вышло {0.weight: [[" in said and "Sequential" not in said


def test_a_function_that_mine_gave_is_not_the_readers(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(mine("pair_accuracy"))
    check(of_file(cache, READERS, "pair_accuracy"))
    check(mine("pair_accuracy"))
    ready, right, again = capsys.readouterr().out.splitlines()
    assert "Сначала выполните ячейку с пропуском" in ready and ready == again and right.startswith("✓")


def test_a_filled_gap_whose_dots_were_left_is_filled(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(of_file(cache, f"{READERS}    ...\n", "pair_accuracy"))
    assert capsys.readouterr().out.startswith("✓")


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no gap is called 'test_.*the lessons have task_vector, slerp"):
        check(test_an_unknown_name_is_refused_with_those_there_are)


def test_a_mistake_that_no_longer_fits_the_solution_is_refused() -> None:
    with pytest.raises(ValueError, match="must occur once in the solution, found 0"):
        mistaken(GAPS["liti"], Mistake("", [("no such text", "")]))


@EACH
def test_a_folded_hint_comes_before_the_folded_source_of_the_solution(gap: Gap) -> None:
    hint, source = re.findall(r"<details>(.+?)</details>", solution(gap.name).data, re.DOTALL)
    assert hint.startswith("<summary>Подсказка</summary>") and len(gap.hint) > 60 and "`" not in hint
    assert source.startswith("<summary>Решение: ") and f"def {gap.name}(" in source
    assert "<script" not in source and "-&gt;" in source


@EACH
def test_a_gap_says_its_difficulty_and_time_above_its_cell(gap: Gap) -> None:
    assert gap.difficulty in (1, 2, 3) and 1 <= gap.minutes <= 30
    marks, time = re.match(r"# Упражнение: ([●○]+), около (\d+) минут", stub(gap.name)).groups()
    assert (marks.count("●"), len(marks), int(time)) == (gap.difficulty, 3, gap.minutes)


@EACH
def test_a_filled_cell_stands_alone(gap: Gap) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(stub(gap.name), metadata={"tags": ["gap"]}), nbformat.v4.new_code_cell("1")]
    )
    cell, other = filled(notebook).cells
    assert other.source == "1" and notebook.cells[0].source == stub(gap.name)
    function = defined(cell.source, gap.name, {})
    assert diagnosis(gap, function) == ""
