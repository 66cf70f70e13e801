"""Reading single values out of the aggregated tables, with intervals that travel through differences and ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

__all__ = ["Tables", "Value"]


@dataclass(frozen=True, slots=True)
class Value:
    """A number with the ends of its 95 % interval; the ends are NaN where no interval is known.

    Differences add half-widths in quadrature and ratios take the outermost ends, both as if the two numbers varied
    independently: numbers on the same prompts do not, so that these intervals are too wide rather than too narrow.
    """

    value: float
    lo: float = math.nan
    hi: float = math.nan

    def __sub__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            return Value(self.value - other, self.lo - other, self.hi - other)
        difference = self.value - other.value
        below = math.hypot(self.value - self.lo, other.hi - other.value)
        above = math.hypot(self.hi - self.value, other.value - other.lo)
        return Value(difference, difference - below, difference + above)

    def __truediv__(self, other: Value) -> Value:
        """The ratio; NaN over zero, and no interval when the denominator's interval holds zero."""
        if other.value == 0:
            return Value(math.nan)
        ratio = self.value / other.value
        if math.isnan(other.lo) or other.lo <= 0 <= other.hi:
            return Value(ratio)
        corners = [a / b for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Value(ratio, min(corners), max(corners))

    def __abs__(self) -> Value:
        ends = sorted((abs(self.lo), abs(self.hi)))
        return Value(abs(self.value), 0.0 if self.lo <= 0 <= self.hi else ends[0], ends[1])


class Tables:
    """The aggregated tables of one seed."""

    def __init__(self, tables: Mapping[str, pd.DataFrame], seed: int) -> None:
        self._tables = {name: table[table["seed"] == seed] if len(table) else table for name, table in tables.items()}

    def _rows(self, table: str, **equal: object) -> pd.DataFrame:
        rows = self._tables[table]
        for column, value in equal.items():
            rows = rows[rows[column] == value]
        if rows.empty:
            raise LookupError(f"{table}: no row with {equal}")
        return rows

    def curve(self, experiment: str, run: str, metric: str, k: int = 16) -> dict[int, Value]:
        """A metric of a run: step → value."""
        rows = self._rows("curves", experiment=experiment, run=run, k=k).sort_values("step")
        return {int(step): _value(row, metric) for step, (_, row) in zip(rows["step"], rows.iterrows(), strict=True)}

    def start(self, experiment: str, run: str, metric: str, k: int = 16) -> Value:
        """A metric before the first step."""
        return next(iter(self.curve(experiment, run, metric, k).values()))

    def end(self, experiment: str, run: str, metric: str, k: int = 16) -> Value:
        """A metric after the last step."""
        return list(self.curve(experiment, run, metric, k).values())[-1]

    def gain(self, experiment: str, run: str, metric: str = "accuracy") -> Value:
        """A metric at the end minus at the start."""
        return self.end(experiment, run, metric) - self.start(experiment, run, metric)

    def log(self, experiment: str, run: str, quantity: str) -> list[float]:
        """A quantity of the training log, one value per step."""
        rows = self._rows("training", experiment=experiment, run=run).sort_values("step")
        return [float(value) for value in rows[quantity]]

    def model(self, experiment: str, model: str, role: str, quantity: str = "accuracy") -> Value:
        """A model's own accuracy, or the gap recovery of a run."""
        return _value(self._rows("models", experiment=experiment, model=model, role=role).iloc[0], quantity)

    def pair(self, experiment: str, run: str, metric: str) -> Value:
        """A metric of two teachers compared with each other at the student's last states."""
        return _value(self._rows("teachers", experiment=experiment, run=run).sort_values("step").iloc[-1], metric)

    def gains(self, run: str) -> list[Value]:
        """What the teacher's continuation gains over the student's own, by growing depth."""
        rows = self._rows("continuation", run=run).sort_values("depth")
        return [_value(row, "gain") for _, row in rows.iterrows()]

    def along(self, experiment: str, run: str, metric: str, step: int, first: int, last: int) -> Value:
        """The mean of a metric over the states from position ``first`` to ``last`` of the responses."""
        rows = self._rows("positions", experiment=experiment, run=run, step=step)
        rows = rows[(rows["position_lo"] >= first) & (rows["position_hi"] <= last)]
        weights = rows[f"{metric}_n"] / rows[f"{metric}_n"].sum()
        value = float((rows[metric] * weights).sum())
        half = [(((rows[metric] - rows[f"{metric}_{end}"]) * weights) ** 2).sum() ** 0.5 for end in ("lo", "hi")]
        return Value(value, value - float(half[0]), value + float(half[1]))


def _value(row: pd.Series[float], name: str) -> Value:
    return Value(*(float(row.get(column, math.nan)) for column in (name, f"{name}_lo", f"{name}_hi")))
