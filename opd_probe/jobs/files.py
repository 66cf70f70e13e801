"""Rollout and prompt files: read once, matched to checkpoints, and encoded when they are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opd_probe.errors import warn
from opd_probe.jobs.plan import RunPlan, Source
from opd_probe.jobs.rendering import student_tokenizer, thinking_of, warn_of_readings
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.hub import home_of, localized, tokenizer_place
from opd_probe.models.loading import eos_ids_of
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.models.weights import read_config, read_generation_config
from opd_probe.rollouts.chat import prompts_with, rollouts_with
from opd_probe.rollouts.encoding import encode_rollouts, warn_of_text
from opd_probe.rollouts.padding import SpecialIds, special_ids_of, without_padding
from opd_probe.rollouts.prompts import read_prompts
from opd_probe.rollouts.reading import read_rollout_set, remarks
from opd_probe.rollouts.selection import check_steps, drawn, of_checkpoint, origin, without_rollouts
from opd_probe.rollouts.sources import source_named
from opd_probe.types import Checkpoint, Prompt, Rollout, StateOrigin


class Files:
    """Rollout and prompt files, each read once."""

    def __init__(self, plans: Sequence[RunPlan]) -> None:
        self.plans = plans
        self._rollouts: dict[Source, list[Rollout]] = {}
        self._steps_are: dict[Source, str] = {}
        self._prompts: dict[str, list[Prompt]] = {}
        self._special: dict[tuple[str | None, ...], SpecialIds] = {}
        self._stripped: dict[tuple[str, str, int | None, SpecialIds], list[Rollout]] = {}
        self._thinking: dict[tuple[str | None, ...], dict[str, bool]] = {}

    def matched(self, plan: RunPlan) -> RunPlan:
        """A run without the checkpoints of whose steps its file has no rollouts, with a warning that names them; one
        whose checkpoints were named one by one as it is.

        Raises:
            OpdProbeError: a file that cannot be used.
        """
        if plan.source.kind == "prompts" or not plan.run.whole:
            return plan
        path, run = plan.source.path, plan.run
        rollouts = self.rollouts(plan.source)
        lacking = without_rollouts(rollouts, run.checkpoints, plan.settings.step_offset, path)
        if not lacking:
            return plan
        steps = ", ".join("unknown" if one.step is None else str(one.step) for one in lacking)
        warn(f"run {run.name}: left out step {steps}, of which {path} has no rollouts")
        kept = tuple(one for one in run.checkpoints if one not in lacking)
        return replace(plan, run=replace(run, checkpoints=kept))

    def check(self) -> None:
        """Read every file of the plan and match steps, so that a mistake shows before any model is loaded.

        Raises:
            OpdProbeError: a file that cannot be used, or a checkpoint without rollouts of its step.
        """
        for plan in self.plans:
            if plan.source.kind == "prompts":
                warn_of_readings(plan, self.prompts(plan))
                continue
            warn_of_readings(plan, self.rollouts(plan.source))
            for checkpoint in plan.run.checkpoints:
                self.replayed(plan, checkpoint)
            steps_are = self._steps_are[plan.source]
            if (
                steps_are
                and not plan.settings.step_offset
                and check_steps(self.rollouts(plan.source), plan.source.path)
            ):
                warn(f"rollouts {plan.source.path}: {steps_are}")

    def prompts(self, plan: RunPlan) -> list[Prompt]:
        """The prompts of a run's file, with the template variables that its options give them."""
        path = plan.source.path
        if path not in self._prompts:
            self._prompts[path] = read_prompts(path)
        prompts, variables = self._prompts[path], self._variables(plan)
        return prompts_with(prompts, variables)

    def _variables(self, plan: RunPlan) -> dict[str, Any]:
        """Template variables by option: those that are named, and the thinking mode under the template's name for it.

        Raises:
            InputError: the student's template knows no thinking mode.
        """
        named, thinking = dict(plan.settings.template_kwargs or {}), plan.settings.thinking
        first = plan.run.checkpoints[0]
        if thinking is None:
            return named
        key = (first.path, first.revision, plan.tokenizer, plan.settings.template, thinking)
        if key not in self._thinking:
            tokenizer = student_tokenizer(tokenizer_of(first, plan.tokenizer), plan.settings)
            self._thinking[key] = thinking_of(tokenizer, first.path, thinking)
        return named | self._thinking[key]

    def rollouts(self, source: Source) -> list[Rollout]:
        """The rollouts of a file."""
        if source not in self._rollouts:
            found = read_rollout_set([source.path], step_pattern=source.step_pattern)
            for line in remarks(found):
                warn(line)
            self._rollouts[source] = found.rollouts
            self._steps_are[source] = source_named(found.kind).steps_are
        return self._rollouts[source]

    def are_stepped(self, source: Source) -> bool:
        """Whether each checkpoint gets the rollouts of its own step from a file, and not all of them."""
        return check_steps(self.rollouts(source), source.path)

    def replayed(self, plan: RunPlan, checkpoint: Checkpoint) -> tuple[list[Rollout], StateOrigin]:
        """The rollouts of a file that belong to a checkpoint, and whose states they are."""
        path, settings = plan.source.path, plan.settings
        everything = self.rollouts(plan.source)
        chosen = of_checkpoint(everything, checkpoint, plan.run.checkpoints, settings.step_offset, path)
        chosen = rollouts_with(chosen, self._variables(plan))
        if any(rollout.token_source == "retokenized" for rollout in chosen):
            own = tokenizer_of(checkpoint, plan.tokenizer)
            chosen = encode_rollouts(chosen, student_tokenizer(own, settings))
            warn_of_text(chosen, f"rollouts {path}")
        else:
            chosen = self._without_padding(plan, path, chosen)
        users = sum(len(other.run.checkpoints) for other in self.plans if other.source == plan.source)
        return (
            drawn(chosen, settings.max_states, settings.seed),
            origin(check_steps(everything, path), users),
        )

    def _without_padding(self, plan: RunPlan, path: str, rollouts: list[Rollout]) -> list[Rollout]:
        """Ids of a step, or of all, without their padding; looked at once for all checkpoints of a run."""
        first = plan.run.checkpoints[0]
        student = (first.path, first.revision, plan.tokenizer)
        if student not in self._special:
            self._special[student] = special_ids_near(first, plan.tokenizer)
        key = (path, plan.run.name, rollouts[0].step, self._special[student])
        if key not in self._stripped:
            self._stripped[key] = without_padding(rollouts, self._special[student], f"rollouts {path}")
        return self._stripped[key]


