"""The ways of getting a trace's statistics that the benchmark compares, each from token ids on.

``floor`` does what none can avoid: both backbones, and both output layers on response positions. ``ours`` is the
replay engine. ``naive`` is the script that people write by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opd_probe.engine.replay import Replay, ReplaySettings
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


@torch.inference_mode()
def floor(work: Workload) -> float:
    """Both backbones and both output layers on response positions, in the type of the weights, chunk by chunk."""
    ids, start = work.ids(), len(work.rollouts[0].prompt_ids)
    checksum = 0.0
    for model in (work.student, work.teacher):
        hidden = model.hidden(ids[:, :-1])[:, start - 1 :].flatten(0, 1)
        weight = model.output_layer.weight.t()
        out = torch.empty((128, model.width), dtype=weight.dtype, device=weight.device)
        for rows in hidden.split(128):
            torch.mm(rows, weight, out=out[: len(rows)])
        checksum += float(out[0, 0])
    return checksum


def ours(work: Workload, *, jsd: bool = False) -> float:
    """The replay engine with every statistic of a trace."""
    shared = np.arange(min(work.student.width, work.teacher.width))
    engine = Replay(work.student, work.teacher, work.rollouts, shared, ReplaySettings(work.k, jsd=jsd))
    return float(sum(values["reverse_kl"].sum() for _, values in engine.states()))


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
