"""Saved texts of the configuration `smollm`: what follows the same prompts before and after training.

`scripts/lesson_texts.py` writes `texts.json` from the committed result files. It takes the first samples of each file,
so no text is chosen by how it reads.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from IPython.display import HTML

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.numbers import counted, format_brief, format_number, format_share, plural
from warp_nb.notebook.prose import visible
from warp_nb.notebook.tables import BLANKS, CLASSES, table

LEFT = ' style="text-align: left"'
SIDES = {"до": "reference", "после": "policy"}


@dataclass(frozen=True)
class SavedRun:
    """Texts and measures of an experiment, saved for the lessons.

    Args:
        command: the command that measured it.
        task: name of the task.
        settings: `I`, `M`, `T`, `lr`, `warmup_steps`, `beta`, `eta` of the experiment.
        shown_eta: the point of the front that wrote the texts; None for the experiment's own result.
        prompts: number of held-out prompts that the measures are means over.
        measures: measures of the evaluation by name; KL in nats a sequence.
        samples: prompts with a completion of θ_sft and of the trained policy, and the rewards of both.
    """

    command: str
    task: str
    settings: Mapping[str, float]
    shown_eta: float | None
    prompts: int
    measures: Mapping[str, Estimate]
    samples: Sequence[Mapping[str, Any]]

    @property
    def kl(self) -> float:
        """KL(policy || sft), nats a sequence."""
        return self.measures["kl_policy_reference"].value


@cache
def saved_runs() -> dict[str, SavedRun]:
    """Read `texts.json`: "exp1" to "exp5"."""
    stored = json.loads(files("warp_nb.course").joinpath("texts.json").read_text(encoding="utf-8"))["runs"]
    return {
        name: SavedRun(**run | {"measures": {key: Estimate(**value) for key, value in run["measures"].items()}})
        for name, run in stored.items()
    }


def saved_run(name: str) -> SavedRun:
    """Return what is saved of the experiment `name`.

    Raises:
        ValueError: nothing of this name is saved.
    """
    if name not in saved_runs():
        raise ValueError(f"no texts are saved of {name!r}; name one of {', '.join(saved_runs())}")
    return saved_runs()[name]


def before_and_after(name: str, count: int = 4) -> HTML:
    """Show the first `count` prompts of an experiment with the completions before and after, and their rewards.

    Args:
        name: "exp1" to "exp5".
        count: number of prompts, from the first one of the file.

    Raises:
        ValueError: nothing of this name is saved, or `count` is not between 1 and the number of saved prompts.
    """
    run = saved_run(name)
    if not 1 <= count <= len(run.samples):
        raise ValueError(f"count must be between 1 and the {len(run.samples)} saved prompts, got {count}; pass count=4")
    head = f"<thead><tr><th></th><th{LEFT}>Текст</th><th>Награда</th></tr></thead>"
    body = "".join(_two_texts(sample) for sample in run.samples[:count])
    grid = f'<table class="dataframe {" ".join(CLASSES)}">{head}{body}</table>'
    source = f"Первые промпты файла, по порядку. Измерено командой {run.command}."
    return HTML(f"<p>{escape(summary_line(name))}</p>{grid}<p><small>{_shown(source)}</small></p>")


def _two_texts(sample: Mapping[str, Any]) -> str:
    """Return the rows of a prompt; all text of a model is escaped and shown whole."""
    rows = [f'<tr><td></td><td colspan="2"{LEFT}><b>{_shown(sample["prompt"])}</b>…</td></tr>']
    for label, side in SIDES.items():
        reward = format_number(sample[f"reward_{side}"], 2)
        rows.append(f"<tr><td{LEFT}>{label}</td><td{LEFT}>…{_shown(sample[side])}</td><td>{reward}</td></tr>")
    return f"<tbody>{''.join(rows)}</tbody>"


def _shown(text: str) -> str:
    return escape(visible(text).translate(BLANKS))


def summary_line(name: str) -> str:
    """Return a line of an experiment: its settings, and how reward and distance changed over all held-out prompts."""
    run = saved_run(name)
    rate, steps = format_number(run.settings["lr"]), counted(int(run.settings["T"]), "шаг", "шага", "шагов")
    place = "" if run.shown_eta is None else f", точка фронта η = {format_number(run.shown_eta)}"
    before, after = (format_number(run.measures[f"reward_{side}"].value, 2) for side in SIDES.values())
    return (
        f"Эксперимент {name.removeprefix('exp')}: lr = {rate}, {steps} в прогоне{place}. "
        f"Средняя награда: {before} → {after}, KL = {_nats(run.kl)} (по {run.prompts} отложенным промптам)."
    )


def _nats(value: float) -> str:
    """Return a KL with its unit in the case that the number asks for: 2,2 ната, 70 нат."""
    number = format_number(value, 2)
    return f"{number} {plural(int(number), 'нат', 'ната', 'нат') if number.isdecimal() else 'ната'}"


def distances() -> HTML:
    """Show reward and state of the text of every saved run, from the smallest KL to the largest."""
    return table([_distance_row(name) for name in sorted(saved_runs(), key=lambda name: saved_run(name).kl)])


def _distance_row(name: str) -> dict[str, str]:
    run = saved_run(name)
    before, after = (run.measures[f"distinct_{side}"].value for side in SIDES.values())
    return {
        "№": name.removeprefix("exp"),
        "lr": format_number(run.settings["lr"]),
        "KL, нат": format_number(run.kl, 2),
        "Прирост награды": format_brief(run.measures["reward_difference"]),
        "Уникальные биграммы": f"{format_share(before)} → {format_share(after)}",
    }


def favourite_words(name: str, count: int = 3) -> dict[str, dict[str, float]]:
    """Return the `count` most frequent words before and after, with their shares of all words of the saved texts."""
    found = {}
    for label, side in SIDES.items():
        words = [word for sample in saved_run(name).samples for word in re.findall(r"\w+", sample[side].lower())]
        found[label] = {word: number / len(words) for word, number in Counter(words).most_common(count)}
    return found
