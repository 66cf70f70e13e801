"""Padding at the ends of prompts and responses, which no model sampled: stripped where it is proved, told where not.

A batch that was dumped as it stood is a rectangle: prompts are padded on the left, responses on the right. Left there,
padding is context that nobody read, and states that nobody visited. It is proved by a mask of attention, by a response
mask over pad tokens, or by its shape: rows of one length, one after another, of which some begin (or end) in the pad
token and one does not, with a pad token that is neither BOS nor EOS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from opd_probe.errors import warn
from opd_probe.types import Prompt, Rollout

MARK = "padding"
"""The key in ``extra`` of what was found: how many pad tokens were ``stripped``, and how many are ``unproved``."""

ENDS_PADDED = "ends_padded"
"""The key in ``extra`` of responses whose writer is known to have padded them on the right, with the pad token or,
where a tokenizer has none, with EOS: all but the EOS that they ended in is then padding."""

PER_TOKEN = ("teacher_logprobs", "trainer_logprobs", "trainer_entropy", "advantages", "opd_reverse_kl")
"""Lists in ``extra`` with an entry per response token, which are cut with it."""

BOTH, PROMPT, RESPONSE = (
    "attention_mask",
    ("prompt_attention_mask", "prompt_mask", "attention_mask"),
    ("response_attention_mask", "completion_attention_mask", "completion_mask"),
)
"""Fields that say which tokens were read: of prompt and response together, of either."""


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The ids that padding may be taken for.

    Attributes:
        pad, bos: None where there is none.
        eos: every id that ends a response.
        name: of the pad token, for messages.
    """

    pad: int | None = None
    bos: int | None = None
    eos: frozenset[int] = frozenset()
    name: str = ""

    @property
    def pad_is_only_pad(self) -> bool:
        """Whether the pad token is neither BOS nor EOS."""
        return self.pad is not None and self.pad != self.bos and self.pad not in self.eos


