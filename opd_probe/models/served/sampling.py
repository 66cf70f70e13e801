"""Sampling responses from a server: token ids in and out, by the rules of our own sampler."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import InputError, ServerError
from opd_probe.models.samplers import COOLEST
from opd_probe.models.served.agreement import FirstAnswers, draw_once
from opd_probe.models.served.client import Client, Patience
from opd_probe.models.served.dialects import Draw, Drawn
from opd_probe.models.served.drafts import Drafts
from opd_probe.models.served.endpoint import Endpoint
from opd_probe.models.served.model import ServedModel, connect, list_models
from opd_probe.models.served.workers import few_at_a_time
from opd_probe.texts import real_path
from opd_probe.types import Checkpoint, Prompt, Rollout

if TYPE_CHECKING:
    from opd_probe.models.outline import Outline

LONGEST_LIST = 1024
"""vLLM takes no more ids in one list of a request."""

STEP = "{step}"
"""In the model's name behind ``#``: the step of the checkpoint, for a server that has one model for each."""

AT_ONCE = 16
"""Responses that are sampled at a time: a server batches them, and each takes little of its memory."""


def served_checkpoint(
    endpoint: Endpoint, checkpoint: Checkpoint, *, alone: bool, patience: Patience | None = None
) -> ServedModel:
    """The model of a server that is a checkpoint: the one that was loaded from it, or that the user names.

    Args:
        alone: whether it is the only checkpoint that is sampled from. A name without :data:`STEP` is right for one.

    Raises:
        ServerError: as :func:`opd_probe.models.served.model.connect`.
        InputError: nothing says which model of the server it is, or several checkpoints would be the same one.
    """
    named = endpoint.model
    if named is not None and STEP not in named and not alone:
        raise InputError(
            f"sampler {endpoint}: one model for several checkpoints; give each its own, as in "
            f"{endpoint.url}#{named}-{STEP}, or sample from one checkpoint at a time"
        )
    if named is not None and STEP in named and checkpoint.step is None:
        raise InputError(f"sampler {endpoint}: the step of {checkpoint.path} is unknown, which the name asks for")
    name = None if named is None else named.replace(STEP, str(checkpoint.step))
    if name is None:
        entries = list_models(endpoint, patience)
        name = next((str(entry["id"]) for entry in entries if _is(entry, checkpoint)), None)
        if name is None:
            names = ", ".join(str(entry["id"]) for entry in entries)
            raise InputError(
                f"sampler {endpoint}: none of its models ({names}) says that it was loaded from {checkpoint.path}; "
                f"name the one that is it, {endpoint.url}#NAME, or #NAME-{STEP} for several checkpoints"
            )
    return connect(dataclasses.replace(endpoint, model=name), patience=patience)


