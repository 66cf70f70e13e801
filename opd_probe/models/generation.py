"""Sampling responses from a student: batched, on a key-value cache, every rollout with its own random stream."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from opd_probe.errors import InputError, OutOfMemoryError
from opd_probe.models.loading import LoadedModel
from opd_probe.types import Prompt, Rollout

BATCH_TOKENS = 8192
"""Default bound on the tokens that a batch may hold in its cache."""

Progress = Callable[[int, int], None]
"""Called with (rollouts done, rollouts in all)."""


@dataclass
class _Draft:
    """A response in the making."""

    prompt: int
    sample: int
    uniforms: NDArray[np.float64]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


def sample_rollouts(
    student: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    allowed_ids: NDArray[np.int64] | None = None,
    num_rollouts: int = 4,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    step: int | None = None,
    progress: Progress | None = None,
) -> list[Rollout]:
    """Sample responses, whatever the checkpoint's generation_config says: no top-k, no top-p, no penalties.

    Each token is drawn by inverting the cumulative distribution at a uniform number from a stream that derives
    from (seed, prompt id, sample): the draw does not depend on what else is in the batch, beyond the rounding of
    the model's matrix products.

    Args:
        prompts: with ``ids``.
        allowed_ids: ids that may be sampled, the distribution renormalised on them; None: all.
        num_rollouts: responses per prompt.
        max_new_tokens: a response that reaches it without EOS finishes with ``length``.
        temperature: samples from softmax(logits / temperature).
        batch_tokens: bound on prompt and response tokens in a batch; does not change the draws.
        step: recorded in every rollout.

    Returns:
        Rollouts by prompt, then sample: ``id`` is ``<prompt id>/<sample>``; EOS, when sampled, is the last
        response token; ``logprobs`` are those of the distribution that was sampled from.

    Raises:
        InputError: a prompt without ids or too long for the model, or settings that cannot be used.
    """
    _check(student, prompts, num_rollouts, max_new_tokens, temperature)
    drafts = [
        _Draft(index, sample, _uniforms(seed, prompt.id, sample, max_new_tokens))
        for index, prompt in enumerate(prompts)
        for sample in range(num_rollouts)
    ]
    lengths = [len(prompt.ids or ()) for prompt in prompts]
    blocked = _blocked(student, allowed_ids)
    done = 0
    if progress is not None:
        progress(0, len(drafts))
    for batch in _batches(drafts, lengths, max_new_tokens, batch_tokens):
        try:
            _run_batch(student, prompts, batch, blocked, max_new_tokens, temperature)
        except (torch.OutOfMemoryError, MemoryError):
            raise OutOfMemoryError("out of memory while sampling; lower --batch-tokens or --max-new-tokens") from None
        done += len(batch)
        if progress is not None:
            progress(done, len(drafts))
    return [_rollout(student, prompts[draft.prompt], draft, step) for draft in drafts]


def _check(
    student: LoadedModel, prompts: Sequence[Prompt], num_rollouts: int, max_new_tokens: int, temperature: float
) -> None:
    for name, value in (("num_rollouts", num_rollouts), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} = {value}: expected at least 1")
    if not 0 < temperature < math.inf:
        raise InputError(f"sample temperature = {temperature!r}: expected a positive finite number")
    if not prompts:
        raise InputError("prompts: empty; expected at least one")
    limit = student.max_positions
    for prompt in prompts:
        if not prompt.ids:
            raise InputError(f"prompt {prompt.id!r}: has no token ids")
        if max(prompt.ids) >= student.width:
            raise InputError(
                f"prompt {prompt.id!r}: token id {max(prompt.ids)} is outside the vocabulary of {student.name} "
                f"({student.width} ids)"
            )
        if limit is not None and len(prompt.ids) + max_new_tokens > limit:
            raise InputError(
                f"prompt {prompt.id!r}: {len(prompt.ids)} tokens and {max_new_tokens} new ones need more than the "
                f"{limit} positions of {student.name}; lower --max-new-tokens"
            )


def _uniforms(seed: int, prompt_id: str, sample: int, count: int) -> NDArray[np.float64]:
    """The random stream of one rollout: a counter-based generator keyed by what the rollout is."""
    digest = hashlib.sha256(f"{seed}\x00{prompt_id}\x00{sample}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def _blocked(student: LoadedModel, allowed_ids: NDArray[np.int64] | None) -> Tensor | None:
    if allowed_ids is None or len(allowed_ids) == student.width:
        return None
    blocked = torch.ones(student.width, dtype=torch.bool)
    blocked[torch.from_numpy(np.asarray(allowed_ids))] = False
    return blocked.to(student.device)


def _batches(
    drafts: Sequence[_Draft], lengths: Sequence[int], max_new_tokens: int, batch_tokens: int
) -> Iterator[list[_Draft]]:
    """Drafts with prompts of one length together: then nothing is padded and no mask is needed."""
    order = sorted(drafts, key=lambda draft: -lengths[draft.prompt])
    batch: list[_Draft] = []
    for draft in order:
        length = lengths[draft.prompt]
        if batch and (
            length != lengths[batch[0].prompt] or (len(batch) + 1) * (length + max_new_tokens) > batch_tokens
        ):
            yield batch
            batch = []
        batch.append(draft)
    if batch:
        yield batch


@torch.inference_mode()
def _run_batch(
    student: LoadedModel,
    prompts: Sequence[Prompt],
    batch: list[_Draft],
    blocked: Tensor | None,
    max_new_tokens: int,
    temperature: float,
) -> None:
    members = sorted({draft.prompt for draft in batch})
    cache, hidden = _prefill(student, [prompts[index].ids or () for index in members])
    rows = torch.tensor([members.index(draft.prompt) for draft in batch], device=student.device)
    cache.batch_select_indices(rows)
    hidden = hidden[rows]
    live = batch
    eos = set(student.eos_ids)
    uniforms = torch.from_numpy(np.stack([draft.uniforms for draft in batch])).to(student.device)
    for t in range(max_new_tokens):
        tokens, logprobs = _draw(student, hidden, uniforms[:, t], blocked, temperature)
        for draft, token, logprob in zip(live, tokens.tolist(), logprobs.tolist(), strict=True):
            draft.ids.append(token)
            draft.logprobs.append(logprob)
            draft.stopped = token in eos
        if t + 1 == max_new_tokens:
            return
        keep = [index for index, draft in enumerate(live) if not draft.stopped]
        if not keep:
            return
        if len(keep) < len(live):
            kept = torch.tensor(keep, device=student.device)
            cache.batch_select_indices(kept)
            tokens, uniforms = tokens[kept], uniforms[kept]
            live = [live[index] for index in keep]
        hidden = student.advance(tokens[:, None], cache)[:, -1]


def _prefill(student: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor]:
    """The cache after prompts of one length, and the hidden states at their last tokens [P, d]."""
    cache = DynamicCache()
    ids = torch.tensor([list(prompt) for prompt in prompts], device=student.device)
    return cache, student.advance(ids, cache)[:, -1]


def _draw(
    student: LoadedModel, hidden: Tensor, uniforms: Tensor, blocked: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [B] at hidden states [B, d]."""
    logits = student.output_layer.logits(hidden) / temperature
    if blocked is not None:
        logits = logits.masked_fill(blocked, -torch.inf)
    # float64: a cumulative sum over a large vocabulary in float32 would starve the tail.
    probabilities = torch.softmax(logits.double(), dim=-1)
    cumulative = probabilities.cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    # A uniform next to 1 may round beyond the last id that has probability.
    last = logits.shape[-1] - 1 - (probabilities > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    tokens = torch.minimum(drawn, last)
    return tokens[:, 0], probabilities.gather(1, tokens).log()[:, 0]


def _rollout(student: LoadedModel, prompt: Prompt, draft: _Draft, step: int | None) -> Rollout:
    text = None
    if student.tokenizer is not None:
        text = student.tokenizer.decode(draft.ids, skip_special_tokens=True)
    return Rollout(
        id=f"{prompt.id}/{draft.sample}",
        prompt_ids=tuple(prompt.ids or ()),
        response_ids=tuple(draft.ids),
        prompt_id=prompt.id,
        step=step,
        prompt=prompt.text,
        response=text,
        answer=prompt.answer,
        logprobs=tuple(draft.logprobs),
        finish_reason="stop" if draft.stopped else "length",
    )
