"""Parameters: numbers that papermill and YAML left as text are read, everything else is taken as it is or refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from warp_nb.config import ExperimentConfig, WarpConfig
from warp_nb.runs.warp import warp

FIELDS = WarpConfig.model_fields


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("lr", 0.0001, 0.0001),  # -p lr 1e-4
        ("T", 1000.0, 1000),  # -p T 1e3
        ("lr", "1e-4", 1e-4),  # -f p.yaml with lr: 1e-4
        ("T", "1e3", 1000),
        ("T", "50", 50),
        ("seed", "9007199254740993", 2**53 + 1),  # no float on the way
        ("beta", 0, 0.0),
        ("keep_anchors", "false", False),  # -p keep_anchors false
        ("keep_anchors", "true", True),
    ],
)
def test_repaired(name: str, given: Any, wanted: Any) -> None:
    value = getattr(WarpConfig.from_notebook({name: given}), name)
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        *(("lr", value, "must be a finite number") for value in (math.nan, math.inf, "nan", "-inf", "1e400")),
        *(("T", value, "must be a finite number") for value in (math.nan, math.inf, "inf")),
        ("lr", -1e-6, "must be greater than 0"),
        ("lr", 0, "must be greater than 0"),
        ("lr", 1.0, "must be less than 1"),
        ("lr", "fast", "must be a valid number"),
        *((name, True, "must be a number") for name in ("lr", "M", "seed", "samples_per_prompt")),
        ("T", 10.5, "must be a valid integer"),
        ("T", "10.5", "must be a valid integer"),
        ("T", 0, "must be greater than or equal to 1"),
        ("T", None, "must be a valid integer"),
        ("eta", 1.5, "must be less than or equal to 1"),
        ("lam", -0.1, "must be greater than or equal to 0"),
        ("mu", -0.1, "must be greater than or equal to 0"),
        ("temperature", 0.0, "must be greater than 0"),
        ("samples_per_prompt", 0, "must be greater than or equal to 1"),
        ("snapshot_every", -1, "must be greater than or equal to 0"),
        ("threads", 1025, "must be less than or equal to 1024"),
        ("I", 10_001, "must be less than or equal to 10000"),
        ("M", 10**9, "must be less than or equal to 1000"),
        ("max_new_tokens", 2**31, "must be less than or equal to 100000"),
        ("batch_size", 10**9, "must be less than or equal to 100000"),
        ("baseline", "loo", "must be 'none', 'mean', 'batch_loo' or 'rloo'"),
        ("baseline", True, "must be 'none', 'mean', 'batch_loo' or 'rloo'"),
        ("merge", None, "must be 'slerp', 'lerp' or 'slerp_weights'"),
        ("merge_by", "block", "must be 'layer', 'tensor' or 'global'"),
        ("optimizer", "lion", "must be 'adam', 'adamw' or 'sgd'"),
        ("dtype", "float16", "must be 'float32' or 'bfloat16'"),
        ("keep_anchors", "no way", "must be a valid boolean"),
        ("keep_anchors", 2, "must be a valid boolean"),
    ],
)
def test_refused_with_value_rule_and_remedy(name: str, given: Any, rule: str) -> None:
    with pytest.raises(ValueError) as caught:
        WarpConfig.from_notebook({name: given})
    field, said = FIELDS[name], str(caught.value)
    assert said.startswith(f"{name} = {given!r} refused ({field.description}): {rule}")
    assert said.endswith(f"; pass e.g. -p {name} {field.default}") and "\n" not in said


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lam": 0.3, "M": 1}, "lam = 0.3 needs M = 2, got M = 1; pass -p lam 0.5"),
        ({"lam": 0.3, "M": 3}, "lam = 0.3 needs M = 2, got M = 3; pass -p lam 0.5"),
        ({"batch_size": 6, "samples_per_prompt": 4}, "batch_size = 6 must be a multiple of samples_per_prompt = 4; "),
        ({"batch_size": 2, "samples_per_prompt": 4}, "batch_size = 2 must be a multiple of samples_per_prompt = 4; "),
        ({"baseline": "rloo"}, "baseline = 'rloo' needs .*; pass -p samples_per_prompt 2"),
        ({"baseline": "batch_loo", "batch_size": 1}, "baseline = 'batch_loo' needs .*; pass -p batch_size 2"),
    ],
)
def test_rules_between_parameters(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        WarpConfig(**values)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        WarpConfig(lr=-1, T=0, gain=2)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["T", "lr", "unknown"]


# Unknown names


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("batchsize", "batch_size"),
        ("Lr", "lr"),
        ("i", "I"),
        ("max_tokens", "max_new_tokens"),
        ("optimiser", "optimizer"),
        ("learnig_rate", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest_one(name: str, closest: str | None) -> None:
    known = ", ".join(FIELDS)
    said = f"unknown parameter {name}{f' (did you mean {closest}?)' if closest else ''}; pass one of {known}"
    for given_names in (lambda: WarpConfig(**{name: 1}), lambda: WarpConfig.from_notebook(injection(f"{name} = 1"))):
        with pytest.raises(ValueError) as caught:
            given_names()
        assert str(caught.value) == said


def injection(source: str, **names: Any) -> dict[str, Any]:
    """A notebook's globals after papermill injected `source`."""
    return {"In": ["", "lr = 1e-6", f"\n# Parameters\n{source}\n"]} | names


