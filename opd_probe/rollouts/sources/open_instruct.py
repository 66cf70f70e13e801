"""open-instruct's ``{run}_rollouts_{000000}.jsonl``: ids, log-probs and rewards.

Read in ``RolloutRecord`` and ``process_tool_tokens``. The mask of tool tokens is not written; their log-probs are 0.0
exactly, so where a tool was called, tokens with that log-prob are no states (a token that the student was certain of to
the last digit goes with them). ``NaN`` stands for the log-prob of an EOS that was added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.rollouts import fields
from opd_probe.rollouts.sources.slime import unmasked
from opd_probe.rollouts.sources.source import Skipped, Source, Where
from opd_probe.types import Rollout

USED = ("prompt_tokens", "response_tokens", "reward", "logprobs", "finish_reason", "step")


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place = where.place
    response = fields.token_ids(place, row, "response_tokens")
    logprobs = fields.logprobs(place, row, "logprobs", len(response), "response_tokens")
    request = row.get("request_info")
    mask = None
    if isinstance(request, Mapping) and request.get("tool_calleds"):
        if logprobs is None:
            yield Skipped("with tool calls but no log-probs to tell the tools' tokens by")
            return
        mask = tuple(int(value != 0.0) for value in logprobs)
    answers = fields.reference_answers(row.get("ground_truth"))
    yield Rollout(
        id=where.name,
        prompt_ids=fields.token_ids(place, row, "prompt_tokens"),
        response_ids=response,
        response_mask=mask,
        step=fields.whole_number(place, row, "step"),
        answer=answers[0] if answers else None,
        score=fields.number(place, row, "reward"),
        logprobs=unmasked(logprobs, mask),
        finish_reason=fields.text(place, row, "finish_reason"),
        extra={**fields.others(row, (*USED, *(["ground_truth"] if answers else []))), **fields.several(answers)},
    )


SOURCE = Source("open-instruct", "prompt_tokens, response_tokens", ("prompt_tokens", "response_tokens"), _rollouts)
