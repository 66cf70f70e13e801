"""prime-rl's ``token_exports/step_N/rank_R.jsonl``: ids, mask and log-probs of a whole sequence.

Read in several versions of ``TokenExporter``; every list is aligned with ``token_ids``. What is prompt and what is
response is not written: the response begins with the first token that is the student's, and what precedes it is the
prompt. The loss mask is the union of all losses, and cross-entropy trains on text that the student did not write:
another model's, a tool's. So the student's tokens are those of the loss mask that ``rl`` or ``ref_kl`` is taken over,
as the versions say it: in weight streams (``rl_weights``, ``ref_kl_weights``), in ``losses`` with a mask per channel,
or for a whole row in ``training_mode``. Where ``export_step`` is written it is the run's own step, and ``step`` the
trainer's, which counts for several runs. There is neither reward nor text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.sources.slime import unmasked
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_folder
from opd_probe.types import Rollout

KEPT = ("env_name", "rank", "micro_step", "micro_sequence_idx", "export_sequence_idx")
OWN = ("rl", "ref_kl", "opd")
"""Losses over tokens that the student sampled; ``ce`` may be over any text."""

LISTS = {"trainer_logprobs": "trainer_logprobs", "entropy": "trainer_entropy", "advantages": "advantages"}
"""Lists of the file that are kept of the response, and the names that they get."""


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place = where.place
    tokens = fields.token_ids(place, row, "token_ids")
    mask = fields.mask(place, row, "loss_mask", len(tokens), "token_ids")
    own = _sampled(place, row, mask or (), len(tokens))
    if 1 not in own:
        yield Skipped("without a token of the student's")
        return
    start = own.index(1)

    def of_response(name: str) -> tuple[float, ...] | None:
        values = fields.logprobs(place, row, name, len(tokens), "token_ids")
        return None if values is None else values[start:]

    lists = {new: fields.or_none(of_response(name)) for name, new in LISTS.items() if name in row}
    step = fields.whole_number(place, row, "export_step" if row.get("export_step") is not None else "step")
    yield Rollout(
        id=where.name,
        prompt_ids=tokens[:start],
        response_ids=tokens[start:],
        response_mask=own[start:],
        step=where.step if step is None else step,
        logprobs=unmasked(of_response("inference_logprobs"), own[start:]),
        extra={**fields.scalars(row), **{name: row[name] for name in KEPT if name in row}, **lists},
    )


def _sampled(place: str, row: Mapping[str, Any], mask: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The mask without tokens that no loss over the student's own text is taken of."""
    if row.get("training_mode") not in (None, "rl", "opd"):  # sft: a whole row of another model's
        return (0,) * length
    if row.get("losses") is not None:
        own = _in_channels(place, row, length)
    else:
        rl = fields.logprobs(place, row, "rl_weights", length, "token_ids") or (1.0,) * length
        ref_kl = fields.logprobs(place, row, "ref_kl_weights", length, "token_ids") or (0.0,) * length
        # null stands for a stream's default: of rl it is 1
        own = [a != 0.0 or (b == b and b != 0.0) for a, b in zip(rl, ref_kl, strict=True)]
    return tuple(bit & int(sampled) for bit, sampled in zip(mask, own, strict=True))


def _in_channels(place: str, row: Mapping[str, Any], length: int) -> list[bool]:
    """Which tokens one of the channels of :data:`OWN` is taken over."""
    losses = fields.sequence(place, row, "losses")
    if len(losses) != length:
        raise InputError(f"{place}: losses has {len(losses)} entries for {length} token_ids")
    own = []
    for entry in losses:
        channels = entry if isinstance(entry, Mapping) else None
        held = [] if channels is None else [channels[name] for name in OWN if channels.get(name) is not None]
        if channels is None or not all(isinstance(channel, Mapping) and "mask" in channel for channel in held):
            raise InputError(f"{place}: losses holds {entry!r}; expected an object with advantage and mask per channel")
        own.append(any(bool(channel["mask"]) for channel in held))
    return own


SOURCE = Source(
    "prime-rl",
    "token_ids, loss_mask, inference_logprobs",
    ("token_ids", "loss_mask", "inference_logprobs"),
    _rollouts,
    step_of=step_of_folder,
)
