"""prime-rl's ``token_exports/step_N/rank_R.jsonl``: ids, mask and log-probs of a whole sequence.

Read in ``TokenExporter``; every list is aligned with ``token_ids``. What is prompt and what is response is not written:
the response begins with the first token that is the student's, and what precedes it is the prompt. The student's are
those with loss mask, unless a weight stream says that a token was not sampled by it (both ``rl_weights`` and
``ref_kl_weights`` are 0: text of another model). There is neither reward nor text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.rollouts import fields
from opd_probe.rollouts.sources.slime import unmasked
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_folder
from opd_probe.types import Rollout

KEPT = ("env_name", "rank", "micro_step", "micro_sequence_idx", "export_sequence_idx")
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
    step = fields.whole_number(place, row, "step")
    yield Rollout(
        id=where.name,
        prompt_ids=tokens[:start],
        response_ids=tokens[start:],
        response_mask=own[start:],
        step=where.step if step is None else step,
        logprobs=unmasked(of_response("inference_logprobs"), own[start:]),
        extra={**{name: row[name] for name in KEPT if name in row}, **lists},
    )


def _sampled(place: str, row: Mapping[str, Any], mask: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The mask without tokens that no stream of sampled tokens weighs; null stands for a stream's default."""
    rl = fields.logprobs(place, row, "rl_weights", length, "token_ids") or (1.0,) * length
    ref_kl = fields.logprobs(place, row, "ref_kl_weights", length, "token_ids") or (0.0,) * length
    weighed = (a != 0.0 or (b == b and b != 0.0) for a, b in zip(rl, ref_kl, strict=True))
    return tuple(bit & int(sampled) for bit, sampled in zip(mask, weighed, strict=True))


SOURCE = Source(
    "prime-rl",
    "token_ids, loss_mask, inference_logprobs",
    ("token_ids", "loss_mask", "inference_logprobs"),
    _rollouts,
    step_of=step_of_folder,
)
