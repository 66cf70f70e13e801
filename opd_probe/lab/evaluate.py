"""Measuring a model of the lab: accuracy of its own rollouts, and the toolkit's metrics against a teacher."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

import opd_probe
from opd_probe.lab.distill import draw
from opd_probe.lab.models import EOS_ID, LabModel
from opd_probe.lab.sampling import Sample, sample_responses
from opd_probe.lab.task import Problem, PromptRecipe, grade, pool, sample_problems, seeded

__all__ = [
    "EVALUATION_BATCH",
    "REPORTED",
    "MeasureRecipe",
    "accuracy",
    "continuations",
    "evaluation_rollouts",
    "held_out",
    "measure",
    "measure_checkpoint",
    "proportion_interval",
]

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
_PLAIN: Final = PromptRecipe()
POSITION_METRICS: Final = (
    "student_entropy",
    "teacher_entropy",
    "entropy_gap",
    "overlap_ratio",
    "overlap_advantage",
    "sampled_reward",
    "reverse_kl",
)
"""What is followed along the response."""


@dataclass(frozen=True, slots=True)
class MeasureRecipe:
    """How the checkpoints of a run are measured.

    Attributes:
        ends, between: rollouts at both ends of the run, and at the checkpoints between them.
        samples: rollouts of each problem: accuracy is avg@samples.
        ks: the sizes of the top sets that are summarised.
        depth: K of the trace; with more than the largest of ``ks`` the mass curve is kept at both ends.
        pair: the names of two teachers that are compared with each other at the student's states.
    """

    ends: int = 512
    between: int = 192
    samples: int = 2
    ks: tuple[int, ...] = (16,)
    depth: int = 16
    pair: tuple[str, str] | None = None


def _summary(trace: Any, k: int, **options: Any) -> dict[str, Any]:
    """A summary whose remarks nobody reads: a run of the lab measures hundreds, and its rows hold what they count."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "at .* states", opd_probe.OpdProbeWarning)
        return opd_probe.summarize(trace, k, **options)


