"""Rows per rollout, and a trainer's log beside the curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.curves import join_training_log, rollout_table
from opd_probe.errors import InputError
from tests.samples import grouped_trace, many_prompts


def test_rollout_table_is_the_mean_over_the_states_of_each_rollout() -> None:
    trace = grouped_trace(many_prompts(9), seed=4)
    table = rollout_table(trace)
    states = opd_probe.state_metrics(trace, 5, ["sampled_reward"])
    means = states.groupby("rollout_id", sort=False)["sampled_reward"].mean()
    np.testing.assert_allclose(table.set_index("rollout_id")["sequence_mean_reward"].loc[means.index], means)
    row = opd_probe.summarize(trace, 5, resamples=0)
    assert len(table) == row["n_rollouts"]
    for column, metric in (("correct", "accuracy"), ("response_length", "response_length")):
        assert table[column].mean() == pytest.approx(row[metric], nan_ok=True)


TABLE = pd.DataFrame(
    {"run": ["a", "a", "a", "b"], "teacher": ["x", "x", "y", "x"], "step": [0, 10, 0, 0], "k": 16, "states": "own",
     "overlap_ratio": [0.1, 0.2, 0.3, 0.4], "loss": [np.nan, 9.0, np.nan, np.nan]}
)  # fmt: skip
LOG = pd.DataFrame({"run": "a", "step": [5, 10], "loss": [0.5, 0.25]})


def test_a_log_joins_every_teacher_of_its_run() -> None:
    joined = join_training_log(TABLE, LOG).sort_values(["run", "teacher", "step"])
    found = joined[["run", "teacher", "step", "k", "states", "overlap_ratio", "loss"]].values.tolist()
    nan = pytest.approx(np.nan, nan_ok=True)
    assert found == [
        ["a", "x", 0, 16, "own", 0.1, nan],
        ["a", "x", 5, 16, "own", nan, 0.5],
        ["a", "x", 10, 16, "own", 0.2, 0.25],
        ["a", "y", 0, 16, "own", 0.3, nan],
        ["a", "y", 5, 16, "own", nan, 0.5],
        ["a", "y", 10, 16, "own", nan, 0.25],
        ["b", "x", 0, 16, "own", 0.4, nan],
    ]


def test_a_log_of_seeds_joins_its_own_seed() -> None:
    table = pd.concat([TABLE.assign(seed=seed) for seed in (0, 1)])
    joined = join_training_log(table, LOG.assign(seed=1, teacher="x"))
    known = joined[joined["loss"].notna()]
    assert sorted(known[["seed", "teacher", "step"]].values.tolist()) == [[1, "x", 5], [1, "x", 10]]
    assert len(joined) == 2 * len(TABLE) + 1


def test_bad_logs() -> None:
    with pytest.raises(InputError, match="training log: no column 'step'"):
        join_training_log(TABLE, LOG.drop(columns="step"))
    with pytest.raises(InputError, match=r"expected one row per \(run, step\), got two"):
        join_training_log(TABLE, pd.concat([LOG, LOG]))
