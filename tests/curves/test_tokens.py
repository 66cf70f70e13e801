"""Sums by token, extreme states and overlap changes against plain loops over states."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

import opd_probe
from opd_probe.curves import tokens as module
from opd_probe.curves.tokens import (
    EXTREMES,
    disagreement_by_rollout,
    response_tokens,
    spread_choice,
    survey,
)
from opd_probe.errors import TraceError
from opd_probe.trace import Trace
from tests.samples import as_served, grouped_trace, many_prompts, random_pair

K = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 states, so that rollouts are cut by them."""
    monkeypatch.setattr(module, "BLOCK_STATES", 16)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return grouped_trace(many_prompts(20), seed=3)


def state_sets(trace: Trace, k: int) -> Iterator[set[int]]:
    for own, other in zip(trace.column("student_top_ids"), trace.column("teacher_top_ids"), strict=True):
        yield set(own[:k].tolist()) & set(other[:k].tolist())


def test_contributions_to_the_reverse_kl(trace: Trace) -> None:
    found = survey(trace, K, n_extremes=1, rollouts={})
    columns = {name: trace.column(name) for name in trace.columns}
    terms: Counter[int] = Counter()
    states: Counter[int] = Counter()
    for i in range(trace.n_states):
        pairs = {}
        for ids, p, q in (
            ("student_top_ids", "student_top_logprobs", "teacher_logprobs_at_student_top"),
            ("teacher_top_ids", "student_logprobs_at_teacher_top", "teacher_top_logprobs"),
        ):
            for token, lp, lq in zip(columns[ids][i].tolist(), columns[p][i], columns[q][i], strict=True):
                pairs[token] = (float(lp), float(lq))
        for token, (lp, lq) in pairs.items():
            terms[token] += math.exp(lp) * (lp - lq)
            states[token] += 1
    kl = found.counts.of("kl", 40)
    np.testing.assert_allclose(kl, [terms[token] for token in range(40)], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.counts.of("kl_states", 40), [states[token] for token in range(40)])
    assert found.reverse_kl == pytest.approx(columns["reverse_kl"].astype(float).sum())
    assert found.n_states == trace.n_states


def test_stored_lists_that_hold_everything_leave_nothing_of_the_kl() -> None:
    trace = grouped_trace(many_prompts(20), vocabulary=9, k=9)
    found = survey(trace, K, n_extremes=1, rollouts={})
    assert found.counts.of("kl").sum() == pytest.approx(found.reverse_kl, rel=1e-5)


def test_rewards_and_overlap(trace: Trace) -> None:
    found = survey(trace, K, n_extremes=1, rollouts={})
    table = opd_probe.state_metrics(trace, K)
    by_token = table.groupby("token_id")["sampled_reward"]
    for token, total in by_token.sum().items():
        assert found.counts.of("reward", 40)[token] == pytest.approx(total)
        assert found.counts.of("sampled", 40)[token] == by_token.count()[token]
    expected = Counter(token for members in state_sets(trace, K) for token in members)
    np.testing.assert_array_equal(found.counts.of("overlap", 40), [expected[token] for token in range(40)])


def test_what_is_infinite_or_unknown_is_counted_apart() -> None:
    student, teacher, tokens = random_pair(6, 30)
    teacher[2, int(np.argmax(student[2]))] = -np.inf
    trace = grouped_trace([{"prompt_id": "a", "n_states": 6}], logits=(student, teacher, tokens))
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    arrays["teacher_logprobs_at_student_top"][4, 0] = np.nan
    found = survey(Trace(trace.rollouts, trace.provenance, arrays=arrays), K, n_extremes=1, rollouts={})
    token = int(np.argmax(student[2]))
    assert found.counts.of("kl_infinite", 30)[token] == 1
    assert found.counts.of("kl_infinite").sum() == 1
    assert found.n_unknown >= 1
    assert np.isfinite(found.counts.of("kl")).all()
    assert found.extremes["reverse_kl"][0]["position"] == 2


@pytest.mark.parametrize("n", [1, 7, 10_000])
def test_extreme_states(trace: Trace, n: int) -> None:
    found = survey(trace, K, n_extremes=n, rollouts={})
    table = opd_probe.state_metrics(trace, K)
    for kind, (metric, sign) in EXTREMES.items():
        order = np.argsort(-sign * table[metric].to_numpy(), kind="stable")[:n]
        rows = found.extremes[kind]
        assert [(int(r["rollout"]), int(r["position"])) for r in rows] == [
            (trace.rollout_index()[i], table["position"][i]) for i in order
        ]
        np.testing.assert_array_equal(rows[0]["student_top_ids"], trace.column("student_top_ids")[order[0]])


def test_rows_of_chosen_rollouts(trace: Trace) -> None:
    found = survey(trace, K, n_extremes=1, rollouts={0: 100, 3: 2, 11: 100})
    offsets = trace.rollout_offsets
    for index, room in ((0, 100), (3, 2), (11, 100)):
        rows = slice(int(offsets[index]), min(int(offsets[index + 1]), int(offsets[index]) + room))
        for name in ("token_id", "reverse_kl", "teacher_top_ids"):
            np.testing.assert_array_equal(found.rows[index][name], trace.column(name)[rows])
    assert set(found.rows) == {0, 3, 11}


def test_the_choice_of_rollouts(trace: Trace) -> None:
    measure, means = disagreement_by_rollout(trace)
    assert measure == "reverse_kl"
    expected = opd_probe.state_metrics(trace, K).groupby("rollout_id", sort=False)["reverse_kl"].mean()
    np.testing.assert_allclose(means, expected)
    chosen = spread_choice(means, 5)
    assert len(chosen) == 5
    assert (chosen[0], chosen[-1]) == (int(means.argmax()), int(means.argmin()))
    assert list(means[chosen]) == sorted(means[chosen], reverse=True)
    assert spread_choice(np.array([np.nan, 2.0, 3.0]), 9) == [2, 1]
    assert spread_choice(np.array([1.0, 3.0]), 1) == [1]
    assert spread_choice(np.array([np.nan]), 3) == []


def test_a_served_teacher_leaves_the_kl_open(trace: Trace) -> None:
    served = as_served(trace)
    measure, means = disagreement_by_rollout(served)
    assert measure == "sampled_loss"
    reward = opd_probe.state_metrics(trace, K).groupby("rollout_id", sort=False)["sampled_reward"].mean()
    np.testing.assert_allclose(means, -reward)
    found, full = (survey(one, K, n_extremes=2, rollouts={0: 9}) for one in (served, trace))
    assert math.isnan(found.reverse_kl)
    assert found.extremes["reverse_kl"] == []
    assert found.extremes["lowest_reward"][0]["extremity"] == full.extremes["lowest_reward"][0]["extremity"]
    assert found.n_unknown == np.isnan(served.column("teacher_logprobs_at_student_top")).sum() > 0
    np.testing.assert_array_equal(found.counts.of("overlap"), full.counts.of("overlap"))


def test_tokens_of_responses(trace: Trace) -> None:
    found = response_tokens(trace, [1, 5])
    offsets = trace.rollout_offsets
    for index in (1, 5):
        rows = slice(int(offsets[index]), int(offsets[index + 1]))
        np.testing.assert_array_equal(found[index][0], trace.column("position")[rows])
        np.testing.assert_array_equal(found[index][1], trace.column("token_id")[rows])


def test_a_k_beyond_a_trace_is_refused(trace: Trace) -> None:
    with pytest.raises(TraceError, match="k = 9"):
        survey(trace, 9, n_extremes=1, rollouts={})
