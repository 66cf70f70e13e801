"""Metrics of a trace whose teacher told its top list and the sampled token alone: exact where known, null elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.metrics import METRICS
from opd_probe.trace import Trace
from tests.samples import as_served, grouped_trace, many_prompts

pytestmark = pytest.mark.filterwarnings("ignore:k = 1:opd_probe.OpdProbeWarning")

UNKNOWN = {
    "teacher_entropy", "entropy_gap", "reverse_kl", "forward_kl", "jsd", "teacher_high_entropy_share", "soft_or_score",
    "teachability",
}  # fmt: skip
"""Need the whole of the teacher's distribution."""

PARTLY = {"topk_reverse_kl_student", "topk_reverse_kl_union", "topk_reverse_kl_non_overlap"}
"""Need the teacher's values at all of the student's top k."""

ON_TEACHER_LIST = {
    "overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass", "extreme_advantage_gap",
    "teacher_topk_mass", "topk_reverse_kl_teacher", "topk_reverse_kl_overlap",
}  # fmt: skip
"""Need the teacher's top k."""

K = 12


@pytest.fixture(scope="module")
def full() -> Trace:
    return grouped_trace(many_prompts(25), vocabulary=40, k=K, seed=2)


@pytest.fixture(scope="module")
def served(full: Trace) -> Trace:
    return as_served(full)


@pytest.mark.parametrize("k", [1, 4, 8, K])
def test_states_are_exact_where_known_and_null_elsewhere(full: Trace, served: Trace, k: int) -> None:
    expected, actual = opd_probe.state_metrics(full, k), opd_probe.state_metrics(served, k)
    told = ~np.isnan(served.column("teacher_logprobs_at_student_top")[:, :k]).any(1)
    assert 0 < told.sum() < len(told) or k == 1
    for name in METRICS:
        left, right = actual[name].to_numpy(), expected[name].to_numpy()
        if name in UNKNOWN:
            assert np.isnan(left).all(), name
        elif name in PARTLY:
            # Where S_p = S_q nothing of S_p is untold, and the symmetric difference is undefined on both sides.
            np.testing.assert_array_equal(left, np.where(told, right, np.nan), err_msg=name)
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("average", ["token", "rollout"])
def test_summaries_are_exact_or_null_and_count(full: Trace, served: Trace, average: str) -> None:
    expected, actual = (opd_probe.summarize(trace, 8, average=average, resamples=200) for trace in (full, served))
    states = opd_probe.state_metrics(served, 8)
    assert set(expected) == set(actual)
    for name in METRICS:
        keys = [key for key in expected if key == name or key.startswith(f"{name}_")]
        if name in UNKNOWN | PARTLY:
            assert all(np.isnan(actual[key]) for key in keys if key != f"{name}_n"), name
            assert actual[f"{name}_n"] == states[name].notna().sum(), name
            assert actual[f"{name}_n"] < expected[f"{name}_n"]
        else:
            for key in keys:
                np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)
    for key in set(expected) - {key for name in METRICS for key in expected if key.startswith(name)}:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


def test_curves_are_exact_or_null(full: Trace, served: Trace) -> None:
    pd.testing.assert_frame_equal(
        opd_probe.mass_curve(served, resamples=50), opd_probe.mass_curve(full, resamples=50), check_exact=True
    )
    expected, actual = (opd_probe.position_curve(trace, 8, bins=3, resamples=50) for trace in (full, served))
    for name in expected.columns:
        of = next((m for m in METRICS if name == m or name in (f"{m}_lo", f"{m}_hi", f"{m}_n")), None)
        if of in UNKNOWN | PARTLY:
            assert name == f"{of}_n" or actual[name].isna().all(), name
        else:
            np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def test_differences_are_null_where_one_side_is(full: Trace, served: Trace) -> None:
    table = opd_probe.compare(full, served, 8, resamples=50).set_index("metric")
    for name, metric in METRICS.items():
        if metric.summary == "mean":
            difference = table.loc[name, "difference"]
            assert np.isnan(difference) if name in UNKNOWN | PARTLY else difference == 0, name
    assert np.isnan(table.loc["confident_wrong_share", "difference"])
    assert table.loc["confident_wrong_share", "n_b"] == 0
    assert table.loc["reward_auroc", "difference"] == 0


AT = ("", "student_p_at_", "teacher_p_at_")
EXTREMA = {f"val-extrema/{what}{end}_adv_only_stu" for end in ("max", "min") for what in AT}


@pytest.mark.parametrize(
    ("variant", "null"),
    [
        ("verl", set()),
        ("fireworks", set()),
        ("thunlp:only_tch", set()),
        ("thunlp:intersection", set()),
        ("thunlp:only_stu", {"val-topk/adv_only_stu"}),
        ("thunlp:union", {"val-topk/adv_only_stu", *EXTREMA}),
    ],
)
def test_peers_definitions_are_exact_or_null(full: Trace, served: Trace, variant: str, null: set[str]) -> None:
    expected, actual = (opd_probe.summarize_variant(trace, variant, 8, resamples=0) for trace in (full, served))
    assert set(expected) == set(actual)
    for name, value in expected.items():
        if name.endswith("_n"):
            continue
        if name.split("_chunk_")[0].removesuffix("_lo").removesuffix("_hi") in null:
            assert np.isnan(actual[name]), name
        else:
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("k", [4, 8, 10, K])
def test_a_list_that_ends_early_is_null_from_there_on(full: Trace, k: int) -> None:
    lost = {0: 3, 5: 1, 17: 12}
    expected, actual = opd_probe.state_metrics(full, k), opd_probe.state_metrics(as_served(full, lost=lost), k)
    gone = np.array([K - lost.get(state, 0) < k for state in range(full.n_states)])
    for name in ON_TEACHER_LIST:
        right = np.where(gone, np.nan, expected[name])
        np.testing.assert_array_equal(actual[name], right, err_msg=name)
    curve = opd_probe.mass_curve(as_served(full, lost=lost), resamples=0).set_index("k").loc[k]
    for name in ("overlap_ratio", "teacher_overlap_mass", "student_overlap_mass", "overlap_advantage"):
        np.testing.assert_allclose(curve[name], actual[name].mean(), rtol=1e-12, err_msg=name)
        assert curve[f"{name}_n"] == actual[name].notna().sum()
    np.testing.assert_allclose(curve["teacher_topk_mass"], actual["teacher_topk_mass"].mean(), rtol=1e-12)


def test_tokens_needed_before_a_list_ends_are_known(full: Trace) -> None:
    served = as_served(full, lost=dict.fromkeys(range(full.n_states), 2))
    expected, actual = (opd_probe.state_metrics(trace, 4)["teacher_k_for_0.97"] for trace in (full, served))
    np.testing.assert_array_equal(actual, expected.where(expected <= K - 2))
    assert actual.notna().any()
