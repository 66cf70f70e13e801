"""Training logs as their trainers write them: what each trainer calls a quantity, and its steps in order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, warn
from opd_probe.runs.training_logs import Row, find_log

NAMES: Mapping[str, tuple[str, ...]] = {
    "loss": (
        "loss", "train/loss", "train_loss", "train_loss_step", "train_loss_epoch", "distillation/loss", "actor/loss",
        "actor/pg_loss",
    ),
    "grad_norm": ("grad_norm", "train/grad_norm", "train_grad_norm", "actor/grad_norm", "grad_2.0_norm_total"),
    "training_learning_rate": ("learning_rate", "train/learning_rate", "lr", "train/lr", "actor/lr", "lr-*"),
    "training_reward": ("reward", "train/reward", "train_reward", "critic/score/mean", "critic/rewards/mean"),
    "training_accuracy": (
        "accuracy", "train/accuracy", "eval_accuracy", "eval/accuracy", "rewards/accuracy_reward/mean",
        "train/rewards/accuracy_reward/mean", "train_acc", "train_acc_epoch", "val-core/*/acc/mean@*",
        "val-core/*/acc/mean_at_*", "val/test_score/*",
    ),
    "training_response_length": (
        "response_length", "completions/mean_length", "train/completions/mean_length", "response_length/mean",
    ),
}  # fmt: skip
"""For each quantity what transformers, TRL (through loggers with ``train/`` before it), LLaMA-Factory, ms-swift,
Lightning and verl (through mlflow with ``_at_`` for ``@``) call it, the first that a file has being the one that is
read. With ``*``: the mean over those that match, such as benchmarks."""

STEPS = (
    "step", "global_step", "global_step/max_steps", "current_steps", "train/global_step", "trainer/global_step",
    "training/global_step", "_step", "Step",
)  # fmt: skip
"""What a log calls the training step."""

QUANTITIES = tuple(NAMES)

Names = Mapping[str, tuple[str, ...]]
_LAST_STEP = 2**53
"""Beyond it a float, such as a CSV file's, no longer tells steps apart."""
_OF_ALL = re.compile(r"(\d+)/\d+")
"""ms-swift's step, with how many there are."""


def read_log(path: Path, names: Names = NAMES, *, required: bool = True) -> list[dict[str, Any]]:
    """The steps of a training log in order, each with those quantities of ``names`` that were logged (else None).

    Of a step that was logged twice the later values count. Where a log is in the order of training and a quantity is
    logged again further back, as after a run went on from a checkpoint, what the abandoned stretch logged beyond that
    step is left out. NaN stays NaN.

    Args:
        path: a log of :data:`opd_probe.runs.training_logs.FORMATS`, or a directory with one; ``FILE#RUN`` names a run
            of a file that holds several.
        names: by quantity, what it may be called.
        required: whether a file that logs none of them is an error, or an empty list.

    Raises:
        MissingError: there is no such file.
        InputError: it cannot be read, or logs nothing that is known, or not as numbers, or holds several runs.
    """
    kind, place, run = find_log(path)
    if run and not kind.several:
        raise InputError(f"training log {path}: {place} holds one run; name it without #{run}")
    try:
        rows = list(kind.read(place, run))
    except InputError as error:
        raise InputError(f"training log {path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"training log {place}: cannot be read ({text}); expected {kind.what}") from None
    found = _by_step(place, rows, names, kind.appended)
    if required and not found:
        there = list(dict.fromkeys(str(name) for row in rows for name in row))
        got = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "no rows"
        raise InputError(f"training log {place}: expected rows with step and {_first_two(names)}, got {got}")
    return found


def _first_two(names: Names) -> str:
    return " or ".join(list(names)[:2])


def _by_step(path: Path, rows: list[Row], wanted: Names, appended: bool) -> list[dict[str, Any]]:
    there = dict.fromkeys(name for row in rows for name in row)
    sources = {quantity: _source(names, there) for quantity, names in wanted.items()}
    step_names = _step_names(path, rows, there)
    kept: dict[int, dict[str, Any]] = {}
    last, without = -1, 0
    for row in rows:
        found = {quantity: _mean(path, row, names) for quantity, names in sources.items()}
        values = {quantity: value for quantity, value in found.items() if value is not None}
        told = [row[name] for name in step_names if row.get(name) is not None]
        without += bool(values) and not told
        if not values or not told:
            continue
        step = _whole(path, told[0])
        known = kept.setdefault(step, {})
        if appended and step < last and not known.keys().isdisjoint(values):
            kept = {one: value for one, value in kept.items() if one <= step}
            known.clear()
        last = step
        known.update(values)
    if kept and without:
        warn(f"training log {path}: left out {without} rows without {step_names[0]}, whose step nobody says")
    return [{"step": step, **dict.fromkeys(wanted), **kept[step]} for step in sorted(kept)]


def _step_names(path: Path, rows: list[Row], there: Iterable[str]) -> list[str]:
    """What the step is called here, and under which other names rows say the same: those that agree with the first
    wherever both are. Others count something else, such as calls of a logger."""
    first, *others = [name for name in STEPS if name in there] or [""]
    both = [(row, [name for name in others if row.get(name) is not None]) for row in rows if row.get(first) is not None]
    differ = {name for row, held in both for name in held if _whole(path, row[name]) != _whole(path, row[first])}
    agree = {name for _, held in both for name in held} - differ
    return [first, *(name for name in others if name in agree)]


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
    of_all = _OF_ALL.fullmatch(value.strip()) if isinstance(value, str) else None
    number = _number(path, "step", of_all.group(1) if of_all else value)
    if not (0 <= number <= _LAST_STEP and number == int(number)):
        raise InputError(f"training log {path}: step is {value!r}; expected a whole number from 0 on")
    return int(number)