def test_several_injected_names_are_told_together() -> None:
    with pytest.raises(ValueError, match=r"^unknown parameter epochs, tasks \(did you mean task\?\); pass one of I, M"):
        ExperimentConfig.from_notebook(injection("tasks = 1\nepochs = 2", tasks=1, epochs=2))


def test_names_that_were_not_injected_are_the_notebooks_own() -> None:
    names = injection("T = 20.0\nresult_file = 'r.json'", T=20.0, x=1, result_file="r.json")
    names["In"].append("# Parameters of mine\n%matplotlib inline\nlearnig_rate = 1")
    assert ExperimentConfig.from_notebook(names) == ExperimentConfig(T=20)


CELL = "lr: float = 1e-6  # x\nT: int = 10  # x\nresult_file: str = ''  # x"
TYPO = "# Parameters\nlearnig_rate = 1"


@pytest.mark.parametrize(
    ("cells", "refused"),
    [
        ([CELL, TYPO], "learnig_rate"),
        ([CELL, TYPO, "# Parameters\nlr = 1"], ""),
        ([CELL, TYPO, CELL], ""),
        ([CELL, TYPO, "del learnig_rate"], ""),
        ([CELL, TYPO, "lr = 1e-3", "note: str = 'x'"], "learnig_rate"),
        ([CELL.replace("lr:", "lrr:")], "lrr"),
        ([CELL.replace("lr:", "lrr:"), CELL], ""),
        ([CELL, CELL.replace("T:", "steps:")], "steps"),
        ([CELL, "note: str = 'x'", "# Parameters of a plot\n%matplotlib inline\nwidth = 1"], ""),
    ],
)
def test_a_mistyped_name_is_refused_until_its_cell_is_mended(cells: list[str], refused: str) -> None:
    names = {"In": ["", *cells], "T": 3}
    if not refused:
        assert ExperimentConfig.from_notebook(names) == ExperimentConfig(T=3)
        return
    with pytest.raises(ValueError, match=f"^unknown parameter {refused}( |;)"):
        ExperimentConfig.from_notebook(names)


@pytest.mark.parametrize(("name", "value"), [("task", tiny.task()), ("merge", max), ("I", tiny), ("out_dir", Path())])
def test_a_parameters_name_that_another_cell_has_taken_is_said_shortly(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^{name} must be a parameter's value, got an object of type \w+: another cell"
    ):
        ExperimentConfig.from_notebook({name: value, "T": 3})


def test_the_settings_before_the_parameters_are_said_to_be_too_early() -> None:
    with pytest.raises(ValueError, match="no parameter has a value here; run the cell of parameters before this one"):
        ExperimentConfig.from_notebook({"In": ["", "config = ExperimentConfig.from_notebook(globals())"], "x": 1})


