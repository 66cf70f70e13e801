"""Measuring a model of the lab: accuracy of its own rollouts, and the toolkit's metrics against a teacher."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from opd_probe.lab.distill import draw
from opd_probe.lab.pretrain import states_of
from opd_probe.lab.sampling import Sample
from opd_probe.lab.task import Problem, sample_problems, seeded

__all__ = ["EVALUATION_BATCH", "accuracy", "evaluation_rollouts", "measure", "proportion_interval"]

EVALUATION_BATCH = 256
MAX_NEW_TOKENS = 32


def evaluation_rollouts(model: Qwen2ForCausalLM, count: int, seed: int) -> list[dict[str, Any]]:
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


def accuracy(model: Qwen2ForCausalLM, count: int, seed: int) -> float:
    """The share of ``count`` own rollouts at temperature 1 that end in the right answer."""
    rollouts = evaluation_rollouts(model, count, seed)
    return float(sum(row["score"] for row in rollouts) / len(rollouts))


@torch.no_grad()
def measure(
    student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM, count: int, seed: int, k: int = 16
) -> dict[str, Any]:
    """Accuracy and the toolkit's metrics at the student's own states.

    Returns:
        ``accuracy`` with ``accuracy_lo`` and ``accuracy_hi`` (95 %, Wilson), ``n_rollouts``, and the token
        means of the metrics at top-``k``.
    """
    rollouts = evaluation_rollouts(student, count, seed)
    share = float(sum(row["score"] for row in rollouts) / count)
    low, high = proportion_interval(share, count)
    sums: dict[str, float] = {}
    for row in rollouts:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        first = len(row["prompt_ids"]) - 1
        log_p, log_q = (
            states_of(model, ids, first)[0].double().log_softmax(-1) for model in (student, teacher)
        )
        for name, values in _state_values(log_p, log_q, k).items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
    n_states = sum(len(row["response_ids"]) for row in rollouts)
    means = {name: value / n_states for name, value in sums.items()}
    return {"accuracy": share, "accuracy_lo": low, "accuracy_hi": high, "n_rollouts": count, **means}


def _state_values(log_p: torch.Tensor, log_q: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    p, q = log_p.exp(), log_q.exp()
    top_p, top_q = (
        torch.zeros_like(x, dtype=torch.bool).scatter_(-1, x.topk(k).indices, True) for x in (log_p, log_q)
    )
    overlap = top_p & top_q
    size = overlap.sum(-1)
    on_p, on_q = (x.masked_fill(~overlap, -1e30).log_softmax(-1) for x in (log_p, log_q))
    entropy_p, entropy_q = -(p * log_p).sum(-1), -(q * log_q).sum(-1)
    return {
        "overlap_ratio": size / k,
        "overlap_advantage": -torch.where(overlap, on_p.exp() * (on_p - on_q), 0.0).sum(-1) / size,
        "entropy_gap": (entropy_q - entropy_p).abs(),
        "student_entropy": entropy_p,
        "teacher_entropy": entropy_q,
        "student_overlap_mass": (p * overlap).sum(-1),
        "teacher_overlap_mass": (q * overlap).sum(-1),
        "reverse_kl": (p * (log_p - log_q)).sum(-1),
    }
