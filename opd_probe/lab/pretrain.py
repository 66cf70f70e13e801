"""Supervised training of the lab's base models and teachers on corpora of worked responses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import cross_entropy

from opd_probe.lab.corpus import Component, Corpus
from opd_probe.lab.models import EOS_ID, LabModel
from opd_probe.lab.task import encode, seeded

__all__ = ["PretrainRecipe", "Report", "cosine", "pretrain", "states_of", "train_supervised"]

_IGNORED = -100

Report = Callable[[int, int, str], None]
"""Called as ``report(step, steps, text)`` while something trains."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Schedule(Protocol):
    """What every recipe of supervised training says."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PretrainRecipe:
    """Supervised training: what corpus, how long, how fast.

    Attributes:
        label: names the training, and with the seed its data.
        corpus: the mixture that responses are drawn from.
        learning_rate: the peak; linear warm-up over ``warmup`` steps, then a cosine to zero.
    """

    label: str
    corpus: tuple[Component, ...]
    steps: int
    learning_rate: float = 4e-3
    batch_size: int = 64
    warmup: int = 20


def cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """The factor on the peak learning rate at 0-based ``step``: warm-up, then a cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def states_of(model: LabModel, input_ids: torch.Tensor, first_state: int) -> torch.Tensor:
    """Logits [N, T, V] of the states that predict the tokens after index ``first_state`` of ``input_ids``."""
    hidden = model.model(input_ids=input_ids[:, :-1], use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[:, first_state:])
    return logits.float()


def pretrain(model: LabModel, recipe: PretrainRecipe, seed: int, report: Report | None = None) -> None:
    """Train ``model`` in place on response tokens (EOS included), token-mean cross-entropy, AdamW."""
    corpus = Corpus(recipe.corpus, seed)

    def batch(step: int) -> Batch:
        examples = corpus.batch(seeded(seed, "pretrain", recipe.label, step), recipe.batch_size)
        prompts = torch.tensor([encode(example.prompt) for example in examples])
        responses = torch.tensor([[*encode(example.response), EOS_ID] for example in examples])
        given = torch.tensor([[example.given] for example in examples])
        return prompts, responses, torch.arange(responses.shape[1]) >= given

    train_supervised(model, batch, recipe, report)


def train_supervised(
    model: LabModel, batch: Callable[[int], Batch], schedule: Schedule, report: Report | None = None
) -> None:
    """Train ``model`` in place; ``batch(step)`` gives prompts [N, P], responses [N, T] and which of their ids count."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    model.train()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * cosine(step, schedule.steps, schedule.warmup)
        prompts, responses, counted = batch(step)
        targets = responses.masked_fill(~counted, _IGNORED)
        logits = states_of(model, torch.cat([prompts, responses], dim=1), prompts.shape[1] - 1)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if report is not None:
            report(step + 1, schedule.steps, f"loss {loss.item():.3f}")
    model.eval()
