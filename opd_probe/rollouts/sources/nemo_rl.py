"""NeMo-RL's ``opd_topk_offline_inputs_step{N}.pt``: the sequences of a step, with which tokens are the student's.

Read in ``nemo_rl/algorithms/opd_diagnostics.py`` (September 2026). Sequences are padded on the right up to one length;
``input_length`` tokens of each are its own. The response begins with the first token that the student sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.sources.source import NEXT_STEP, Skipped, Source, Where
from opd_probe.types import Rollout

KEPT = ("sample_loss_mask", "seq_mult_prob_error", "task_name", "source_dataset_idx", "ng_task_index", "agent_ref")


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place = where.place
    tokens = fields.token_ids(place, row, "input_ids")
    mask = fields.mask(place, row, "token_mask", len(tokens), "input_ids") or ()
    length = fields.whole_number(place, row, "input_length")
    if length is None or not 0 <= length <= len(tokens) or 1 in mask[length:]:
        raise InputError(
            f"{place}: input_length is {length!r}; expected 0 to {len(tokens)}, and no token of the student's behind it"
        )
    if 1 not in mask:
        yield Skipped("without a token of the student's")
        return
    start = mask.index(1)
    step = fields.whole_number(place, row, "step")
    group = fields.whole_number(place, row, "prompt_group_index")
    yield Rollout(
        id=where.name,
        prompt_id=None if group is None else f"{step}/{group}",
        prompt_ids=tokens[:start],
        response_ids=tokens[start:length],
        response_mask=mask[start:length],
        step=where.step if step is None else step,
        score=fields.number(place, row, "reward"),
        extra={**fields.scalars(row), **{name: row[name] for name in KEPT if name in row}},
    )


SOURCE = Source(
    "nemo-rl",
    "input_ids, token_mask, input_length",
    ("input_ids", "token_mask", "input_length"),
    _rollouts,
    steps_are=NEXT_STEP,
)