def evaluation_rollouts(
    model: LabModel, count: int, seed: int, prompts: PromptRecipe = _PLAIN, samples: int = 1
) -> list[dict[str, Any]]:
    """``count`` rollouts of the model itself, ``samples`` to each held-out problem, as a rollout file holds them.

    Problems and draws depend on the seed alone, so that all models of a seed answer the same problems. A pool has
    no held-out problems: its own are answered, more often when there are too few of them.
    """
    problems = _evaluation_problems(-(-count // samples), seed, prompts)
    samples = max(samples, count // len(problems))
    asked = [(f"{i}.{j}" if samples > 1 else str(i), str(i)) for i in range(len(problems)) for j in range(samples)]
    repeated = [problem for problem in problems for _ in range(samples)]
    rollouts: list[dict[str, Any]] = []
    for start in range(0, len(repeated), EVALUATION_BATCH):
        batch = repeated[start : start + EVALUATION_BATCH]
        sample, correct = draw(model, batch, MAX_NEW_TOKENS, seed=1_000_003 * (seed + 1) + start)
        rollouts += _rows(asked[start : start + EVALUATION_BATCH], batch, sample, correct)
    return rollouts


def _evaluation_problems(count: int, seed: int, prompts: PromptRecipe) -> list[Problem]:
    if prompts.pool:
        return [problem.told(prompts.frame) for problem in pool(seed, prompts.pool)[:count]]
    return sample_problems(seeded(seed, "evaluation"), count, prompts.frame)


def _rows(
    ids: list[tuple[str, str]], problems: list[Problem], sample: Sample, correct: list[bool]
) -> list[dict[str, Any]]:
    lengths = sample.mask.sum(dim=1).tolist()
    prompts, responses = sample.prompt_ids.tolist(), sample.response_ids.tolist()
    return [
        {
            "id": ids[i][0],
            "prompt_id": ids[i][1],
            "prompt_ids": prompts[i],
            "response_ids": responses[i][: lengths[i]],
            "answer": str(problem.answer),
            "score": float(correct[i]),
            "finish_reason": "stop" if responses[i][lengths[i] - 1] == EOS_ID else "length",
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
    row = _summary(trace, k=k)
    kept = {f"{name}{end}": float(row[f"{name}{end}"]) for name in REPORTED for end in ("", "_lo", "_hi")}
    return {"n_rollouts": int(row["n_rollouts"]), **kept}


def measure_checkpoint(
    student: LabModel,
    teacher: LabModel,
    recipe: MeasureRecipe,
    seed: int,
    count: int,
    prompts: PromptRecipe = _PLAIN,
    pair: tuple[LabModel, LabModel] | None = None,
) -> dict[str, Any]:
    """Everything that the tables of the lab keep of one checkpoint, as JSON values.

    The states are those of the student's own rollouts on the prompts of its run; accuracy is that on held-out problems,
    which for a pool need rollouts of their own.

    Returns:
        ``summary`` (k → row of :func:`opd_probe.summarize`), ``positions``, ``mass`` (rows, empty when the trace holds
        no more than the largest k), ``rollouts`` (id, prompt id, sequence mean reward and correctness of each),
        ``held_out`` (prompt id → share of correct rollouts), and ``pair``: the summary of two teachers at these states.
    """
    rollouts = evaluation_rollouts(student, count, seed, prompts, recipe.samples)
    trace = opd_probe.replay(student, teacher, rollouts, k=recipe.depth)
    result: dict[str, Any] = {
        "summary": {str(k): _summary(trace, k=k) for k in recipe.ks},
        "positions": _records(opd_probe.position_curve(trace, 16, bins=MAX_NEW_TOKENS, metrics=POSITION_METRICS)),
        "mass": _records(opd_probe.mass_curve(trace)) if recipe.depth > max(recipe.ks) else [],
        "rollouts": [
            {"id": row["rollout_id"], "correct": bool(row["correct"])}
            | {key: row[key] for key in ("prompt_id", "sequence_mean_reward")}
            for row in _records(opd_probe.rollout_table(trace))
        ],
        "held_out": held_out(rollouts),
        "pair": {},
    }
    if prompts.pool:
        fresh = evaluation_rollouts(student, count, seed, PromptRecipe(prompts.frame), recipe.samples)
        result["held_out"] = held_out(fresh)
        summary = _summary(opd_probe.replay(student, teacher, fresh, k=16), k=16, metrics=())
        for row in result["summary"].values():
            row |= {name: value for name, value in summary.items() if name.startswith("accuracy")}
    if pair is not None:
        between = opd_probe.replay(*pair, rollouts, k=max(recipe.ks))
        result["pair"] = _summary(between, k=max(recipe.ks))
    return result


def _records(table: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = table.astype(object).to_dict("records")
    return records


def held_out(rollouts: list[dict[str, Any]]) -> dict[str, float]:
    """Problem → share of its rollouts that are correct."""
    scores: dict[str, list[float]] = {}
    for row in rollouts:
        scores.setdefault(row["prompt_id"], []).append(row["score"])
    return {prompt: float(np.mean(values)) for prompt, values in scores.items()}


@torch.no_grad()
def continuations(
    student: LabModel, teacher: LabModel, depths: tuple[int, ...], count: int, seed: int
) -> dict[str, Any]:
    """The teacher continues the first tokens of the student's responses, cut at growing depth (Fig. 11).

    Returns:
        ``depths``: for each the depth in tokens and, over the ``count`` rollouts that are longer, two lists:
        whether the student's own continuation was ``student`` correct, and whether the ``teacher``'s was.
    """
    rollouts = evaluation_rollouts(student, count, seed)
    rows = []
    for depth in depths:
        longer = [row for row in rollouts if len(row["response_ids"]) > depth]
        begun = torch.tensor([[*row["prompt_ids"], *row["response_ids"][:depth]] for row in longer])
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + depth)
        sample = sample_responses(teacher, begun, MAX_NEW_TOKENS - depth, generator)
        # The grader reads the text after the last "answer", which the prefix may hold already.
        first = sample.prompt_ids.shape[1] - depth
        whole = Sample(begun[:, :first], sample.input_ids[:, first:], _longer(sample.mask, depth))
        correct = [grade(text, row["answer"]) for text, row in zip(whole.texts(), longer, strict=True)]
        rows.append(
            {"depth": depth, "student": [row["score"] for row in longer], "teacher": [float(c) for c in correct]}
        )
    return {"depths": rows}


def _longer(mask: torch.Tensor, depth: int) -> torch.Tensor:
    return torch.cat([torch.ones(len(mask), depth, dtype=torch.bool), mask], dim=1)
