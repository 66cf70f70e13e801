"""What is bounded lies within: every bound against the whole distributions, of which a server tells a part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opd_probe.curves.bounds import bounds_row
from opd_probe.metrics.bounds import BOUNDS, NEEDS, state_bounds
from opd_probe.trace import Trace
from tests.reference import entropy, kl, log_softmax
from tests.samples import as_served, confident_pair, grouped_trace, random_pair

V = 60


def told(kind: str, k: int, seed: int = 0) -> tuple[Trace, list[tuple[float, float, float]]]:
    """A trace of which a server told the top k, and by state KL(p ‖ q), H(q) and H(p)."""
    n = 200
    student, teacher, tokens = (confident_pair if kind == "confident" else random_pair)(n, V, seed=seed)
    if kind == "flat":
        student, teacher = student * 0.02, teacher * 0.02
    if kind == "apart":
        teacher = -teacher * 3
    rows: list[dict[str, Any]] = [{"prompt_id": f"p{i}", "n_states": 20} for i in range(10)]
    trace = as_served(grouped_trace(rows, k=k, logits=(student, teacher, tokens), jsd=False))
    truth = []
    for one, other in zip(np.asarray(student, float), np.asarray(teacher, float), strict=True):
        log_p, log_q = log_softmax(one), log_softmax(other)
        truth.append((kl(log_p, log_q), entropy(log_q), entropy(log_p)))
    return trace, truth


@pytest.mark.parametrize("k", [1, 2, 8, 32, 59])
@pytest.mark.parametrize("kind", ["random", "confident", "flat", "apart"])
def test_the_truth_lies_within(kind: str, k: int) -> None:
    trace, truth = told(kind, k)
    found = state_bounds({name: trace.column(name) for name in ("token_id", "position", *NEEDS)}, V)
    divergence, teacher, student = np.array(truth).T
    gap = np.abs(teacher - student)
    assert (found["reverse_kl_least"] <= divergence + 1e-7).all()
    assert (found["teacher_entropy_least"] <= teacher + 1e-7).all()
    assert (found["teacher_entropy_most"] >= teacher - 1e-7).all()
    assert (found["entropy_gap_least"] <= gap + 1e-7).all()
    assert (found["entropy_gap_most"] >= gap - 1e-7).all()
    assert (found["reverse_kl_least"] >= 0).all()
    row = bounds_row(trace)
    assert row["reverse_kl_least"] == pytest.approx(found["reverse_kl_least"].mean())
    assert row["reverse_kl_least"] <= divergence.mean() + 1e-7
    assert row["teacher_entropy_least"] <= teacher.mean() <= row["teacher_entropy_most"]
    assert row["teacher_entropy_most_lo"] <= row["teacher_entropy_most"] <= row["teacher_entropy_most_hi"]
    assert row["reverse_kl_least_n"] == trace.n_states


def test_with_all_but_one_token_told_the_bounds_meet() -> None:
    trace, truth = told("random", 59)
    found = state_bounds({name: trace.column(name) for name in ("token_id", "position", *NEEDS)}, V)
    divergence, teacher, _ = np.array(truth).T
    assert found["reverse_kl_least"] == pytest.approx(divergence, abs=1e-3)
    assert found["teacher_entropy_least"] == pytest.approx(teacher, abs=1e-3)
    assert found["teacher_entropy_most"] == pytest.approx(teacher, abs=1e-3)


def test_longer_lists_say_more() -> None:
    rows = [bounds_row(told("random", k)[0]) for k in (4, 8, 16, 32)]
    widths = [row["teacher_entropy_most"] - row["teacher_entropy_least"] for row in rows]
    assert widths == sorted(widths, reverse=True)
    least = [row["reverse_kl_least"] for row in rows]
    assert least == sorted(least)


def test_lost_ids_leave_no_bound() -> None:
    whole = told("random", 8)[0]
    trace = as_served(whole, lost={3: 2})
    found = state_bounds({name: trace.column(name) for name in ("token_id", "position", *NEEDS)}, V)
    assert [index for index, value in enumerate(found["reverse_kl_least"]) if np.isnan(value)] == [3]
    assert bounds_row(trace)["reverse_kl_least_n"] == trace.n_states - 1
    assert {*BOUNDS} == {*found}
