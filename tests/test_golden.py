"""Every golden case, state by state: made by brute force in float64 outside this repository."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.metrics import METRICS

GOLDEN = Path(__file__).parent / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "metrics.json").read_text())
INDICES = range(len(CASES))
pytestmark = pytest.mark.filterwarnings("ignore:k = 1:opd_probe.OpdProbeWarning")


def name_of(index: int) -> str:
    return f"{CASES[index]['kind']}-{CASES[index]['vocab']}-{CASES[index]['k']}"


def golden_trace(index: int, depth: int) -> opd_probe.Trace:
    with np.load(GOLDEN / "metrics.npz") as arrays:
        student, teacher = arrays[f"student_logits_{index}"], arrays[f"teacher_logits_{index}"]
        return opd_probe.trace_logits(student, teacher, arrays[f"tokens_{index}"], depth, jsd=True)


def test_the_cases_are_all_there() -> None:
    assert len(CASES) == 13
    assert {case["kind"] for case in CASES} == {"plain", "identical", "disjoint", "ties", "peaked", "huge"}


@pytest.mark.parametrize("depth", ["k", "vocab"])
@pytest.mark.parametrize("index", INDICES, ids=name_of)
def test_states(index: int, depth: str) -> None:
    case = CASES[index]
    table = opd_probe.state_metrics(golden_trace(index, case[depth]), k=case["k"])
    assert len(table) == len(case["states"])
    names = set(case["states"][0])
    assert names <= set(METRICS)
    for name in names:
        expected = np.array([state[name] for state in case["states"]], dtype=np.float64)
        if "_k_for_" in name:
            expected[expected > case[depth]] = np.nan
        actual = table[name].to_numpy()
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg=name)
        if name == "overlap_ratio" or "_k_for_" in name:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("index", INDICES, ids=name_of)
def test_token_means_and_counts(index: int) -> None:
    case = CASES[index]
    row = opd_probe.summarize(golden_trace(index, case["vocab"]), k=case["k"], resamples=0)
    assert row["n_states"] == case["mean"]["n_states"]
    assert row["n_empty_overlap"] == case["mean"]["n_empty_overlap"]
    for name, expected in case["mean"].items():
        if name.startswith("n_"):
            continue
        per_state = np.array([state[name] for state in case["states"]], dtype=np.float64)
        if "_k_for_" in name:
            assert row[f"{name}_median"] == pytest.approx(np.median(per_state))
            assert row[f"{name}_p90"] == pytest.approx(np.quantile(per_state, 0.9))
            assert row[f"{name}_share_beyond"] == 0
            continue
        assert row[f"{name}_n"] == np.count_nonzero(~np.isnan(per_state))
        if math.isnan(expected):
            assert math.isnan(row[name])
        else:
            assert row[name] == pytest.approx(expected, rel=1e-4, abs=1e-6)
