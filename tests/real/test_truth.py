"""What everything else is held against: the fast float64 metrics against the slow ones, the model against its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opd_probe.metrics import METRICS
from tests import reference
from tests.real.measured import needs_the_model
from tests.real.pairs import DEPTH, K, Pair
from tests.real.truth import Llama, metrics

pytestmark = needs_the_model


def test_metrics_are_those_of_the_slow_reference(pair: Pair) -> None:
    sides = [Llama(place) for place in (pair.student, pair.teacher)]
    rollout = pair.rollouts[1]
    logits = [side.hidden([rollout])[:3] @ side.output.t() for side in sides]
    tokens = torch.tensor(rollout.response_ids[:3])
    found = metrics(logits[0], logits[1], tokens, np.ones(3), K, DEPTH)
    for at in range(3):
        expected = reference.state(logits[0][at], logits[1][at], int(tokens[at]), K, trace_k=DEPTH, correct=True)
        assert set(expected) == set(METRICS)
        for name, value in expected.items():
            assert found[name][at] == pytest.approx(value, rel=1e-7, abs=1e-12, nan_ok=True), name


def test_the_forward_pass_is_the_models_own(pair: Pair) -> None:
    """Its float32 pass, by transformers, differs by rounding alone."""
    for side in ("student", "teacher"):
        hidden, layer = pair.hidden(side, torch.float32)
        exact = Llama(getattr(pair, side))
        assert torch.equal(layer.double(), exact.output)
        logits = exact.hidden(pair.rollouts[:4]) @ exact.output.t()
        found = hidden[: len(logits)].double() @ exact.output.t()
        assert float((found - logits).abs().max()) < 2e-5 * float(logits.abs().max())


def test_the_pairs_are_what_they_are_for(ordinary: Pair, sharpened: Pair) -> None:
    """A related teacher, and in the sharpened pair plenty of confident states of every magnitude."""
    for pair in (ordinary, sharpened):
        assert 0.3 < pair.truth["overlap_ratio"].mean() < 0.8
        assert len(pair.tokens) > 500
    assert 0.3 < ordinary.truth["reverse_kl"].mean() < 3
    rest = sharpened.truth["student_rest"]
    for exponent in range(-8, -3):
        assert ((rest >= 10.0**exponent) & (rest < 10.0 ** (exponent + 1))).sum() >= 5, exponent
