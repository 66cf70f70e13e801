"""How quantities change over the checkpoints of one run, with intervals that leave one prompt out of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from opd_probe.curves.intervals import FEW_UNBOUNDED, Estimate, Floats, interval, of_left_out
from opd_probe.curves.paired import Side
from opd_probe.metrics.registry import REAL, Range
from opd_probe.metrics.states import check_k
from opd_probe.trace import Trace


@dataclass(frozen=True, slots=True)
class Found:
    """A value with both ends of its 95 % interval; NaN where there is none."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Course:
    """Quantities of the traces of one run and teacher, in the order of their steps.

    A prompt is left out of all traces at once, so that what the checkpoints have in common cancels; where the traces
    have no prompt in common, nothing does, and the intervals are those of independent samples.

    Attributes:
        steps: of each trace.
        n_prompts: with states, in each trace.
        n_common: prompts that have states in every trace.
        estimates: by quantity, one for each trace, over the prompts of all of them.
    """

    steps: Sequence[int | None]
    n_prompts: Sequence[int]
    n_common: int
    estimates: dict[str, Sequence[Estimate]]

    def values(self, name: str) -> Floats:
        """[s], the quantity at each step; NaN where it is not known."""
        return np.array([one.value[0] for one in self.estimates[name]])

    def at(self, name: str, place: int) -> Found:
        """The quantity at one step."""
        one = self.estimates[name][place]
        lo, hi = interval(one)
        return Found(float(one.value[0]), float(lo[0]), float(hi[0]))

    def trend(self, name: str) -> Found:
        """The change from the first to the last step along the straight line that fits the steps in their order best
        (least squares): of two steps their difference."""
        return self._contrast(name, trend_weights(len(self.steps)))

    def difference(self, name: str, first: int, last: int) -> Found:
        """The quantity at one step less that at an earlier one."""
        weights = np.zeros(len(self.steps))
        weights[last] += 1.0
        weights[first] -= 1.0
        return self._contrast(name, weights)

    def _contrast(self, name: str, weights: Floats) -> Found:
        """Σ weight · value over the steps, within what the ranges of the values allow."""
        used = weights != 0
        scaled = weights[used]
        bounds = ([getattr(one, end)[0] for one in self.estimates[name]] for end in ("low", "high"))
        low, high = (np.array(bound)[used] for bound in bounds)
        ends = [float((scaled * np.where(scaled > 0, *pair)).sum()) for pair in ((low, high), (high, low))]
        return self.derived((name,), lambda values: values[..., used] @ weights[used], (ends[0], ends[1]))

    def derived(
        self, names: Sequence[str], combine: Callable[..., Floats], limits: Range = REAL, *, exact: bool = False
    ) -> Found:
        """What is made of the quantities at all steps, with each prompt left out once.

        Args:
            combine: for each name finite values [..., s] in; values [...] out.
            limits: the range of what comes out.
            exact: what is the same whichever prompt is left out is known; else it has no interval.
        """
        parts = [self.estimates[name] for name in names]
        value = combine(*(np.array([one.finite[0] for one in part]) for part in parts))
        left_out = combine(*(np.stack([one.left_out[:, 0] for one in part], axis=-1) for part in parts))
        clusters = np.array([min(int(one.clusters[0]) for part in parts for one in part)])
        units = np.array([min(float(one.units[0]) for part in parts for one in part)])
        made = np.atleast_1d(np.asarray(value, dtype=np.float64))
        whole = of_left_out(made, made, np.asarray(left_out).reshape(-1, 1), clusters, units, [limits])
        lo, hi = interval(whole, exact=exact and bool((clusters >= FEW_UNBOUNDED).all()))
        return Found(float(made[0]), float(lo[0]), float(hi[0]))


def trend_weights(n: int) -> Floats:
    """[n], what makes of n values the change along their least-squares line, from the first place to the last."""
    place = np.arange(n) - (n - 1) / 2
    return place / (place**2).sum() * (n - 1) if n > 1 else np.zeros(n)


def course(
    traces: Sequence[Trace], steps: Sequence[int | None], k: int, metrics: Sequence[str], average: str
) -> Course:
    """The course of metrics, and of the quantities of rollouts, over the traces of one run and teacher.

    Raises:
        InputError, TraceError: a k or a metric that cannot be used.
    """
    for trace in traces:
        check_k(trace, k)
    prompts = [_prompts(trace) for trace in traces]
    everything = sorted(set().union(*prompts))
    sides = [Side.of(trace, everything, k, metrics, average, rollouts=True) for trace in traces]
    estimates: dict[str, list[Estimate]] = {}
    for side in sides:
        for part in side.parts:
            if isinstance(part.source, Estimate):
                for index, (name, _) in enumerate(part.names):
                    estimates.setdefault(name, []).append(_one(part.source, index))
    common = set.intersection(*prompts) if prompts else set()
    return Course(list(steps), [len(found) for found in prompts], len(common), dict(estimates))


def _prompts(trace: Trace) -> set[str]:
    used = np.diff(trace.rollout_offsets) > 0
    names = trace.rollouts.column("prompt_id").to_pylist()
    return {name for name, there in zip(names, used.tolist(), strict=True) if there}


def _one(of: Estimate, index: int) -> Estimate:
    """One quantity alone."""
    at = slice(index, index + 1)
    return Estimate(
        of.value[at], of.finite[at], of.left_out[:, at], of.clusters[at], of.units[at], of.low[at], of.high[at],
        of.scale[at],
    )  # fmt: skip
