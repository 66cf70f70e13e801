"""Traces that earlier releases wrote stay readable, and keep their numbers: ``frozen/README.md``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.trace import Trace
from opd_probe.trace.table import is_sealed

FROZEN = Path(__file__).parent / "frozen"
NAMES = sorted(path.stem for path in FROZEN.glob("*.parquet"))
VARIANTS = ("verl", "fireworks", "thunlp")
AVERAGES = ("token", "rollout")

pytestmark = pytest.mark.filterwarnings("ignore:at .* the overlap at k = .* is one token:opd_probe.OpdProbeWarning")


def numbers(values: Any) -> np.ndarray[Any, Any]:
    """Float64 of what JSON holds: null is NaN, infinities are text."""
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def assert_same(found: Any, expected: dict[str, Any]) -> None:
    """Every recorded number is there still; only the order of a sum may have changed."""
    for name, value in expected.items():
        one = [value] if not isinstance(value, list) else value
        got = [found[name]] if not isinstance(value, list) else list(found[name])
        np.testing.assert_allclose(numbers(got), numbers(one), rtol=1e-12, atol=1e-15, err_msg=name)


def digest(values: np.ndarray[Any, Any]) -> str:
    """Of a stored column: type, shape and every bit, one NaN for all."""
    values = np.where(np.isnan(values), values.dtype.type(np.nan), values) if values.dtype.kind == "f" else values
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    head = f"{values.dtype.name}{values.shape}".encode()
    return hashlib.sha256(head + little.tobytes()).hexdigest()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trace(name: str) -> Trace:
    return opd_probe.read_trace(FROZEN / f"{name}.parquet")


@pytest.fixture
def recorded(name: str) -> dict[str, Any]:
    return dict(json.loads((FROZEN / f"{name}.json").read_text(encoding="utf-8")))


def test_what_was_stored_is_read(trace: Trace, recorded: dict[str, Any]) -> None:
    assert (trace.K, trace.n_states, trace.vocabulary_size) == tuple(recorded["sizes"])
    for column, expected in recorded["columns"].items():
        assert digest(trace.column(column)) == expected, column
    rollouts = trace.rollouts.to_pydict()
    assert {column: rollouts[column] for column in recorded["rollouts"]} == recorded["rollouts"]
    for key in ("labels", "temperature", "software", "student", "teacher"):
        assert trace.provenance[key] == recorded["provenance"][key], key


def test_every_state_keeps_its_values(trace: Trace, recorded: dict[str, Any]) -> None:
    for k, expected in recorded["states"].items():
        table = opd_probe.state_metrics(trace, k=int(k))
        assert_same(table, expected)


def test_the_means_are_those_of_then(trace: Trace, recorded: dict[str, Any]) -> None:
    for k, by_average in recorded["means"].items():
        for average in AVERAGES:
            assert_same(opd_probe.summarize(trace, k=int(k), average=average, resamples=0), by_average[average])
    for variant in VARIANTS:
        row = opd_probe.summarize_variant(trace, variant, k=trace.K, resamples=0)
        assert_same(row, recorded["variants"][variant])


def test_curves_and_whole_trace_are_those_of_then(trace: Trace, recorded: dict[str, Any]) -> None:
    assert_same(opd_probe.diagnose(trace, resamples=0), recorded["whole"])
    assert_same(opd_probe.mass_curve(trace, resamples=0), recorded["mass"])
    assert_same(opd_probe.reward_by_depth(trace, bins=3), recorded["depth"])


def test_saved_again_it_says_the_same(trace: Trace, name: str, recorded: dict[str, Any], tmp_path: Path) -> None:
    again = trace.save(tmp_path / f"{name}.parquet")
    for column, expected in recorded["columns"].items():
        assert digest(again.column(column)) == expected, column
    expected = recorded["means"][str(trace.K)]["token"]
    assert_same(opd_probe.summarize(again, k=trace.K, resamples=0), expected)


def test_every_kind_is_there() -> None:
    """Each column of the format is frozen with it and without it where it may be absent; so is each kind of gap."""
    traces = [opd_probe.read_trace(FROZEN / f"{name}.parquet") for name in NAMES]
    for column in ("jsd", "sampler_logprob"):
        assert {column in trace.columns for trace in traces} == {True, False}
    assert {"teacher_prompt_length" in trace.rollouts.column_names for trace in traces} == {True, False}
    assert {is_sealed(FROZEN / f"{name}.parquet") for name in NAMES} == {True, False}
    for key in ("made_by", "warnings"):
        assert {key in trace.provenance for trace in traces} == {True, False}
    assert {"sampling" in trace.rollouts.column_names for trace in traces} == {True, False}
    tables = pd.concat([trace.rollouts.to_pandas() for trace in traces])
    assert set(tables["token_source"]) == {"sampled_ids", "retokenized"}
    assert tables["skipped"].notna().any()
    assert any((trace.column("teacher_top_ids") == -1).any() for trace in traces)
    assert any(np.isinf(trace.column("reverse_kl")).any() for trace in traces)
