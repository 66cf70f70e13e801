"""From a path or a hub id to a :class:`Checkpoint`, without loading anything."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from opd_probe.errors import InputError, MissingError, OpdProbeError
from opd_probe.models.directories import closed, entries, is_directory
from opd_probe.models.formats import FORMATS, Format, gguf
from opd_probe.models.formats.headers import Headers
from opd_probe.models.served.endpoint import is_url, shown
from opd_probe.models.steps import step_of_name
from opd_probe.texts import read_json, real_path
from opd_probe.types import Checkpoint

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?$")
_LEVELS = 4
"""Directories between a step's own and that of its weights, as in ``step_5/policy/weights/model/consolidated``."""

_STATES = ("trainer_state.json", "ckpt_contents.json")
"""Files beside the weights whose ``global_step`` is the step."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Whatever of them lies beside a checkpoint makes its tokenizer and its chat template."""


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint of a known format: where its weights are, below the directory that was given or in it."""

    path: Path
    format: Format


@dataclass(frozen=True, slots=True)
class Refused:
    """A directory that a trainer wrote and that cannot be used.

    Attributes:
        path: where the reason was found, below the directory that was given or in it.
        format: the name of the format that refuses it.
        reason: what was found, and what to do.
    """

    path: Path
    format: str
    reason: str


def locate(path: str | Path) -> Located | Refused | None:
    """The checkpoint that a local directory is or holds in its trainer's layout; None: nothing of the kind.

    File names alone are looked at, and the small JSON files that lie beside the weights. What cannot be looked at,
    or vanishes meanwhile, is nothing.

    Raises:
        InputError: such a JSON file cannot be read.
    """
    path = Path(path)
    if gguf.recognises(path):
        return Located(path, next(known for known in FORMATS if known.name == "gguf"))
    if not is_directory(path) or not os.access(path, os.R_OK | os.X_OK):
        return None
    try:
        for known in FORMATS:
            if (reason := known.refuses(path)) is not None:
                return Refused(path, known.name, reason)
            if (inner := known.inside(path)) is not None:
                return locate(inner)
            if known.recognises(path):
                return Located(path, known)
    except OpdProbeError:
        raise
    except OSError:
        return None
    return None


def is_checkpoint(path: str | Path) -> bool:
    """Whether a local directory holds a checkpoint of a known format."""
    return isinstance(locate(path), Located)


def outermost(path: Path) -> Path:
    """The directory that stands for a checkpoint: ``global_step_5`` for ``global_step_5/actor/huggingface``."""
    found, best = locate(path), path
    for place in path.parents[:_LEVELS] if found is not None else ():
        if step_of_name(best.name) is not None:  # nothing above stands for it, and a run may hold thousands of them
            break
        best = place if locate(place) == found else best
    return best


def looks_like_hub_id(name: str) -> bool:
    """Whether a string has the form ``org/name`` or ``org/name@revision``."""
    return _HUB_ID.match(name) is not None


def resolve_checkpoint(
    path: str | Path, *, run: str = "", base: str | None = None, student: str | None = None
) -> Checkpoint:
    """The checkpoint at a local directory, or on the hub when there is no such directory.

    Args:
        base: for an adapter, the base model to use in place of the one that its configuration names; for weights that
            were saved without a configuration, the model that has it.
        student: the model before training, which is that base where nothing else says so.

    Raises:
        MissingError: no such directory, and not of the form of a hub id.
        InputError: a directory or a file that is no checkpoint, or none that can be used; says what was found and
            what is accepted.
    """
    local = Path(path)
    if is_url(path):
        raise InputError(f"model {shown(str(path))}: is behind HTTP; expected weights here: a directory or a hub id")
    if not local.exists():
        if looks_like_hub_id(str(path)):
            name, _, revision = str(path).partition("@")
            return Checkpoint(name, run=run, format="hub", revision=revision or None, base=base)
        raise MissingError(f"checkpoint {path}: no such directory, and not a hub id of the form org/name")
    found = locate(local)
    if isinstance(found, Refused):
        raise InputError(f"checkpoint {found.path}: {found.reason}")
    if found is None:
        raise InputError(f"checkpoint {path}: {describe(local)}; expected {accepted()}")
    known, place = found.format, found.path
    adapter, own = known.adapter(place), known.base(place)
    needs_another = adapter or known.home(place) is None
    return Checkpoint(
        str(place),
        run=run,
        step=step_of(outermost(real_path(local))),
        format=known.name,
        base=(base or ((own or student) if adapter else (student or own))) if needs_another else None,
    )


def format_of(checkpoint: Checkpoint) -> Format:
    """The format of a checkpoint that is not on the hub."""
    return next(known for known in FORMATS if known.name == checkpoint.format)


def tokenizer_home(path: Path) -> Path:
    """Where the tokenizer of a directory lies: in it, or else at the home of the checkpoint that it is or holds."""
    found = None if any((path / name).is_file() for name in TOKENIZER_FILES) else locate(path)
    if not isinstance(found, Located):
        return path
    return found.format.tokenizer(found.path) or found.format.home(found.path) or path


def headers_of(checkpoint: Checkpoint) -> Headers:
    """Shapes and types of the weights of a local checkpoint, without those of its base.

    Raises:
        InputError: a file that is not whole.
    """
    return format_of(checkpoint).headers(Path(checkpoint.path))


def accepted() -> str:
    """What a checkpoint directory may hold, in words."""
    *others, last = (known.accepted for known in FORMATS if known.accepted)
    return f"{', '.join(others)}, or {last}"


def describe(path: Path) -> str:
    """What is at a path that is no checkpoint, in words."""
    if path.is_file():
        return "is a file"
    if (reason := closed(path)) is not None:
        return reason
    names = [entry.name + ("/" if is_directory(entry) else "") for entry in entries(path)]
    if not names:
        return "is an empty directory"
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"holds no checkpoint (found {shown})"


def step_of(path: Path) -> int | None:
    """The optimiser step: ``global_step`` of the trainer's own record, else the number in the directory's name."""
    recorded = recorded_step(path)
    return step_of_name(real_path(path).name) if recorded is None else recorded


def recorded_step(path: Path) -> int | None:
    """``global_step`` of the record that a trainer left beside the weights; None: there is none.

    Raises:
        InputError: the record cannot be read.
    """
    for state in (path / name for name in _STATES):
        if state.is_file():
            try:
                step = read_json(state).get("global_step")
            except OSError as error:
                raise InputError(f"{state}: cannot be read ({error.strerror})") from None
            except (ValueError, AttributeError):
                raise InputError(f"{state}: not valid JSON; remove it to take the step from the name") from None
            if isinstance(step, int):
                return step
    return None
