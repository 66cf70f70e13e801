"""Rows and tables: their order, and what they are in JSON types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

INFINITE = "infinite"
"""The key under which a JSON row maps its infinite fields, if any, to ``"inf"`` or ``"-inf"``."""


def json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in JSON types: NaN becomes None, and so does an infinity, which :data:`INFINITE` then names."""
    clean: dict[str, Any] = {}
    infinite: dict[str, str] = {}
    for name, value in row.items():
        value = _plain(value)
        if isinstance(value, float) and not math.isfinite(value):
            if math.isinf(value):
                infinite[name] = "inf" if value > 0 else "-inf"
            value = None
        clean[name] = value
    return clean | ({INFINITE: infinite} if infinite else {})


def json_value(value: Any) -> Any:
    """Nested values in JSON types: what is not finite becomes None, an infinity the text ``"inf"`` or ``"-inf"``."""
    if isinstance(value, Mapping):
        return {str(name): json_value(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(held) for held in value]
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _plain(value: Any) -> Any:
    """numpy scalars as Python's own."""
    return value.item() if hasattr(value, "item") and not isinstance(value, (str, bytes)) else value


def as_table(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """A data frame whose steps stay whole numbers where some are unknown."""
    import pandas as pd

    table = pd.DataFrame(rows)
    if "step" in table:
        table["step"] = pd.array([None if pd.isna(step) else int(step) for step in table["step"]], dtype="Int64")
    return table


def by_series(table: pd.DataFrame) -> pd.DataFrame:
    """A table for a figure, in which the parts of a run by a field are runs of their own: ``mine, turn: 2``."""
    if "group" not in table:
        return table
    runs = [f"{run}, {by}: {group}" for run, by, group in zip(table["run"], table["by"], table["group"], strict=True)]
    return table.assign(run=runs)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as mappings; a missing step is None."""
    import pandas as pd

    return [
        {str(name): None if value is pd.NA else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def sort_key(row: Mapping[str, Any]) -> tuple[str, str, bool, int]:
    """Rows go by run, teacher and numeric step; an unknown step comes first."""
    step = row["step"]
    return row["run"], row["teacher"], step is not None, step or 0


def present(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Those columns that say something in at least one row."""
    return tuple(name for name in columns if any(row.get(name) is not None for row in rows))
