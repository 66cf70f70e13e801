"""Quantities of a whole trace that are no mean over its states: ratios of sums, some of them above a percentile.

Each is declared by the terms that a state (or a rollout) adds to a few sums, and by what is made of the sums. So it
needs one pass over the trace, and sums over prompts are all that an interval needs. Percentiles that a definition
refers to are taken first, from one float32 column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from opd_probe.metrics.registry import METRICS, REAL, UNIT_RANGES, Range
from opd_probe.metrics.view import Bools, Floats, TopView

FORKING = 0.8
TOP_SHARE = 0.01

Terms = tuple[Floats, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """The ``quantile`` of a per-state metric over all states of a trace where it is finite."""

    metric: str
    quantile: float


@dataclass(frozen=True, slots=True)
class TraceMetric:
    """A quantity with one value per trace.

    Attributes:
        name, unit, source, definition: as of :class:`opd_probe.metrics.registry.Metric`.
        level: what adds to the sums. ``"state"``: ``terms(values, cuts)`` gets the metrics of ``needs`` for a block of
            states and the values of ``cuts``. ``"rollout"``: ``terms(values, ())`` gets their means by rollout, for all
            rollouts at once. ``values`` also has the ``context`` columns.
        needs: per-state metrics, not depending on k.
        context: names of :data:`opd_probe.metrics.context.CONTEXT`.
        terms: ``n_terms`` arrays [n]; NaN in the first leaves the state (or rollout) out of all of them.
        combine: the sums of the terms, each [...], in; the value [...] out.
        declared_range: what the value lies in; None: what the unit says.
    """

    name: str
    unit: str
    source: str
    definition: str
    needs: tuple[str, ...]
    terms: Callable[[Mapping[str, Floats], Sequence[float]], Terms]
    combine: Callable[..., Floats]
    cuts: tuple[Cut, ...] = ()
    context: tuple[str, ...] = ()
    level: Literal["state", "rollout"] = "state"
    n_terms: int = 2
    declared_range: Range | None = None

    @property
    def range(self) -> Range:
        """What the value lies in."""
        return self.declared_range or UNIT_RANGES[self.unit]


TRACE_METRICS: dict[str, TraceMetric] = {}
"""Every quantity of a whole trace by name, in the order of the tables."""


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator; NaN over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def single(values: Floats) -> NDArray[np.float32]:
    """Values as they are compared with a cut: both are rounded to float32, so that a cut at a value meets it."""
    return values.astype(np.float32)


def _enter(metric: TraceMetric) -> None:
    if metric.name in TRACE_METRICS or metric.name in METRICS:
        raise ValueError(f"metric {metric.name!r} is registered twice")
    TRACE_METRICS[metric.name] = metric


def _of(weight: Floats, chosen: Bools) -> Terms:
    """The part of a weight that chosen states hold, and all of it; infinite weights are left out."""
    known = np.where(np.isfinite(weight), weight, np.nan)
    return known * chosen, known


def _top_signal(values: Mapping[str, Floats], cuts: Sequence[float]) -> Terms:
    size = values["absolute_reward"]
    return _of(size, single(size) >= np.float32(cuts[0]))


def _forking(values: Mapping[str, Floats], cuts: Sequence[float]) -> Terms:
    entropy = values["student_entropy"]
    return _of(values["reverse_kl"] + 0.0 * entropy, single(entropy) > np.float32(cuts[0]))


def _special_gap(values: Mapping[str, Floats], _: Sequence[float]) -> Terms:
    reward, special = values["sampled_reward"], values["special"]
    known = np.where(np.isfinite(reward), reward, np.nan) + 0.0 * special
    return known * special, special, known * (1 - special), 1 - special


_enter(
    TraceMetric(
        "top_1pct_signal_share",
        "share",
        "trainers' issues",
        "Σ|r| over states with |r| at or above its 99th percentile, over Σ|r| of all states; infinite |r| is left out",
        ("absolute_reward",),
        _top_signal,
        ratio,
        cuts=(Cut("absolute_reward", 1 - TOP_SHARE),),
    )
)
_enter(
    TraceMetric(
        "forking_reverse_kl_share",
        "share",
        "arXiv 2506.01939",
        "Σ KL(p ‖ q) over forking tokens, states with H(p) above its 80th percentile, over that of all states",
        ("student_entropy", "reverse_kl"),
        _forking,
        ratio,
        cuts=(Cut("student_entropy", FORKING),),
    )
)
_enter(
    TraceMetric(
        "special_token_gap",
        "nats",
        "arXiv 2603.25562",
        "mean r at special tokens − mean r at all others; null when the trace does not know the special ids",
        ("sampled_reward",),
        _special_gap,
        lambda special, n, other, m: ratio(special, n) - ratio(other, m),
        context=("special",),
        n_terms=4,
        declared_range=REAL,
    )
)

QUADRANTS = {
    "confident_agreeing_share": (False, False),
    "confident_wrong_share": (False, True),
    "uncertain_agreeing_share": (True, False),
    "uncertain_wrong_share": (True, True),
}


def _enter_quadrant(name: str, uncertain: bool, wrong: bool) -> None:
    def terms(values: Mapping[str, Floats], cuts: Sequence[float]) -> Terms:
        entropy, apart = values["student_entropy"], values["reverse_kl"]
        above = single(entropy) > np.float32(cuts[0]), single(apart) > np.float32(cuts[1])
        inside = (above[0] == uncertain) & (above[1] == wrong)
        known = ~np.isnan(entropy + apart)
        return np.where(known, inside.astype(np.float64), np.nan), known.astype(np.float64)

    _enter(
        TraceMetric(
            name,
            "share",
            "arXiv 2604.14084",
            f"share of states with H(p) {'above' if uncertain else 'at or below'} and KL(p ‖ q) "
            f"{'above' if wrong else 'at or below'} its median over the trace",
            ("student_entropy", "reverse_kl"),
            terms,
            ratio,
            cuts=(Cut("student_entropy", 0.5), Cut("reverse_kl", 0.5)),
        )
    )


for _name, (_uncertain, _wrong) in QUADRANTS.items():
    _enter_quadrant(_name, _uncertain, _wrong)


def _enter_perplexity(quarter: int) -> None:
    def terms(values: Mapping[str, Floats], _: Sequence[float]) -> Terms:
        perplexity = np.exp(values["teacher_nll"])
        wrong = (values["correct"] == 0) & np.isfinite(perplexity)
        order = np.full(len(perplexity), -1)
        order[np.flatnonzero(wrong)[np.argsort(perplexity[wrong], kind="stable")]] = np.arange(wrong.sum())
        inside = wrong & (order * 4 // max(int(wrong.sum()), 1) == quarter - 1)
        return np.where(inside, perplexity, np.nan), inside.astype(np.float64)

    _enter(
        TraceMetric(
            f"wrong_teacher_perplexity_q{quarter}",
            "perplexity",
            "arXiv 2604.10688",
            "mean of exp(−mean log q(ŷ)) over wrong rollouts, of those in the "
            f"{('lowest', 'second', 'third', 'highest')[quarter - 1]} quarter by it",
            ("teacher_nll",),
            terms,
            ratio,
            context=("correct",),
            level="rollout",
        )
    )


for _quarter in (1, 2, 3, 4):
    _enter_perplexity(_quarter)


def state_terms(metrics: Sequence[TraceMetric], view: TopView, cuts: Mapping[Cut, float]) -> list[Floats]:
    """The terms of each metric of level ``state`` for one block, [n, n_terms] each."""
    names = dict.fromkeys(name for metric in metrics for name in metric.needs)
    values: dict[str, Floats] = {name: METRICS[name].function(view) for name in names}
    values |= {name: view.scalar(name) for metric in metrics for name in metric.context}
    return [np.stack(metric.terms(values, [cuts[cut] for cut in metric.cuts]), axis=1) for metric in metrics]
