"""Off-policy cold start: supervised training on filtered rollouts of the teacher, before distillation (§5.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opd_probe.lab.distill import draw
from opd_probe.lab.models import EOS_ID, PAD_ID, LabModel
from opd_probe.lab.pretrain import Report, train_supervised
from opd_probe.lab.sampling import Sample
from opd_probe.lab.task import sample_problems, seeded

__all__ = ["ColdStartRecipe", "cold_start", "usable"]

_BATCH = 256
_REPEATED = 5


@dataclass(frozen=True, slots=True)
class ColdStartRecipe:
    """Supervised training on what a teacher wrote.

    Attributes:
        label: names the training, and with the seed its data.
        teacher: the name of the model that writes the responses.
        rollouts: how many it writes, one to a problem, before the filter.
        learning_rate: the peak; linear warm-up over ``warmup`` steps, then a cosine to zero.
        max_new_tokens: longer responses are cut, and then left out.
    """

    label: str
    teacher: str
    rollouts: int = 1024
    steps: int = 60
    learning_rate: float = 1e-3
    batch_size: int = 48
    warmup: int = 6
    max_new_tokens: int = 32


def usable(sample: Sample) -> torch.Tensor:
    """[N] booleans: neither cut off nor degenerate, which is a run of five tokens that comes twice."""
    lengths = sample.mask.sum(dim=1).tolist()
    ended = sample.mask.sum(dim=1) < sample.mask.shape[1]
    ended |= sample.response_ids[:, -1] == EOS_ID
    repeats = []
    for ids, length in zip(sample.response_ids.tolist(), lengths, strict=True):
        runs = [tuple(ids[start : start + _REPEATED]) for start in range(length - _REPEATED + 1)]
        repeats.append(len(set(runs)) < len(runs))
    return ended & ~torch.tensor(repeats)


def cold_start(
    student: LabModel, teacher: LabModel, recipe: ColdStartRecipe, seed: int, report: Report | None = None
) -> None:
    """Train ``student`` in place on the usable rollouts of ``teacher``."""
    problems = sample_problems(seeded(seed, "cold start", recipe.label), recipe.rollouts)
    kept = []
    for start in range(0, recipe.rollouts, _BATCH):
        sample, _ = draw(teacher, problems[start : start + _BATCH], recipe.max_new_tokens, seed * 1_000_003 + start)
        good = usable(sample)
        width = recipe.max_new_tokens - sample.mask.shape[1]
        responses = torch.nn.functional.pad(sample.response_ids, (0, width), value=PAD_ID)
        mask = torch.nn.functional.pad(sample.mask, (0, width), value=False)
        kept.append((sample.prompt_ids[good], responses[good], mask[good]))
    prompts, responses, mask = (torch.cat(parts) for parts in zip(*kept, strict=True))
    longest = int(mask.sum(dim=1).max())

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = seeded(seed, "cold start", recipe.label, step)
        rows = torch.from_numpy(rng.choice(len(prompts), size=min(recipe.batch_size, len(prompts)), replace=False))
        return prompts[rows], responses[rows, :longest], mask[rows, :longest]

    train_supervised(student, batch, recipe, report)