def test_an_error_cuts_a_long_value_short() -> None:
    with pytest.raises(ValueError, match=r"^merge = 'x{79}… \(100002 characters\) refused") as caught:
        ExperimentConfig(merge="x" * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", ""),
        ("r.json", ""),
        ("gone/r.json", "result_file = '.*gone/r.json' refused: its folder must exist"),
        (".", "result_file = '.*' refused: its folder must exist, and it must not be a folder itself"),
        (3, "result_file = 3 refused: must be the path of a file; pass e.g. -p result_file r.json"),
    ],
)
def test_a_result_file_that_cannot_be_written_is_refused_at_once(given: Any, told: str, tmp_path: Path) -> None:
    path = str(tmp_path / given) if isinstance(given, str) and given else given
    if not told:
        assert ExperimentConfig.from_notebook({"result_file": path}) == ExperimentConfig()
        return
    with pytest.raises(ValueError, match=told):
        ExperimentConfig.from_notebook({"result_file": path})


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no shell expands it: in a parameters cell, in a YAML file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "made").mkdir()
    names = {"out_dir": "~/runs", "result_file": "~/made/r.json"}
    assert ExperimentConfig.from_notebook(names).out_dir == str(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"result_file = '~/gone/r.json' refused: its folder must exist"):
        ExperimentConfig.from_notebook({"result_file": "~/gone/r.json"})
    with pytest.raises(
        ValueError, match=r"out_dir = '~nobody-of-this-name/x' refused .* a home folder that is unknown"
    ):
        ExperimentConfig(out_dir="~nobody-of-this-name/x")


# The object


def test_a_config_is_frozen_and_replaced_with_validation() -> None:
    config = WarpConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1e-4  # type: ignore[misc]
    assert config.replace(lr=1e-4) == WarpConfig(lr=1e-4) and config.lr == 1e-6
    for changes, told in (({"lr": -1}, "lr = -1 refused"), ({"M": 3, "lam": 0.2}, "lam = 0.2 needs M = 2")):
        with pytest.raises(ValueError, match=told):
            config.replace(**changes)


def test_the_defaults_are_the_original_reports_first_experiment() -> None:
    config = WarpConfig()
    assert (config.I, config.M, config.T, config.lr, config.warmup_steps) == (2, 2, 10, 1e-6, 100)
    assert (config.beta, config.mu, config.eta, config.optimizer) == (0.1, 0.01, 0.5, "adam")
    assert (config.anchor, config.merge, config.merge_by, config.lam) == ("ema", "slerp", "layer", 0.5)
    assert (config.baseline, config.samples_per_prompt) == ("none", 1)


# Any values at all

NUMBERS = st.one_of(
    st.integers(-3, 200), st.floats(), st.sampled_from([1e-4, 1e-12, 0.5, 1.0, 1e3, -0.0, 1e300]), st.booleans()
)
TEXTS = st.one_of(
    st.sampled_from(["1e-4", "7", str(2**60), "nan", "inf", "", " ", "true", "False", "<script>", "\x00", "$x$"]),
    st.sampled_from([choice for field in FIELDS.values() for choice in get_args(field.annotation)]),
    st.text(max_size=8),
)
ANYTHING = st.one_of(NUMBERS, TEXTS, st.none(), st.lists(st.integers(), max_size=2), st.just({}))
TRUTHS = {"true": True, "t": True, "yes": True, "y": True, "on": True, "1": True, "1.0": True}
TRUTHS |= {"false": False, "f": False, "no": False, "n": False, "off": False, "0": False, "0.0": False, "-0.0": False}


def meant(name: str, value: Any) -> Any:
    """What a value stands for: papermill's and YAML's texts of numbers and truth are numbers and truth."""
    kind = FIELDS[name].annotation
    if kind is bool:
        return TRUTHS.get(str(value).lower(), value)
    if kind is int and isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    return float(value) if kind in (int, float) else value


