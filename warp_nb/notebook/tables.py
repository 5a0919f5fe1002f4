"""Tables in Russian from `templates/tables.toml`; every cell is escaped, so text of a model cannot inject HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from IPython.display import HTML, Markdown

from warp_nb.config import ExperimentConfig
from warp_nb.measure.checks import Check
from warp_nb.measure.evaluation import Evaluation
from warp_nb.notebook.check_words import WORDS, headline, measured
from warp_nb.notebook.numbers import counted
from warp_nb.notebook.prose import filled, visible, words
from warp_nb.runs.geometry import with_whole
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS, match

TABLE_WORDS = words("tables")
MEASURE_WORDS: dict[str, str] = TABLE_WORDS["measures"]
"""Names of the nine measures of an evaluation."""
ALL_WEIGHTS = "все веса"
"""In place of a block, in a row over all of them."""
SETTINGS = ("I", "M", "T", "beta", "mu", "eta", "optimizer", "lr", "warmup_steps")
"""Parameters in the rows of `settings_table`, in their order."""
BLANKS = str.maketrans({"\t": r"\t", "\n": r"\n"})
"""Tabs and newlines of a model's text are shown."""
CLASSES = ("warp-nb", "tex2jax_ignore", "mathjax_ignore")
"""CSS classes of a table: our style, and no formulas in the text of a model."""


def results_table(result: ExperimentResult) -> HTML:
    """Show the nine measures with their intervals, and the original report's values if it ran these settings."""
    number = match(result.config)
    original = ROWS[number].measures() if number else {}
    rows = [{"measure": name, "estimate": result.summary[name]} for name in MEASURE_WORDS]
    shown = filled_table("results", rows, words=MEASURE_WORDS, original=original)
    return HTML(f"{shown.data}\n<p>{filled(TABLE_WORDS['results']['note'], {'original': original})}</p>")


def geometry_table(result: ExperimentResult) -> HTML:
    """Show angle and norms of the runs' task vectors, folded: per pair a row for each block, one over all weights."""
    table = result.geometry
    rows = [] if table.empty else with_whole(table, ALL_WEIGHTS).to_dict("records")
    title = TABLE_WORDS["geometry"]["title"] + (f" ({counted(len(rows), 'строка', 'строки', 'строк')})" if rows else "")
    return folded(title, filled_table("geometry", rows, several=result.config.n_seeds > 1))


def samples_table(evaluation: Evaluation, count: int = 5, name: str = "WARP") -> HTML:
    """Show completions of the reference and of the policy, called `name`, after the same held-out prompts."""
    return filled_table("samples", evaluation.samples[:count], name=name)


def checks_table(checks: Sequence[Check]) -> HTML:
    """Show «Проверки»: a headline, and folded the checks with the meaning of a failure, failed ones first."""
    ordered = sorted(checks, key=lambda check: not check.failed)
    rows = [{"check": check, "words": WORDS[check.name], "measured": measured(check)} for check in ordered]
    shown = folded(TABLE_WORDS["checks"]["title"], filled_table("checks", rows))
    return HTML(f"<p>{escape(headline(checks))}</p>\n{shown.data}")


def settings_table(config: ExperimentConfig) -> Markdown:
    """Show the settings as the original report lists them; what it does not say is marked as assumed by us.

    It is Markdown, whose numbers `pytest --nbval` compares: they were set, not measured.
    """
    number, words = match(config), TABLE_WORDS["settings-words"]
    guessed = ROWS[number].guessed if number else ()
    lines = [[words["name"], words["value"], words["source"]], ["---"] * 3]
    for kind in ("settings", "more-settings"):
        for place, (name, value) in enumerate(TABLE_WORDS[kind].items()):
            ours = kind != "settings" or SETTINGS[place] in guessed
            lines.append([name, filled(value, config.model_dump()), words["ours" if ours else "said"]])
    kept = lines if number else [line[:2] for line in lines]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in kept))


def folded(title: str, content: HTML) -> HTML:
    """Fold HTML under a title."""
    return HTML(f"<details><summary>{escape(title)}</summary>\n{content.data}\n</details>")


def filled_table(kind: str, rows: Iterable[Mapping[str, Any]], /, **facts: Any) -> HTML:
    """Fill a table of `templates/tables.toml`, one row per mapping; `facts` apply to all rows and to the headings."""
    columns = {filled(heading, facts): cell for heading, cell in TABLE_WORDS[kind]["columns"].items()}
    columns.pop("", None)
    cells = [{heading: filled(cell, {**facts, **row}) for heading, cell in columns.items()} for row in rows]
    return table(cells, TABLE_WORDS[kind].get("empty", ""))


def table(rows: Sequence[Mapping[str, Any]], empty: str = "") -> HTML:
    """Show rows as an escaped HTML table that MathJax ignores, all of their text visible; `empty` if there are none.

    Written as pandas writes a table of texts, but without its import, which the first step would wait for.
    """
    rows = rows or [{"": empty}]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = ['    <tr style="text-align: right;">', *(_cell("th", name) for name in columns), "    </tr>"]
    body = []
    for row in rows:
        texts = (str(row.get(name, "")).translate(BLANKS) for name in columns)
        body += ["    <tr>", *(_cell("td", text) for text in texts), "    </tr>"]
    lines = ["  <thead>", *head, "  </thead>", "  <tbody>", *body, "  </tbody>"]
    return HTML("\n".join([f'<table class="dataframe {" ".join(CLASSES)}">', *lines, "</table>"]))


def _cell(tag: str, text: str) -> str:
    """Return a line with one cell, whose double spaces a browser does not join."""
    inner = escape(visible(text).strip(), quote=False).replace("  ", "&nbsp;&nbsp;")
    return f"      <{tag}>{inner}</{tag}>"
