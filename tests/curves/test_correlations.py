"""Correlations over rollouts, against scipy on the rollouts of all prompts and without each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import opd_probe
from opd_probe.curves.correlations import KINDS, QUANTITIES, correlation_columns
from tests.reference_intervals import left_out_interval
from tests.samples import grouped_trace, many_prompts


@pytest.fixture(scope="module")
def trace() -> opd_probe.Trace:
    generator = np.random.default_rng(0)
    rows = [row | {"score": float(generator.integers(0, 4)) / 2} for row in many_prompts(30, 3)]
    rows[4]["score"] = None
    return grouped_trace(rows)


def test_both_kinds_and_their_intervals_are_those_of_scipy(trace: opd_probe.Trace) -> None:
    table = opd_probe.correlations(trace).set_index("quantity")
    states = opd_probe.state_metrics(trace, 2, QUANTITIES)
    means = states.groupby("rollout_id", sort=False)[list(QUANTITIES)].mean()
    rollouts = trace.rollouts.to_pandas().set_index("rollout_id").loc[means.index]
    known = rollouts["score"].notna().to_numpy()
    score, prompts = rollouts["score"][known].to_numpy(float), rollouts["prompt_id"][known].to_numpy(str)
    functions = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    for name in QUANTITIES:
        values = means[name][known].to_numpy()
        for kind in KINDS:

            def of(chosen: list[str], values: np.ndarray = values, kind: str = kind) -> float:
                inside = np.isin(prompts, chosen)
                return float(functions[kind](score[inside], values[inside]).statistic)

            row = table.loc[name]
            assert row[kind] == pytest.approx(of(sorted(set(prompts))), rel=1e-9)
            low, high = left_out_interval(of, sorted(set(prompts)), float(row["n_prompts"]), -1.0, 1.0)
            assert (row[f"{kind}_lo"], row[f"{kind}_hi"]) == pytest.approx((low, high), rel=1e-6)
        assert (table.loc[name, "n"], table.loc[name, "n_prompts"]) == (known.sum(), len(set(prompts)))


def test_as_columns_of_a_row(trace: opd_probe.Trace) -> None:
    row, table = correlation_columns(trace), opd_probe.correlations(trace).set_index("quantity")
    assert row["spearman_score_teacher_entropy"] == table.loc["teacher_entropy", "spearman"]
    assert row["pearson_score_sampled_reward_lo"] == table.loc["sampled_reward", "pearson_lo"]
    assert row["pearson_score_sampled_reward_n"] == table.loc["sampled_reward", "n"]


@pytest.mark.parametrize("score", [None, 1.0])
def test_a_reward_that_is_unknown_or_never_varies_correlates_with_nothing(score: float | None) -> None:
    table = opd_probe.correlations(grouped_trace([row | {"score": score} for row in many_prompts(4)]))
    assert table[["pearson", "pearson_lo", "spearman", "spearman_hi"]].isna().all(axis=None)
    assert (table["n"] == (0 if score is None else 8)).all()


def test_one_prompt_has_a_value_and_no_interval() -> None:
    rows = [{"prompt_id": "p", "n_states": 3, "score": float(index)} for index in range(4)]
    table = opd_probe.correlations(grouped_trace(rows))
    assert table["pearson"].notna().all()
    assert table[["pearson_lo", "spearman_hi"]].isna().all(axis=None)
