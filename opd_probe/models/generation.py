"""Sampling responses from a student: batched, on a key-value cache, every rollout with its own random stream."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.errors import InputError, LogitError, OutOfMemoryError, warn
from opd_probe.models.filling import Filling
from opd_probe.models.lengths import check_rule
from opd_probe.models.loading import LoadedModel
from opd_probe.models.outline import Outline
from opd_probe.models.sampled_states import SampledStates
from opd_probe.models.samplers import sampler_version
from opd_probe.models.served.dialects import Drawn
from opd_probe.models.served.drafts import Drafts
from opd_probe.stats.projection import OutputProjection
from opd_probe.stats.scratch import Scratch
from opd_probe.stats.threads import fitting_threads
from opd_probe.types import LengthRule, Prompt, Rollout

BATCH_TOKENS = 8192
"""Default bound on the tokens that a batch may hold in its cache."""

_BLOCK = 1024

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
    length_factors: LengthRule = "prefix",
    drafts: Path | None = None,
    key: str = "",
    states: SampledStates | None = None,
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
        length_factors: whose length decides the factors of a model that has several (longrope, dynamic scaling):
            ``server``, the longest that it takes; else the prefix's, since no whole is there yet.
        drafts: the file that keeps responses as they end, for a later call with the same ``key``, which draws the
            others alone; None: none. The caller removes it.
        key: all that decides the draws.
        states: takes what the output layer reads at each token that is drawn now, by rollout.

    Returns:
        Rollouts by prompt, then sample: ``id`` is ``<prompt id>/<sample>``; EOS, when sampled, is the last
        response token; ``logprobs`` are those of the distribution that was sampled from.

    Raises:
        InputError: a prompt without ids or too long for the model, or settings that cannot be used.
    """
    check_sampling(student, prompts, num_rollouts, max_new_tokens, temperature)
    check_rule(length_factors)
    if not student.paths.decided:
        warn(
            f"model {student.name}: what it says of a prefix may change when the prefix goes on (it attends to the "
            "best few of what it has read and has equal scores among them, or rounds to 8 bits by what else goes "
            "through); each token is sampled from its whole prefix alone, and a replay, which reads whole rollouts, "
            "may give other log-probabilities"
        )
    kept = Drafts(drafts, key)
    wanted = [
        _Draft(index, sample, _uniforms(seed, prompt.id, sample, max_new_tokens))
        for index, prompt in enumerate(prompts)
        for sample in range(num_rollouts)
    ]
    sampler = _Sampler(student, prompts, allowed_ids, max_new_tokens, temperature, length_factors, states)
    done = 0

    def finished(ended: Sequence[_Draft]) -> None:
        nonlocal done
        done += len(ended)
        for one in ended:
            reason = "stop" if one.stopped else "length"
            kept.keep(_rollout_id(prompts[one.prompt], one.sample), Drawn(one.ids, one.logprobs, reason))
        if progress is not None:
            progress(done, len(wanted))

    finished(_take_kept(wanted, kept, prompts))
    todo = [draft for draft in wanted if not draft.ids]
    try:
        with fitting_threads(student.output_layer.weight):
            if todo:
                sampler.fill(todo, finished, batch_tokens)
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemoryError("out of memory while sampling; lower --batch-tokens or --max-new-tokens") from None
    made_by = sampler_version("transformers")
    return [
        make_rollout(
            student, prompts[d.prompt], d.sample, d.ids, d.logprobs, sampler=made_by, temperature=temperature, step=step
        )
        for d in wanted
    ]


def _take_kept(wanted: Sequence[_Draft], kept: Drafts, prompts: Sequence[Prompt]) -> list[_Draft]:
    """Fill what is known already; those that are filled."""
    filled = []
    for draft in wanted:
        known = kept.known.get(_rollout_id(prompts[draft.prompt], draft.sample))
        if known is not None:
            draft.ids, draft.logprobs, draft.stopped = known.ids, known.logprobs, known.reason == "stop"
            filled.append(draft)
    return filled


def _rollout_id(prompt: Prompt, sample: int) -> str:
    return f"{prompt.id}/{sample}"


