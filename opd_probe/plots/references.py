"""Horizontal lines to read curves against: a teacher's own accuracy, the model before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import opd_probe.plots.style as house
from opd_probe.plots.tables import check_table, numbers

_LOOKS: tuple[tuple[str, house.Dash], ...] = (
    (house.MUTED, (0.0, (1.0, 1.6))),
    (house.INK, (0.0, (4.0, 1.6, 1.0, 1.6))),
    (house.REFERENCE, (0.0, (8.0, 2.4))),
)


@dataclass(frozen=True)
class Reference:
    """A level with a name; ``values`` holds it for each metric that has one."""

    label: str
    values: Mapping[str, float]
    style: house.SeriesStyle

    @property
    def look(self) -> tuple[str, house.Dash, str, float]:
        """Colour, dashes, marker (none) and width, as a legend entry has them."""
        return self.style.color, self.style.dash, "", house.THIN

    def drawn_in(self, ax: Axes) -> bool:
        """Whether a panel shows this level."""
        return any(line.get_gid() == f"reference:{self.label}" for line in ax.lines)


def read_references(table: pd.DataFrame | None) -> list[Reference]:
    """The levels of a table: one row per ``label`` with a column for each metric; of several rows (seeds) the mean.

    Raises:
        InputError: no rows, or no column ``label``.
    """
    if table is None:
        return []
    check_table("references", table, ["label"])
    metrics = [c for c in table.columns if c not in ("label", "seed") and pd.api.types.is_numeric_dtype(table[c])]
    names = list(dict.fromkeys(table["label"].astype(str)))
    found = []
    for index, name in enumerate(names):
        rows = table[table["label"].astype(str) == name]
        means = {metric: float(np.mean(numbers(rows, metric))) for metric in metrics}
        color, dash = _LOOKS[index % len(_LOOKS)]
        known = {metric: value for metric, value in means.items() if np.isfinite(value)}
        found.append(Reference(name, known, house.SeriesStyle(color, "", dash)))
    return found


def draw_references(ax: Axes, metric: str, references: Sequence[Reference]) -> None:
    """The levels of ``metric`` across a panel that has been drawn; the panel grows to hold them."""
    if not ax.lines:
        return
    limits = ax.get_xlim()
    low, high = ax.get_ylim()
    for one in references:
        if metric not in one.values:
            continue
        level = one.values[metric]
        room = 0.05 * (high - low)
        low = level - room if level < low else low
        high = level + room if level > high - room else high
        line = ax.plot(limits, [level, level], color=one.style.color, linestyle=one.style.dash, linewidth=house.THIN)[0]
        line.set(gid=f"reference:{one.label}", zorder=1.2)
    ax.set_xlim(limits)
    ax.set_ylim(low, high)
