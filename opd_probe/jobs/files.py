"""Rollout and prompt files: read once, matched to checkpoints, and encoded when they are text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd_probe.errors import warn
from opd_probe.jobs.plan import RunPlan
from opd_probe.jobs.rendering import student_tokenizer, warn_of_readings
from opd_probe.models.hub import tokenizer_place
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.rollouts.encoding import encode_rollouts, warn_of_text
from opd_probe.rollouts.prompts import read_prompts
from opd_probe.rollouts.reading import read_rollout_set, remarks
from opd_probe.rollouts.selection import at_most, check_steps, of_checkpoint, origin
from opd_probe.rollouts.sources import source_named
from opd_probe.types import Checkpoint, Prompt, Rollout, StateOrigin


class Files:
    """Rollout and prompt files, each read once."""

    def __init__(self, plans: Sequence[RunPlan]) -> None:
        self._plans = plans
        self._rollouts: dict[str, list[Rollout]] = {}
        self._steps_are: dict[str, str] = {}
        self._prompts: dict[str, list[Prompt]] = {}

    def check(self) -> None:
        """Read every file of the plan and match steps, so that a mistake shows before any model is loaded.

        Raises:
            OpdProbeError: a file that cannot be used, or a checkpoint without rollouts of its step.
        """
        for plan in self._plans:
            if plan.source.kind == "prompts":
                warn_of_readings(plan, self.prompts(plan.source.path))
                continue
            warn_of_readings(plan, self.rollouts(plan.source.path))
            for checkpoint in plan.run.checkpoints:
                self.replayed(plan, checkpoint)
            steps_are = self._steps_are[plan.source.path]
            if (
                steps_are
                and not plan.settings.step_offset
                and check_steps(self.rollouts(plan.source.path), plan.source.path)
            ):
                warn(f"rollouts {plan.source.path}: {steps_are}")

    def prompts(self, path: str) -> list[Prompt]:
        """The prompts of a file."""
        if path not in self._prompts:
            self._prompts[path] = read_prompts(path)
        return self._prompts[path]

    def rollouts(self, path: str) -> list[Rollout]:
        """The rollouts of a file."""
        if path not in self._rollouts:
            found = read_rollout_set([path])
            for line in remarks(found):
                warn(line)
            self._rollouts[path] = found.rollouts
            self._steps_are[path] = source_named(found.kind).steps_are
        return self._rollouts[path]

    def replayed(self, plan: RunPlan, checkpoint: Checkpoint) -> tuple[list[Rollout], StateOrigin]:
        """The rollouts of a file that belong to a checkpoint, and whose states they are."""
        path, settings = plan.source.path, plan.settings
        everything = self.rollouts(path)
        chosen = of_checkpoint(everything, checkpoint, plan.run.checkpoints, settings.step_offset, path)
        if any(rollout.token_source == "retokenized" for rollout in chosen):
            own = tokenizer_of(checkpoint, plan.tokenizer)
            chosen = encode_rollouts(chosen, student_tokenizer(own, settings))
            warn_of_text(chosen, f"rollouts {path}")
        users = sum(len(other.run.checkpoints) for other in self._plans if other.source == plan.source)
        return (
            at_most(chosen, settings.max_states, settings.seed),
            origin(check_steps(everything, path), users),
        )


def tokenizer_of(checkpoint: Checkpoint, tokenizer: str | None) -> Any:
    """The tokenizer that loading the checkpoint would give it, or None."""
    if tokenizer is not None:
        return load_tokenizer(tokenizer, required=True)
    return load_tokenizer(tokenizer_place(checkpoint), required=False)
