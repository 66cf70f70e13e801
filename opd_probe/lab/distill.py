"""On-policy distillation: the student samples, the teacher scores the same states, the student learns."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from opd_probe.atomic import whole_file
from opd_probe.lab.content import added
from opd_probe.lab.losses import LossRecipe, distillation_loss, support_mask
from opd_probe.lab.models import LabModel, save_model
from opd_probe.lab.pretrain import Report, cosine, states_of
from opd_probe.lab.sampling import Sample, sample_responses
from opd_probe.lab.task import Problem, PromptRecipe, encode, grade, seeded

__all__ = ["DistillRecipe", "StepLog", "distill", "draw", "write_checkpoint"]

StepLog = Mapping[str, float]
OnCheckpoint = Callable[[int, LabModel, list[StepLog]], None]
"""Called as ``on_checkpoint(step, student, log_so_far)`` after the optimiser steps named in the recipe."""


@dataclass(frozen=True, slots=True)
class DistillRecipe:
    """An on-policy distillation run.

    Attributes:
        label: names the run, and with the seed its prompts and draws.
        checkpoints: the optimiser steps after which a checkpoint is made.
        learning_rate: the peak; linear warm-up, then a cosine down to ``learning_rate_floor`` times the peak.
        prompts_per_step, samples_per_prompt: the batch of one optimiser step.
        max_new_tokens: the longest response that is sampled; a longer one is cut there.
        temperature: of the sampling; losses are at temperature 1.
        max_grad_norm: gradients are clipped to this norm.
        prompts: where the problems come from.
    """

    label: str
    loss: LossRecipe = field(default_factory=LossRecipe)
    steps: int = 100
    checkpoints: tuple[int, ...] = (5, 10, 20, 40, 70, 100)
    learning_rate: float = 4e-4
    learning_rate_floor: float = 0.05
    warmup: int = 5
    prompts_per_step: int = 64
    samples_per_prompt: int = 1
    max_new_tokens: int = 32
    temperature: float = 1.0
    max_grad_norm: float = 1.0
    prompts: PromptRecipe = added(PromptRecipe())


def draw(
    model: LabModel, problems: list[Problem], max_new_tokens: int, seed: int, temperature: float = 1.0
) -> tuple[Sample, list[bool]]:
    """One sampled response to each problem, and whether it ends in the right answer."""
    prompts = torch.tensor([encode(problem.prompt) for problem in problems])
    generator = torch.Generator().manual_seed(seed)
    sample = sample_responses(model, prompts, max_new_tokens, generator, temperature)
    correct = [grade(text, problem.answer) for text, problem in zip(sample.texts(), problems, strict=True)]
    return sample, correct


def distill(
    student: LabModel,
    teacher: LabModel,
    recipe: DistillRecipe,
    seed: int,
    on_checkpoint: OnCheckpoint | None = None,
    report: Report | None = None,
    state: Path | None = None,
) -> tuple[LabModel, list[StepLog]]:
    """Distil ``teacher`` into a copy of ``student``; returns the copy and one log row per optimiser step.

    Args:
        state: a file that holds the state of the run after each checkpoint. When it is there already the run goes
            on from it, and ends as if it had never stopped.
    """
    student, teacher = copy.deepcopy(student), teacher.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    log: list[StepLog] = []
    if state is not None and state.is_file():
        log = _restore(state, student, optimizer)
    for step in range(len(log) + 1, recipe.steps + 1):
        rate = recipe.learning_rate * cosine(step - 1, recipe.steps, recipe.warmup, recipe.learning_rate_floor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # The data depend on seed and step alone: two teachers, or two losses, see the same prompts.
        rng = seeded(seed, "prompts", step)
        problems = recipe.prompts.draw(rng, recipe.prompts_per_step, seed)
        problems = [problem for problem in problems for _ in range(recipe.samples_per_prompt)]
        sample, correct = draw(student, problems, recipe.max_new_tokens, int(rng.integers(2**62)), recipe.temperature)
        row = _update(student, teacher, optimizer, sample, recipe)
        log.append({"step": step, "learning_rate": rate, **row, "reward": sum(correct) / len(correct)})
        if report is not None:
            report(step, recipe.steps, f"loss {row['loss']:.3f}  accuracy {log[-1]['reward']:.2f}")
        if step in recipe.checkpoints:
            if on_checkpoint is not None:
                on_checkpoint(step, student, log)
            if state is not None:
                _store(state, student, optimizer, log)
    return student.eval(), log


def _store(state: Path, student: LabModel, optimizer: torch.optim.Optimizer, log: list[StepLog]) -> None:
    rows = [dict(row) for row in log]
    with whole_file(state) as unfinished:
        torch.save({"student": student.state_dict(), "optimizer": optimizer.state_dict(), "log": rows}, unfinished)


def _restore(state: Path, student: LabModel, optimizer: torch.optim.Optimizer) -> list[StepLog]:
    stored = torch.load(state, weights_only=True)
    student.load_state_dict(stored["student"])
    optimizer.load_state_dict(stored["optimizer"])
    log: list[StepLog] = stored["log"]
    return log


def _update(
    student: LabModel,
    teacher: LabModel,
    optimizer: torch.optim.Optimizer,
    sample: Sample,
    recipe: DistillRecipe,
) -> dict[str, float]:
    """One optimiser step on the sampled states: loss, gradient norm before clipping, overlap ratio, entropy, length."""
    with torch.no_grad():
        teacher_logits = states_of(teacher, sample.input_ids, sample.first_state)
    student_logits = states_of(student, sample.input_ids, sample.first_state)
    loss = distillation_loss(student_logits, teacher_logits, sample.response_ids, sample.mask, recipe.loss)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.max_grad_norm)
    optimizer.step()
    with torch.no_grad():
        overlap = support_mask(student_logits, teacher_logits, LossRecipe("overlap", recipe.loss.k))
        log_p = student_logits[sample.mask].log_softmax(dim=-1)
    return {
        "loss": loss.item(),
        "grad_norm": float(norm),
        "overlap_ratio": float(overlap.sum(dim=-1)[sample.mask].double().mean() / recipe.loss.k),
        "student_entropy": float(-(log_p.exp() * log_p).sum(dim=-1).mean()),
        "response_length": float(sample.mask.sum(dim=1).double().mean()),
    }


def write_checkpoint(run: Path, step: int, student: LabModel, log: list[StepLog]) -> Path:
    """Write ``run/checkpoint-<step>`` as trainers do: model, tokenizer and ``trainer_state.json``."""
    directory = run / f"checkpoint-{step}"
    save_model(student, directory)
    state = {"global_step": step, "log_history": [dict(row) for row in log]}
    (directory / "trainer_state.json").write_text(json.dumps(state, indent=1) + "\n")
    return directory
