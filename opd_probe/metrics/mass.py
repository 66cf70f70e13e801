"""How much probability the top tokens hold, and how many tokens it takes to hold 97 % and 99 %."""

from __future__ import annotations

import numpy as np

from opd_probe.metrics.registry import SIDES, register, register_both
from opd_probe.metrics.view import Floats, TopView

THRESHOLDS = (0.97, 0.99)


@register_both(
    "{side}_topk_mass",
    unit="probability",
    source="§2",
    definition="sum of {letter} over S_{letter}",
    needs="{side}_top_logprobs",
)
def topk_mass(view: TopView, side: str) -> Floats:
    return view.running_mass(side)[:, view.k - 1]


def tokens_to_reach(running: Floats, threshold: float) -> Floats:
    """The smallest number of top tokens whose probabilities sum to ``threshold``, [n]; NaN beyond the trace's K.

    Args:
        running: [n, K], the mass of the top 1 … K; NaN behind the end of a list.
    """
    return np.where((running >= threshold).any(1), 1.0 + (running < threshold).sum(1), np.nan)


def _register_tokens_to_reach(side: str, threshold: float) -> None:
    @register(
        f"{side}_k_for_{threshold}",
        unit="tokens",
        source="§2",
        definition=f"the smallest k whose top-k holds {threshold:.0%} of the {side}'s mass; null beyond the trace's K",
        needs=(f"{side}_top_logprobs",),
        depends_on_k=False,
        summary="quantiles",
    )
    def k_for(view: TopView) -> Floats:
        return tokens_to_reach(view.running_mass(side), threshold)


for _side in SIDES:
    for _threshold in THRESHOLDS:
        _register_tokens_to_reach(_side, _threshold)
