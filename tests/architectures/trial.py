"""One type against its own forward, on every path that a job may take."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import opd_probe
from opd_probe.errors import OpdProbeError
from opd_probe.models import loading
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.types import Prompt
from tests.architectures.build import NOT_BUILT, VOCABULARY, build

TOLERANCE = 1e-4
"""Nats between a log-probability of ours and the model's own."""

COARSE = 0.2
"""Likewise in bfloat16, at the median token: at some, what is rounded to 8 bits chooses other experts."""

PIECE = 10
"""Tokens of a piece, in place of thousands."""

SEEDS = (1, 2)


@dataclass
class Finding:
    """What a type turned out to be.

    Attributes:
        outcome: ``exact``, ``refused``, ``wrong``, ``traceback`` or ``not built``.
        why: the refusal, or what happened.
        errors: the largest error by path.
        ways: how the model is called.
    """

    kind: str
    seed: int
    outcome: str
    why: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    ways: str = ""


def try_type(kind: str, seed: int, *, image_text: bool = False, coarse: bool = False, **changes: Any) -> Finding:
    """Build two models of a type, student and teacher, and hold every path against their own forward.

    Args:
        coarse: in bfloat16, which must not be refused for its rounding.
    """
    try:
        models = [build(kind, seed + add, image_text=image_text, **changes) for add in (0, 100)]
        models = [model.bfloat16() for model in models] if coarse else models
    except Exception as error:  # a type that small values do not fit
        return Finding(kind, seed, "not built", NOT_BUILT.get(kind, f"{type(error).__name__}: {brief(error)}"))
    found = Finding(kind, seed, "exact")
    try:
        for path, gaps in gaps_by_path(models, seed, found):
            found.errors[path] = float(np.median(gaps) if coarse else gaps.max())
    except OpdProbeError as error:
        found.outcome, found.why = "refused", str(error)
    except Exception as error:  # what must not happen
        found.outcome, found.why = "traceback", f"{brief(error)} at {traceback.extract_tb(error.__traceback__)[-1]}"
    if not all(error < (COARSE if coarse else TOLERANCE) for error in found.errors.values()):
        found.outcome = "wrong"
    return found


def gaps_by_path(models: Sequence[Any], seed: int, found: Finding) -> Iterator[tuple[str, NDArray[Any]]]:
    """(path, errors of all tokens) of replays and samples."""
    random = np.random.default_rng(seed)

    pair = [load_model(model) for model in models]  # which refuses what cannot be run on text alone
    text = np.setdiff1d(np.arange(5, 3 * VOCABULARY // 4), pair[0].placeholder_ids)

    def ids(count: int) -> list[int]:
        return random.choice(text, count).tolist()  # type: ignore[no-any-return]

    found.ways = ways(pair[0])
    apart = [row(f"a{count}", ids(5 + count % 3), ids(count)) for count in (28, 29, 30, 31, 17)]
    prompt = ids(24)
    alike = [row(f"s{number}", prompt, ids(count)) for number, count in enumerate((12, 12, 13, 11))]
    yield "batches", replay_gaps(pair, models, apart)
    yield "shared prompts", replay_gaps(pair, models, alike)
    with pieces_of(PIECE):
        yield "pieces", replay_gaps(pair, models, apart[:2] + alike)
    for path, prompts, bound in (
        ("sampled", [ids(9), ids(9)], 8192),
        ("sampled, prompts of two lengths", [ids(3), ids(17)], 8192),
        ("sampled, with little room", [ids(3), ids(17)], 70),  # some go back, and join others later
    ):
        yield path, sampler_gaps(pair[0], models[0], prompts, seed, bound)
    found.ways = ways(pair[0])


def row(name: str, prompt: list[int], response: list[int]) -> dict[str, Any]:
    """A rollout as a program gives it."""
    return {"id": name, "prompt_ids": prompt, "response_ids": response}


def replay_gaps(
    pair: Sequence[LoadedModel], models: Sequence[Any], rows: Sequence[dict[str, Any]]
) -> NDArray[np.float64]:
    """The errors of both models' log-probabilities of the sampled tokens."""
    trace = opd_probe.replay(*pair, rows, k=16)
    gaps = []
    for model, column in zip(models, ("student_logprob", "teacher_logprob"), strict=True):
        own = [own_logprobs(model, one["prompt_ids"], one["response_ids"], None) for one in rows]
        gaps.append(gap(trace.column(column), np.concatenate(own)))
    return np.concatenate(gaps)


def sampler_gaps(
    student: LoadedModel, model: Any, prompts: Sequence[list[int]], seed: int, bound: int
) -> NDArray[np.float64]:
    """The errors of what the sampler says of the tokens that it drew."""
    given = [Prompt(id=str(number), ids=tuple(ids)) for number, ids in enumerate(prompts)]
    drawn = sample_rollouts(student, given, num_rollouts=2, max_new_tokens=16, seed=seed, batch_tokens=bound)
    allowed = np.setdiff1d(np.arange(student.width), student.placeholder_ids)
    own = [own_logprobs(model, one.prompt_ids, one.response_ids, allowed) for one in drawn]
    return np.concatenate([gap(np.array(one.logprobs), truth) for one, truth in zip(drawn, own, strict=True)])


def gap(ours: NDArray[Any], own: NDArray[Any]) -> NDArray[np.float64]:
    """The differences; infinite where one of them is no number."""
    difference = np.abs(ours - own)
    return np.where(np.isfinite(difference), difference, np.inf)


@torch.no_grad()
def own_logprobs(
    model: Any, prompt: Sequence[int], response: Sequence[int], allowed: NDArray[Any] | None
) -> NDArray[np.float64]:
    """By the model's own forward of one whole sequence alone, in float64 after its logits."""
    ids = torch.tensor([[*prompt, *response[:-1]]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 :].double()
    if allowed is not None:
        outside = torch.ones(logits.shape[-1], dtype=torch.bool)
        outside[torch.from_numpy(allowed)] = False
        logits = logits.masked_fill(outside, -torch.inf)
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(list(response))[:, None])
    return chosen[:, 0].numpy()  # type: ignore[no-any-return]


@contextmanager
def pieces_of(tokens: int) -> Iterator[None]:
    """While the block runs, longer sequences go through in pieces of so many tokens."""
    before = loading.PREFILL_TOKENS
    loading.PREFILL_TOKENS = tokens
    try:
        yield
    finally:
        loading.PREFILL_TOKENS = before


def ways(model: LoadedModel) -> str:
    """How a model is called, in a few words."""
    said = [] if model.paths.kind == "decoder" else [model.paths.kind]
    said += [] if model.paths.batching == "padded" else [model.paths.batching]
    said += [f"without a cache for {what}" for what, how in model.paths.verdicts.items() if how is None]
    return "; ".join(said)


def brief(error: BaseException) -> str:
    """What an error says, on one short line."""
    return " ".join(str(error).split())[:160]
