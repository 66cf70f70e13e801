"""How precise a replay is to be before it may stop: metrics, each with the half-width of its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_METRIC = "overlap_ratio"
METRICS_K = 16
"""The k of metrics unless asked otherwise."""


def with_interval() -> tuple[str, ...]:
    """Metrics that a row shows with an interval, and that a replay can stop by."""
    from opd_probe.curves.rollouts import ROLLOUT_QUANTITIES
    from opd_probe.metrics import METRICS

    means = (name for name, metric in METRICS.items() if metric.summary == "mean")
    return (*means, *ROLLOUT_QUANTITIES, "reward_auroc")


@dataclass(frozen=True, slots=True)
class Precision:
    """When a replay may stop.

    Attributes:
        widths: by metric, how far the farther end of its interval may lie from it.
        k, average: how the metrics are computed, as for :func:`opd_probe.summarize`.
        seed: of the order in which prompts are replayed.
    """

    widths: Mapping[str, float]
    k: int
    average: str = "token"
    seed: int = 0


def parse_widths(given: Any) -> dict[str, float]:
    """Widths by metric.

    Args:
        given: a number, which is that of :data:`DEFAULT_METRIC`; text, ``"0.005"`` or ``"overlap_ratio=0.005"``; a list
            of such; or a mapping.

    Raises:
        ValueError: what is wrong with it.
    """
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        pairs = [_pair(one) for one in (given if isinstance(given, (list, tuple)) else [given])]
    widths: dict[str, float] = {}
    for name, value in pairs:
        if name in widths:
            raise ValueError(f"expected each metric once; {name} is there twice")
        if name not in with_interval():
            raise ValueError(
                f"expected a metric whose mean has an interval, as overlap_ratio or reverse_kl, not {name!r}"
            )
        widths[str(name)] = _width(value)
    if not widths:
        raise ValueError("expected a width, or METRIC=WIDTH, at least once")
    return widths


def _pair(one: Any) -> tuple[str, Any]:
    if not isinstance(one, str) or "=" not in one:
        return DEFAULT_METRIC, one
    name, _, value = one.partition("=")
    return name.strip(), value


def _width(value: Any) -> float:
    try:
        width = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        width = math.nan
    if not 0 < width < math.inf:
        raise ValueError(f"expected a width above 0, as in 0.005 or overlap_ratio=0.005, got {value!r}")
    return width