def matched(plans: Sequence[RunPlan]) -> Files:
    """The files of runs, each run without the checkpoints that its file has no rollouts of (``plans`` has them).

    Raises:
        OpdProbeError: a file that cannot be used.
    """
    files = Files(plans)
    files.plans = [files.matched(plan) for plan in plans]
    return files


def special_ids_near(student: Any, tokenizer: Any) -> SpecialIds:
    """The ids of a student that padding may be taken for.

    Args:
        student: a checkpoint or where it is, or a model.
        tokenizer: in place of the student's own; None: that.
    """
    student = resolve_checkpoint(student) if isinstance(student, (str, Path)) else student
    if isinstance(student, Checkpoint):
        whole = localized(student)
        while whole.format == "peft" and whole.base is not None:  # an adapter is a change of what has the configuration
            whole = localized(resolve_checkpoint(whole.base))
        home = home_of(whole)
        ending = read_generation_config(home, read_config(home))
        return special_ids_of(tokenizer_of(student, tokenizer), eos_ids_of(ending, None))
    own = load_tokenizer(tokenizer, required=True) if tokenizer is not None else getattr(student, "tokenizer", None)
    model = getattr(student, "model", student)
    return special_ids_of(own, eos_ids_of(getattr(model, "generation_config", None), None))


def tokenizer_of(checkpoint: Checkpoint, tokenizer: str | None) -> Any:
    """The tokenizer that loading the checkpoint would give it, or None."""
    if tokenizer is not None:
        return load_tokenizer(tokenizer, required=True)
    return load_tokenizer(tokenizer_place(checkpoint), required=False)
