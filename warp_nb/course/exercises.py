"""What a lesson's cells call about a gap: `check`, `solution`, `mine`; the reader's right functions are saved.

They are saved as text in the reader's own cache folder, `lessons/<name>.py` (WARP_NB_LESSONS moves them), and are run
again from there.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
import os
import re
import textwrap
from collections.abc import Callable
from html import escape
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from IPython.display import HTML

from warp_nb.algorithm import merge, objective, run, warp
from warp_nb.algorithm.merge import Weights
from warp_nb.config import WarpConfig
from warp_nb.course import solutions
from warp_nb.course.cases import Arguments
from warp_nb.course.gaps import GAPS, Function, Gap, call, defined, mistaken
from warp_nb.files import cache_dir, write_text
from warp_nb.notebook.numbers import counted, format_number
from warp_nb.notebook.tables import table
from warp_nb.runs.training import Parts, Training
from warp_nb.tasks.task import Task

SHOWN = 160
"""Characters of a value in a message."""
DIGITS = (3, 5, 7)
"""Of the numbers in a message: as few as tell two values apart."""
KEPT = "WARP_NB_LESSONS"
"""Variable of the environment that names another folder for what the reader filled in."""
PIECES = "warp_nb.course.pieces"
"""The module of the functions that `pieces` makes."""


class Raised(str):
    """What a function said instead of returning."""


def gap_of(name: str) -> Gap:
    """The gap. Raises ValueError for a name that is none."""
    if name not in GAPS:
        raise ValueError(f"no gap is called {name!r}; the lessons have {', '.join(GAPS)}")
    return GAPS[name]


def check(function: Function) -> None:
    """Say whether the reader's function is right, and what is wrong if it is not; keep a right one for later lessons.

    Raises ValueError for a function whose name is no gap's.
    """
    gap = gap_of(function.__name__)
    if function.__module__ in (gap.solution.__module__, PIECES):
        print(f"○ {gap.name}: здесь стоит готовая или уже проверенная функция. Сначала выполните ячейку с пропуском.")
        return
    source = textwrap.dedent(inspect.getsource(function))
    if unfilled(source):
        print(f"○ {gap.name}: пропуск ещё не заполнен. Дальше тетрадь возьмёт готовую функцию.")
        return
    if fault := diagnosis(gap, function):
        print(f"✗ {gap.name}: {fault}")
        return
    print(f"✓ {gap.name}: верно, {counted(len(gap.cases()), 'случай', 'случая', 'случаев')}.")
    kept(gap.name).parent.mkdir(parents=True, exist_ok=True)
    write_text(kept(gap.name), source)
    if kept_function(gap) is None:
        kept(gap.name).unlink()
        print("  Функция опирается на другие имена этой тетради; в следующих уроках её заменит готовая.")


def unfilled(source: str) -> bool:
    """Whether the function is still its stub: nothing after the docstring but `...`."""
    head, *rest = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    return all(isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in (head, *rest))


def diagnosis(gap: Gap, function: Function) -> str:
    """What is wrong with the function, in Russian; empty when it does what the solution does in every case."""
    cases = gap.cases()
    seen = [(observe(gap, gap.solution, case), observe(gap, function, case)) for case in cases]
    if all(same(*pair) for pair in seen):
        return ""
    for mistake in gap.mistakes:
        likely = mistaken(gap, mistake)
        if all(same(observe(gap, likely, case), got) for case, (_, got) in zip(cases, seen, strict=True)):
            return mistake.says
    place = next(place for place, pair in enumerate(seen) if not same(*pair))
    return f"{difference(*seen[place])}\n  случай {place + 1}: {shown(cases[place])}"


def observe(gap: Gap, function: Function, case: Arguments) -> Any:
    """What a call does that can be seen: (result, gradients of the arguments, the arguments afterwards), or Raised."""
    arguments = copy.deepcopy(case)
    try:
        result = call(function, gap.parameters, arguments)
        leaves = [value for value in arguments if isinstance(value, torch.Tensor) and value.requires_grad]
        wanted = leaves and isinstance(result, torch.Tensor) and result.requires_grad
        gradients = torch.autograd.grad(result.sum(), leaves, allow_unused=True) if wanted else None
    except Exception as error:
        return Raised(f"{type(error).__name__}: {error}")
    return result, gradients, arguments


def same(one: Any, two: Any) -> bool:
    """Whether two observed values agree, numbers to 1e-4."""
    if isinstance(one, torch.nn.Module) and isinstance(two, torch.nn.Module):
        return same(list(one.parameters()), list(two.parameters()))
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape == two.shape and torch.allclose(one.double(), two.double(), 1e-4, 1e-6, equal_nan=True)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, float) and isinstance(two, float | int):
        return math.isclose(one, two, rel_tol=1e-4, abs_tol=1e-6)
    return type(one) is type(two) and bool(one == two)


def difference(expected: Any, seen: Any) -> str:
    """The first thing that tells two observations apart."""
    if isinstance(seen, Raised):
        return f"ошибка {seen}"
    (result, gradients, arguments), (got, its_gradients, its_arguments) = expected, seen
    if got is None and result is not None:
        return "функция ничего не вернула: нужен return"
    if not same(result, got):
        return unlike(got, result)
    for place, (wanted, left) in enumerate(zip(arguments, its_arguments, strict=True), 1):
        if not same(wanted, left):
            return f"после вызова аргумент {place} не тот, что нужно: {unlike(left, wanted)}"
    return f"значение верное, а градиент {shown(its_gradients)}, нужен {shown(gradients)}"


def unlike(got: Any, wanted: Any) -> str:
    """How a value differs from the one that is wanted: type, shape, else the numbers."""
    if type(got) is not type(wanted):
        return f"тип {type(got).__name__}, а нужен {type(wanted).__name__}"
    if isinstance(got, torch.Tensor) and got.shape != wanted.shape:
        return f"форма {tuple(got.shape)}, а нужна {tuple(wanted.shape)}"
    digits = next(digits for digits in DIGITS if shown(got, digits) != shown(wanted, digits) or digits == DIGITS[-1])
    return f"вышло {shown(got, digits)}, а нужно {shown(wanted, digits)}"


def shown(value: Any, digits: int = 3) -> str:
    """A value in a message, numbers to `digits` significant ones, cut to SHOWN characters."""
    text = _text(value, digits)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _text(value: Any, digits: int) -> str:
    if isinstance(value, torch.nn.Module):
        return _text(dict(value.named_parameters()), digits)
    if isinstance(value, torch.Tensor):
        return _text(value.tolist(), digits)
    if isinstance(value, float):
        return format_number(value, digits)
    if isinstance(value, list | tuple):
        return f"[{'; '.join(_text(item, digits) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{'; '.join(f'{name}: {_text(item, digits)}' for name, item in value.items())}}}"
    return value.__name__ if callable(value) and hasattr(value, "__name__") else str(value)


def solution(name: str) -> HTML:
    """The package's own function, folded."""
    function = gap_of(name).solution
    source = escape(inspect.getsource(function))
    return HTML(f"<details><summary>Решение: {function.__module__}.{name}</summary>\n<pre>{source}</pre></details>")


