"""What verl logs under ``distillation/`` with ``loss_mode: forward_kl_topk``.

Read in verl-project/verl (August 2026), ``verl/trainer/distillation/fsdp/losses.py`` (``compute_forward_kl_topk``) and
``verl/trainer/distillation/losses.py``; the overlap metrics came with its pull request 6469.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from opd_probe.errors import InputError
from opd_probe.metrics.registry import REAL
from opd_probe.metrics.variants.variant import Parts, Quantity, Variant, per_state, product
from opd_probe.metrics.view import TopView

_PREFIX = "distillation/"


def verl(log_prob_min_clamp: float = -math.inf, loss_max_clamp: float = math.inf) -> Variant:
    """verl's definitions, on the teacher's top k throughout (S_q), with true, un-renormalised probabilities.

    - ``overlap_ratio``: |S_p ∩ S_q| / k, as Eq. 6.
    - ``overlap_token_advantage``: (1/|O|) Σ_{v∈O} q(v) (log p(v) − log q(v)), averaged over states with an overlap.
      Weighted by the *teacher's* q where Eq. 7 has p̄ and q̄ renormalised on O: a share of the forward KL, which may be
      positive. Without any overlap verl logs 0; here it is undefined.
    - ``student_mass``, ``teacher_mass``: Σ_{v∈S_q} p(v) and Σ_{v∈S_q} q(v); mean, ``_min`` and ``_max`` over states.
    - ``loss``: Σ_{v∈S_q} q(v) (log q(v) − log p(v)), negative ones as 0, token mean; ``loss_min``, ``loss_max``.

    verl averages means of micro-batches; here every state counts once, which is the same for equal micro-batches.

    Args:
        log_prob_min_clamp: verl's option of that name: log-probabilities below it count as it, in the loss and the
            advantage (with Megatron also in the masses, which is not done here).
        loss_max_clamp: verl's option of that name: a state's loss above it counts as it, in ``loss`` alone. In verl's
            configuration both are off; the scripts that it brings set −10 and 10.

    Raises:
        InputError: a clamp that is not below 0, or not above it.
    """
    if not log_prob_min_clamp < 0 < loss_max_clamp:
        raise InputError(
            f"variant verl: log_prob_min_clamp {log_prob_min_clamp:g} and loss_max_clamp {loss_max_clamp:g}: expected "
            "the one below 0 and the other above"
        )
    quantities = [Quantity(f"{_PREFIX}overlap_ratio", "share", True),
                  Quantity(f"{_PREFIX}overlap_token_advantage", "nats", True, declared_range=REAL)]  # fmt: skip
    for name, unit in (("student_mass", "probability"), ("teacher_mass", "probability"), ("loss", "nats")):
        quantities += [
            Quantity(f"{_PREFIX}{name}", unit, True),
            Quantity(f"{_PREFIX}{name}_min", unit, reduce="min"),
            Quantity(f"{_PREFIX}{name}_max", unit, reduce="max"),
        ]

    def function(view: TopView) -> Mapping[str, Parts]:
        log_p, log_q, shared = view.student_logprobs_on_teacher, view.teacher_logprobs, view.teacher_in_overlap
        found = {"overlap_ratio": view.overlap_size / view.k}
        found |= {"student_mass": np.exp(log_p).sum(1), "teacher_mass": np.exp(log_q).sum(1)}
        log_p, log_q = np.maximum(log_p, log_prob_min_clamp), np.maximum(log_q, log_prob_min_clamp)
        with np.errstate(invalid="ignore"):
            terms = product(np.exp(log_q), log_q - log_p)
        found["loss"] = np.maximum(terms.sum(1), 0.0)
        parts = {f"{_PREFIX}{name}": per_state(values) for name, values in found.items()}
        for name in ("student_mass", "teacher_mass", "loss"):
            parts |= {f"{_PREFIX}{name}_{end}": parts[f"{_PREFIX}{name}"] for end in ("min", "max")}
        parts[f"{_PREFIX}loss"] = per_state(np.minimum(found["loss"], loss_max_clamp))
        with np.errstate(invalid="ignore"):
            advantage = -np.where(shared, terms, 0.0).sum(1) / view.overlap_size
        return parts | {f"{_PREFIX}overlap_token_advantage": per_state(advantage, view.overlap_size > 0)}

    clamps = [log_prob_min_clamp, loss_max_clamp][: 2 if loss_max_clamp < math.inf else 1]
    name = "verl" if clamps == [-math.inf] else ":".join(["verl", *(f"{clamp:g}" for clamp in clamps)])
    return Variant(name, "verl-project/verl, verl/trainer/distillation", tuple(quantities), function)
