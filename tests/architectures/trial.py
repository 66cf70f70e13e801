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


def try_type(kind: str, seed: int, *, image_text: bool = False, **changes: Any) -> Finding:
    """Build two models of a type, student and teacher, and hold every path against their own forward."""
    try:
        models = [build(kind, seed + add, image_text=image_text, **changes) for add in (0, 100)]
    except Exception as error:  # a type that small values do not fit
        return Finding(kind, seed, "not built", NOT_BUILT.get(kind, f"{type(error).__name__}: {brief(error)}"))
    found = Finding(kind, seed, "exact")
    try:
        for path, error in errors_by_path(models, seed, found):
            found.errors[path] = error
    except OpdProbeError as error:
        found.outcome, found.why = "refused", str(error)
    except Exception as error:  # what must not happen
        found.outcome, found.why = "traceback", f"{brief(error)} at {traceback.extract_tb(error.__traceback__)[-1]}"
    if not all(error < TOLERANCE for error in found.errors.values()):
        found.outcome = "wrong"
    return found


def errors_by_path(models: Sequence[Any], seed: int, found: Finding) -> Iterator[tuple[str, float]]:
    """(path, largest error) of replays and samples."""
    random = np.random.default_rng(seed)

    pair = [load_model(model) for model in models]  # which refuses what cannot be run on text alone
    text = np.setdiff1d(np.arange(5, 3 * VOCABULARY // 4), pair[0].placeholder_ids)

    def ids(count: int) -> list[int]:
        return random.choice(text, count).tolist()  # type: ignore[no-any-return]

    found.ways = ways(pair[0])
    apart = [row(f"a{count}", ids(5 + count % 3), ids(count)) for count in (28, 29, 30, 31, 17)]
    prompt = ids(24)
    alike = [row(f"s{number}", prompt, ids(count)) for number, count in enumerate((12, 12, 13, 11))]
    yield "batches", replay_error(pair, models, apart)
    yield "shared prompts", replay_error(pair, models, alike)
    with pieces_of(PIECE):
        yield "pieces", replay_error(pair, models, apart[:2] + alike)
    for path, prompts in (("sampled", [ids(9), ids(9)]), ("sampled, prompts of two lengths", [ids(3), ids(17)])):
        yield path, sampler_error(pair[0], models[0], prompts, seed)
    found.ways = ways(pair[0])


def row(name: str, prompt: list[int], response: list[int]) -> dict[str, Any]:
    """A rollout as a program gives it."""
    return {"id": name, "prompt_ids": prompt, "response_ids": response}


def replay_error(pair: Sequence[LoadedModel], models: Sequence[Any], rows: Sequence[dict[str, Any]]) -> float:
    """The largest error of both models' log-probabilities of the sampled tokens."""
    trace = opd_probe.replay(*pair, rows, k=16)
    worst = 0.0
    for model, column in zip(models, ("student_logprob", "teacher_logprob"), strict=True):
        own = [own_logprobs(model, one["prompt_ids"], one["response_ids"], None) for one in rows]
        worst = max(worst, gap(trace.column(column), np.concatenate(own)))
    return worst


def sampler_error(student: LoadedModel, model: Any, prompts: Sequence[list[int]], seed: int) -> float:
    """The largest error of what the sampler says of the tokens that it drew."""
    given = [Prompt(id=str(number), ids=tuple(ids)) for number, ids in enumerate(prompts)]
    drawn = sample_rollouts(student, given, num_rollouts=2, max_new_tokens=16, seed=seed)
    allowed = np.setdiff1d(np.arange(student.width), student.placeholder_ids)
    own = [own_logprobs(model, one.prompt_ids, one.response_ids, allowed) for one in drawn]
    return max(gap(np.array(one.logprobs), truth) for one, truth in zip(drawn, own, strict=True))


def gap(ours: NDArray[Any], own: NDArray[Any]) -> float:
    """The largest difference; infinite where one of them is no number."""
    difference = np.abs(ours - own)
    return float(difference.max()) if bool(np.isfinite(difference).all()) else float("inf")


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