def special_ids_of(tokenizer: Any, eos_ids: Sequence[int] = ()) -> SpecialIds:
    """Those of a tokenizer, or none without one.

    Args:
        eos_ids: more that end a response, such as those of a generation_config.
    """
    if tokenizer is None:
        return SpecialIds(eos=frozenset(eos_ids))
    own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    return SpecialIds(
        tokenizer.pad_token_id, tokenizer.bos_token_id, frozenset((*own, *eos_ids)), tokenizer.pad_token or ""
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """What goes from the ends of a sequence, and how many pad tokens stay there unproved, or EOS behind the EOS."""

    left: int = 0
    right: int = 0
    unproved: int = 0
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence in its file's order.

    Attributes:
        batch: what rows of one batch have in common besides their length.
        attended: one 0/1 per id, where a mask says which were read.
        left, right: pad tokens at the ends, as far as nothing says that they were sampled.
        masked: those of ``left`` and ``right`` that a response mask leaves out.
        real: those that may be the BOS or the EOS that the sequence should have.
        repeated: EOS behind the EOS of a response, where another token is the pad token: a trainer may pad with EOS.
    """

    ids: Sequence[int]
    batch: Any
    attended: Sequence[int] | None
    left: int = 0
    right: int = 0
    masked: tuple[int, int] = (0, 0)
    real: tuple[int, int] = (0, 0)
    repeated: int = 0


def without_padding(rollouts: Sequence[Rollout], special: SpecialIds, what: str | None = "rollouts") -> list[Rollout]:
    """Rollouts without the padding that is proved; one warning counts it, one more what is not proved.

    Args:
        rollouts: all of a file, or of a step: whether a row is padded shows beside the others. Those that were looked
            at before are left as they are.
        what: they are called in warnings; None: without warnings, for who says it in another way.
    """
    new = [n for n, rollout in enumerate(rollouts) if rollout.prompt_ids and MARK not in rollout.extra]
    rows = [rollouts[n] for n in new]
    prompts = _cuts([_prompt_row(r.prompt_ids, r.step, _attention(r, PROMPT), special) for r in rows], special)
    responses = _cuts([_response_row(r, special) for r in rows], special)
    done = list(rollouts)
    for place, prompt, response in zip(new, prompts, responses, strict=True):
        if prompt != _Cut() or response != _Cut():
            done[place] = _marked(rollouts[place], prompt, response)
    if what is not None:
        _tell(prompts, responses, special, what)
    return done


def prompts_without_padding(prompts: Sequence[Prompt], special: SpecialIds) -> list[Prompt]:
    """Likewise prompts that are given as ids."""
    given = [n for n, prompt in enumerate(prompts) if prompt.ids]
    rows = [_prompt_row(prompts[n].ids or (), None, _first_mask(prompts[n].extra, PROMPT, len(prompts[n].ids or ())),
                        special) for n in given]  # fmt: skip
    cuts = _cuts(rows, special)
    done = list(prompts)
    for place, cut in zip(given, cuts, strict=True):
        done[place] = replace(prompts[place], ids=_within(prompts[place].ids or (), cut))
    _tell(cuts, [_Cut()] * len(cuts), special, "prompts")
    return done


def _prompt_row(ids: Sequence[int], batch: Any, attended: Sequence[int] | None, special: SpecialIds) -> _Row:
    left, right = _runs(ids, special.pad)
    one = 0 if special.pad_is_only_pad else 1
    return _Row(ids, batch, attended, left, 0 if left == len(ids) else right, real=(one, one))


def _response_row(rollout: Rollout, special: SpecialIds) -> _Row:
    ids, mask = rollout.response_ids, rollout.response_mask
    left, right = _runs(ids, special.pad)
    if rollout.logprobs is not None:  # a sampler has log-probabilities of what it sampled, and of nothing else
        sampled = [n for n, value in enumerate(rollout.logprobs) if value < 0.0]
        if sampled:
            left, right = min(left, sampled[0]), min(right, len(ids) - 1 - sampled[-1])
    if rollout.finish_reason == "length":  # the longest of its batch, so that nothing stands behind it
        right = 0
    left = 0 if right == len(ids) else left
    masked = (0, 0) if mask is None else _runs(mask, 0)
    ended = right < len(ids) and int(ids[-right - 1]) in special.eos
    real = (0, 1 if special.pad in special.eos and not ended else 0)
    attended = _attention(rollout, RESPONSE)
    if attended is None and rollout.extra.get(ENDS_PADDED):
        attended = _own(ids, special)
    repeated = 0 if attended is not None else _repeated_eos(rollout, special, masked[1])
    return _Row(ids, rollout.step, attended, left, right, masked, real, repeated)


def _repeated_eos(rollout: Rollout, special: SpecialIds, masked: int) -> int:
    """How often EOS stands behind the EOS of a response, as far as nothing says that it was sampled or left out."""
    ids = rollout.response_ids
    last = int(ids[-1]) if ids else None
    if last is None or last not in special.eos or last == special.pad or rollout.finish_reason == "length":
        return 0
    run = _runs(ids, last)[1]
    if rollout.logprobs is not None:
        sampled = [n for n, value in enumerate(rollout.logprobs) if value < 0.0]
        run = min(run, len(ids) - sampled[-1]) if sampled else run
    return max(0, run - 1 - masked)


def _own(ids: Sequence[int], special: SpecialIds) -> Sequence[int]:
    """A 0/1 for each token of a response whose writer padded it: 0 behind the EOS that it ended in."""
    last = int(ids[-1]) if len(ids) else None
    pad = last if special.pad is None and last in special.eos else special.pad
    right = _runs(ids, pad)[1]
    before = int(ids[-right - 1]) if right < len(ids) else None
    behind = right - (pad in special.eos and before not in special.eos and right > 0)
    return [1] * (len(ids) - behind) + [0] * behind


def _runs(values: Sequence[int], value: int | None) -> tuple[int, int]:
    """How often a value stands at the start, and at the end."""
    if value is None or not len(values) or (values[0] != value and values[-1] != value):
        return 0, 0
    left = next((n for n, one in enumerate(values) if one != value), len(values))
    right = next((n for n, one in enumerate(reversed(values)) if one != value), len(values))
    return left, right


def _attention(rollout: Rollout, names: Sequence[str]) -> Sequence[int] | None:
    """Which tokens of a rollout's prompt, or response, were read, where a field says so."""
    n_prompt, n_response = len(rollout.prompt_ids), len(rollout.response_ids)
    whole = _first_mask(rollout.extra, (BOTH,), n_prompt + n_response)
    if whole is not None:
        return whole[:n_prompt] if names is PROMPT else whole[n_prompt:]
    return _first_mask(rollout.extra, names, n_prompt if names is PROMPT else n_response)


def _first_mask(fields: Mapping[str, Any], names: Sequence[str], length: int) -> Sequence[int] | None:
    """The first field that is a 0/1 for each of ``length`` tokens and not 0 for all."""
    for name in names:
        value: Any = fields.get(name)
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, (list, tuple)) and len(value) == length and 1 in value and all(v in (0, 1) for v in value):
            return [int(v) for v in value]
    return None


