"""Ids of probability 0 are in no top list: banned ids, and scores that a sampler cut, against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import opd_probe
from opd_probe.curves.timeline import overlap_change
from opd_probe.curves.tokens import survey
from opd_probe.engine.served import known_at
from opd_probe.integrations.verl import overlap_metrics, topk_trace
from opd_probe.metrics import METRICS
from opd_probe.results.states import top_lists
from opd_probe.trace import Trace
from tests import reference
from tests.samples import Logits, random_pair

pytestmark = [
    pytest.mark.filterwarnings("ignore:at .* states (a model|the overlap):opd_probe.OpdProbeWarning"),
    pytest.mark.filterwarnings("ignore:k = 1:opd_probe.OpdProbeWarning"),
]

T, V, K = 60, 200, 12


def cut(logits: Logits, kept: NDArray[np.int64]) -> Logits:
    """The largest ``kept[t]`` logits of each state; −inf elsewhere, as a sampler's top-k leaves them."""
    order = np.argsort(-logits, axis=1, kind="stable")
    banned = logits.copy()
    for row, number in enumerate(kept):
        banned[row, order[row, number:]] = -np.inf
    return banned


@pytest.fixture(scope="module")
def logits() -> tuple[Logits, Logits, NDArray[np.int64]]:
    """Pairs whose supports have from one id to all of them, the same or others, in both or in one model."""
    generator = np.random.default_rng(0)
    student, teacher, _ = random_pair(T, V, spread=2.0, distance=0.7)
    teacher[::3] = generator.permuted(teacher[::3], axis=1)  # unrelated
    kept = generator.choice([1, 2, 3, 5, 11, 12, 13, 40, V], size=(2, T))
    student, teacher = cut(student, kept[0]), cut(teacher, kept[1])
    return student, teacher, student.argmax(1)


def agree(found: Any, wanted: list[dict[str, float]]) -> None:
    for name in METRICS:
        if "_k_for_" not in name and name != "sign_noise":
            values = np.array([row[name] for row in wanted])
            np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("k", [1, 4, K])
def test_every_metric_against_float64(logits: Any, k: int) -> None:
    trace = opd_probe.trace_logits(*logits, K, jsd=True)
    agree(opd_probe.state_metrics(trace, k), reference.states(*logits, k))


def test_lists_end_where_nothing_is_left(logits: Any) -> None:
    trace = opd_probe.trace_logits(*logits, K)
    for side, given, other in (("student", logits[0], "teacher"), ("teacher", logits[1], "student")):
        ids, own = trace.column(f"{side}_top_ids"), trace.column(f"{side}_top_logprobs")
        at = trace.column(f"{other}_logprobs_at_{side}_top")
        for row in range(T):
            wanted = reference.top_k(given[row], K)
            assert ids[row].tolist() == wanted + [-1] * (K - len(wanted))
            assert (own[row, len(wanted) :] == -np.inf).all()
            assert (at[row, len(wanted) :] == -np.inf).all()
            assert np.isfinite(own[row, : len(wanted)]).all()


