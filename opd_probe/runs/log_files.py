"""Training logs as their trainers write them: which files there are, and what each trainer calls a quantity."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from opd_probe.errors import InputError, MissingError, warn
from opd_probe.models.steps import step_of_name
from opd_probe.texts import parse_json, read_json

NAMES: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss", "train/loss", "distillation/loss", "actor/loss", "actor/pg_loss"),
    "grad_norm": ("grad_norm", "train/grad_norm", "actor/grad_norm"),
    "training_reward": ("reward", "train/reward", "critic/score/mean", "critic/rewards/mean"),
    "training_accuracy": (
        "accuracy", "train/accuracy", "eval_accuracy", "eval/accuracy", "rewards/accuracy_reward/mean",
        "train/rewards/accuracy_reward/mean", "val-core/*/acc/mean@*", "val/test_score/*",
    ),
    "training_response_length": (
        "response_length", "completions/mean_length", "train/completions/mean_length", "response_length/mean",
    ),
}  # fmt: skip
"""For each quantity what transformers, TRL (through tensorboard and wandb with ``train/`` before it) and verl call it,
the first that a file has being the one that is read. With ``*``: the mean over those that match, such as benchmarks."""

STEPS = ("step", "global_step", "train/global_step", "trainer/global_step", "training/global_step", "_step", "Step")
"""What a log calls the training step."""

QUANTITIES = tuple(NAMES)
STATE = "trainer_state.json"

Names = Mapping[str, tuple[str, ...]]
_LAST_STEP = 2**53
"""Beyond it a float, such as a CSV file's, no longer tells steps apart."""
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LINE = re.compile(r"(?<![\w/-])step:(\d+) - (.+)")
_NUMPY = re.compile(r"^np\.\w+\((.*)\)$")
_REPEATED = re.compile(r"\s*\[repeated \d+x[^\]]*\]\s*$")

Row = Mapping[str, Any]


def read_log(path: Path, names: Names = NAMES, *, required: bool = True) -> list[dict[str, Any]]:
    """The steps of a training log in order, each with those quantities of ``names`` that were logged (else None).

    Of a step that was logged twice, as after a run went on from a checkpoint, the later values count, and what an
    abandoned stretch logged beyond that step is left out. NaN stays NaN.

    Args:
        names: by quantity, what it may be called.
        required: whether a file that logs none of them is an error, or an empty list.

    Raises:
        MissingError: there is no such file.
        InputError: it cannot be read, or logs nothing that is known, or not as numbers.
    """
    events = "tfevents" in path.name or (path.is_dir() and any(path.glob("*tfevents*")))
    if path.is_dir() and not events:
        path = next((state for state in states_below(path) if state.is_file()), path)
    if not (path.is_file() or (events and path.is_dir())):
        what = f"no {STATE} or event file in this directory" if path.is_dir() else "no such file"
        raise MissingError(f"training log {path}: {what}; expected {_accepted(names)}")
    reader, appended = (_events, False) if events else _READERS.get(path.suffix.lower(), (_console, True))
    try:
        rows = list(reader(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"training log {path}: cannot be read ({text}); expected {_accepted(names)}") from None
    found = _by_step(path, rows, names, appended)
    if required and not found:
        there = list(dict.fromkeys(str(name) for row in rows for name in row))
        got = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "no rows"
        raise InputError(f"training log {path}: expected rows with step and {_first_two(names)}, got {got}")
    return found


def states_below(directory: Path) -> list[Path]:
    """Where a run's trainer may have left its state: in the directory itself, then in its checkpoints, latest first."""
    steps = {step_of_name(path.name): path for path in directory.glob("*") if path.is_dir()}
    known = sorted((step for step in steps if step is not None), reverse=True)
    return [place / STATE for place in (directory, *(steps[step] for step in known))]


def _first_two(names: Names) -> str:
    return " or ".join(list(names)[:2])


def _accepted(names: Names) -> str:
    return f"{STATE}, a JSON Lines or CSV file with step and {_first_two(names)}, or a console log of verl"


def _by_step(path: Path, rows: list[Row], wanted: Names, appended: bool) -> list[dict[str, Any]]:
    there = dict.fromkeys(name for row in rows for name in row)
    sources = {quantity: _source(names, there) for quantity, names in wanted.items()}
    step_name = next((name for name in STEPS if name in there), None)
    kept: dict[int, dict[str, Any]] = {}
    last = -1
    for row in rows:
        values = {quantity: _mean(path, row, names) for quantity, names in sources.items()}
        if step_name is None or row.get(step_name) is None or all(value is None for value in values.values()):
            continue
        step = _whole(path, row[step_name])
        if appended and step < last:
            kept = {one: value for one, value in kept.items() if one < step}
        last = step
        known = kept.setdefault(step, dict.fromkeys(wanted))
        known.update({quantity: value for quantity, value in values.items() if value is not None})
    return [{"step": step, **kept[step]} for step in sorted(kept)]


def _source(names: Iterable[str], there: Iterable[str]) -> list[str]:
    """The names in the file that stand for a quantity: those of the first of ``names`` that it has."""
    for name in names:
        found = [one for one in there if fnmatchcase(one, name)] if "*" in name else [name] if name in there else []
        if found:
            return found
    return []


def _mean(path: Path, row: Row, names: list[str]) -> float | None:
    values = [_number(path, name, row[name]) for name in names if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _number(path: Path, name: str, value: Any) -> float:
    try:
        return float(value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value))
    except (ValueError, OverflowError):
        raise InputError(f"training log {path}: {name} is {str(value)[:40]!r}; expected a number") from None


def _whole(path: Path, value: Any) -> int:
    number = _number(path, "step", value)
    if not (0 <= number <= _LAST_STEP and number == int(number)):
        raise InputError(f"training log {path}: step is {value!r}; expected a whole number from 0 on")
    return int(number)


def _encoding(path: Path) -> str:
    """UTF-8, or the UTF-16 in which some shells redirect output; with a byte order mark or without."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _state(path: Path) -> Iterator[Row]:
    """transformers' ``trainer_state.json``."""
    content = read_json(path, encoding=_encoding(path))
    if not isinstance(content, dict) or not isinstance(content.get("log_history"), list):
        raise ValueError("no list log_history in it")
    for number, row in enumerate(content["log_history"]):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} of log_history: expected an object, got {type(row).__name__}")
        yield row


