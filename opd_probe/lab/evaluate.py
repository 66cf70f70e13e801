"""Measuring a model of the lab: accuracy of its own rollouts, and the toolkit's metrics against a teacher."""

from __future__ import annotations

from typing import Any, Final

import opd_probe
from opd_probe.lab.distill import draw
from opd_probe.lab.models import LabModel
from opd_probe.lab.sampling import Sample
from opd_probe.lab.task import Problem, sample_problems, seeded

__all__ = ["EVALUATION_BATCH", "REPORTED", "accuracy", "evaluation_rollouts", "measure", "proportion_interval"]

REPORTED: Final = (
    "accuracy",
    "overlap_ratio",
    "overlap_advantage",
    "entropy_gap",
    "student_entropy",
    "teacher_entropy",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "reverse_kl",
)
"""What :func:`measure` returns, by the toolkit's names."""

EVALUATION_BATCH: Final = 256
MAX_NEW_TOKENS: Final = 32


def evaluation_rollouts(model: LabModel, count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` rollouts of the model itself, one to each held-out problem, as a rollout file holds them.

    Problems and draws depend on the seed alone, so that all models of a seed answer the same problems.
    """
    problems = sample_problems(seeded(seed, "evaluation"), count)
    rollouts: list[dict[str, Any]] = []
    for start in range(0, count, EVALUATION_BATCH):
        batch = problems[start : start + EVALUATION_BATCH]
        sample, correct = draw(model, batch, MAX_NEW_TOKENS, seed=1_000_003 * (seed + 1) + start)
        rollouts += _rows(start, batch, sample, correct)
    return rollouts


def _rows(start: int, problems: list[Problem], sample: Sample, correct: list[bool]) -> list[dict[str, Any]]:
    lengths = sample.mask.sum(dim=1).tolist()
    prompts, responses = sample.prompt_ids.tolist(), sample.response_ids.tolist()
    return [
        {
            "id": str(start + i),
            "prompt_id": str(start + i),
            "prompt_ids": prompts[i],
            "response_ids": responses[i][: lengths[i]],
            "answer": str(problem.answer),
            "score": float(correct[i]),
        }
        for i, problem in enumerate(problems)
    ]


def proportion_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return centre - half, centre + half


def accuracy(model: LabModel, count: int, seed: int) -> float:
    """The share of ``count`` own rollouts at temperature 1 that end in the right answer."""
    rollouts = evaluation_rollouts(model, count, seed)
    return float(sum(row["score"] for row in rollouts) / len(rollouts))


def measure(student: LabModel, teacher: LabModel, count: int, seed: int, k: int = 16) -> dict[str, Any]:
    """Accuracy and the toolkit's metrics at the student's own states, with 95 % intervals over prompts.

    Returns:
        ``n_rollouts``, and each of :data:`REPORTED` as ``<name>``, ``<name>_lo`` and ``<name>_hi``.
    """
    trace = opd_probe.replay(student, teacher, evaluation_rollouts(student, count, seed), k=k)
    row = opd_probe.summarize(trace, k=k)
    kept = {f"{name}{end}": float(row[f"{name}{end}"]) for name in REPORTED for end in ("", "_lo", "_hi")}
    return {"n_rollouts": int(row["n_rollouts"]), **kept}
