"""Where a checkpoint's files lie here: of one on the hub, the local hub cache first, then the hub."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, MissingError
from opd_probe.models.checkpoints import format_of, is_checkpoint, resolve_checkpoint
from opd_probe.types import Checkpoint

_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*"]


def hub_snapshot(checkpoint: Checkpoint, *, code: bool = False) -> Path:
    """The local copy of a hub checkpoint: from the local hub cache when whole, else fetched from the hub.

    Args:
        code: fetch its Python files too.

    Raises:
        MissingError: it is neither cached nor to be had from the hub.
    """
    from huggingface_hub import snapshot_download

    from opd_probe.models.guards import brief, quiet

    place: dict[str, Any] = {
        "repo_id": checkpoint.path,
        "revision": checkpoint.revision,
        "allow_patterns": [*_WANTED, "*.py"] if code else _WANTED,
        "ignore_patterns": _UNWANTED,
    }
    # The hub client's errors have no common root: not cached, not reachable, not found, not allowed, offline.
    cached: Path | None = None
    with contextlib.suppress(Exception):
        cached = Path(snapshot_download(**place, local_files_only=True))
    if cached is not None and is_checkpoint(cached):
        return cached
    try:
        with quiet():
            return Path(snapshot_download(**place))
    except Exception as error:
        raise MissingError(
            f"model {checkpoint.path}: not a local directory, not in the local hub cache, and not to be had from the "
            f"hub ({type(error).__name__}: {brief(error)})"
        ) from None


def localized(checkpoint: Checkpoint, *, code: bool = False) -> Checkpoint:
    """The checkpoint itself when it is local, else its local copy, with its run and step.

    Raises:
        MissingError: see :func:`hub_snapshot`.
        InputError: what the hub gave is no checkpoint of a known format.
    """
    if checkpoint.format != "hub":
        return checkpoint
    copy = resolve_checkpoint(hub_snapshot(checkpoint, code=code), run=checkpoint.run, base=checkpoint.base)
    return dataclasses.replace(copy, step=checkpoint.step if checkpoint.step is not None else copy.step)


def home_of(checkpoint: Checkpoint) -> Path:
    """The local directory with a checkpoint's config.json, which may be that of a base model.

    Raises:
        InputError: no configuration anywhere.
        MissingError: as :func:`resolve_checkpoint`.
    """
    local = localized(checkpoint)
    place = format_of(local).home(Path(local.path))
    if place is not None:
        return place
    if local.base is None:
        raise InputError(
            f"checkpoint {local.path}: weights without a config.json; name a model of the same architecture with "
            "--base MODEL, or copy its config.json and tokenizer there"
        )
    if (Path(local.base) / "config.json").is_file():  # with or without weights
        return Path(local.base)
    return home_of(resolve_checkpoint(local.base))


def tokenizer_place(checkpoint: Checkpoint) -> str:
    """Where the tokenizer of a checkpoint lies, if anywhere: beside the weights; for an adapter without one of its own,
    beside those of its base.

    Raises:
        InputError, MissingError: as :func:`home_of`.
    """
    checkpoint = localized(checkpoint)
    known = format_of(checkpoint)
    if (apart := known.tokenizer(Path(checkpoint.path))) is not None:
        return str(apart)
    place = home_of(checkpoint)
    adapter = known.adapter(Path(checkpoint.path))
    if adapter and checkpoint.base and not (place / "tokenizer_config.json").is_file():
        return tokenizer_place(resolve_checkpoint(checkpoint.base))
    return str(place)
