"""Some of the states of a trace as a trace of their own, read from the whole one block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd_probe.trace.parquet import Array
from opd_probe.trace.table import Trace


class SelectedTrace(Trace):
    """Those states of a trace that a mask picks. Nothing is copied: blocks are those of the whole, less the others.

    Args:
        whole: the trace.
        states: bool [n_states], which states are in it.
        rollouts: bool [n_rollouts], which rollouts are; every state that is in it must be of one of them.
    """

    def __init__(self, whole: Trace, states: NDArray[np.bool_], rollouts: NDArray[np.bool_]) -> None:
        counts = np.add.reduceat(np.append(states, False).astype(np.int64), whole.rollout_offsets[:-1])
        counts = np.where(np.diff(whole.rollout_offsets) > 0, counts, 0)  # reduceat gives an empty slice its next one
        table = whole.rollouts
        place = table.column_names.index("n_states")
        table = table.set_column(place, table.schema.field("n_states"), pa.array(counts, type=pa.int64()))
        super().__init__(table.filter(pa.array(rollouts)), whole.provenance, arrays={})
        self._whole = whole
        self._states = states

    @property
    def columns(self) -> tuple[str, ...]:
        """The numeric state columns that the whole has."""
        return self._whole.columns

    @property
    def path(self) -> Path | None:
        """The file of the whole."""
        return self._whole.path

    def _raw_blocks(self, columns: list[str], size: int) -> Iterator[dict[str, Array]]:
        start = 0
        for block in self._whole.blocks(columns, size):
            kept = self._states[start : start + len(block["rollout"])]
            start += len(kept)
            if kept.any():
                yield {name: block[name][kept] for name in columns}
