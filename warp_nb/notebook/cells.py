"""What the experiment notebooks call around `run_experiment`: banner, figures, conclusion, facts, limits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from warp_nb.config import ExperimentConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.notebook.conclusions import believable_change, broken_instrument, conclude
from warp_nb.notebook.numbers import format_duration, format_number, plural
from warp_nb.notebook.plots import BLOCK_INCHES, geometry, summary_forest, training_curves
from warp_nb.notebook.tables import table
from warp_nb.report.results import EXPERIMENTS, OK, ROOT, read_result, reports_of, result_path
from warp_nb.studies.experiment import ExperimentResult, machine
from warp_nb.tasks.task import Task, describe, resolve

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML, Markdown
    from matplotlib.figure import Figure

SHIFTS = {"почти нет": 0.01, "умеренный": 3.0}
"""Nats: borders of the coarse verdict on the policy's shift."""
WIDTH, DPI = 6.0, 120
"""Of every figure of a page: inches, dots an inch."""
MARGIN = 3.0
"""Standard errors that a verdict must lie away from its border to count as a fact."""


def banner(config: ExperimentConfig, task: Task, steps: int = 0) -> HTML:
    """Task and why, device, versions, cost: a table of two columns; `steps` where they are not n_seeds * I * M * T."""
    _, device, why = resolve(config.task, config.device)
    about, computer = describe(task), machine()
    steps = steps or config.n_seeds * config.I * config.M * config.T
    completions = steps * config.batch_size
    versions = ", ".join(f"{name} {number}" for name, number in computer["versions"].items())
    facts = {
        "Задача": f"{about['task']} ({why})",
        "Политика": f"{format_number(about['parameters'] / 1e6)} млн параметров",
        **policy_facts(about),
        "Награда": about["reward"],
        "Начала отзывов": f"{about['train_prompts']} для обучения, {about['eval_prompts']} отложено",
        "Устройство": f"{device}, потоков: {computer['threads']}; {computer['gpu'] or computer['cpu']}",
        "Арифметика": f"{training_dtype(config.dtype, task.policy)} в обучении, float32 в оценке",
        "Объём": f"{steps} шагов по {config.batch_size} продолжений, всего {format_number(completions, 6)}",
        **duration(config, task.name, steps),
        "Версии": f"Python {computer['python']}, {versions}",
    }
    return table([{"Что": name, "Значение": value} for name, value in facts.items()])


def duration(config: ExperimentConfig, task: str, steps: int, reports: Path = ROOT / "reports") -> dict[str, str]:
    """About how long it took elsewhere: a kept result of this task and length of text; nothing without one."""
    for name in EXPERIMENTS:
        kept = read_result(result_path(reports_of(task, reports), name))
        same = ("batch_size", "max_new_tokens", "n_eval_prompts")
        if kept["status"] != OK or any(kept["config"][key] != getattr(config, key) for key in same):
            continue
        taken = [row["seconds"] for row in kept["history"]]
        beside = max(0.0, kept["seconds"] - sum(taken)) / kept["config"]["n_seeds"]
        seconds = steps * median(taken) + config.n_seeds * beside
        where = kept["machine"]["gpu"] or kept["machine"]["cpu"]
        return {"Время": f"около {format_duration(seconds)} на машине отчёта ({where})"}
    return {}


def policy_facts(about: dict[str, Any]) -> dict[str, str]:
    """What the SFT did to the policy's perplexity, where the task knows it."""
    if "perplexity_after" not in about:
        return {}
    before, after = (format_number(about[f"perplexity_{when}"]) for when in ("before", "after"))
    reviews = about["held_out_reviews"]
    return {"SFT": f"перплексия на слово отложенных отзывов ({reviews}): {before} до SFT, {after} после"}


class Trained(Protocol):
    """What has curves: a result of an experiment, an arm of a comparison."""

    history: pd.DataFrame


