"""A signal that lies in few tokens, and top-k lists that lose most of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from tests.checks.clinic import Clinic, edit_weights, embedding


def test_a_signal_in_few_tokens(clinic: Clinic, tmp_path: Path) -> None:
    """A teacher that is the student, but abhors one rare word."""
    counts = Counter(token for rollout in clinic.rollouts for token in rollout.response_ids)
    rare = next(token for token, count in counts.items() if count == 3)

    def abhor(model: Any) -> None:
        embedding(model)[rare] *= -2.0

    teacher = edit_weights(clinic.copy("student", tmp_path), abhor)
    line = clinic.findings(teacher=teacher)["signal_share"]
    trace = opd_probe.replay(clinic.models["student"], teacher, clinic.rollouts, k=1)
    size = np.abs(trace.column("teacher_logprob").astype(np.float64) - trace.column("student_logprob"))
    top = size[size >= np.quantile(size, 0.99)]
    assert line.status == "warn"
    assert line.values["top_share"] == pytest.approx(top.sum() / size.sum(), rel=1e-6)
    assert line.values["top_share"] == pytest.approx(opd_probe.diagnose(trace)["top_1pct_signal_share"], rel=1e-6)
    assert line.values["token_id"] == rare
    assert f"({rare})" in line.figure


def test_too_few_tokens_for_a_share(clinic: Clinic) -> None:
    assert clinic.findings(clinic.rollouts[:3])["signal_share"].status == "skip"
    assert clinic.findings(teacher=clinic.models["student"])["signal_share"].status == "skip"


def test_mass_that_the_lists_leave_out(clinic: Clinic) -> None:
    teacher = clinic.models["stranger"]
    line = clinic.findings(teacher=teacher, k=4)["top_k"]
    trace = opd_probe.replay(clinic.models["student"], teacher, clinic.rollouts, k=4)
    p = trace.column("student_logprobs_at_teacher_top").astype(np.float64)
    q = trace.column("teacher_top_logprobs").astype(np.float64)
    reverse, forward = (np.exp(p) * (p - q)).sum(1), (np.exp(q) * (q - p)).sum(1)
    assert line.status == "warn"
    assert line.values["student_mass_on_teacher_top"] == pytest.approx(np.exp(p).sum(1).mean(), rel=1e-6)
    assert line.values["reverse_negative"] == pytest.approx((reverse < 0).mean())
    assert line.values["forward_negative"] == pytest.approx((forward < 0).mean())
    assert line.values["reverse_mean"] == pytest.approx(reverse.mean(), rel=1e-6)
    assert line.values["forward_mean"] == pytest.approx(forward.mean(), rel=1e-6)
    assert line.values["student_mass_on_teacher_top"] < 0.9


def test_one_token_renormalised(clinic: Clinic) -> None:
    line = clinic.findings(k=1)["top_k"]
    assert line.status == "warn"
    assert "renormalised on one token every divergence is 0" in line.figure
