"""Where the student's hidden states of its own responses come from: sampling, which has read them, or the replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir

import torch

from opd_probe.engine.provenance import reduced_matmul_precision
from opd_probe.engine.sampled import SampledModel
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import SHARE
from opd_probe.errors import warn
from opd_probe.jobs.memory import memory_advice
from opd_probe.models.bodies import rounding_of
from opd_probe.models.loading import LoadedModel
from opd_probe.models.outline import Outline
from opd_probe.models.sampled_states import SampledStates
from opd_probe.options.settings import Settings
from opd_probe.stats.rounding import rerun_tolerance
from opd_probe.types import LengthRule, Rollout

SHARE_BEYOND = 0.01
"""The share of states checked that may lie further apart than rounding explains; none by more than ten times that."""

FAR = 10.0


def are_exact(student: LoadedModel) -> bool:
    """Whether what a student says token by token is what it says of a whole rollout but for the last roundings: in
    float32 and float64, whose sampling goes through paths that were tried to be exact; in narrower types the same
    path rounds otherwise."""
    return student.paths.decided and rounding_of(student.model) <= torch.finfo(torch.float32).eps


def states_to_keep(student: LoadedModel | Outline, settings: Settings, place: Path | None) -> SampledStates | None:
    """What takes the hidden states while a student is sampled from; None where the replay is to run it.

    Args:
        place: the directory whose disk takes them.
    """
    if settings.student_states == "replayed" or not isinstance(student, LoadedModel):
        return None
    if not _same_factors(student, settings.length_factors):
        return None
    if settings.student_states is None and not are_exact(student):
        return None
    return SampledStates(place, int(SHARE * disk_usage(place or gettempdir()).free))


def _same_factors(student: LoadedModel, rule: LengthRule) -> bool:
    """Whether sampling decides a model's factors by the length that the replay does: no whole is there yet."""
    return student.length_factors is None or rule != "whole"


def sampled_model(
    student: LoadedModel,
    rollouts: Sequence[Rollout],
    states: SampledStates | None,
    settings: ReplaySettings,
    place: Path | None,
) -> SampledModel | None:
    """The student with its states from sampling, once a hundredth of the rollouts was replayed and agrees; None where
    none is known, or where they do not agree, which is warned of."""
    if states is None:
        return None
    model = SampledModel(student, rollouts, states, place, settings.length_factors)
    reduced = reduced_matmul_precision() is not None
    tolerance = rerun_tolerance([str(student.identity["dtype"])], reduced=reduced)
    with memory_advice("replaying"):
        found = model.check(settings.batch_tokens, tolerance)
    if found is None:
        return None
    if found.beyond <= SHARE_BEYOND and found.largest <= FAR * tolerance:
        return model
    warn(
        f"student {student.name}: log-probabilities of drawn tokens in sampling and in a replay differ by up to "
        f"{found.largest:.2g} nats ({found.beyond:.1%} of {found.states:,} states by more than the {tolerance:g} that "
        "rounding explains); its hidden states from sampling are not used, and all rollouts are replayed"
    )
    return None
