"""One streaming pass over a trace: per-rollout sums of every metric, per group of states where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.bootstrap import Floats, Ints, Sums, cluster_codes
from opd_probe.errors import InputError
from opd_probe.trace import Trace

Average = str
"""``"token"``: the mean over all states; ``"rollout"``: the mean over rollouts of their means."""

AVERAGES = ("token", "rollout")


def check_average(average: str) -> None:
    """Refuse an unknown kind of average.

    Raises:
        InputError: it is neither ``token`` nor ``rollout``.
    """
    if average not in AVERAGES:
        raise InputError(f"average = {average!r}: expected one of {', '.join(AVERAGES)}")


@dataclass
class RolloutSums:
    """Sums over the states of each (rollout, group): arrays [n_rollouts, n_groups, m]."""

    total: Floats
    count: Floats
    infinite: Floats
    sign: Floats

    @classmethod
    def empty(cls, n_rollouts: int, n_groups: int, n_quantities: int) -> RolloutSums:
        """Nothing added yet."""
        shape = (n_rollouts, n_groups, n_quantities)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.ones(n_quantities))

    def add(self, keys: Ints, values: Floats) -> None:
        """Add the states of a block.

        Args:
            keys: [n], rollout · n_groups + group, ascending, as the rows of a trace give them.
            values: [n, m]; NaN is left out.
        """
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        cells = keys[starts]
        infinite = np.isinf(values)
        finite = np.isfinite(values)
        shape = (-1, self.total.shape[2])
        self.total.reshape(shape)[cells] += np.add.reduceat(np.where(finite, values, 0.0), starts, axis=0)
        self.count.reshape(shape)[cells] += np.add.reduceat((finite | infinite).astype(float), starts, axis=0)
        if infinite.any():
            self.infinite.reshape(shape)[cells] += np.add.reduceat(infinite.astype(float), starts, axis=0)
            self.sign = np.where((infinite & (values < 0)).any(0), -1.0, self.sign)

    def clustered(self, codes: Ints, n_clusters: int, average: str) -> list[Sums]:
        """The sums of each group over clusters of rollouts, one :class:`Sums` per group."""
        total, count, infinite = self.total, self.count, self.infinite
        if average == "rollout":
            with np.errstate(invalid="ignore", divide="ignore"):
                total = np.where(count > 0, total / count, 0.0)
            count, infinite = (count > 0).astype(float), (infinite > 0).astype(float)

        def gather(values: Floats) -> Floats:
            summed = np.zeros((n_clusters, *values.shape[1:]))
            np.add.at(summed, codes, values)
            return summed

        total, count, infinite = gather(total), gather(count), gather(infinite)
        return [
            Sums(total[:, group], count[:, group], infinite[:, group], self.sign) for group in range(total.shape[1])
        ]


BlockFunction = Callable[[Mapping[str, NDArray[np.generic]]], Floats]


def clusters_of(trace: Trace) -> tuple[Ints, int]:
    """The cluster (prompt) of each rollout of a trace, counting only prompts of rollouts that have states."""
    prompts = trace.rollouts.column("prompt_id").to_pylist()
    has_states = np.diff(trace.rollout_offsets) > 0
    kept = [prompt for prompt, has in zip(prompts, has_states, strict=True) if has]
    codes = np.zeros(len(prompts), dtype=np.int64)
    inner, n_clusters = cluster_codes(kept) if kept else (np.empty(0, dtype=np.int64), 0)
    codes[has_states] = inner
    return codes, n_clusters


def stack(values: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> Floats:
    """Metric columns side by side, [n, m]."""
    return np.stack([values[name] for name in names], axis=1)
