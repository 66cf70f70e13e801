"""Measurements through the public interface against a slow float64 reference, state by state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

import opd_probe
from opd_probe.lab.demo import SHIPPED
from opd_probe.lab.evaluate import (
    REPORTED,
    MeasureRecipe,
    accuracy,
    continuations,
    evaluation_rollouts,
    held_out,
    measure,
    measure_checkpoint,
)
from opd_probe.lab.models import LabModel, ModelRecipe, build_model, load_model
from opd_probe.lab.task import RESPONSE_LENGTH, VOCABULARY, PromptRecipe, grade

TINY = ModelRecipe(hidden_size=32, layers=2, heads=1, intermediate_size=48)
COUNT = 20

pytestmark = pytest.mark.filterwarnings("ignore:at .* the overlap at k = .* is one token:opd_probe.OpdProbeWarning")


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


def test_several_rollouts_answer_each_held_out_problem(pair: tuple[LabModel, LabModel]) -> None:
    rollouts = evaluation_rollouts(pair[0], 12, seed=3, samples=3)
    assert len(rollouts) == len({row["id"] for row in rollouts}) == 12
    by_problem = [rollouts[start : start + 3] for start in range(0, 12, 3)]
    for rows in by_problem:
        assert len({row["prompt_id"] for row in rows}) == 1
        assert len({tuple(row["prompt_ids"]) for row in rows}) == 1
        assert len({tuple(row["response_ids"]) for row in rows}) > 1
    assert held_out(rollouts) == {
        rows[0]["prompt_id"]: pytest.approx(np.mean([row["score"] for row in rows])) for rows in by_problem
    }
    told = evaluation_rollouts(pair[0], 4, seed=3, prompts=PromptRecipe("answer"))
    assert [row["answer"] for row in told] == [rows[0]["answer"] for rows in by_problem]


def test_checkpoints_are_measured_by_the_public_functions(pair: tuple[LabModel, LabModel]) -> None:
    recipe = MeasureRecipe(ks=(4, 8), depth=32)
    result = measure_checkpoint(*pair, recipe, seed=0, count=40)
    trace = opd_probe.replay(*pair, evaluation_rollouts(pair[0], 40, 0, samples=2), k=32)
    for k in recipe.ks:
        assert result["summary"][str(k)] == pytest.approx(opd_probe.summarize(trace, k=k), nan_ok=True)
    assert [row["k"] for row in result["mass"]] == list(range(1, 33))
    assert sum(row["n_states"] for row in result["positions"]) == trace.n_states
    assert all(row["position_lo"] == row["position_hi"] for row in result["positions"])
    states = opd_probe.state_metrics(trace, 8)
    for row in result["rollouts"]:
        own = states[states["rollout_id"] == row["id"]]
        assert row["sequence_mean_reward"] == pytest.approx(own["sampled_reward"].mean())


def test_a_teacher_continues_what_the_student_began(pair: tuple[LabModel, LabModel]) -> None:
    rows = continuations(*pair, depths=(0, 3), count=COUNT, seed=0)["depths"]
    assert [row["depth"] for row in rows] == [0, 3]
    assert all(len(row["student"]) == len(row["teacher"]) <= COUNT for row in rows)
    own = [row["score"] for row in evaluation_rollouts(pair[0], COUNT, seed=0)]
    assert rows[0]["student"] == own


def test_continuing_a_finished_solution_changes_nothing() -> None:
    """After ``answer 7`` both teachers can only end, or be graded on what they add."""
    student = load_model(SHIPPED / "student")
    teacher = load_model(SHIPPED / "compatible-teacher")
    (late,) = continuations(student, teacher, (RESPONSE_LENGTH - 1,), 64, seed=0)["depths"]
    assert len(late["student"]) > 40
    assert np.mean(np.array(late["student"]) == np.array(late["teacher"])) > 0.95
