"""A trainer's own log beside the measurements of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd_probe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_NAMES = ("run", "teacher", "seed")
_CARRIED = ("k", "states")


def join_training_log(table: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """The overlap table with a trainer's log: a row for each step of either, what the other does not know missing.

    Args:
        table: one row per run, teacher, step (and ``seed``): what ``opd-probe overlap`` makes.
        log: one row per logged step: ``step``, those of ``run``, ``teacher`` and ``seed`` that tell it apart, and any
            quantities, such as ``loss`` and ``grad_norm``. A quantity that both tables have is the log's.

    Returns:
        The joined table, runs in the order of ``table``; a log row belongs to every teacher of its run, and carries the
        table's ``k`` and ``states``.

    Raises:
        InputError: the log has no column ``step`` or ``run``, or two rows for one step.
    """
    missing = [name for name in ("run", "step") if name not in log.columns]
    if missing:
        raise InputError(f"training log: no column {', '.join(map(repr, missing))}; it has {', '.join(log.columns)}")
    ours = [name for name in _NAMES if name in table.columns]
    theirs = [name for name in ours if name in log.columns]
    if log.duplicated([*theirs, "step"]).any():
        raise InputError(f"training log: expected one row per ({', '.join([*theirs, 'step'])}), got two")
    series = table[[*ours, *(name for name in _CARRIED if name in table.columns)]].drop_duplicates(ours)
    known = [name for name in log.columns if name in (*theirs, "step") or name not in (*_NAMES, *_CARRIED)]
    spread = series.merge(log[known], on=theirs)
    kept = [name for name in table.columns if name in (*ours, "step", *_CARRIED) or name not in known]
    keys = [*ours, "step", *(name for name in _CARRIED if name in table.columns)]
    joined = table[kept].merge(spread, on=keys, how="outer").copy()  # in one piece: pandas warns of many
    place = {name: index for index, name in enumerate(series[ours].itertuples(index=False, name=None))}
    order = [place[name] for name in joined[ours].itertuples(index=False, name=None)]  # a merge sorts by name
    return joined.assign(_order=order).sort_values(["_order", "step"]).drop(columns="_order").reset_index(drop=True)
