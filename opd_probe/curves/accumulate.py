"""One streaming pass over a trace: per-rollout sums of every metric, per group of states where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.clusters import Sums, cluster_codes, gather, units_of
from opd_probe.curves.intervals import Floats, Ints
from opd_probe.errors import InputError
from opd_probe.metrics import METRICS
from opd_probe.metrics.view import TopView
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
    plus: Floats
    minus: Floats

    @classmethod
    def empty(cls, n_rollouts: int, n_groups: int, n_quantities: int) -> RolloutSums:
        """Nothing added yet."""
        shape = (n_rollouts, n_groups, n_quantities)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def add(self, keys: Ints, *parts: Floats) -> None:
        """Add the states of a block.

        Args:
            keys: [n], rollout · n_groups + group, ascending, as the rows of a trace give them.
            parts: [n, m_i] each, all m quantities side by side; NaN is left out. Best laid out column by column.
        """
        starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        lengths = np.concatenate([starts[1:], [len(keys)]]) - starts
        cells = keys[starts]
        left = 0
        for values in parts:
            columns = slice(left, left + values.shape[1])
            left = columns.stop

            def add(sums: Floats, added: Floats | NDArray[np.bool_], columns: slice = columns) -> None:
                summed = np.add.reduceat(added.astype(np.float64, copy=False), starts, axis=0)
                sums.reshape(-1, sums.shape[-1])[cells, columns] += summed

            finite = np.isfinite(values)
            if finite.all():
                add(self.total, values)
                self.count.reshape(-1, self.count.shape[-1])[cells, columns] += lengths[:, None]
                continue
            add(self.total, np.where(finite, values, 0.0))
            add(self.count, ~np.isnan(values))
            for sums, infinity in ((self.plus, np.inf), (self.minus, -np.inf)):
                infinite = values == infinity
                if infinite.any():
                    add(sums, infinite)

    def add_metrics(
        self, keys: Ints, block: Mapping[str, NDArray[Any]], values: Mapping[str, Floats], names: Sequence[str], k: int
    ) -> None:
        """Add metrics of the states of a block; the mean of one that is known at selected states alone becomes NaN.

        Args:
            keys: as for :meth:`add`.
            block: the stored columns that the metrics were made of.
            values: at least the metrics ``names``, which are the first quantities.
        """
        self.add(keys, stack(values, names))
        view = TopView(block, k)
        for column, name in enumerate(names):
            selected = METRICS[name].selected
            if selected is not None:
                self.forget(keys, column, selected(view))

    def forget(self, keys: Ints, column: int, unknown: NDArray[np.bool_]) -> None:
        """Let the mean of a quantity be NaN wherever one of these states of a block counts; its count stays."""
        self.total.reshape(-1, self.total.shape[-1])[keys[unknown], column] = np.nan

    def clustered(self, codes: Ints, n_clusters: int, average: str) -> list[Sums]:
        """The sums of each group over clusters of rollouts (code −1: left out), one :class:`Sums` per group."""
        arrays = [self.total, self.count, self.plus, self.minus]
        if average == "rollout":
            with np.errstate(invalid="ignore", divide="ignore"):
                total = np.where(self.count > 0, self.total / self.count, self.total)  # 0, or NaN
            arrays = [total, *((array > 0).astype(np.float64) for array in arrays[1:])]

        gathered = [gather(array, codes, n_clusters) for array in arrays]
        units = units_of(self.count, codes, n_clusters)
        total, count, plus, minus = gathered
        return [
            Sums(total[:, group], count[:, group], plus[:, group], minus[:, group], units[group])
            for group in range(self.total.shape[1])
        ]

    def rollout_means(self, quantity: int) -> Floats:
        """[n_rollouts]: the mean of one quantity over the states of each rollout, groups together; NaN over nothing."""
        arrays = (self.total, self.count, self.plus, self.minus)
        total, count, plus, minus = (array[:, :, quantity].sum(1) for array in arrays)
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = total / count
            return means + np.where(plus > 0, np.inf, 0.0) - np.where(minus > 0, np.inf, 0.0)


def clusters_of(trace: Trace) -> tuple[Ints, int]:
    """The cluster (prompt) of each rollout of a trace, and how many there are.

    Prompts whose rollouts were all skipped are clusters too, in which nothing is defined.
    """
    return cluster_codes(trace.rollouts.column("prompt_id").to_pylist())


def prompts_with_states(trace: Trace) -> int:
    """The number of prompts that have a state."""
    codes, _ = clusters_of(trace)
    return len(np.unique(codes[np.diff(trace.rollout_offsets) > 0]))


def stack(values: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> Floats:
    """Metric columns side by side, [n, m], each along memory."""
    return np.stack([values[name] for name in names]).T
