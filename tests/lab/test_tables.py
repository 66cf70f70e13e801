"""The aggregated tables against the measurements that they come from; the resampling against plain arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from opd_probe.lab.resample import accuracy_of, difference_of, recovery_of
from opd_probe.lab.runs import read_continuation, read_evaluation, read_run
from opd_probe.lab.tables import TABLES, build_tables, read_tables, write_tables
from opd_probe.metrics import METRICS
from tests.lab.conftest import TinyLab


@pytest.fixture(scope="module")
def tables(tiny_lab: TinyLab) -> dict[str, pd.DataFrame]:
    return build_tables(tiny_lab.cache, [tiny_lab.seed])


def test_curves_are_the_summaries_with_the_training_log(tiny_lab: TinyLab, tables: dict[str, pd.DataFrame]) -> None:
    curves = tables["curves"]
    assert not curves.duplicated(["experiment", "run", "teacher", "seed", "step", "k"]).any()
    means = [name for name, metric in METRICS.items() if metric.summary == "mean"]
    assert {f"{name}{end}" for name in means for end in ("", "_lo", "_hi", "_n")} <= set(curves.columns)
    log, steps = read_run(tiny_lab.cache, "good", 0)
    rows = curves[(curves["experiment"] == "reward") & (curves["run"] == "compatible teacher") & (curves["k"] == 16)]
    assert rows["step"].tolist() == [0, 1, 2]
    assert set(rows["states"]) == {"own"}
    assert math.isnan(rows["loss"].iloc[0])
    for row in rows.iloc[1:].to_dict("records"):
        assert row["loss"] == log[row["step"] - 1]["loss"]
        assert row["grad_norm"] == log[row["step"] - 1]["grad_norm"]
        assert row["overlap_ratio"] == steps[row["step"]]["summary"]["16"]["overlap_ratio"]


def test_training_has_every_step(tables: dict[str, pd.DataFrame]) -> None:
    for _, rows in tables["training"].groupby(["experiment", "run", "seed"]):
        assert rows["step"].tolist() == [1, 2]
        assert rows[["loss", "grad_norm", "response_length", "student_entropy"]].notna().all(axis=None)


def test_models_have_their_accuracy_and_runs_their_gap_recovery(
    tiny_lab: TinyLab, tables: dict[str, pd.DataFrame]
) -> None:
    models = tables["models"]
    teacher = models[(models["experiment"] == "reverse_distillation") & (models["model"] == "big-student")].iloc[0]
    shares = list(read_evaluation(tiny_lab.cache, "big-student", 0).values())
    assert teacher["accuracy"] == pytest.approx(np.mean(shares))
    assert teacher["role"] == "teacher"
    assert teacher["n_rollouts"] == 2 * len(shares)
    ends = models[models["role"] == "distilled"]
    assert {"own earlier checkpoint", "bigger sibling"} <= set(ends["model"])
    assert set(models["role"]) == {"teacher", "student", "distilled"}


def test_rewards_positions_continuations_and_teachers(tiny_lab: TinyLab, tables: dict[str, pd.DataFrame]) -> None:
    rewards = tables["rewards"]
    assert set(rewards["step"]) == {0, 2}
    assert rewards.groupby(["run", "step"]).size().eq(48).all()
    cut = read_continuation(tiny_lab.cache, "good", 0)["depths"][1]
    row = tables["continuation"].query("run == 'compatible teacher' and depth == @cut['depth']").iloc[0]
    assert row["gain"] == pytest.approx(np.mean(cut["teacher"]) - np.mean(cut["student"]))
    assert row["gain_lo"] <= row["gain"] <= row["gain_hi"]
    assert set(tables["teachers"]["pair"]) == {"student and big-student"}
    assert tables["positions"].empty or (tables["positions"]["k"] == 16).all()


def test_tables_survive_their_files(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    write_tables(tables, tmp_path)
    again = read_tables(tmp_path)
    assert list(again) == list(TABLES)
    for name, table in tables.items():
        assert list(again[name].columns) == list(table.columns)
        if len(table):
            pd.testing.assert_frame_equal(again[name], table, check_dtype=False, rtol=1e-5)


def test_intervals_resample_problems_that_all_answered() -> None:
    rng = np.random.default_rng(0)
    before = {str(i): float(x) for i, x in enumerate(rng.random(200) < 0.2)}
    after = {name: max(value, float(rng.random() < 0.5)) for name, value in before.items()}
    teacher = dict.fromkeys(list(before)[:150], 1.0)
    value, lo, hi = difference_of(after, before)
    assert value == pytest.approx(np.mean(list(after.values())) - np.mean(list(before.values())))
    assert 0 < lo < value < hi
    shared = list(teacher)
    b, a = (np.mean([row[name] for name in shared]) for row in (before, after))
    value, lo, hi = recovery_of(before, after, teacher)
    assert value == pytest.approx((a - b) / (1 - b))
    assert lo < value < hi
    assert math.isnan(recovery_of(before, after, before)[0])
    # A share of n independent problems: the bootstrap agrees with the normal interval.
    value, lo, hi = accuracy_of(before)
    assert hi - lo == pytest.approx(2 * 1.96 * (value * (1 - value) / 200) ** 0.5, rel=0.15)
