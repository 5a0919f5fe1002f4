"""Result files side by side: the table holds their own figures, and the plane has a point for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import records
from synthetic import around, diagnosis_record, result

from warp_nb.files import write_json
from warp_nb.notebook.compared_runs import compare
from warp_nb.notebook.plots import png

FIGURES = {"reward_policy": around(0.9, 0.1), "kl_policy_reference": around(2.1, 0.2)}


def write(path: Path, reward: float = 0.9, about: dict[str, Any] | None = None, **settings: Any) -> Path:
    made = result(held_out={**FIGURES, "reward_policy": around(reward, 0.1)}, **settings)
    made.about.update(about or {})
    write_json(path, made.to_json())
    return path


def test_the_table_has_a_row_for_every_file_and_a_column_for_what_differs(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.json", 0.5, T=5), write(tmp_path / "b.json", 0.7, lr=1e-4, n_seeds=2, seed=7)]
    table = compare(paths).table
    assert list(table)[:7] == ["file", "task", "scored_by", "T", "lr", "n_seeds", "reward"]
    for path, row in zip(paths, table.to_dict("records"), strict=True):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert row["file"] == str(path) and row["n_seeds"] == found["config"]["n_seeds"]
        for column, name in (("reward", "reward_policy"), ("gain", "reward_difference"), ("kl", "kl_policy_reference")):
            one = found["summary"][name]
            assert [row[column], row[f"{column}_low"], row[f"{column}_high"]] == [
                one[k] for k in ("value", "low", "high")
            ]
        assert row["failed"] == ", ".join(c["name"] for c in found["checks"] if c["applies"] and not c["passed"])


def test_a_notebook_shows_the_table_in_russian(tmp_path: Path) -> None:
    broken = write(tmp_path / "b.json", lr=1e-4, runs={"delta_norm": 0.0})
    rows = records(compare([write(tmp_path / "a.json"), broken])._repr_html_())
    assert [row["Параметры"] for row in rows] == ["lr = 10⁻⁴", "lr = 3·10⁻⁴"][::-1]
    assert rows[0]["Награда WARP"].startswith("0,90 [") and rows[0]["KL(warp‖sft), нат"].startswith("2,10 [")
    assert rows[0]["Не пройдены проверки"] == "все пройдены" != rows[1]["Не пройдены проверки"]
    assert "Конфигурация" not in rows[0]


def test_files_of_equal_settings_are_told_apart_by_their_names(tmp_path: Path) -> None:
    names = compare([write(tmp_path / "a.json", seed=1), write(tmp_path / "b.json", seed=2)]).names
    assert names == [f"({tmp_path / name})" for name in ("a.json", "b.json")]


def test_the_plane_has_a_named_point_for_every_file(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{t}.json", reward=t / 10, T=t) for t in range(2, 11)]
    figure = compare(paths).plane()
    (ax,) = figure.axes
    assert [bar.lines[0].get_xydata().tolist() for bar in ax.containers] == [[[2.1, t / 10]] for t in range(2, 11)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"T = {t}" for t in range(2, 11)]
    assert png(figure)  # lays the figure out
    below, plot = figure.legends[0].get_window_extent(), ax.get_tightbbox()
    assert below.y1 <= plot.y0 + 1, "the legend covers the plot"


def test_rewards_of_two_tasks_share_a_table_and_no_plane(tmp_path: Path) -> None:
    runs = compare([write(tmp_path / "a.json"), write(tmp_path / "b.json", about={"task": "smollm"})])
    assert [row["Конфигурация"] for row in records(runs._repr_html_())] == ["small", "smollm"]
    with pytest.raises(ValueError, match=r"rewards of small .*, smollm .* have no common scale"):
        runs.plane()


def test_what_is_no_result_of_an_experiment_is_refused_by_its_name(tmp_path: Path) -> None:
    write_json(tmp_path / "diagnosis.json", diagnosis_record())
    (tmp_path / "cut.json").write_text("{")
    write_json(tmp_path / "failed.json", {"status": "failed", "error": "Kernel died"})
    write_json(tmp_path / "exp5.json", {"status": "ok", "equal_kl": {}})
    faults = {"diagnosis": "no result of an experiment", "cut": "damaged", "failed": "Kernel died", "exp5": "own page"}
    for name, said in faults.items():
        with pytest.raises(ValueError, match=rf"{name}\.json .*{said}"):
            compare([tmp_path / f"{name}.json"])
    with pytest.raises(ValueError, match=r"missing\.json holds no finished result \(it is not there\)"):
        compare([tmp_path / "missing.json"])
    with pytest.raises(ValueError, match="pass at least one"):
        compare([])