def check_sampling(
    student: LoadedModel | Outline,
    prompts: Sequence[Prompt],
    num_rollouts: int,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Refuse what no sampler can do, before anything is sampled.

    Raises:
        InputError: as :func:`sample_rollouts`.
    """
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
        outside = [token for token in prompt.ids if not 0 <= token < student.readable]
        if outside:
            raise InputError(
                f"prompt {prompt.id!r}: token id {outside[0]} is outside the vocabulary of {student.name} "
                f"({student.readable} ids)"
            )
        foreign = [token for token in prompt.ids if token in student.placeholder_ids]
        if foreign:
            raise InputError(
                f"prompt {prompt.id!r}: token id {foreign[0]} stands for a piece of an image, a video or a sound to "
                f"{student.name}, and no prompt has those; expected ids of text alone; drop the prompt"
            )
        if limit is not None and len(prompt.ids) + max_new_tokens > limit:
            raise InputError(
                f"prompt {prompt.id!r}: {len(prompt.ids)} tokens and {max_new_tokens} new ones need more than the "
                f"{limit} positions of {student.name}; lower --max-new-tokens"
            )


def _uniforms(seed: int, prompt_id: str, sample: int, count: int) -> NDArray[np.float64]:
    """The random stream of one rollout: a counter-based generator keyed by what the rollout is."""
    key = int.from_bytes(stream_digest(seed, prompt_id, sample)[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def stream_digest(seed: int, prompt_id: str, sample: int) -> bytes:
    """What the randomness of one rollout derives from, whoever samples it: 32 bytes."""
    return hashlib.sha256(f"{seed}\x00{prompt_id}\x00{sample}".encode()).digest()


class _Sampler:
    """Draws tokens from the allowed ids."""

    def __init__(
        self,
        student: LoadedModel,
        prompts: Sequence[Prompt],
        allowed_ids: NDArray[np.int64] | None,
        max_new_tokens: int,
        temperature: float,
        rule: LengthRule,
        states: SampledStates | None,
    ) -> None:
        self.student, self.prompts, self.rule, self.states = student, prompts, rule, states
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        ids = np.arange(student.readable) if allowed_ids is None else np.asarray(allowed_ids, dtype=np.int64)
        ids = np.setdiff1d(ids, student.placeholder_ids)
        layer = student.output_layer
        self.allowed = torch.from_numpy(ids).to(layer.weight.device)
        self.projection = OutputProjection(layer.weight, layer.bias, self.allowed, layer.scale, layer.softcap)
        self.scratch = Scratch()

    def fill(self, todo: list[_Draft], finished: Callable[[Sequence[_Draft]], None], bound: int) -> None:
        """Fill drafts, as :class:`opd_probe.models.filling.Filling`."""
        args = self.student, self.prompts, self.rule, bound, self.max_new_tokens, self._draw
        filling: Filling[_Draft] = Filling(*args)
        filling.run(todo, finished)

    def _draw(self, batch: Sequence[_Draft], hidden: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their float64 log-probabilities [B] at hidden states [B, d]."""
        logits, _ = self.projection.logits(hidden, self.scratch, "logits")
        top = logits.amax(-1, keepdim=True)
        if not bool(torch.isfinite(top).all()):
            draft = batch[int(torch.nonzero(~torch.isfinite(top[:, 0]))[0, 0])]
            raise LogitError(
                f"prompt {self.prompts[draft.prompt].id!r}, sample {draft.sample}, position {len(draft.ids)}: "
                f"{self.student.name} gives logits that are not finite; check the checkpoint's weights"
            )
        if self.states is not None:
            self.states.add([_rollout_id(self.prompts[draft.prompt], draft.sample) for draft in batch], hidden)
        scaled = logits.sub_(top).div_(self.temperature)
        places, log_partition = invert_cdf(scaled.exp(), uniforms)
        logprobs = scaled.gather(1, places[:, None])[:, 0].double() - log_partition
        return self.allowed[places], logprobs


def invert_cdf(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative weight exceeds uniform · total, and log total.

    Cumulative sums are float64: in float32 they would starve the tail of a large vocabulary. They are taken over
    blocks first and then inside one block, so that no float64 row of the vocabulary is made. An index of weight 0
    is never drawn.

    Args:
        weights: [B, V], not negative, with a positive sum.
        uniforms: float64 [B] in [0, 1).
    """
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64)
    cumulative = sums.cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may carry a target up to the sum, beyond the last index that has weight.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(cumulative, target, right=True)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    rest = target - (cumulative - sums).gather(1, block)
    last = inside[:, -1:]
    rest = torch.minimum(rest, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(inside, rest, right=True)
    return (block * _BLOCK + index)[:, 0], total[:, 0].log()


def make_rollout(
    student: LoadedModel | Outline,
    prompt: Prompt,
    sample: int,
    ids: Sequence[int],
    logprobs: Sequence[float],
    *,
    sampler: str,
    temperature: float,
    step: int | None,
) -> Rollout:
    """The rollout of sampled ids, EOS included when it was sampled."""
    text = None
    if student.tokenizer is not None:
        text = str(student.tokenizer.decode(list(ids), skip_special_tokens=True))
    return Rollout(
        id=_rollout_id(prompt, sample),
        prompt_ids=tuple(prompt.ids or ()),
        response_ids=tuple(ids),
        prompt_id=prompt.id,
        step=step,
        prompt=prompt.text,
        response=text,
        answer=prompt.answer,
        logprobs=tuple(logprobs),
        finish_reason="stop" if ids[-1] in student.eos_ids else "length",
        sampler=sampler,
        sampling={"temperature": float(temperature)},
        extra=prompt.carried,
    )
