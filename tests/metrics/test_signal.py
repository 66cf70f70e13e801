"""Signal, uncertainty and teachability where the shared reference does not reach: labels, bounds, the floor."""

from __future__ import annotations

import math

import numpy as np
import pytest

import opd_probe
from opd_probe.metrics.context import correctness, special_ids, with_special_ids
from opd_probe.metrics.signal import reward_tail_share
from opd_probe.metrics.view import TopView
from tests import reference
from tests.samples import grouped_trace, random_pair

ROLLOUTS = [
    {"prompt_id": "a", "n_states": 6, "score": 1.0},
    {"prompt_id": "a", "n_states": 5, "score": -1.0},
    {"prompt_id": "b", "n_states": 4},
]


def test_sign_noise_against_the_reference_with_each_kind_of_label() -> None:
    student, teacher, tokens = random_pair(15, 40)
    trace = grouped_trace(ROLLOUTS, logits=(student, teacher, tokens))
    np.testing.assert_array_equal(correctness(trace), [1.0, 0.0, np.nan])
    labels = [True] * 6 + [False] * 5 + [None] * 4
    expected = [
        reference.state(p, q, int(token), 4, correct=label)["sign_noise"]
        for p, q, token, label in zip(student, teacher, tokens, labels, strict=True)
    ]
    actual = opd_probe.state_metrics(trace, 4, ["sign_noise"])["sign_noise"]
    np.testing.assert_array_equal(actual, expected)
    assert 0 < np.nanmean(expected) < 1
    row = opd_probe.summarize(trace, 4, metrics=["sign_noise"], resamples=0)
    assert (row["sign_noise"], row["sign_noise_n"]) == (pytest.approx(np.nanmean(expected)), 11)


def test_what_is_unknown_is_null_and_not_a_verdict() -> None:
    trace = grouped_trace([{"prompt_id": "a", "n_states": 3, "score": 1.0}])
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    arrays["student_logprob"][1] = arrays["teacher_logprob"][1] = np.nan
    table = opd_probe.state_metrics(opd_probe.Trace(trace.rollouts, trace.provenance, arrays=arrays), 4)
    for name in ("absolute_reward", "negative_reward_share", "near_zero_reward_share", "reward_tail_share",
                 "sign_noise", "student_token_probability", "teacher_token_probability", "teacher_nll"):  # fmt: skip
        assert table[name].isna().tolist() == [False, True, False], name


def test_the_floor_is_a_parameter() -> None:
    logs = {
        "position": np.arange(4),
        "student_logprob": np.zeros(4),
        "teacher_logprob": np.array([-1.0, -2, -3, -np.inf]),
    }
    view = TopView(logs, 1)
    assert reward_tail_share(view).tolist() == [0, 0, 1, 1]
    assert reward_tail_share(view, floor=-0.5).tolist() == [1, 1, 1, 1]
    assert reward_tail_share(view, floor=-3.5).tolist() == [0, 0, 0, 1]


def test_identical_models_give_no_signal() -> None:
    student, _, tokens = random_pair(20, 40)
    table = opd_probe.state_metrics(
        grouped_trace([{"prompt_id": "a", "n_states": 20}], logits=(student, student, tokens)), 4
    )
    assert (table["near_zero_reward_share"] == 1).all()
    for name in ("absolute_reward", "negative_reward_share", "reward_tail_share", "teachability"):
        assert (table[name] == 0).all(), name
    np.testing.assert_allclose(table["soft_or_score"], table["student_entropy"] / math.log(40))


def test_special_ids_come_from_the_provenance_or_are_given() -> None:
    trace = grouped_trace(ROLLOUTS)
    assert special_ids(trace) is None
    assert special_ids(with_special_ids(trace, [7, 3, 3])) == [3, 7]
