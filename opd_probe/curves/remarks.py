"""What must be said beside summaries of traces: lists that are shorter than k, and overlaps of one token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SINGLE_SHARE = 0.5
"""Without an interval, the share of overlaps with one token from which they decide over the mean advantage."""


def single_overlap_decides(row: Row) -> bool:
    """Whether overlaps of one token decide over the mean ``overlap_advantage`` of a row.

    There it is 0, the largest value that it has, whatever the models say. They decide where the mean over the other
    overlaps, ``overlap_advantage_beyond_one``, lies outside the interval of ``overlap_advantage``, or does not exist;
    where there is no interval, where they are more than :data:`SINGLE_SHARE` of the overlaps.

    Args:
        row: of a table of summaries; without the columns nothing decides. At k = 1 it is said otherwise.
    """
    n, beyond_n = (_number(row, f"overlap_advantage{name}_n") for name in ("", "_beyond_one"))
    single = n - beyond_n
    if not single > 0 or _number(row, "k") == 1:
        return False
    beyond, low, high = (_number(row, f"overlap_advantage{name}") for name in ("_beyond_one", "_lo", "_hi"))
    if math.isnan(beyond):
        return True
    return not low <= beyond <= high if low <= high else single > SINGLE_SHARE * n


def difference_remark(table: Mapping[str, Row]) -> str | None:
    """What to say where overlaps of one token decide over a difference of ``overlap_advantage``, else None.

    They do where the difference over the other overlaps has another sign, does not exist or lies outside the interval.

    Args:
        table: rows of :func:`opd_probe.compare` by metric.
    """
    both, beyond = (table.get(f"overlap_advantage{name}") for name in ("", "_beyond_one"))
    if both is None or beyond is None or both["k"] == 1 or "n_a" not in both:
        return None
    single = [both[name] - beyond[name] for name in ("n_a", "n_b")]
    change, other = both["difference"], beyond["difference"]
    low, high = both["difference_lo"], both["difference_hi"]
    inside = low <= other <= high or not low <= high
    if not any(single) or math.isnan(change) or (inside and change * other >= 0):
        return None
    return (
        f"compare: at {single[0]:,} of {both['n_a']:,} states of A and {single[1]:,} of {both['n_b']:,} of B the "
        f"overlap at k = {both['k']} is one token, where overlap_advantage is 0 whatever the models say; that decides "
        f"over its difference: {change:.3g}, and {_said(other)} without them (overlap_advantage_beyond_one); raise k"
    )


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):  # pandas' own NA
        return math.nan


def list_remarks(rows: Sequence[Row]) -> list[str]:
    """One line each, at most, on short lists and on overlaps of one token in rows of one command.

    Args:
        rows: what :func:`opd_probe.summarize` gives.
    """
    found = []
    short = [row for row in rows if row["n_short_lists"]]
    if short:
        found.append(
            f"{_states(short, 'n_short_lists')} a model gives fewer than k = {_several(short)} ids a probability above "
            "0; its list is shorter there, and overlap_ratio still divides by k (n_short_lists)"
        )
    single = [row for row in rows if single_overlap_decides(row)]
    if single:
        values = ", ".join(_said(row["overlap_advantage_beyond_one"]) for row in single[:3])
        beside = ", ".join(f"{row['overlap_advantage']:.3g}" for row in single[:3])
        more = ", …" if len(single) > 3 else ""
        found.append(
            f"{_states(single, 'n_single_overlap')} the overlap at k = {_several(single)} is one token, where "
            f"overlap_advantage is 0 whatever the models say; that decides over its mean: {beside}{more}, and "
            f"{values}{more} without them (overlap_advantage_beyond_one); raise k"
        )
    return found


def _said(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3g}"


def _states(rows: Sequence[Row], name: str) -> str:
    count, n = (sum(int(row[column]) for row in rows) for column in (name, "n_states"))
    return f"at {count:,} of {n:,} states{f' of {len(rows)} traces' if len(rows) > 1 else ''}"


def _several(rows: Sequence[Row]) -> str:
    return ", ".join(str(k) for k in sorted({row["k"] for row in rows}))
