"""An experiment as a whole: seeds, intervals, JSON, a folder of runs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_planted_faults import CONFIG, PAIRS

from warp_nb.measure.evaluation import MEASURES, mean_interval
from warp_nb.studies import experiment
from warp_nb.studies.experiment import ExperimentResult, run_experiment
from warp_nb.tasks.reward_model import measure_gate


def run(monkeypatch: pytest.MonkeyPatch, task: Any = None, **changes: Any) -> ExperimentResult:
    monkeypatch.setattr(experiment, "measure_gate", partial(measure_gate, pairs=PAIRS))
    return run_experiment(CONFIG.replace(**({"T": 2} | changes)), task or tiny.task(), progress=False)


@pytest.mark.slow
def test_seeds_are_whole_trainings_with_an_interval_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, n_seeds=2, seed=5)
    for frame in (result.history, result.geometry, result.runs, result.merges):
        assert set(frame.seed) == {5, 6}
    assert result.runs.run_seed.nunique() == 4 and len(result.evaluations) == 2
    for name in MEASURES:
        if name.startswith("perplexity"):  # in the log: test_evaluation.py
            continue
        assert result.summary[name] == mean_interval([getattr(e, name).value for e in result.evaluations])
    single = run(monkeypatch, seed=6)
    assert single.summary == single.evaluations[0].measures() == result.evaluations[1].measures()


def test_the_record_is_plain_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, M=1)  # one run: cosines are NaN
    assert math.isnan(result.merges.delta_cosine[0])
    result.save(tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found["status"] == "ok" and found["merges"][0]["delta_cosine"] is None
    assert found["summary"]["reward_policy"] == asdict(result.summary["reward_policy"])
    assert found["config"]["eta"] == 0.3 and "out_dir" not in found["config"]
    assert [row["name"] for row in found["checks"]] == [check.name for check in result.checks]
    assert len(found["history"]) == 2 and found["machine"]["versions"]["torch"] and found["conclusion"]
    assert found["seconds"] > 0 and found["peak_rss_mb"] > 50
    result.save("")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_too_many_evaluation_prompts_are_refused_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**kwargs: Any) -> list[float]:
        raise AssertionError("the reward was called")

    with pytest.raises(ValueError, match=r"n_eval_prompts must be 2 to 64, the held-out prompts of task tiny, got 65"):
        run(monkeypatch, tiny.task(reward=never), n_eval_prompts=65)


def test_a_second_experiment_reads_the_first_ones_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def untrained(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        assert len(completions) != CONFIG.batch_size, "a run was trained again"
        return tiny.opinion(prompts, completions)

    untrained.__name__ = "opinion"
    first = run(monkeypatch, out_dir=str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    again = run(monkeypatch, tiny.task(reward=untrained), out_dir=tmp_path.name)  # the same folder, said otherwise
    assert again.runs.loaded.all() and again.summary == first.summary
    wider = run(monkeypatch, out_dir=str(tmp_path), n_seeds=2, n_eval_prompts=32)
    assert wider.runs.loaded.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"eta: 0\.3 there, 0\.4 here"):
        run(monkeypatch, out_dir=str(tmp_path), eta=0.4)