def curves(result: Trained) -> Figure:
    """The maximised functional, the reward and the KL over the steps, one curve a run.

    One under another and narrow, so that the letters stay readable on a phone.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 8.4), dpi=DPI, layout="constrained")
    for ax, column in zip(axes, ("objective", "reward", "kl"), strict=True):
        training_curves(ax, result.history, column)
    plt.close(figure)
    return figure


def outcome(result: ExperimentResult) -> Figure:
    """Held-out rewards with intervals, and the angles between the runs' task vectors."""
    import matplotlib.pyplot as plt

    blocks = result.geometry["block"].nunique() if len(result.geometry) else 0
    heights = [3.0, max(3.0, 0.5 + BLOCK_INCHES * blocks)]
    figure, axes = plt.subplots(
        2, 1, figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained", height_ratios=heights
    )
    summary_forest(axes[0], result.summary)
    geometry(axes[1], result.geometry)
    axes[1].tick_params(axis="y", labelsize="medium" if heights[1] == 3.0 else "small")
    plt.close(figure)
    return figure


def conclusion(result: ExperimentResult) -> Markdown:
    """The paragraphs of `conclude` as Markdown."""
    from IPython.display import Markdown

    return Markdown("\n\n".join(conclude(result)))


def rounding(dtype: str, on_curves: Iterable[float], measured: float) -> list[str]:
    """What bf16 adds to the KL of the curves, which no policy made; nothing in fp32."""
    if dtype != "bfloat16":
        return []
    middle = format_number(median(on_curves), 2)
    return [
        "Обучение шло в bfloat16, и к KL на кривых прибавляется ошибка округления: у почти неподвижной политики видна "
        f"только она. На кривых медиана KL до якоря {middle} ната, а итоговая KL(warp‖sft), посчитанная в float32, — "
        f"{format_number(measured, 2)} ната. Судите о сдвиге по таблице, а не по кривым."
    ]


def limits(result: ExperimentResult) -> Markdown:
    """What the conclusion does not reach, from the parameters and the task."""
    from IPython.display import Markdown

    config, about = result.config, result.about
    steps = config.I * config.M * config.T
    points = [
        f"Задача {about['task']}: политика в {format_number(about['parameters'] / 1e6)} млн параметров, награда "
        f"{about['reward']}. Модели и шкала награды исходного отчёта неизвестны: сравнивайте с ним порядок величин KL "
        "и форму кривых, а не сами числа.",
        f"Число продолжений на шаг ({config.batch_size}), их наибольшую длину в токенах ({config.max_new_tokens}), "
        f"температуру ({format_number(config.temperature)}) и задачу исходный отчёт не называет: они выбраны нами.",
        f"Одно обучение — I·M·T = {config.I}·{config.M}·{config.T} = {steps} {plural(steps, 'шаг', 'шага', 'шагов')}: "
        "вывод относится к этой настройке, а не к WARP вообще.",
        *rounding(config.dtype, result.history["kl"], result.summary["kl_policy_reference"].value),
    ]
    return Markdown("\n".join(f"- {point}" for point in points))


def facts(result: ExperimentResult) -> dict[str, Any]:
    """What must repeat on any machine: structure, and verdicts far from their borders.

    A verdict less than three standard errors from a border is «у границы». «Не пройдены» are the checks
    of the instrument: those of the text depend on what was sampled.
    """
    kl, change = result.summary["kl_policy_reference"], believable_change(result)
    return {
        "шагов": len(result.history),
        "прогонов": len(result.runs),
        "блоков": result.geometry["block"].nunique() if len(result.geometry) else 0,
        "не пройдены": sorted(check.name for check in broken_instrument(result)),
        "сдвиг политики": against(kl.value, error(kl), SHIFTS, "большой"),
        "награда": against(change.value, error(change), {"упала": 0.0}, "выросла"),
    }


def error(estimate: Any) -> float:
    """Standard error that a 95 % interval tells, half its half-width."""
    return (estimate.high - estimate.low) / 4


def against(value: float, spread: float, borders: dict[str, float], above: str) -> str:
    """Name of the range `value` lies in, or «у границы» within MARGIN standard errors of a border."""
    for name, border in borders.items():
        if abs(value - border) <= MARGIN * spread:
            return "у границы"
        if value < border:
            return name
    return above