def _cuts(rows: Sequence[_Row], special: SpecialIds) -> list[_Cut]:
    lefts, rights = ([row.left for row in rows], [row.right for row in rows])
    proved_left, proved_right = (set(_proved_by_shape(rows, counts, special)) for counts in (lefts, rights))
    # A BOS that template and tokenizer both added is in every row alike: the doctor's line 'double_bos' is about it.
    doubled = special.pad == special.bos and set(lefts) == {2}
    cuts = []
    for n, row in enumerate(rows):
        if row.attended is not None:
            cuts.append(_Cut(*_runs(row.attended, 0)))
            continue
        cut, unproved = [0, 0], 0
        for side, count, proved in ((0, row.left, n in proved_left), (1, row.right, n in proved_right)):
            masked = min(count, row.masked[side]) if special.pad_is_only_pad else 0
            cut[side] = count if proved else masked
            rest = count - cut[side] - (row.masked[1] if side and not special.pad_is_only_pad else 0)
            unproved += max(0, rest - row.real[side])
        cuts.append(_Cut(cut[0], cut[1], 0 if doubled else unproved, row.repeated))
    return cuts


def _proved_by_shape(rows: Sequence[_Row], counts: Sequence[int], special: SpecialIds) -> Iterator[int]:
    """The rows of batches in which some are padded at this end and one is not."""
    if not special.pad_is_only_pad:
        return
    for _, members in groupby(range(len(rows)), key=lambda n: (rows[n].batch, len(rows[n].ids))):
        batch = list(members)
        if any(counts[n] for n in batch) and not all(counts[n] for n in batch):
            yield from batch


def _within(values: Sequence[Any], cut: _Cut) -> tuple[Any, ...]:
    return tuple(values[cut.left : len(values) - cut.right])


def _marked(rollout: Rollout, prompt: _Cut, response: _Cut) -> Rollout:
    n = len(rollout.response_ids)
    stripped = prompt.left + prompt.right + response.left + response.right
    extra = {
        **rollout.extra,
        MARK: {"stripped": stripped, "unproved": prompt.unproved + response.unproved + response.repeated},
    }
    if stripped:
        for name in (*PROMPT, *RESPONSE, ENDS_PADDED):  # they are of the ids that were
            extra.pop(name, None)
    for name in PER_TOKEN:
        if isinstance(values := extra.get(name), (list, tuple)) and len(values) == n:
            extra[name] = list(_within(values, response))

    def cut(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
        return None if values is None else _within(values, response)

    return replace(
        rollout,
        prompt_ids=_within(rollout.prompt_ids, prompt),
        response_ids=_within(rollout.response_ids, response),
        response_mask=cut(rollout.response_mask),
        logprobs=cut(rollout.logprobs),
        extra=extra,
    )


def _tell(prompts: Sequence[_Cut], responses: Sequence[_Cut], special: SpecialIds, what: str) -> None:
    pairs = list(zip(prompts, responses, strict=True))
    stripped = [p.left + p.right + r.left + r.right for p, r in pairs]
    unproved = [p.unproved + r.unproved for p, r in pairs]
    if any(stripped):
        rows = sum(map(bool, stripped))
        warn(f"{what}: {sum(stripped):,} tokens of padding stripped from {rows} of {len(pairs)} rows, whose ids are "
             "a batch's")  # fmt: skip
    if any(unproved):
        rows = sum(map(bool, unproved))
        warn(
            f"{what}: {rows} of {len(pairs)} rows begin or end in the pad token {special.name} ({special.pad}), "
            f"{sum(unproved):,} times, and nothing proves that it is padding, so that it is read as if it had been "
            "sampled; strip it, or give attention_mask beside the ids"
        )
    repeated = [response.repeated for response in responses]
    if any(repeated):
        warn(
            f"{what}: {sum(map(bool, repeated))} of {len(pairs)} responses go on with EOS behind their EOS, "
            f"{sum(repeated):,} times, and nothing proves that it is padding, so that it is read as if it had been "
            "sampled; strip it, or give attention_mask beside the ids"
        )
