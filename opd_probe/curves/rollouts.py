"""Quantities with one value per rollout: length, truncation, correctness, sequence mean reward."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.auroc import left_out_auroc
from opd_probe.curves.clusters import Sums, gather, units_of
from opd_probe.curves.intervals import Estimate, Floats, Ints, ends, of_left_out
from opd_probe.errors import OpdProbeWarning
from opd_probe.metrics.context import correctness
from opd_probe.metrics.registry import REAL, UNIT_RANGES, Range
from opd_probe.trace import Trace

ROLLOUT_QUANTITIES: dict[str, tuple[str, Range]] = {
    "sequence_mean_reward": ("nats", REAL),
    "response_length": ("tokens", UNIT_RANGES["tokens"]),
    "truncation_rate": ("share", UNIT_RANGES["share"]),
    "accuracy": ("share", UNIT_RANGES["share"]),
}
"""The unit and the range of each, by name."""

FEW_OF_A_CLASS = 10
"""Below this many prompts with a right rollout, or with a wrong one, an AUROC is warned about; below two it is none."""


def rollout_values(trace: Trace, mean_reward: Floats) -> Floats:
    """[n_rollouts, 4] in the order of :data:`ROLLOUT_QUANTITIES`; NaN where unknown.

    Args:
        mean_reward: [n_rollouts], the mean of ``sampled_reward`` over the states of each rollout.
    """
    table = trace.rollouts
    length = np.asarray(table.column("response_length").to_numpy(zero_copy_only=False), dtype=np.float64)
    reasons = table.column("finish_reason").to_pylist()
    truncated = np.array([np.nan if reason is None else float(reason == "length") for reason in reasons])
    return np.stack([mean_reward, length, truncated, correctness(trace)], axis=1)


def summarise_rollouts(
    values: Floats, used: NDArray[np.bool_], codes: Ints, n_clusters: int, *, level: float | None
) -> dict[str, float]:
    """Means over rollouts that have states, with intervals over prompts, and the AUROC of the mean reward."""
    values, codes = values[used], codes[used]
    means = rollout_sums(values, codes, n_clusters).estimate([of for _, of in ROLLOUT_QUANTITIES.values()])
    row: dict[str, float] = {}
    for index, (name, value, lo, hi) in enumerate(zip(ROLLOUT_QUANTITIES, *ends(means, level), strict=True)):
        row |= {name: value, f"{name}_lo": lo, f"{name}_hi": hi}
        row[f"{name}_n"] = int((~np.isnan(values[:, index])).sum())
    auroc = Auroc.of(values[:, 0], values[:, 3], codes, n_clusters)
    if level is not None:
        auroc.warn_few()
    value, lo, hi = (float(end[0]) for end in ends(auroc.estimate, level))
    return row | {"reward_auroc": value, "reward_auroc_lo": lo, "reward_auroc_hi": hi, "reward_auroc_n": auroc.known}


def rollout_sums(values: Floats, codes: Ints, n_clusters: int) -> Sums:
    """Sums of rollout quantities [r, m] over clusters; NaN is left out."""
    finite = np.where(np.isfinite(values), values, 0.0)
    known = ~np.isnan(values)
    arrays = (finite, known, values == np.inf, values == -np.inf)
    total, count, plus, minus = (gather(array, codes, n_clusters) for array in arrays)
    return Sums(total, count, plus, minus, units_of(known.astype(np.float64), codes, n_clusters))


@dataclass(frozen=True)
class Auroc:
    """The AUROC of the mean reward; NaN where one class alone is known, or a class in one prompt alone.

    Attributes:
        estimate: of the one quantity.
        known: rollouts that count.
        prompts: the prompts that have a right rollout, and those that have a wrong one.
    """

    estimate: Estimate
    known: int
    prompts: tuple[int, int]

    @classmethod
    def of(cls, reward: Floats, correct: Floats, codes: Ints, n_clusters: int) -> Auroc:
        """From [r] values by rollout, NaN where unknown, and the cluster of each rollout; −1 leaves it out."""
        known = (codes >= 0) & ~np.isnan(reward) & ~np.isnan(correct)
        scores, right, where = reward[known], correct[known] > 0, codes[known]
        area, left_out = left_out_auroc(scores, right, where, n_clusters)
        prompts = len(np.unique(where[right])), len(np.unique(where[~right]))
        value = np.array([area if min(prompts) > 1 else np.nan])
        clusters, units = np.array([len(np.unique(where))]), np.array([float(min(prompts))])
        return cls(
            of_left_out(value, value, left_out[:, None], clusters, units, [UNIT_RANGES["share"]]),
            int(known.sum()),
            prompts,
        )

    def warn_few(self) -> None:
        """Say that the AUROC rests on few prompts of a class, or that there is none for want of them."""
        few = min(self.prompts)
        if not 0 < few < FEW_OF_A_CLASS:
            return
        what = f"{few} prompt{'s' if few > 1 else ''} with a {'right' if few == self.prompts[0] else 'wrong'} rollout"
        rough = f"its intervals resample prompts and are rough below {FEW_OF_A_CLASS} of each class"
        warnings.warn(
            f"reward_auroc: {what}: {rough if few > 1 else 'no AUROC below 2 of each class'}",
            OpdProbeWarning,
            stacklevel=4,
        )