def test_the_states_are_counted_and_said(logits: Any) -> None:
    trace = opd_probe.trace_logits(*logits, K)
    short = [min(len(reference.top_k(x[row], 4)) for x in logits[:2]) < 4 for row in range(T)]
    with pytest.warns(opd_probe.OpdProbeWarning, match=f"at {sum(short)} of {T} states a model gives fewer than k = 4"):
        row = opd_probe.summarize(trace, 4, resamples=0)
    assert row["n_short_lists"] == sum(short) > 0
    curve = opd_probe.mass_curve(trace, resamples=0).set_index("k")
    for k in (1, 4, K):
        row = opd_probe.summarize(trace, k, resamples=0)
        for name in ("n_short_lists", "n_single_overlap", "n_empty_overlap"):
            assert curve.loc[k, name] == row[name], name
        for name in ("overlap_ratio", "student_overlap_mass", "teacher_topk_mass", "overlap_advantage"):
            assert curve.loc[k, name] == pytest.approx(row[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("fill", [-1e9, -np.inf, *(float(torch.finfo(t).min) for t in (torch.float16, torch.float32))])
def test_whatever_is_written_to_ban_an_id(logits: Any, fill: float) -> None:
    banned = [np.where(np.isneginf(x), np.float32(fill), x) for x in logits[:2]]
    found, wanted = (opd_probe.trace_logits(a, b, logits[2], K) for a, b in (banned, logits[:2]))
    for side in ("student", "teacher"):
        name = f"{side}_top_ids"
        np.testing.assert_array_equal(found.column(name), wanted.column(name))
        name = f"{side}_top_logprobs"
        np.testing.assert_allclose(found.column(name), wanted.column(name), rtol=1e-6)


def test_distant_logits_are_no_bans() -> None:
    """Whatever a low temperature makes of logits: nothing is impossible there."""
    student, teacher, tokens = random_pair(5, 40, spread=2.0)
    found = opd_probe.trace_logits(student * 500, teacher * 500, tokens, 40)
    assert (found.column("student_top_ids") >= 0).all()
    cold = opd_probe.trace_logits(student, teacher, tokens, 40, temperature=1e-5)
    np.testing.assert_array_equal(cold.column("teacher_top_ids"), found.column("teacher_top_ids"))


def test_older_traces_name_ids_there(logits: Any) -> None:
    """Before, a list went on with the lowest ids; such a trace on disk gives the same numbers."""
    trace = opd_probe.trace_logits(*logits, K)
    arrays = {name: trace.column(name).copy() for name in trace.columns}
    for side in ("student", "teacher"):
        ids = arrays[f"{side}_top_ids"]
        for row in range(T):
            others = (token for token in range(V) if token not in set(ids[row].tolist()))
            ids[row] = [token if token >= 0 else next(others) for token in ids[row].tolist()]
    older = Trace(trace.rollouts, trace.provenance, arrays=arrays)
    found, wanted = (opd_probe.state_metrics(one, 6) for one in (older, trace))
    for name in METRICS:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert opd_probe.summarize(older, 6, resamples=0) == pytest.approx(
        opd_probe.summarize(trace, 6, resamples=0), nan_ok=True
    )
    assert not overlap_change(older, trace, 6).entered.any()


@pytest.mark.parametrize("variant", ["verl", "thunlp:union", "thunlp:only_tch", "thunlp:union-intersection:none"])
def test_other_trainers_definitions_on_short_lists(logits: Any, variant: str) -> None:
    """Against literal versions of them, which take lists as they come: here without what has probability 0."""
    trace = opd_probe.trace_logits(*logits, K)
    row = opd_probe.summarize_variant(trace, variant, 5, resamples=0)
    states = [
        (reference.log_softmax(p), reference.log_softmax(q), reference.top_k(p, 5), reference.top_k(q, 5))
        for p, q in zip(*logits[:2], strict=True)
    ]
    shared = [set(s) & set(t) for _, _, s, t in states]
    if variant == "verl":
        assert row["distillation/overlap_ratio"] == pytest.approx(sum(map(len, shared)) / (5 * T))
        masses = [np.exp(q[t]).sum() for _, q, _, t in states]
        assert row["distillation/teacher_mass"] == pytest.approx(np.mean(masses), rel=1e-5)
        return
    assert row["val-topk/overlap_ratio"] == pytest.approx(sum(map(len, shared)) / (5 * T))
    p_sum = [np.exp(p[list(both)]).sum() for (p, *_), both in zip(states, shared, strict=True) if both]
    assert row["val-topk/student_p_sum_intersection"] == pytest.approx(np.mean(p_sum), rel=1e-5)
    # Renormalised where the student has no mass its weights are undefined.
    there = [one for one in states if variant != "thunlp:only_tch" or np.isfinite(one[0][one[3]]).any()]
    alone = sum(len(set(t) - set(s)) for _, _, s, t in there)
    assert row["val-topk/adv_only_tch_n"] == alone


def test_what_tokens_contribute(logits: Any) -> None:
    """Sums by token over short lists, and what a page lists of a state."""
    trace = opd_probe.trace_logits(*logits, V)
    counts = survey(trace, 5, n_extremes=3, rollouts={0: T}).counts
    wanted, shared = np.zeros(V), np.zeros(V)
    for p, q in zip(*logits[:2], strict=True):
        log_p, log_q = reference.log_softmax(p), reference.log_softmax(q)
        for token in range(V):
            if np.isfinite(log_p[token]) and np.isfinite(log_q[token]):
                wanted[token] += np.exp(log_p[token]) * (log_p[token] - log_q[token])
        for token in set(reference.top_k(p, 5)) & set(reference.top_k(q, 5)):
            shared[token] += 1
    np.testing.assert_allclose(counts.of("kl", V), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(counts.of("overlap", V), shared)
    rows = {name: trace.column(name) for name in trace.columns}
    student, teacher = top_lists(rows, 5)
    for row in range(T):
        assert [entry["id"] for entry in student[row]] == reference.top_k(logits[0][row], 5)
        assert [entry["id"] for entry in teacher[row] if entry["shared"]] == [
            token for token in reference.top_k(logits[1][row], 5) if token in reference.top_k(logits[0][row], 5)
        ]


def lists_of(logits: Any, k: int) -> dict[str, torch.Tensor]:
    """What a training loop has: torch's own selection, with its ids at −inf."""
    logs = [torch.log_softmax(torch.from_numpy(x).double(), -1) for x in logits[:2]]
    tops = [log.topk(k, -1) for log in logs]
    return {
        "student_topk_ids": tops[0].indices[None], "student_topk_logprobs": tops[0].values[None],
        "teacher_topk_ids": tops[1].indices[None], "teacher_topk_logprobs": tops[1].values[None],
        "response_mask": torch.ones(1, T),
    }  # fmt: skip


def test_lists_of_a_training_loop(logits: Any) -> None:
    given = lists_of(logits, 6)
    wanted = reference.states(*logits, 6)
    found = overlap_metrics(**given)
    for name in ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_topk_mass"):
        assert found[name] == pytest.approx(reference.token_mean([row[name] for row in wanted]), rel=1e-5), name
    assert found["n_short_lists"] == sum(len(reference.top_k(x, 6)) < 6 or len(reference.top_k(y, 6)) < 6
                                         for x, y in zip(*logits[:2], strict=True))  # fmt: skip
    trace = topk_trace(**given)
    complete = [row for row in range(T) if len(reference.top_k(logits[1][row], 6)) < 6]
    at = trace.column("teacher_logprobs_at_student_top")[complete]
    assert complete
    assert not np.isnan(at).any()  # a list that names every possible id tells that the others are impossible
    same = overlap_metrics(
        **given | {f"teacher_topk_{name}": given[f"student_topk_{name}"] for name in ("ids", "logprobs")}
    )
    sizes = [len(reference.top_k(x, 6)) / 6 for x in logits[0]]
    assert same["overlap_ratio"] == pytest.approx(np.mean(sizes))
    assert same["overlap_advantage"] == 0


def test_a_served_list_that_is_whole_tells_of_all_ids() -> None:
    ids = np.array([[3, 1, 7], [3, 1, -1]], dtype=np.int32)
    teacher = {
        "teacher_top_ids": np.array([[1, -1, -1], [1, -1, -1]], dtype=np.int32),
        "teacher_top_logprobs": np.array([[0.0, -np.inf, -np.inf], [-0.5, np.nan, np.nan]], dtype=np.float32),
        "teacher_logprob": np.array([-np.inf, -2.0], dtype=np.float32),
    }
    found = known_at(ids, np.array([3, 3]), teacher)
    np.testing.assert_array_equal(found, np.array([[-np.inf, 0, -np.inf], [-2, -0.5, -np.inf]], dtype=np.float32))