@settings(max_examples=250, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), ANYTHING, max_size=4))
def test_values_are_taken_as_they_are_or_refused_by_name(values: dict[str, Any]) -> None:
    try:
        config = WarpConfig(**values)
    except ValueError as error:
        lines = str(error).splitlines()
        refused = [name for name in values if any(line.startswith(f"{name} = {values[name]!r} ref") for line in lines)]
        assert len(refused) == len(lines) or broken(WITH_DEFAULTS | values)
        assert all("; pass " in line for line in lines)
        return
    assert not broken(config.model_dump())
    for name, field in FIELDS.items():
        wanted = meant(name, values[name]) if name in values else field.default
        found = getattr(config, name)
        assert found == wanted and type(found) is type(field.default), name
        assert not isinstance(found, float) or math.isfinite(found)


WITH_DEFAULTS = {name: field.default for name, field in FIELDS.items()}


def broken(values: dict[str, Any]) -> bool:
    """Whether a rule between parameters is broken, said once more."""
    batch, samples = (float(values[name]) for name in ("batch_size", "samples_per_prompt"))
    rloo_alone = values["baseline"] == "rloo" and samples == 1
    alone = values["baseline"] == "batch_loo" and batch == 1
    return bool(batch % samples or rloo_alone or alone or (float(values["lam"]) != 0.5 and float(values["M"]) != 2))


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=12).filter(lambda name: name not in FIELDS), ANYTHING)
def test_any_unknown_name_is_refused_with_the_known_ones(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^unknown parameter") as caught:
        WarpConfig(**{name: value})
    assert name in str(caught.value) and str(caught.value).endswith(f"; pass one of {', '.join(FIELDS)}")


SOUND = {
    "I": st.integers(1, 2),
    "M": st.integers(1, 3),
    "T": st.integers(1, 2),
    "lr": st.sampled_from([1e-12, 1e-6, 1e-3, 0.5, 0.999]),
    "warmup_steps": st.integers(0, 10**6),
    "beta": st.sampled_from([0.0, 0.1, 1e3]),
    "mu": st.sampled_from([0.0, 0.01, 1.0]),
    "eta": st.sampled_from([0.0, 0.5, 1.0]),
    "lam": st.sampled_from([0.0, 0.5, 1.0]),
    "batch_size": st.integers(1, 5),
    "samples_per_prompt": st.integers(1, 3),
    "max_new_tokens": st.integers(1, 26),
    "temperature": st.sampled_from([1e-3, 0.7, 1.0, 50.0]),
    "seed": st.sampled_from([0, 1, 2**63, 10**30]),
    "save_every": st.integers(0, 3),
    "snapshot_every": st.integers(0, 2),
    "keep_anchors": st.booleans(),
    "threads": st.sampled_from([0, 1]),
} | {name: st.sampled_from(get_args(field.annotation)) for name, field in FIELDS.items() if get_args(field.annotation)}


def test_every_parameter_is_drawn() -> None:
    assert set(SOUND) == set(FIELDS)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=SOUND))
def test_sound_values_are_refused_by_the_rules_between_them_alone(values: dict[str, Any]) -> None:
    if broken(WITH_DEFAULTS | values):
        with pytest.raises(ValueError, match="; pass -p"):
            WarpConfig(**values)
    else:
        assert WarpConfig(**values).model_dump() == WITH_DEFAULTS | values


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.fixed_dictionaries({}, optional=SOUND))
def test_what_is_taken_runs_or_stops_by_name(values: dict[str, Any]) -> None:
    given_values = {"T": 1, "batch_size": 2, "max_new_tokens": 4, "threads": 1} | values
    assume(not broken(WITH_DEFAULTS | given_values))
    config = WarpConfig(**given_values)
    try:
        result = warp(config, tiny.task(), progress=False)
    except FloatingPointError as error:
        assert "lower lr" in str(error)
        return
    assert len(result.history) == config.I * config.M * config.T
    assert all(value.isfinite().all() for value in result.policy.parameters())
    snapshots = config.T // config.snapshot_every if config.snapshot_every else 0
    assert len(result.snapshots) == config.I * config.M * (snapshots + config.keep_anchors)