def stub(name: str) -> str:
    """The source of the gap's cell: the head of the solution, what is asked, `...`."""
    gap = gap_of(name)
    arguments = ", ".join(gap.parameters)
    end = "\n    " if "\n" in gap.asks else ""
    return f'def {name}({arguments}):\n    """{gap.asks}{end}"""\n    ...'


def kept(name: str) -> Path:
    """Where the reader's right function of this name lies."""
    return Path(os.environ.get(KEPT) or cache_dir() / "lessons") / f"{name}.py"


def kept_function(gap: Gap) -> Function | None:
    """The reader's function if one is saved and still right, with the names of its solution's module around it."""
    try:
        function = defined(kept(gap.name).read_text(encoding="utf-8"), gap.name, gap.namespace)
    except Exception:  # no file, or one that no longer runs: whatever it says, it is not the reader's right function
        return None
    return None if diagnosis(gap, function) else function


def mine(name: str) -> Function:
    """The reader's function if it passed its check, else the package's."""
    gap = gap_of(name)
    return kept_function(gap) or gap.solution


def pieces() -> SimpleNamespace:
    """All of Algorithm 1 anew, with the reader's own functions in the place of the package's where they are right."""
    namespace: dict[str, Any] = {"__name__": PIECES}
    for module in (merge, objective, run, warp, solutions):
        source = inspect.getsource(module)
        for gap in GAPS.values():
            if gap.solution.__module__ == module.__name__ and kept_function(gap):
                own = kept(gap.name).read_text(encoding="utf-8")
                source = source.replace(inspect.getsource(gap.solution), own)
        source = re.sub(r"^from warp_nb\..*$", "", source, flags=re.MULTILINE)
        exec(compile(source, f"<{module.__name__}>", "exec", dont_inherit=True), namespace)
    return SimpleNamespace(**{name: value for name, value in namespace.items() if not name.startswith("__")})


def run_of(
    task: Task, config: WarpConfig, own: SimpleNamespace, on_step: Callable[[dict[str, Any]], None]
) -> Callable[[Weights, int, int], Weights]:
    """run(θ_init, i, m) for `algorithm_1` of these pieces, with the prompts and the noise of the package's run (i, m).

    `on_step` gets a row a step: iteration, run, step, reward, objective, kl (policy to anchor, nats a sequence).
    """
    names = ("regularised_reward", "reinforce_loss", "ema_update_", "token_log_probs", "token_kl", "completion_logits")
    functions = {name: getattr(own, name) for name in names}

    def run(init: Weights, i: int, m: int) -> Weights:
        training, steps = Training(config, task, i, m, parts=Parts(**functions)), count(1)

        def loss_of(policy: Any, anchor: Any) -> torch.Tensor:
            loss = training.loss_of(policy, anchor)
            measured = {name: value.item() for name, value in training.measured.items()}
            on_step({"iteration": i, "run": m, "step": next(steps)} | measured)
            return loss

        return own.train_run(init, task.policy, loss_of, T=config.T, lr=config.lr, mu=config.mu)

    return run


def whose() -> HTML:
    """Which of the gaps are filled by the reader, which by the package."""
    rows = [
        {"Урок": gap.lesson, "Функция": name, "Чья": "ваша" if kept_function(gap) else "готовая"}
        for name, gap in GAPS.items()
    ]
    return table(rows)
