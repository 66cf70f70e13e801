"""Measurements through the public interface against a slow float64 reference, state by state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from opd_probe.lab.evaluate import REPORTED, accuracy, evaluation_rollouts, measure
from opd_probe.lab.models import LabModel, ModelRecipe, build_model
from opd_probe.lab.task import VOCABULARY, grade

TINY = ModelRecipe(hidden_size=32, layers=2, heads=1, intermediate_size=48)
COUNT = 20


@pytest.fixture(scope="module")
def pair() -> tuple[LabModel, LabModel]:
    models = build_model(TINY, seed=0), build_model(TINY, seed=1)
    with torch.no_grad():  # sharper distributions than random weights give
        for model in models:
            model.model.embed_tokens.weight.mul_(20)
    return models[0].eval(), models[1].eval()


def reference_state(s: np.ndarray, t: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, one state at a time, by set arithmetic."""
    p, q = np.exp(log_softmax(s)), np.exp(log_softmax(t))
    tops = [set(sorted(range(len(x)), key=lambda v: (-x[v], v))[:k]) for x in (s, t)]
    overlap = sorted(tops[0] & tops[1])
    on_p, on_q = (x[overlap] / x[overlap].sum() if overlap else np.array([]) for x in (p, q))
    return {
        "overlap_ratio": len(overlap) / k,
        "overlap_advantage": -entropy(on_p, on_q) / len(overlap) if overlap else np.nan,
        "entropy_gap": abs(entropy(p) - entropy(q)),
        "student_overlap_mass": p[overlap].sum(),
        "teacher_overlap_mass": q[overlap].sum(),
        "reverse_kl": entropy(p, q),
    }


def test_measure_equals_the_definitions(pair: tuple[LabModel, LabModel]) -> None:
    row = measure(*pair, count=COUNT, seed=0, k=16)
    states: list[dict[str, float]] = []
    for rollout in evaluation_rollouts(pair[0], COUNT, seed=0):
        ids = torch.tensor([rollout["prompt_ids"] + rollout["response_ids"]])
        first = len(rollout["prompt_ids"]) - 1
        with torch.no_grad():
            s, t = (model(ids).logits[0, first:-1].double().numpy() for model in pair)
        states += [reference_state(a, b, 16) for a, b in zip(s, t, strict=True)]
    for name in states[0]:
        assert row[name] == pytest.approx(np.nanmean([state[name] for state in states]), rel=1e-4), name
        assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"]
    assert row["n_rollouts"] == COUNT
    assert set(REPORTED) <= row.keys()


def test_rollouts_are_what_a_rollout_file_holds(pair: tuple[LabModel, LabModel]) -> None:
    rollouts: list[dict[str, Any]] = evaluation_rollouts(pair[0], COUNT, seed=3)
    assert rollouts == evaluation_rollouts(pair[0], COUNT, seed=3)
    assert rollouts != evaluation_rollouts(pair[0], COUNT, seed=4)
    for row in rollouts:
        text = " ".join(VOCABULARY[token] for token in row["response_ids"])
        assert row["score"] == float(grade(text, row["answer"]))
    assert accuracy(pair[0], COUNT, seed=3) == np.mean([row["score"] for row in rollouts])
