"""Which of a file's rollouts belong to a checkpoint, and a seeded sample of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from opd_probe.errors import InputError
from opd_probe.types import Checkpoint, Rollout, StateOrigin


def check_steps(rollouts: Sequence[Rollout], path: str) -> bool:
    """Whether the rollouts of a file carry steps.

    Raises:
        InputError: some do and some do not.
    """
    without = [rollout for rollout in rollouts if rollout.step is None]
    if without and len(without) < len(rollouts):
        raise InputError(
            f"rollouts {path}: rollout {without[0].id!r} has no step while others have one; give all of "
            "them a step or none"
        )
    return not without


def of_checkpoint(
    rollouts: Sequence[Rollout],
    checkpoint: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    offset: int,
    path: str,
) -> list[Rollout]:
    """The rollouts of one checkpoint: those of its step plus ``offset``, or all when they carry no step.

    Args:
        checkpoints: all of the run, for the message.

    Raises:
        InputError: the rollouts carry steps and none is of this checkpoint's; shows both lists.
    """
    if not check_steps(rollouts, path):
        return list(rollouts)
    wanted = None if checkpoint.step is None else checkpoint.step + offset
    chosen = [rollout for rollout in rollouts if rollout.step == wanted]
    if not chosen:
        have = _steps(c.step for c in checkpoints)
        steps = {rollout.step for rollout in rollouts}
        shift = f" with --step-offset {offset}" if offset else ""
        fitting = " 1" if wanted is not None and not offset and wanted + 1 in steps else ""
        raise InputError(
            f"rollouts {path}: none for step {_name(checkpoint.step)} of run {checkpoint.run}{shift}; the "
            f"checkpoints are of steps {have}, the rollouts of steps {_steps(steps)}; shift them with --step-offset"
            f"{fitting} or leave checkpoints out"
        )
    return chosen


def without_rollouts(
    rollouts: Sequence[Rollout], checkpoints: Sequence[Checkpoint], offset: int, path: str
) -> list[Checkpoint]:
    """The checkpoints of whose steps a file has no rollouts while it has of others; none where it has of none.

    Raises:
        InputError: some rollouts carry a step and some do not.
    """
    if not check_steps(rollouts, path):
        return []
    steps = {rollout.step for rollout in rollouts}
    lacking = [one for one in checkpoints if one.step is None or one.step + offset not in steps]
    return lacking if len(lacking) < len(checkpoints) else []


def origin(stepped: bool, n_checkpoints: int) -> StateOrigin:
    """Whose states rollouts from a file are.

    Args:
        stepped: whether each checkpoint got the rollouts of its own step.
        n_checkpoints: how many checkpoints, over all runs, the file's rollouts are used for.
    """
    if stepped:
        return "own"
    return "fixed" if n_checkpoints > 1 else "unknown"


def count_states(rollout: Rollout) -> int:
    """The number of response tokens that the student generated."""
    if rollout.response_mask is not None:
        return sum(1 for bit in rollout.response_mask if bit)
    return len(rollout.response_ids)


def drawn(rollouts: Sequence[Rollout], max_states: int | None, seed: int) -> list[Rollout]:
    """A seeded sample of whole rollouts with ``max_states`` states and the rest of its last rollout, in file order.

    Each rollout is drawn first and counted after, until the count is reached: whether one is taken never hangs on its
    own length, so that the sums over the sample are in the ratio of those over the file (Wald's identity). A rule that
    leaves out the rollout that would exceed the limit leaves out long ones.
    """
    if max_states is None:
        return list(rollouts)
    chosen: list[int] = []
    total = 0
    for index in np.random.default_rng(seed).permutation(len(rollouts)):
        if total >= max_states:
            break
        chosen.append(int(index))
        total += count_states(rollouts[index])
    return [rollouts[index] for index in sorted(chosen)]


def _steps(values: Iterable[int | None]) -> str:
    steps = set(values)
    known = sorted(step for step in steps if step is not None)
    return ", ".join([*map(str, known), *(["unknown"] if None in steps else [])])


def _name(step: int | None) -> str:
    return "unknown" if step is None else str(step)
