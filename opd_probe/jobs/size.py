"""How much a command asks for in all, which decides once how its work is done."""

from __future__ import annotations

from collections.abc import Sequence

from opd_probe.jobs.files import Files
from opd_probe.jobs.plan import RunPlan
from opd_probe.models.served.model import ServedModel
from opd_probe.rollouts.selection import count_states
from opd_probe.types import Rollout


def states_asked(runs: Sequence[RunPlan], files: Files) -> int:
    """The states of all traces that runs come to, whether they are stored or not: of rollouts as many as there are, of
    prompts as many as may be sampled, so that the same command asks for the same each time."""
    total = 0
    for run in runs:
        teachers = sum(not isinstance(teacher.checkpoint, ServedModel) for teacher in run.teachers)
        for checkpoint in run.run.checkpoints:
            if run.source.kind == "prompts":
                states = _at_most(run, len(files.prompts(run)))
            else:
                states = states_of(files.replayed(run, checkpoint)[0])
            total += teachers * states
    return total


def states_of(rollouts: Sequence[Rollout]) -> int:
    """The states of rollouts."""
    return sum(map(count_states, rollouts))


def _at_most(run: RunPlan, prompts: int) -> int:
    settings = run.settings
    longest = prompts * settings.num_rollouts * settings.max_new_tokens
    return longest if settings.max_states is None else min(longest, settings.max_states + settings.max_new_tokens - 1)
