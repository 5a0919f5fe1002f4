"""Any values at all: taken as they are and running, or refused with value, rule and remedy."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warp_nb.config import WarpConfig
from warp_nb.runs.warping import warp

FIELDS = WarpConfig.model_fields
NUMBERS = st.one_of(
    st.integers(-3, 200), st.floats(), st.sampled_from([1e-4, 1e-12, 0.5, 1.0, 1e3, -0.0, 1e300]), st.booleans()
)
TEXTS = st.one_of(
    st.sampled_from(["1e-4", "7", "nan", "inf", "", " ", "true", "False", "<script>", "\x00", "$x$", "1,5"]),
    st.sampled_from([choice for field in FIELDS.values() for choice in get_args(field.annotation)]),
    st.text(max_size=8),
)
ANYTHING = st.one_of(NUMBERS, TEXTS, st.none(), st.lists(st.integers(), max_size=2), st.just({}))


def meant(name: str, given_value: Any) -> Any:
    """What a value stands for: papermill's and YAML's texts of numbers and truth are numbers and truth."""
    kind = FIELDS[name].annotation
    if kind is bool:
        return {"true": True, "True": True, "false": False, "False": False}.get(str(given_value), given_value)
    return float(given_value) if kind in (int, float) else given_value


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), ANYTHING, max_size=4))
def test_values_are_taken_as_they_are_or_refused_by_name(values: dict[str, Any]) -> None:
    try:
        config = WarpConfig(**values)
    except ValueError as error:
        told = [name for name in values if re.search(rf"\b{name} = ", str(error))]
        assert told and "pass" in str(error)
        for name in told:
            if name != "baseline":  # told of together with batch_size
                assert f"{name} = {values[name]!r} refused" in str(error)
        return
    for name, field in FIELDS.items():
        wanted = meant(name, values[name]) if name in values else field.default
        found = getattr(config, name)
        assert found == wanted and type(found) is type(field.default), name
        assert not isinstance(found, float) or math.isfinite(found)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=12).filter(lambda name: name not in FIELDS), ANYTHING)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="unknown parameter") as caught:
        WarpConfig(**{name: value})
    assert all(known in str(caught.value) for known in FIELDS)


SOUND = {
    "I": st.integers(1, 2),
    "M": st.integers(1, 3),
    "T": st.integers(1, 2),
    "lr": st.sampled_from([1e-12, 1e-6, 1e-3, 0.5, 0.999]),
    "warmup_steps": st.integers(0, 10**6),
    "beta": st.sampled_from([0.0, 0.1, 1e3]),
    "mu": st.sampled_from([0.0, 0.01, 1.0]),
    "eta": st.sampled_from([0.0, 0.5, 1.0]),
    "batch_size": st.integers(1, 5),
    "max_new_tokens": st.integers(1, 26),
    "temperature": st.sampled_from([1e-3, 0.7, 1.0, 50.0]),
    "seed": st.sampled_from([0, 1, 2**63, 10**30]),
    "save_every": st.integers(0, 3),
    "threads": st.sampled_from([0, 1]),
} | {name: st.sampled_from(get_args(field.annotation)) for name, field in FIELDS.items() if get_args(field.annotation)}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=SOUND))
def test_what_is_taken_runs_or_stops_by_name(values: dict[str, Any]) -> None:
    base = {"T": 1, "batch_size": 2, "max_new_tokens": 4, "threads": 1}
    try:
        config = WarpConfig(**base | values)
    except ValueError as error:
        assert values["baseline"] == "loo" and "batch_size 2 or more" in str(error)
        return
    try:
        result = warp(config, tiny.task(), progress=False)
    except FloatingPointError as error:
        assert "lower lr" in str(error)
        return
    assert len(result.history) == config.I * config.M * config.T
    assert all(value.isfinite().all() for value in result.policy.parameters())
