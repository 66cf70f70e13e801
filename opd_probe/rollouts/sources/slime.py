"""slime's and miles' ``rollout_data/{rollout_id}.pt``: ids, masks and log-probs of both models.

Read in slime's ``save_debug_rollout_data`` and ``Sample``. ``tokens`` is prompt and response, of which the last
``response_length`` are the response; ``loss_mask`` and the log-probs are of the response alone. Tokens of tools have
mask 0 and the placeholder 0.0 for a log-prob, which is unknown here. Evaluation samples lie in
``eval_{rollout_id}.pt``. In on-policy distillation the file is written before the teacher's answer is unpacked:
``reward`` is then the whole response of the SGLang server, with the teacher's log-probs of all tokens but the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from opd_probe.errors import InputError
from opd_probe.rollouts import fields
from opd_probe.rollouts.prompts import check_messages
from opd_probe.rollouts.sources.source import Skipped, Source, Where, step_of_file
from opd_probe.types import Rollout

FINISH = {"completed": "stop", "truncated": "length"}
UNFINISHED = ("pending", "aborted", "failed")
KEPT = ("index", "group_index", "rollout_id", "metadata", "remove_sample", "weight_versions", "opd_reverse_kl")


def _rollouts(where: Where, row: Mapping[str, Any]) -> Iterator[Rollout | Skipped]:
    place = where.place
    status = fields.text(place, row, "status")
    if status in UNFINISHED:
        yield Skipped(str(status))
        return
    tokens = fields.token_ids(place, row, "tokens")
    length = fields.whole_number(place, row, "response_length")
    if length is None or not 0 <= length <= len(tokens):
        raise InputError(f"{place}: response_length is {length!r}; expected 0 to {len(tokens)}, the number of tokens")
    mask = fields.mask(place, row, "loss_mask", length, "response tokens")
    prompt, reward, label = row.get("prompt"), row.get("reward"), row.get("label")
    answers = fields.reference_answers(label)
    extra = {name: row[name] for name in KEPT if row.get(name) not in (None, False, {}, [])}
    if isinstance(prompt, (list, tuple)):
        check_messages(f"{place}: prompt", prompt)
        extra["messages"] = list(prompt)
    if isinstance(reward, Mapping) and "meta_info" not in reward:
        extra["reward"] = reward
    extra |= fields.several(answers)
    if label is not None and not answers:
        extra["label"] = label
    teacher = _teacher_logprobs(place, row, len(tokens), length)
    if teacher is not None:
        extra["teacher_logprobs"] = fields.or_none(teacher)
    step = fields.whole_number(place, row, "step")
    yield Rollout(
        id=where.name,
        prompt_ids=tokens[: len(tokens) - length],
        response_ids=tokens[len(tokens) - length :],
        response_mask=mask,
        step=where.step if step is None else step,
        prompt=prompt if isinstance(prompt, str) and prompt else None,
        response=fields.text(place, row, "response") or None,
        answer=answers[0] if answers else None,
        score=fields.number(place, reward, "score")
        if isinstance(reward, Mapping)
        else fields.number(place, row, "reward"),
        logprobs=unmasked(fields.logprobs(place, row, "rollout_log_probs", length, "response tokens"), mask),
        finish_reason=FINISH.get(status or ""),
        extra=extra,
    )


def _teacher_logprobs(place: str, row: Mapping[str, Any], n_tokens: int, length: int) -> tuple[float, ...] | None:
    """Of the response: as unpacked, or in the server's response, whose entries begin with the log-prob."""
    reward = row.get("reward")
    info = reward.get("meta_info") if isinstance(reward, Mapping) else None
    if "teacher_log_probs" in row or not isinstance(info, Mapping):
        return fields.logprobs(place, row, "teacher_log_probs", length, "response tokens")
    entries = fields.sequence(place, info, "input_token_logprobs") if "input_token_logprobs" in info else []
    if not all(isinstance(entry, (list, tuple)) and entry for entry in entries):
        raise InputError(f"{place}: input_token_logprobs of the reward: expected lists of log-prob, id and text")
    values = {"input_token_logprobs": [entry[0] for entry in entries]} if entries else {}
    found = fields.logprobs(place, values, "input_token_logprobs", n_tokens, "tokens")
    return found and found[n_tokens - length :]


def unmasked(logprobs: tuple[float, ...] | None, mask: tuple[int, ...] | None) -> tuple[float, ...] | None:
    """Log-probs with NaN in place of what stands at tokens that the student did not sample."""
    if logprobs is None or mask is None:
        return logprobs
    return tuple(value if bit else math.nan for value, bit in zip(logprobs, mask, strict=True))


SOURCE = Source(
    "slime", "samples with tokens, response_length", ("tokens", "response_length"), _rollouts, step_of=step_of_file
)
