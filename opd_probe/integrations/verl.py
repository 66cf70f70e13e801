"""For training loops that hold both models' top-k already, as verl's: tensors in, the paper's metrics out.

Nothing of verl is imported; any loop with [B, T, K] tensors can call these.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from opd_probe.curves import summarize, summarize_variant
from opd_probe.engine.lists import Side, completed, state_arrays
from opd_probe.engine.scoring import default_chunk
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.metrics import METRICS
from opd_probe.metrics.variants import Variant
from opd_probe.stats.rounding import is_narrow, rounding, rounding_words
from opd_probe.stats.single import single_statistics
from opd_probe.stats.topk import NO_ID, NO_PROBABILITY
from opd_probe.trace import Trace, rollout_table
from opd_probe.trace.schema import FORMAT_VERSION
from opd_probe.types import StateOrigin
from opd_probe.versions import software

Array = NDArray[Any]

_LARGEST_ID = 2**31 - 1
_MOST = 1.05
"""What probabilities in bfloat16 may sum to."""
_BY_ROLLOUT = ("sequence_mean_reward", "response_length", "accuracy", "reward_auroc")


def overlap_metrics(
    student_topk_ids: Tensor,
    student_topk_logprobs: Tensor,
    teacher_topk_ids: Tensor,
    teacher_topk_logprobs: Tensor,
    response_mask: Tensor,
    *,
    k: int | None = None,
    metrics: Sequence[str] | None = None,
    variant: str | Variant | None = None,
    **known: Any,
) -> dict[str, float]:
    """The paper's metrics over one batch of student-sampled responses.

    Definitions, conventions and code are those of a trace (``docs/metrics.md``): means over all states, in float64.
    What the tensors do not tell is left out, never 0: the value of a token that only one model ranked is known when it
    is given, and otherwise metrics on the overlap alone are known, since there each token is in both lists.

    Args:
        student_topk_ids, teacher_topk_ids: int [B, T, K], distinct within a state; on any device, padded or nested.
            An id whose log-prob is −inf (probability 0) is in no list, whatever it is.
        student_topk_logprobs, teacher_topk_logprobs: [B, T, K] in nats, each model's own, not renormalised. They need
            not be sorted. Both lists come from one selection, :func:`top_lists`.
        response_mask: [B, T], 1 at tokens that the student generated, else 0.
        k: the size of both top sets; None: K.
        metrics: names from :data:`opd_probe.metrics.METRICS`; None for all of them, and those by rollout.
        variant: in place of the paper's definitions those of another trainer, under its names: ``verl``, ``fireworks``,
            ``nemo-rl`` or ``thunlp[:SUPPORT[:WEIGHTS]]`` (:mod:`opd_probe.metrics.variants`).
        known: what else the loop holds, see :func:`topk_trace`.

    Returns:
        ``<metric>`` for each metric that is defined on some state, ``n_states``, ``n_empty_overlap``,
        ``n_single_overlap``, ``n_short_lists``, and ``<metric>_n`` for each metric that is not defined on all states:
        the number of those where it is. Of a variant every quantity has its ``_n``.

    Raises:
        InputError: tensors that do not fit each other, ids twice in one state, a list of probabilities that are unknown
            or sum to more than 1, a k beyond K, no state at all, or metrics beside a variant.
    """
    if metrics is not None and variant is not None:
        raise InputError("metrics and variant: expected one of them; a variant has quantities of its own")
    trace = topk_trace(
        student_topk_ids, student_topk_logprobs, teacher_topk_ids, teacher_topk_logprobs, response_mask, **known
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpdProbeWarning)  # a loop calls this at every step
        if variant is not None:
            return _of_variant(trace, variant, trace.K if k is None else k)
        row = summarize(trace, trace.K if k is None else k, resamples=0, metrics=metrics)
    names = [name for name, one in METRICS.items() if one.summary == "mean" and name in row]
    found = {name: float(row[name]) for name in ("n_states", "n_empty_overlap", "n_single_overlap", "n_short_lists")}
    for name in (*names, *(name for name in _BY_ROLLOUT if metrics is None and row.get(f"{name}_n", 0))):
        count, every = row[f"{name}_n"], name not in METRICS or row[f"{name}_n"] == row["n_states"]
        found |= {} if math.isnan(row[name]) else {name: float(row[name])}
        found |= {} if every else {f"{name}_n": float(count)}
    return found


def top_lists(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable ids of each state and their log-probabilities, selected as a trace's lists are.

    ``torch.topk`` breaks ties as it likes, another way for another k: in bfloat16, where ids tie at rank 16 in most
    states, its top 64 does not begin with its top 16, and a model overlaps itself by less than 1. Here the lower id
    wins, and lists of one model are the same ones whatever k is.

    Args:
        logits: [..., V], in any floating type; −inf for ids of probability 0.
        k: 1 <= k <= V.

    Returns:
        int64 [..., k] in rank order and float32 [..., k], in nats; −1 and −inf where fewer than k ids have a
        probability above 0.

    Raises:
        InputError: not a floating tensor with V ids, or a k that it has not.
        LogitError: a logit is NaN or +inf, or a state has no finite one.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim == 0:
        raise InputError("top_lists: expected a floating tensor of logits [..., V]")
    width = logits.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= width:
        raise InputError(f"top_lists: k = {k!r}; expected a whole number from 1 to {width}, the ids that there are")
    rows = logits.detach().reshape(-1, width)
    ids = torch.empty(len(rows), k, dtype=torch.int64, device=rows.device)
    logprobs = torch.empty(len(rows), k, device=rows.device)
    step = default_chunk(width, rows.device)
    for start in range(0, len(rows), step):
        part = rows[start : start + step].float()
        nothing = torch.full((len(part), 1), NO_ID, device=rows.device)
        found = single_statistics(part, nothing[:, 0], nothing, k, side="model")
        ids[start : start + step], logprobs[start : start + step] = found.top_ids, found.top_logprobs
    return ids.view(*logits.shape[:-1], k), logprobs.view(*logits.shape[:-1], k)


def _of_variant(trace: Trace, variant: str | Variant, k: int) -> dict[str, float]:
    row = summarize_variant(trace, variant, k, resamples=0)
    found = {"n_states": float(row["n_states"])}
    for name, value in row.items():
        if "/" in name and not name.endswith(("_lo", "_hi")):
            found |= {} if math.isnan(value) else {name: float(value)}
    return found


def topk_trace(
    student_topk_ids: Tensor,
    student_topk_logprobs: Tensor,
    teacher_topk_ids: Tensor,
    teacher_topk_logprobs: Tensor,
    response_mask: Tensor,
    *,
    teacher_logprobs_at_student_top: Tensor | None = None,
    student_logprobs_at_teacher_top: Tensor | None = None,
    token_ids: Tensor | None = None,
    student_logprobs: Tensor | None = None,
    teacher_logprobs: Tensor | None = None,
    student_entropy: Tensor | None = None,
    teacher_entropy: Tensor | None = None,
    reverse_kl: Tensor | None = None,
    forward_kl: Tensor | None = None,
    scores: Tensor | Sequence[float] | None = None,
    prompt_ids: Sequence[Any] | None = None,
    vocabulary_size: int | None = None,
    run: str | None = None,
    step: int | None = None,
    teacher: str | None = None,
    states: StateOrigin = "own",
) -> Trace:
    """A trace of one batch from tensors that are at hand: ``.save(path)`` it, and every command reads it.

    Args:
        student_topk_ids, …, response_mask: as for :func:`overlap_metrics`.
        teacher_logprobs_at_student_top: [B, T, K], log q of the student's top tokens, for metrics beyond the overlap.
        student_logprobs_at_teacher_top: [B, T, K], log p of the teacher's.
        token_ids: int [B, T], the responses.
        student_logprobs, teacher_logprobs: [B, T], of the sampled tokens, for ``sampled_reward`` and its kin.
        student_entropy, teacher_entropy, reverse_kl, forward_kl: [B, T] in nats, over the full vocabulary.
        scores: [B], each response's reward or verdict (correct from 0.5 on).
        prompt_ids: [B], what tells prompts apart (verl's ``uid``), for intervals; None: every response is its own.
        vocabulary_size: ids that both models share, at least as far as the tensors go, recorded as assumed.
        run, step, teacher, states: as rows and figures shall name them.

    Raises:
        InputError: as :func:`overlap_metrics`.
    """
    batch = _Batch(response_mask, student_topk_ids)
    ours = batch.side("student", student_topk_ids, student_topk_logprobs, teacher_logprobs_at_student_top)
    theirs = batch.side("teacher", teacher_topk_ids, teacher_topk_logprobs, student_logprobs_at_teacher_top)
    scalars = {
        "token_id": token_ids, "student_logprob": student_logprobs, "teacher_logprob": teacher_logprobs,
        "student_entropy": student_entropy, "teacher_entropy": teacher_entropy,
        "reverse_kl": reverse_kl, "forward_kl": forward_kl,
    }  # fmt: skip
    arrays = state_arrays({
        "position": batch.positions,
        "student_top_ids": ours[0], "student_top_logprobs": ours[1],
        "teacher_logprobs_at_student_top": completed(ours, theirs),
        "teacher_top_ids": theirs[0], "teacher_top_logprobs": theirs[1],
        "student_logprobs_at_teacher_top": completed(theirs, ours),
        **{name: batch.scalar(name, given) for name, given in scalars.items() if given is not None},
    })  # fmt: skip
    batch.warn_of_rounding()
    seen = 1 + max(int(arrays[name].max()) for name in ("student_top_ids", "teacher_top_ids", "token_id"))
    labels = {"run": run, "step": step, "teacher": teacher, "states": states}
    provenance = {
        "format_version": FORMAT_VERSION,
        "K": batch.depth,
        "temperature": 1.0,
        "student": {"source": "top-k tensors"},
        "teacher": {"source": "top-k tensors"},
        "vocabulary": {"size": max(vocabulary_size or 0, seen), "assumed": True},
        "labels": {name: value for name, value in labels.items() if value is not None},
        "software": software(),
    }
    return Trace(batch.rollouts(scores, prompt_ids), provenance, arrays=arrays)


class _Batch:
    """The unmasked states of [B, T] tensors, on the CPU and one after another."""

    def __init__(self, mask: Tensor, ids: Tensor) -> None:
        mask, ids = _dense("response_mask", mask), _dense("student_topk_ids", ids)
        if mask.ndim != 2:
            raise InputError(f"response_mask: shape {tuple(mask.shape)}; expected [B, T]")
        self.mask = mask.bool()
        if not bool((self.mask == mask).all()):
            other = mask[self.mask != mask][0].item()
            raise InputError(f"response_mask: expected 0 and 1, got {other}")
        if not bool(self.mask.any()):
            raise InputError("response_mask: no 1 in it; expected at least one token of the student's")
        if ids.ndim != 3 or ids.shape[:2] != mask.shape or ids.shape[2] == 0:
            shape = tuple(mask.shape)
            raise InputError(
                f"student_topk_ids: shape {tuple(ids.shape)}; expected [B, T, K] beside a response_mask of {shape}"
            )
        self.depth = ids.shape[2]
        self.rounded: list[tuple[str, Tensor]] = []

    @property
    def positions(self) -> Tensor:
        """The 0-based place of every state in its response."""
        return torch.arange(self.mask.shape[1]).expand(self.mask.shape)[self.mask.cpu()]

    def scalar(self, name: str, given: Tensor) -> Tensor:
        """[B, T] as [n]; numpy, which comes next, has no type as narrow as bfloat16."""
        flat = self._flat(name, given, tuple(self.mask.shape))
        if name == "token_id":
            return _token_ids(name, flat)
        return flat.float() if is_narrow(flat) else flat

    def _flat(self, name: str, given: Tensor, shape: tuple[int, ...]) -> Tensor:
        given = _dense(name, given)
        if tuple(given.shape) != shape:
            raise InputError(f"{name}: shape {tuple(given.shape)}; expected {shape} as the other tensors")
        flat = given[self.mask.to(given.device)].cpu()
        if is_narrow(flat):
            self.rounded.append((name, flat))
        return flat

    def warn_of_rounding(self) -> None:
        """Say which tensors are in a narrow type, and by how much the values at hand may be off for it."""
        if not self.rounded:
            return
        names = ", ".join(name for name, _ in self.rounded)
        worst = max((flat for _, flat in self.rounded), key=rounding)
        warnings.warn(
            f"{names}: {rounding_words(worst)}: ids tie and move across rank k, and whatever is made of small "
            "differences is off by as much; take log-probs of logits in float32, and both lists with one selection "
            "(top_lists)",
            OpdProbeWarning,
            stacklevel=4,
        )

    def side(self, name: str, ids: Tensor, own: Tensor, other: Tensor | None) -> Side:
        """One model's list in rank order, ties to the lower id."""
        shape = (*self.mask.shape, self.depth)
        logprobs = _logprobs(f"{name}_topk_logprobs", self._flat(f"{name}_topk_logprobs", own, shape))
        if bool(torch.isnan(logprobs).any()):
            raise InputError(f"{name}_topk_logprobs: NaN at an unmasked token; expected the model's own log-probs")
        # An id of probability 0 is in no list, whichever id a selection named there.
        absent = logprobs <= logprobs.amax(1, keepdim=True) - NO_PROBABILITY
        if bool(absent.all(1).any()):
            raise InputError(f"{name}_topk_logprobs: only −inf at an unmasked token; expected a probability above 0")
        logprobs = logprobs.masked_fill(absent, -torch.inf)
        flat = self._flat(f"{name}_topk_ids", ids, shape)
        flat = _token_ids(f"{name}_topk_ids", flat.masked_fill(absent, 0)).masked_fill(absent, NO_ID)
        others = f"the other model's at {name}_topk_ids"
        rest = None if other is None else _logprobs(others, self._flat(others, other, shape))
        order = flat.argsort(dim=1, stable=True)
        ascending = flat.gather(1, order)
        if bool(((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] != NO_ID)).any()):
            raise InputError(f"{name}_topk_ids: one id twice in a state; expected {self.depth} different ids")
        order = order.gather(1, logprobs.gather(1, order).argsort(dim=1, descending=True, stable=True))
        flat, logprobs = flat.gather(1, order), logprobs.gather(1, order)
        if rest is not None:
            rest = rest.gather(1, order).masked_fill(flat == NO_ID, -torch.inf)
        return flat, logprobs, rest

    def rollouts(self, scores: Any, prompt_ids: Sequence[Any] | None) -> Any:
        """The rollout table: a response without an unmasked token is a skipped one."""
        size = len(self.mask)
        for name, given in (("scores", scores), ("prompt_ids", prompt_ids)):
            if given is not None and len(given) != size:
                raise InputError(f"{name}: {len(given)} of them; expected one for each of the {size} responses")
        ends = self.mask.long() * torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        table = []
        for index, (states, length) in enumerate(zip(self.mask.sum(1).tolist(), ends.amax(1).tolist(), strict=True)):
            row: dict[str, Any] = {
                "rollout_id": str(index),
                "prompt_id": str(index if prompt_ids is None else prompt_ids[index]),
                "n_states": states,
                "response_length": length,
                "token_source": "sampled_ids",
                "score": None if scores is None else _score(scores[index]),
                "skipped": None if states else "no unmasked token",
            }
            table.append(row)
        return rollout_table(table)


def _dense(name: str, given: Any) -> Tensor:
    """A padded tensor without its gradient, of a nested one too, as verl has them."""
    if not isinstance(given, Tensor):
        raise InputError(f"{name}: {type(given).__name__}; expected a tensor")
    return (given.to_padded_tensor(0) if given.is_nested else given).detach()


def _token_ids(name: str, flat: Tensor) -> Tensor:
    if flat.is_floating_point() or int(flat.min()) < 0 or int(flat.max()) > _LARGEST_ID:
        raise InputError(f"{name}: expected token ids (whole numbers from 0 on) at every unmasked token")
    return flat.long()


def _logprobs(name: str, flat: Tensor) -> Tensor:
    """[n, K] in float32."""
    logprobs = flat.float()
    most = float(logprobs.exp().nansum(1).max())
    if most > _MOST:
        raise InputError(f"{name}: probabilities of a state sum to {most:.4g}; expected log-probs over the vocabulary")
    return logprobs


def _score(given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"scores: expected one number for each response, got {str(given)[:40]!r}") from None
