"""What a plot demands of its table, and the words that say what the table holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from opd_probe.curves.remarks import single_overlap_decides
from opd_probe.curves.sampling import AS_SCORED
from opd_probe.errors import InputError

Floats = NDArray[np.float64]

STATES = {
    "own": "student-visited states (on-policy)",
    "fixed": "one fixed set of states",
    "unknown": "states of unknown origin",
}


def numbers(rows: pd.DataFrame, column: str) -> Floats:
    """``rows[column]`` as float64 [len(rows)], NaN where it is missing or the column is absent."""
    if column not in rows.columns:
        return np.full(len(rows), np.nan)
    try:
        values = pd.to_numeric(rows[column])
    except (TypeError, ValueError) as error:
        raise InputError(f"column {column!r} of the table: expected numbers, got {error}") from None
    return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))


def metric_columns(rows: pd.DataFrame, metric: str) -> tuple[Floats, Floats, Floats]:
    """A metric with the ends of its interval: ``metric``, ``metric_lo``, ``metric_hi``, each [len(rows)]."""
    return numbers(rows, metric), numbers(rows, f"{metric}_lo"), numbers(rows, f"{metric}_hi")


def check_table(name: str, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse what cannot be drawn.

    Raises:
        InputError: not a data frame, no rows, or a column that is not there.
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{name} table: expected a pandas DataFrame, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{name} table: no column {', '.join(map(repr, missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise InputError(f"{name} table: expected at least one row, got none")


def check_unique(name: str, table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse two rows for one point, which would be drawn as a zigzag. Where the table has seeds, so has the key.

    Raises:
        InputError: two rows agree in every key; the message names the first such pair.
    """
    keys = [*keys, *(["seed"] if "seed" in table.columns else [])]
    twice = table.duplicated(list(keys))
    if twice.any():
        row = table.loc[twice].iloc[0]
        where = ", ".join(f"{key} = {row[key]}" for key in keys)
        raise InputError(f"{name} table: expected one row per ({', '.join(keys)}), got two for {where}")


def single_k(name: str, table: pd.DataFrame) -> int:
    """The one k of a table.

    Raises:
        InputError: several k in one table; curves of different k are different metrics.
    """
    found = sorted({int(k) for k in numbers(table, "k") if np.isfinite(k)})
    if len(found) != 1:
        raise InputError(
            f"{name} table: expected one k in column 'k', got {', '.join(map(str, found)) or 'none'};"
            " pass the rows of one k"
        )
    return found[0]


MIN_STATES = 20
"""Bins of positions with fewer states are not drawn: a handful of the longest responses says little, and loudly."""


def without_sparse_bins(table: pd.DataFrame) -> pd.DataFrame:
    """The position table without bins of few states, unless nothing else is there."""
    if "n_states" not in table:
        return table
    kept = table[table["n_states"] >= MIN_STATES]
    return table if kept.empty else kept


def states_phrase(table: pd.DataFrame) -> str:
    """Whose states the rows describe, in words. A table that does not say has states of unknown origin.

    Where a column ``token_source`` says that ids were made from text afterwards, or ``sampling`` that responses were
    sampled otherwise than they are scored, so do the words; states of such responses are not on-policy. Likewise where
    a column ``quantised`` names a model that is, or ``stopped`` that a replay stopped before its last prompt.
    """
    sampling = sampling_phrase(table)
    words = " and ".join(STATES[kind] for kind in kinds_of_states(table))
    if sampling and not sampling.startswith("some"):
        words = words.replace(" (on-policy)", "")
    notes = ", ".join(
        note for note in (text_phrase(table), sampling, quantised_phrase(table), stopped_phrase(table)) if note
    )
    if not notes:
        return words
    return f"{words[:-1]}, {notes})" if words.endswith(")") else f"{words} ({notes})"


