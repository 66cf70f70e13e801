"""The ways of getting a trace's statistics that the benchmark compares, each from token ids on.

``floor`` does what none can avoid: both backbones, and both output layers on response positions. ``ours`` is the public
call, ``first_call`` the same with model objects that it has not seen, ``engine`` what it comes to once all is known.
``naive`` is the script that people write by hand. ``thunlp`` and ``verl`` are the sequences of
operations by which those trainers log overlap, in our own words, on response positions only; neither computes the full
divergences, and verl's no entropy either.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import opd_probe
from opd_probe.engine.replay import Replay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.models.loading import LoadedModel
from opd_probe.types import Rollout


@dataclass
class Workload:
    """Two models and rollouts of one length each."""

    student: LoadedModel
    teacher: LoadedModel
    rollouts: list[Rollout]
    k: int

    @property
    def n_states(self) -> int:
        """Response tokens in all."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)

    def ids(self) -> Tensor:
        """Prompt and response ids, [B, T]; the rollouts of a workload have one length."""
        return torch.tensor([[*r.prompt_ids, *r.response_ids] for r in self.rollouts], device=self.student.device)


def floor(work: Workload) -> float:
    """What none can avoid, in chunks that suit a CPU."""
    return batch_floor(work, 128)


@torch.inference_mode()
def batch_floor(work: Workload, chunk: int) -> float:
    """Both backbones and both output layers on response positions, in the type of the weights, chunk by chunk."""
    ids, start = work.ids(), len(work.rollouts[0].prompt_ids)
    checksum = 0.0
    for model in (work.student, work.teacher):
        hidden = model.hidden(ids[:, :-1])[:, start - 1 :].flatten(0, 1)
        weight = model.output_layer.weight.t()
        out = torch.empty((chunk, model.width), dtype=weight.dtype, device=weight.device)
        for rows in hidden.split(chunk):
            torch.mm(rows, weight, out=out[: len(rows)])
        checksum += float(out[0, 0])
    return checksum


def ours(work: Workload, *, jsd: bool = False, compiled: bool = False) -> float:
    """``opd_probe.replay`` of models at hand, with every statistic of a trace."""
    return _called(work.student.model, work.teacher.model, work, jsd=jsd, compiled=compiled)


def first_call(work: Workload) -> float:
    """The same of model objects that were not called before: the same weights in new modules."""
    return _called(_fresh(work.student.model), _fresh(work.teacher.model), work)


def _called(student: nn.Module, teacher: nn.Module, work: Workload, **how: bool) -> float:
    options = {"jsd": False, "compiled": False, **how}
    trace = opd_probe.replay(student, teacher, work.rollouts, k=work.k, **options)
    return float(trace.column("reverse_kl").sum(dtype=np.float64))


def _fresh(model: nn.Module) -> nn.Module:
    memo: dict[int, object] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}
    return copy.deepcopy(model, memo)


def engine(work: Workload) -> float:
    """The replay engine alone, with models that are loaded, checked and known."""
    shared = np.arange(min(work.student.width, work.teacher.width))
    replay = Replay(work.student, work.teacher, work.rollouts, shared, ReplaySettings(work.k, compiled=False))
    return float(sum(values["reverse_kl"].sum(dtype=np.float64) for _, values in replay.states()))


@torch.inference_mode()
def naive(work: Workload) -> float:
    """Full logits [B, T, V] of both models in float32, softmax, topk, sums."""
    ids, start = work.ids(), len(work.rollouts[0].prompt_ids)
    width = min(work.student.width, work.teacher.width)
    s = work.student.model(ids).logits[:, start - 1 : -1, :width].float()
    t = work.teacher.model(ids).logits[:, start - 1 : -1, :width].float()
    log_p, log_q = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    p, q = log_p.exp(), log_q.exp()
    reverse = (p * (log_p - log_q)).sum(-1)
    forward = (q * (log_q - log_p)).sum(-1)
    entropies = -(p * log_p).sum(-1), -(q * log_q).sum(-1)
    top_p, top_q = log_p.topk(work.k, -1), log_q.topk(work.k, -1)
    crossed = log_q.gather(-1, top_p.indices), log_p.gather(-1, top_q.indices)
    tokens = ids[:, start:, None]
    sampled = log_p.gather(-1, tokens), log_q.gather(-1, tokens)
    kept = (forward, *entropies, top_p.values, top_q.values, *crossed, *sampled)
    return float(reverse.sum()) + 0.0 * sum(float(value[0, 0].sum()) for value in kept)


def _response_hidden(work: Workload) -> tuple[Tensor, Tensor, Tensor, int]:
    """Hidden states of both models that predict response tokens [N, d], the tokens [N, 1], the shared width."""
    ids, start = work.ids(), len(work.rollouts[0].prompt_ids)
    hidden = [model.hidden(ids[:, :-1])[:, start - 1 :].flatten(0, 1) for model in (work.student, work.teacher)]
    return hidden[0], hidden[1], ids[:, start:].reshape(-1, 1), min(work.student.width, work.teacher.width)


def _product(model: LoadedModel, hidden: Tensor, width: int) -> Tensor:
    return torch.mm(hidden, model.output_layer.weight[:width].t()).float()


@torch.inference_mode()
def thunlp(work: Workload) -> float:
    """Per model log_softmax of all positions at once, entropy by a second softmax, topk of whole rows, gathers."""
    student, teacher, tokens, width = _response_hidden(work)
    logits = _product(work.student, student, width), _product(work.teacher, teacher, width)
    log_probs = [torch.log_softmax(values, -1) for values in logits]
    entropies = [torch.logsumexp(v, -1) - (torch.softmax(v, -1) * v).sum(-1) for v in logits]
    ids = [values.topk(work.k, -1).indices for values in logits]
    at = [values.gather(-1, index) for values in log_probs for index in (*ids, tokens)]
    overlap = (ids[0].unsqueeze(-1) == ids[1].unsqueeze(-2)).any(-1).float().mean()
    return float(overlap) + 0.0 * float(sum(v.sum() for v in (*at, *entropies)))


@torch.inference_mode()
def verl(work: Workload) -> float:
    """In chunks of positions: float32 logits, logsumexp, topk of the whole rows, gathers."""
    student, teacher, tokens, width = _response_hidden(work)
    total = 0.0
    for rows in torch.arange(len(tokens), device=tokens.device).split(256):
        logits = [_product(work.student, student[rows], width), _product(work.teacher, teacher[rows], width)]
        partition = [torch.logsumexp(values, -1, keepdim=True) for values in logits]
        ids = [values.topk(work.k, -1).indices for values in logits]
        for values, log_z in zip(logits, partition, strict=True):
            total += 0.0 * float(sum((values.gather(-1, i) - log_z).sum() for i in (*ids, tokens[rows])))
        total += float((ids[0].unsqueeze(-1) == ids[1].unsqueeze(-2)).any(-1).float().sum())
    return total