def _is(entry: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether a server says that it loaded a model from a checkpoint."""
    stated = {str(entry.get(key)) for key in ("root", "id") if entry.get(key)}
    place = Path(checkpoint.path)
    if not place.exists():
        return checkpoint.path in stated
    return any(Path(name).is_absolute() and real_path(name) == real_path(place) for name in stated)


def sample_from_server(
    student: Outline,
    served: ServedModel,
    prompts: Sequence[Prompt],
    *,
    allowed_ids: NDArray[np.int64] | None = None,
    num_rollouts: int = 4,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    step: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    drafts: Path | None = None,
) -> list[Rollout]:
    """Sample as :func:`opd_probe.models.generation.sample_rollouts` does, from a server that has the student.

    Each rollout has a seed of its own, from (seed, prompt id, sample), of which the server makes what its version and
    its batches do. ``logprobs`` are the server's own; a server may report them before or after the temperature, which
    is the same at 1, and at any other they are left out as unknown.

    Args:
        student: the outline of the checkpoint.
        served: the model that is the checkpoint.
        drafts: the file that keeps responses as they come, for a later call that asks for the same; None: none. The
            caller removes it.

    Raises:
        ServerError: no usable answer, or an id outside ``allowed_ids``.
        InputError: as ``sample_rollouts``; or what the server cannot be asked for.
    """
    from opd_probe.models.generation import check_sampling, make_rollout
    from opd_probe.models.vllm_sampling import rollout_seed

    check_sampling(student, prompts, num_rollouts, max_new_tokens, temperature)
    _check(served, prompts, max_new_tokens, temperature)
    allowed, banned = _restriction(served, allowed_ids, student.width)
    requests = []
    for prompt in prompts:
        for sample in range(num_rollouts):
            own = rollout_seed(seed, prompt.id, sample)
            how = Draw(max_new_tokens, temperature, own, student.eos_ids, allowed, banned)
            requests.append(_Request(prompt, sample, how))
    kept = Drafts(drafts, _digest(served, requests))
    rollouts: dict[str, Rollout] = {}

    def take(request: _Request, drawn: Drawn) -> None:
        prompt, sample, made_by = request.prompt, request.sample, served.made_by
        rollout = make_rollout(
            student, prompt, sample, drawn.ids, drawn.logprobs, sampler=made_by, temperature=temperature, step=step
        )
        _check_drawn(served, rollout, drawn, allowed_ids, max_new_tokens)
        kept.keep(rollout.id, drawn)
        told = temperature == 1.0 and all(map(math.isfinite, drawn.logprobs))
        rollouts[rollout.id] = rollout if told else dataclasses.replace(rollout, logprobs=None)
        if progress is not None:
            progress(len(rollouts), len(requests))

    for request in requests:
        if request.id in kept.known:
            take(request, kept.known[request.id])
    lacking = [request for request in requests if request.id not in kept.known]
    seen = FirstAnswers(served, student.width)
    for request, drawn in _drawn(served, lacking):
        seen.check(request.id, request.prompt.ids or (), request.how, drawn)
        take(request, drawn)
    seen.remark()
    return [rollouts[request.id] for request in requests]


@dataclass(frozen=True, slots=True)
class _Request:
    """One response that is wanted."""

    prompt: Prompt
    sample: int
    how: Draw

    @property
    def id(self) -> str:
        """Of its rollout."""
        return f"{self.prompt.id}/{self.sample}"

    def body(self, served: ServedModel) -> dict[str, Any]:
        """What the server is sent."""
        return served.dialect.draw_request(served.entry, list(self.prompt.ids or ()), self.how)


def _digest(served: ServedModel, requests: Sequence[_Request]) -> str:
    """sha256 over all that decides the draws."""
    digest = hashlib.sha256(f"{served.digest} {served.made_by}".encode())
    for request in requests:
        digest.update(json.dumps([request.id, request.body(served)], sort_keys=True).encode())
    return digest.hexdigest()


def _drawn(served: ServedModel, requests: Sequence[_Request]) -> Iterator[tuple[_Request, Drawn]]:
    """What the server draws, as it comes."""
    with Client(served.endpoint, served.patience) as client:

        def ask(request: _Request) -> Drawn:
            try:
                return draw_once(served, client, request.prompt.ids or (), request.how)
            except ServerError as error:
                raise ServerError(f"rollout {request.id!r}: {error}") from None

        for index, drawn in few_at_a_time(ask, requests, AT_ONCE, client.give_up):
            yield requests[index], drawn


def _check(served: ServedModel, prompts: Sequence[Prompt], max_new_tokens: int, temperature: float) -> None:
    if temperature < COOLEST:
        raise InputError(f"sampler {served.name}: sample temperature = {temperature!r}; expected at least {COOLEST}")
    limit = served.context
    longest = max(len(prompt.ids or ()) for prompt in prompts)
    if limit is not None and longest + max_new_tokens > limit:
        raise InputError(
            f"sampler {served.name}: prompts of up to {longest} tokens and {max_new_tokens} new ones need more than "
            f"its context of {limit}; lower --max-new-tokens"
        )


def _restriction(
    served: ServedModel, allowed_ids: NDArray[np.int64] | None, width: int
) -> tuple[list[int] | None, list[int]]:
    """The ids that a request names as allowed (None: all), and those that it names as banned."""
    if allowed_ids is None or len(allowed_ids) == width:
        return None, []
    others = np.setdiff1d(np.arange(width), allowed_ids)
    if len(others) <= LONGEST_LIST:
        return None, others.tolist()
    if served.dialect.name == "vllm" and len(allowed_ids) <= LONGEST_LIST:
        return allowed_ids.tolist(), []
    raise InputError(
        f"sampler {served.name}: {len(others)} of the student's {width} ids are not shared with the teachers; a server "
        f"can leave out {LONGEST_LIST} at most; use --sampler transformers"
    )


def _check_drawn(
    served: ServedModel, rollout: Rollout, drawn: Drawn, allowed: NDArray[np.int64] | None, max_new_tokens: int
) -> None:
    where = f"sampler {served.name}, rollout {rollout.id!r}"
    if allowed is not None and not np.isin(drawn.ids, allowed).all():
        raise ServerError(f"{where}: holds an id that was not to be sampled; use --sampler transformers")
    if rollout.finish_reason == "length" and len(drawn.ids) != max_new_tokens:
        whole = len(rollout.prompt_ids) + len(drawn.ids)
        advice = "does the server have this checkpoint?"
        if drawn.reason == "length":
            advice = f"prompt and response have {whole:,} tokens: is that its context? then lower --max-new-tokens"
        raise ServerError(
            f"{where}: ended after {len(drawn.ids)} tokens without EOS (the server says {drawn.reason}); expected "
            f"{max_new_tokens}; {advice}"
        )
