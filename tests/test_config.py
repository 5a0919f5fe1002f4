"""What papermill and YAML make of numbers is repaired where unambiguous and refused elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest

from warp_nb.config import ExperimentConfig, WarpConfig


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("lr", 0.0001, 0.0001),  # -p lr 1e-4
        ("T", 1000.0, 1000),  # -p T 1e3
        ("lr", "1e-4", 1e-4),  # -f p.yaml with lr: 1e-4
        ("T", "1e3", 1000),
        ("T", "50", 50),
        ("independent_seeds", "false", False),  # -p independent_seeds false
        ("independent_seeds", "true", True),
        ("beta", 0, 0.0),
    ],
)
def test_repaired(name: str, given: Any, wanted: Any) -> None:
    value = getattr(WarpConfig.from_notebook({name: given}), name)
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("lr", math.nan, ["lr = nan", "finite", "-p lr 1e-06"]),
        ("beta", math.inf, ["beta = inf", "finite", "-p beta 0.1"]),
        ("lr", "nan", ["lr = 'nan'", "finite"]),
        ("lr", "1e400", ["lr = '1e400'", "finite"]),
        ("lr", -1e-6, ["lr = -1e-06", "greater than 0", "-p lr 1e-06"]),
        ("lr", 0, ["lr = 0", "greater than 0"]),
        ("lr", 1.0, ["lr = 1.0", "less than 1"]),
        ("lr", "fast", ["lr = 'fast'", "number"]),
        ("lr", True, ["lr = True", "number"]),
        ("T", 10.5, ["T = 10.5", "integer", "-p T 10"]),
        ("T", "10.5", ["T = '10.5'", "integer"]),
        ("T", 0, ["T = 0", "greater than or equal to 1"]),
        ("T", None, ["T = None", "integer"]),
        ("M", True, ["M = True", "number"]),
        ("eta", 1.5, ["eta = 1.5", "less than or equal to 1", "-p eta 0.5"]),
        ("mu", -0.1, ["mu = -0.1", "greater than or equal to 0"]),
        ("temperature", 0.0, ["temperature = 0.0", "greater than 0"]),
        ("baseline", "average", ["baseline = 'average'", "'none', 'mean' or 'loo'", "-p baseline none"]),
        ("baseline", True, ["baseline = True", "'none', 'mean' or 'loo'", "-p baseline none"]),
        ("merge", None, ["merge = None", "'slerp' or 'lerp'"]),
        ("merge_by", "block", ["merge_by = 'block'", "'layer', 'tensor' or 'global'"]),
        ("optimizer", "lion", ["optimizer = 'lion'", "'adam', 'adamw' or 'sgd'"]),
        ("dtype", "float16", ["dtype = 'float16'", "'float32' or 'bfloat16'"]),
        ("independent_seeds", "no way", ["independent_seeds = 'no way'", "True or False"]),
    ],
)
def test_refused_with_value_rule_and_remedy(name: str, given: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        WarpConfig.from_notebook({name: given})
    for word in [*words, f"pass e.g. -p {name}"]:
        assert word in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        WarpConfig(lr=-1, T=0)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("source", ["# Parameters\nlearnig_rate = 1\n", "\n# Parameters\nlr = 1e-4\nlearnig_rate = 1"])
def test_an_unknown_injected_name_is_refused(source: str) -> None:
    names = {"In": ["", "lr = 1e-6", source], "learnig_rate": 1, "lr": 1e-6}
    with pytest.raises(ValueError, match=r"unknown parameter learnig_rate; the notebook has: I, M, T, lr, "):
        ExperimentConfig.from_notebook(names)


def test_names_that_were_not_injected_are_the_notebooks_own() -> None:
    names = {"In": ["", "x = 1\n%matplotlib inline", "# Parameters\nT = 20.0\nresult_file = 'r.json'\n"], "T": 20.0}
    config = ExperimentConfig.from_notebook(names | {"x": 1, "result_file": "r.json"})
    assert config == ExperimentConfig(T=20)


def test_a_readers_own_cell_with_a_magic_is_not_papermills() -> None:
    names = {"In": ["# Parameters of mine\n%matplotlib inline\nlearnig_rate = 1"], "T": 20}
    assert ExperimentConfig.from_notebook(names).T == 20


def test_unknown_names_are_refused_outside_notebooks_too() -> None:
    with pytest.raises(ValueError, match="unknown parameter learnig_rate; known: I, M, T, lr"):
        WarpConfig(learnig_rate=1e-4)


def test_a_config_is_frozen_and_replaced_with_validation() -> None:
    config = WarpConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1e-4  # type: ignore[misc]
    assert config.replace(lr=1e-4) == WarpConfig(lr=1e-4) and config.lr == 1e-6
    with pytest.raises(ValueError, match="lr = -1"):
        config.replace(lr=-1)


def test_leave_one_out_needs_others() -> None:
    with pytest.raises(ValueError, match="batch_size 2 or more"):
        WarpConfig(baseline="loo", batch_size=1)
    assert WarpConfig(baseline="mean", batch_size=1).batch_size == 1


def test_the_defaults_are_the_original_reports_first_experiment() -> None:
    config = WarpConfig()
    assert (config.I, config.M, config.T, config.lr, config.warmup_steps) == (2, 2, 10, 1e-6, 100)
    assert (config.beta, config.mu, config.eta, config.optimizer) == (0.1, 0.01, 0.5, "adam")
    assert (config.anchor, config.merge, config.merge_by, config.baseline) == ("ema", "slerp", "layer", "none")
