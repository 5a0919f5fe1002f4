"""The lessons as they are committed, and what their figures show."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest
import tiny
import torch
from filling import borrowed
from nbformat import NotebookNode

import warp_nb
from warp_nb.algorithm.objective import completion_logits, sample, token_kl
from warp_nb.course import figures as lessons
from warp_nb.course.exercises import KEPT, mine, stub
from warp_nb.course.gaps import GAPS
from warp_nb.measure.estimates import Estimate
from warp_nb.report.guide import title

matplotlib.use("agg")
FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NUMBERS = range(1, 7)
"""The lessons with gaps."""
ALL = range(7)
HOW_MANY = {2: "Пропусков два", 3: "три пропуска", 4: "Пропусков четыре"}


def lesson(number: int) -> NotebookNode:
    return nbformat.read(FOLDER / "lessons" / f"lesson{number}.ipynb", as_version=4)


def prose(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_opens_with_what_it_teaches_and_ends_with_three_questions(number: int) -> None:
    notebook = lesson(number)
    first, *_, last = prose(notebook)
    assert 15 <= len(notebook.cells) <= 45
    assert title(notebook).startswith(f"Урок {number}. ") and "После урока вы сможете:\n\n- " in first
    assert HOW_MANY[len(gaps(number))] in first
    assert notebook.cells[-1].source == last
    questions = last.partition("## Три вопроса")[2]
    assert re.findall(r"^\*\*(\d)\.\*\* .+\?", questions, re.MULTILINE) == ["1", "2", "3"]
    assert questions.count("<details><summary>Ответ</summary>") == questions.count("</details>") == 3


def gaps(number: int) -> list[str]:
    return [name for name, gap in GAPS.items() if gap.lesson == number]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_gaps_are_the_stubs_in_their_order_each_with_its_check_and_solution(number: int) -> None:
    cells = code(lesson(number))
    places = [place for place, cell in enumerate(cells) if "gap" in cell.metadata.get("tags", [])]
    assert sorted(cells[place].source for place in places) == sorted(map(stub, gaps(number)))
    for place in places:
        name = ast.parse(cells[place].source).body[0].name
        assert cells[place + 1].source == f'check({name})\nsolution("{name}")'


@pytest.mark.parametrize("number", NUMBERS)
def test_what_a_solution_calls_has_a_name_in_the_lesson_by_then(number: int) -> None:
    """Of the functions of other gaps and what the docstring names; a reader writes them as the solution does."""
    bound: set[str] = set()
    for cell in code(lesson(number))[1:]:
        if "gap" in cell.metadata.get("tags", []):
            name = ast.parse(cell.source).body[0].name
            known = GAPS.keys() | {"blocks", "flat", "copy", "load_", "weights_of"}
            assert borrowed(GAPS[name]) & known <= bound, name
        bound |= set(re.findall(r"\w+", "".join(line for line in cell.source.splitlines(True) if "=" in line)))
        bound |= {alias.asname or alias.name for node in ast.walk(ast.parse(cell.source)) for alias in names(node)}


def names(node: ast.AST) -> list[ast.alias]:
    """What an import binds."""
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


@pytest.mark.parametrize("number", ALL)
def test_a_lesson_installs_as_every_notebook_does_and_its_cells_are_short(number: int) -> None:
    cells = code(lesson(number))
    assert cells[0].source == code(nbformat.read(FOLDER / "exp1.ipynb", as_version=4))[0].source
    assert all(len(cell.source.split("\n")) <= 20 + cell.source.count("\n\n\n") * 2 for cell in cells)


@pytest.mark.parametrize("number", ALL)
def test_a_committed_lesson_was_run_from_top_to_bottom_and_timed(number: int) -> None:
    notebook = lesson(number)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [o for cell in code(notebook) for o in cell.outputs if o.output_type == "error"]
    seconds, cores = (notebook.metadata["warp_nb"].get(name) for name in ("seconds", "cores"))
    assert isinstance(seconds, float) and 0 < seconds < math.inf
    assert type(cores) is int and cores > 0


@pytest.mark.parametrize("number", ALL[:-1])
def test_the_way_through_the_lessons_is_linked(number: int) -> None:
    assert f"(lesson{number + 1}.ipynb)" in "\n".join(prose(lesson(number)))


# Figures


@pytest.mark.slow
def test_the_anchors_run_is_the_same_when_its_cell_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEPT, str(tmp_path))
    monkeypatch.setattr(warp_nb, "load_task", lambda *_: tiny.task())
    sources = [cell.source for cell in code(lesson(4))]
    before = next(place for place, source in enumerate(sources) if "load_task" in source)
    space = {"beta": 0.1, "lessons": lessons, "torch": torch, "train_run": mine("train_run")}
    exec(sources[1], space)
    exec(sources[before], space)
    found = []
    for _ in range(2):
        exec(sources[before + 1], space)
        found.append(space["rows"])
    assert len(found[0]) == 16 and found[0] == found[1]


def points(axes: matplotlib.axes.Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_chord_and_arc_lie_where_they_should() -> None:
    (axes,) = lessons.chord_and_arc(90, [0, 0.5, 1]).axes
    assert [math.hypot(*point) for point in points(axes, "SLERP: по дуге")] == pytest.approx([1, 1, 1])
    assert [math.hypot(*point) for point in points(axes, "LERP: по хорде")] == pytest.approx([1, math.sqrt(0.5), 1])


def test_tips_keep_lengths_and_angles() -> None:
    init = torch.tensor([3.0, 0.0, 4.0])
    whole, near = lessons.tips(init, init + torch.tensor([1.0, 0, 0]), init + torch.tensor([0, 2.0, 0])).axes
    assert [text.get_text() for text in near.get_legend().get_texts()] == ["δ¹, длина 1", "δ², длина 2"]
    ends = [line.get_data()[0][1] for line in near.lines if len(line.get_data()[0]) == 2]
    assert ends == pytest.approx([1, 0], abs=1e-9)
    assert "θ¹, длина 5,66" in [text.get_text() for text in whole.get_legend().get_texts()]


def test_the_anchor_is_half_way_where_the_mark_stands() -> None:
    (axes,) = lessons.jump([0.05], steps=60).axes
    curve = next(line for line in axes.lines if "μ = 0,05" in line.get_label()).get_ydata()
    ((step, height),) = [(float(x[0]), y[0]) for x, y in (line.get_data() for line in axes.lines) if len(x) == 1]
    assert height == 0.5 and curve[math.floor(step)] < 0.5 < curve[math.ceil(step)]


def test_a_collapsed_model_is_a_flat_line_beside_ln_2() -> None:
    above, below = lessons.collapse({"a": [0.7, 0.6], "b": [0.7, 0.69]}, {"a": [2.0, 0.0, 1.0], "b": [9.0] * 3}).axes
    assert [y for _, y in points(below, "a")] == [-1, 0, 1] and [y for _, y in points(below, "b")] == [0, 0, 0]
    assert points(above, "ln 2, ответ «пополам»")[0][1] == pytest.approx(math.log(2))


def test_finite_differences_are_the_gradient() -> None:
    at = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    (exact,) = torch.autograd.grad((at**3).sum() + at.prod(), at)
    torch.testing.assert_close(lessons.finite_differences(lambda x: (x**3).sum() + x.prod(), at), exact.double())


def test_errors_stand_beside_their_law() -> None:
    (axes,) = lessons.gradient_errors([16, 64], {"r": [0.8, 0.5], "r + 5": [8.0, 4.0]}).axes
    assert [y for _, y in points(axes, "наклон 1/√n")] == pytest.approx([0.8, 0.4])
    assert [y for _, y in points(axes, "r + 5")] == [8, 4]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["16", "64"]


def test_a_pushed_completion_is_a_point() -> None:
    (axes,) = lessons.pushed([1.0, -1.0], [0.5, -0.25]).axes
    assert [*zip(*axes.lines[0].get_data(), strict=True)] == [(1, 0.5), (-1, -0.25)]


def test_kl_bends_below_the_straight_line_that_is_drawn() -> None:
    (axes,) = lessons.kl_along([0, 0.5, 1], [0, 0.25, 1]).axes
    assert points(axes, "если бы росла по прямой") == [(0, 0), (1, 1)]
    assert points(axes, "измерено")[1] == (0.5, 0.25)


def test_sequence_kl_is_that_of_the_package() -> None:
    task, other = tiny.task(), tiny.gpt2(len(tiny.tokenizer()), seed=3)
    noise, sampling = torch.Generator().manual_seed(0), task.sampling(5, 0.8)
    rollout = sample(task.policy, *task.encode(task.eval_prompts[:3], sampling), sampling, generator=noise)
    logits = [completion_logits(model, rollout) for model in (task.policy, other)]
    expected = token_kl(*logits, rollout.completion_mask, 0.8).sum(1).mean().item()
    assert lessons.sequence_kl(task.policy, other, rollout) == pytest.approx(expected, rel=1e-5)


def test_curves_of_anchors_and_kls_hold_their_rows() -> None:
    rows = [{"reward": t, "kl_sft": 2 * t, "kl_anchor": t} for t in range(3)]
    above, below = lessons.three_anchors({"стоит": rows}, {"reward": 1.5, "kl_sft": 2.5}).axes
    assert points(above, "стоит")[2] == (2, 2) and points(below, "стоит")[2] == (2, 4)
    assert points(above, "предел, π* по формуле")[0][1] == 1.5
    (axes,) = lessons.two_kls(rows).axes
    assert points(axes, "до якоря") == [(1, 0), (2, 1), (3, 2)]


def test_the_path_goes_through_the_starts_to_the_end_by_the_merged_points() -> None:
    zero, goal, end = torch.zeros(2), torch.tensor([3.0, 3.0]), torch.tensor([1.5, 1.0])
    runs = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]
    nearer = torch.tensor([0.5, 0.5])
    track = [(1, zero, runs[0]), (1, zero, runs[1]), (2, nearer, goal)]
    (axes,) = lessons.path(track, end, goal).axes
    assert points(axes, "$θ_{init}$") == [(0, 0), (0.5, 0.5), (1.5, 1)]
    assert points(axes, "$θ_{slerp}$ итерации i") == [pytest.approx((math.sqrt(2), math.sqrt(2)))]


def test_the_front_is_drawn_over_eta() -> None:
    rows = [{"eta": 0, "gain": Estimate(0, 0, 0), "kl": Estimate(0, 0, 0)}]
    rows.append({"eta": 0.5, "gain": Estimate(0.6, 0.4, 0.8), "kl": Estimate(1, 0.9, 1.1)})
    gain, kl = lessons.along_the_front(rows).axes
    assert points(gain, "если бы росла по прямой") == [(0, 0), (0.5, 0.6)]
    assert points(kl, "если бы росла по прямой") == [(0, 0), (0.5, 1)]
