"""Functions that a lesson calls for a gap: `check`, `solution`, `mine`. The reader's correct functions are saved.

They are saved as text in the user's cache folder, `lessons/<name>.py` (WARP_NB_LESSONS moves them), and are executed
from there if nobody else can have written them: file and folder belong to this user, and no other may write them.
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
from warp_nb.paths import expanded
from warp_nb.runs.training import Parts, train
from warp_nb.tasks.task import Task

SHOWN = 160
"""Largest number of characters of a value in a message."""
DIGITS = (3, 5, 7)
"""Significant digits in a message: as few as distinguish two values."""
KEPT = "WARP_NB_LESSONS"
"""Environment variable that names another folder for the reader's functions."""
HARDEST = 3
"""Largest difficulty of a gap."""
PIECES = "warp_nb.course.pieces"
"""The `__module__` of the functions that `pieces` makes."""


class Raised(str):
    """The error that a function raised instead of returning."""


def gap_of(name: str) -> Gap:
    """Return the gap with this name; raise ValueError if there is none."""
    if name not in GAPS:
        raise ValueError(f"no gap is called {name!r}; the lessons have {', '.join(GAPS)}")
    return GAPS[name]


def check(function: Function) -> None:
    """Print whether the reader's function is correct, or what is wrong; save a correct one for later lessons.

    Raises ValueError if no gap has the function's name.
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
    if reason := keep(gap, source):
        print(f"  {reason}; в следующих уроках её заменит готовая.")


def keep(gap: Gap, source: str) -> str:
    """Save a correct function for later lessons; return in Russian why it could not be saved, empty if it is saved."""
    path = kept(gap.name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(path, source)
        path.chmod(0o600)
    except OSError as error:
        return f"Сохранить функцию не удалось ({error})"
    if own_source(path) is None:
        return f"В {path.parent} могут писать и другие, поэтому код оттуда не выполняется (chmod go-w {path.parent})"
    if kept_function(gap) is None:
        path.unlink()
        return "Функция опирается на другие имена этой тетради"
    return ""


def unfilled(source: str) -> bool:
    """Return whether the function is still its stub: only `...` after the docstring."""
    head, *rest = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    return all(isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in (head, *rest))


def diagnosis(gap: Gap, function: Function) -> str:
    """Say in Russian what is wrong with the function; empty if it agrees with the solution in every case."""
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
    """Call a function and return (result, gradients of the arguments, the arguments afterwards), or Raised."""
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
    """Return whether two observed values agree, numbers to 1e-4."""
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
    """Describe the first difference between two observations."""
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
    """Describe how a value differs from the expected one: by type, shape, or else numbers."""
    if type(got) is not type(wanted):
        return f"тип {type(got).__name__}, а нужен {type(wanted).__name__}"
    if isinstance(got, torch.Tensor) and got.shape != wanted.shape:
        return f"форма {tuple(got.shape)}, а нужна {tuple(wanted.shape)}"
    digits = next(digits for digits in DIGITS if shown(got, digits) != shown(wanted, digits) or digits == DIGITS[-1])
    return f"вышло {shown(got, digits)}, а нужно {shown(wanted, digits)}"


def shown(value: Any, digits: int = 3) -> str:
    """Format a value for a message: numbers to `digits` significant digits, cut to SHOWN characters."""
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
    """Show the gap's hint and then the source of the package's function, each folded."""
    gap = gap_of(name)
    hint = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(gap.hint), flags=re.DOTALL)
    source = escape(inspect.getsource(gap.solution))
    return HTML(
        f"<details><summary>Подсказка</summary>\n<p>{hint}</p></details>\n"
        f"<details><summary>Решение: {gap.module}.{name}</summary>\n<pre>{source}</pre></details>"
    )


def grade(gap: Gap) -> str:
    """●●○, около 10 минут."""
    return f"{'●' * gap.difficulty:○<{HARDEST}}, около {counted(gap.minutes, 'минуты', 'минут', 'минут')}"


def stub(name: str) -> str:
    """Return the source of the gap's cell: difficulty and minutes, the solution's signature, the task, `...`."""
    gap = gap_of(name)
    arguments = ", ".join(gap.parameters)
    end = "\n    " if "\n" in gap.asks else ""
    return f'# Упражнение: {grade(gap)}\ndef {name}({arguments}):\n    """{gap.asks}{end}"""\n    ...'


def kept(name: str) -> Path:
    """Return the file of the reader's correct function of this name."""
    return expanded(os.environ.get(KEPT) or cache_dir() / "lessons") / f"{name}.py"


def own_source(path: Path) -> str | None:
    """Read a file that only this user can have written; None if there is none, or if others may write it.

    Windows keeps no such permissions; there the user's cache folder is private.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            owned = [os.fstat(handle.fileno()), path.parent.stat()]
            source = handle.read()
    except (OSError, ValueError):
        return None
    sound = not hasattr(os, "getuid") or all(s.st_uid == os.getuid() and not s.st_mode & 0o022 for s in owned)
    return source if sound else None


def kept_function(gap: Gap) -> Function | None:
    """Load the reader's function if one is saved and still correct, in the namespace of the solution's module."""
    source = own_source(kept(gap.name))
    return None if source is None else correct(gap, source)


def correct(gap: Gap, source: str) -> Function | None:
    """Return the function that a text defines if it is correct."""
    try:
        function = defined(source, gap.name, gap.namespace)
    except Exception:  # it no longer runs: with any error it is not a correct function
        return None
    return None if diagnosis(gap, function) else function


def mine(name: str) -> Function:
    """Return the reader's function if it passed its check, else the package's."""
    gap = gap_of(name)
    return kept_function(gap) or gap.solution


def pieces() -> SimpleNamespace:
    """Rebuild Algorithm 1 with the reader's functions in the place of the package's where they are correct."""
    namespace: dict[str, Any] = {"__name__": PIECES}
    for module in (merge, objective, run, warp, solutions):
        source = inspect.getsource(module)
        for gap in GAPS.values():
            own = own_source(kept(gap.name)) if gap.solution.__module__ == module.__name__ else None
            if own is not None and correct(gap, own):
                source = source.replace(inspect.getsource(gap.solution), own)
        source = re.sub(r"^from warp_nb\..*$", "", source, flags=re.MULTILINE)
        exec(compile(source, f"<{module.__name__}>", "exec", dont_inherit=True), namespace)
    return SimpleNamespace(**{name: value for name, value in namespace.items() if not name.startswith("__")})


def run_of(
    task: Task, config: WarpConfig, own: SimpleNamespace, on_step: Callable[[dict[str, Any]], None]
) -> Callable[[Weights, int, int], Weights]:
    """Return run(θ_init, i, m) for `algorithm_1` of these pieces, with prompts and noise of the package's run (i, m).

    `on_step` gets one row per step: iteration, run, step, reward, objective, kl (to the anchor, nats per sequence).
    """
    names = ("regularised_reward", "reinforce_loss", "ema_update_", "token_log_probs", "token_kl", "completion_logits")
    parts = Parts(train_run=own.train_run, **{name: getattr(own, name) for name in names})
    return lambda init, i, m: train(config, task, init, i=i, m=m, parts=parts, on_step=on_step).weights


def whose() -> HTML:
    """Show which gaps are filled by the reader and which by the package."""
    rows = [
        {"Урок": gap.lesson, "Функция": name, "Чья": "ваша" if kept_function(gap) else "готовая"}
        for name, gap in GAPS.items()
    ]
    return table(rows)