def sampling_phrase(table: pd.DataFrame) -> str:
    """That responses were sampled otherwise than they are scored, in words; "" where none was, or nothing is known."""
    if "sampling" not in table.columns:
        return ""
    if "n_states" in table.columns:
        table = table[table["n_states"].notna()]  # rows of traces; those of a training log know nothing of it
    labels = list(dict.fromkeys(label for label in table["sampling"].dropna() if label))
    off = [str(label) for label in labels if label != AS_SCORED]
    if not off:
        return ""
    whole = not table["sampling"].isna().any() and len(off) == len(labels)
    how = f"sampled at {off[0]}" if off[0].startswith("temperature") else off[0]
    if len(off) > 1:
        return f"{'' if whole else 'some of them '}sampled in {len(off)} ways, none as scored"
    return how if whole else f"some of them {how}"


def quantised_phrase(table: pd.DataFrame) -> str:
    """Which models are quantised, in words, as ``4-bit teacher``; "" where none is."""
    if "quantised" not in table.columns:
        return ""
    if "n_states" in table.columns:
        table = table[table["n_states"].notna()]  # rows of traces; those of a training log know nothing of it
    found = list(dict.fromkeys(table["quantised"].dropna()))
    some = "" if table["quantised"].notna().all() else "some with "
    return f"{some}{' or '.join(map(str, found))}" if found else ""


def stopped_phrase(table: pd.DataFrame) -> str:
    """That replays stopped once they were precise enough, in words; "" where none did."""
    if "stopped" not in table.columns:
        return ""
    if "n_states" in table.columns:
        table = table[table["n_states"].notna()]  # rows of traces; those of a training log know nothing of it
    stopped = table["stopped"].notna()
    return "" if not stopped.any() else "stopped when precise" if stopped.all() else "some stopped when precise"


def text_phrase(table: pd.DataFrame) -> str:
    """That rows are of re-tokenised text, in words; "" where none is."""
    sources = set(table["token_source"].dropna()) if "token_source" in table.columns else set()
    if sources <= {"sampled_ids"}:
        return ""
    return "re-tokenised text" if sources == {"retokenized"} else "some of them re-tokenised text"


def kinds_of_states(table: pd.DataFrame) -> list[str]:
    """The kinds of states that the rows have, in the order of :data:`STATES`."""
    if "states" not in table.columns:
        return ["unknown"]
    found = set(table["states"].fillna("unknown"))
    strange = sorted(str(kind) for kind in found if kind not in STATES)
    if strange:
        raise InputError(f"column 'states' of the table: expected {', '.join(STATES)}, got {strange[0]!r}")
    return [kind for kind in STATES if kind in found]


def single_overlap_note(table: pd.DataFrame, metrics: Iterable[str]) -> str:
    """The sentence that says where overlaps of one token decide over the overlap advantage that is drawn; "" where they
    do not."""
    if "overlap_advantage" not in metrics:
        return ""
    decided = sum(single_overlap_decides(row) for row in table.to_dict("records"))  # type: ignore[arg-type]
    points = "the only point" if len(table) == 1 else f"{decided} of {len(table)} points"
    return f"Overlaps of one token, which count 0, decide over the overlap advantage at {points}." if decided else ""


def interval_note(table: pd.DataFrame, metrics: Iterable[str], mark: str = "Bands") -> str:
    """The sentence that says what a band means, or why there is none."""
    drawn = any(np.isfinite(numbers(table, f"{metric}_lo")).any() for metric in metrics)
    prompts = numbers(table, "n_prompts")
    known = prompts[np.isfinite(prompts)]
    few = bool(len(known)) and bool((known < 2).any())
    if not drawn:
        return "No interval: fewer than 2 prompts." if few else "No interval in the table."
    counts = sorted({int(count) for count in known})
    span = f" ({counts[0]}{f'-{counts[-1]}' if len(counts) > 1 else ''} prompts)" if counts else ""
    where = " No band where there are fewer than 2 prompts." if few else ""
    if "stopped" in table.columns and table["stopped"].notna().any():
        where = f" Wider where a replay stopped, so as to be right there.{where}"
    return f"{mark}: 95 % interval over prompts{span}.{where}"