def _lines(path: Path) -> Iterator[Row]:
    """JSON Lines, flat, or as verl's file logger nests them: ``{"step": …, "data": {…}}``."""
    broken = ""
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if broken:
                raise ValueError(broken)
            try:
                row = parse_json(line)
            except ValueError as error:
                broken = f"line {number}: {error}"  # of the last line it is a log that is still being written
                continue
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: expected an object, got {type(row).__name__}")
            nested = row.get("data")
            yield {**nested, "step": row.get("step")} if isinstance(nested, dict) else row
    if broken:
        warn(f"training log {path}: the last line is cut off; read without it")


def _table(path: Path) -> Iterator[Row]:
    """CSV: plain, or an export of wandb's, with columns ``<run> - <name>`` beside their ``__MIN`` and ``__MAX``."""
    table = pd.read_csv(path, encoding=_encoding(path), skipinitialspace=True)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("rows have more fields than the header has names")
    names = [str(name) for name in table.columns]
    kept = {name: name.rsplit(" - ", 1)[-1] for name in names if not name.endswith(("__MIN", "__MAX"))}
    twice = [name for name in dict.fromkeys(kept.values()) if list(kept.values()).count(name) > 1]
    if twice:
        raise ValueError(f"columns of several runs ({twice[0]}); export one run to a file")
    for row in table.to_dict("records"):
        yield {short: None if pd.isna(row[name]) else row[name] for name, short in kept.items()}


def _console(path: Path) -> Iterator[Row]:
    """verl's console: ``step:12 - actor/pg_loss:0.1 - …``, coloured or not, with or without the name of a process."""
    nothing = True
    with path.open(encoding=_encoding(path), errors="replace") as file:
        for line in file:
            match = _LINE.search(_ESCAPES.sub("", line))
            if match is None:
                continue
            row: dict[str, Any] = {"step": int(match.group(1))}
            for part in _REPEATED.sub("", match.group(2)).rstrip().split(" - "):
                name, colon, value = part.rpartition(":")
                if colon:
                    row[name.strip()] = _NUMPY.sub(r"\1", value.strip())
            nothing = False
            yield row
    if nothing:
        raise ValueError("no line step:N - name:value - … in it")


def _events(path: Path) -> Iterator[Row]:
    """tensorboard's event files, one or a directory of them."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise InputError(
            f"training log {path}: event files need tensorboard; install it, or give trainer_state.json or a CSV file"
        ) from None
    try:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    except Exception as error:  # protocol buffers have errors of their own
        raise ValueError(f"{type(error).__name__}: {error}") from None
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            yield {"step": event.step, tag: event.value}


_READERS: dict[str, tuple[Callable[[Path], Iterator[Row]], bool]] = {
    ".json": (_state, True),
    ".jsonl": (_lines, True),
    ".ndjson": (_lines, True),
    ".csv": (_table, False),
}
"""By suffix, and whether rows are in the order in which they were logged; anything else is a console log or, by its
name, tensorboard's."""
