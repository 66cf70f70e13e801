"""A student whose hidden states were read while it was sampled from: the replay runs it over a few rollouts alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_probe.engine.scoring import default_chunk
from opd_probe.engine.sequences import StateSequence, sequence_batches
from opd_probe.engine.stored import StoredModel
from opd_probe.models.sampled_states import SampledStates
from opd_probe.stats.projection import OutputProjection
from opd_probe.stats.scratch import Scratch
from opd_probe.types import Rollout

CHECKED = 0.01
"""The share of the rollouts, and of their states, that is replayed all the same."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the drawn tokens' log-probabilities differ by between sampling and replay, over the states checked.

    Attributes:
        rollouts, states: how many were checked.
        largest: |Δ| in nats.
        beyond: the share of states at which it is more than rounding explains.
    """

    rollouts: int
    states: int
    largest: float
    beyond: float


class SampledModel(StoredModel):
    """A student whose states are known from sampling, but for a hundredth of the rollouts, at least one, and for those
    that were sampled by an earlier process: these the model computes, as of :class:`StoredModel`.

    Args:
        model: loaded.
        rollouts: all rollouts of the replays.
        states: of sampling.
        place, rule: as for :class:`StoredModel`.

    Attributes:
        given: the rollouts whose states are those of sampling, by their index.
        agreement: of the others with a replay, once it was looked at.
    """

    def __init__(
        self, model: Any, rollouts: Sequence[Rollout], states: SampledStates, place: Path | None, rule: str
    ) -> None:
        super().__init__(model, rollouts, place, rule)
        self._rollouts, self._sampled = rollouts, states
        known = [one for one in self._sequences if self._is_sampled(one)]
        self._checked = _chosen(known, rollouts)
        checked = {one.rollout for one in self._checked}
        self.given = {one.rollout for one in known} - checked
        self._compute_only([one for one in self._sequences if one.rollout not in self.given])
        self.agreement: Agreement | None = None

    def _is_sampled(self, sequence: StateSequence) -> bool:
        rollout = self._rollouts[sequence.rollout]
        return self._sampled.count(rollout.id) == len(rollout.response_ids)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the states came from, in JSON types."""
        assert self.agreement is not None
        return {
            "from": "sampling",
            "rollouts": len(self.given),
            "replayed": len(self._sequences),
            "checked": self.agreement.rollouts,
            "largest_difference": self.agreement.largest,
        }

    @torch.inference_mode()
    def check(self, batch_tokens: int, tolerance: float) -> Agreement | None:
        """Replay what is replayed all the same, and compare; None where no state is known.

        Args:
            tolerance: nats that rounding may make of difference.
        """
        if not self._checked:
            return None
        layer = self.output_layer
        ids = torch.arange(self.width, device=layer.weight.device)
        projection = OutputProjection(layer.weight, layer.bias, ids, layer.scale, layer.softcap)
        found = []
        for ((members, shared),) in sequence_batches([self._checked], batch_tokens):
            replayed = self.state_hidden(members, shared)
            sampled = torch.cat([self._states_of(one) for one in members]).to(replayed.device)
            tokens = torch.from_numpy(np.concatenate([one.token_ids for one in members])).to(replayed.device)
            found.append((_logprobs(projection, replayed, tokens) - _logprobs(projection, sampled, tokens)).abs())
        apart = torch.cat(found).cpu()
        far = ~(apart <= tolerance)  # NaN is far
        self.agreement = Agreement(len(self._checked), len(apart), float(apart.max()), float(far.float().mean()))
        return self.agreement

    def state_hidden(self, members: Sequence[StateSequence], shared: int) -> Tensor:
        """As :meth:`StoredModel.state_hidden`."""
        lacking = [one for one in members if one.rollout not in self.given]
        if len(lacking) == len(members):
            return super().state_hidden(members, shared)
        device = self.output_layer.weight.device
        parts: list[Tensor] = []
        if lacking:
            parts = list(super().state_hidden(lacking, shared).split([len(one.positions) for one in lacking]))
        computed = dict(zip([one.rollout for one in lacking], parts, strict=True))
        pieces = [
            self._states_of(one).to(device) if one.rollout in self.given else computed[one.rollout] for one in members
        ]
        return torch.cat(pieces)

    def _states_of(self, sequence: StateSequence) -> Tensor:
        return self._sampled.of(self._rollouts[sequence.rollout].id)[torch.from_numpy(sequence.positions)]


def _chosen(sequences: Sequence[StateSequence], rollouts: Sequence[Rollout]) -> list[StateSequence]:
    """A hundredth of the rollouts, at least one, that have a hundredth of the states: by digests of their ids, so that
    they are the same whenever they are chosen."""
    order = sorted(sequences, key=lambda one: hashlib.sha256(rollouts[one.rollout].id.encode()).digest())
    wanted = math.ceil(CHECKED * len(order)), CHECKED * sum(len(one.positions) for one in order)
    chosen: list[StateSequence] = []
    states = 0
    for one in order:
        if len(chosen) >= wanted[0] and states >= wanted[1]:
            break
        chosen.append(one)
        states += len(one.positions)
    return chosen


def _logprobs(projection: OutputProjection, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [n] of tokens [n] over the whole vocabulary at hidden states [n, d]."""
    scratch = Scratch()
    found = []
    size = default_chunk(projection.width, hidden.device)
    for part, drawn in zip(hidden.split(size), tokens.split(size), strict=True):
        logits, _ = projection.logits(part, scratch, "logits")
        found.append(logits.gather(1, drawn[:, None])[:, 0] - torch.logsumexp(logits, dim=-1))
    return torch.cat(found)
