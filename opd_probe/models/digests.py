"""What a model and its tokenizer are by content: digests that tell whether two of them are the same."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, OpdProbeError
from opd_probe.models.checkpoints import TOKENIZER_FILES, format_of, is_checkpoint, resolve_checkpoint, tokenizer_home
from opd_probe.models.formats import gguf
from opd_probe.models.hub import home_of, localized
from opd_probe.models.remembered import file_digest
from opd_probe.texts import real_path
from opd_probe.types import Checkpoint


def weights_digest(source: Any) -> str:
    """sha256 over everything that shapes a model's numbers: weights, config, and for an adapter its base.

    Args:
        source: a directory, a hub id, a :class:`Checkpoint`, a model in memory (its parameters are hashed, and so are
            those of a loaded checkpoint that were changed since), or a served model (what its server says it is).
    """
    if isinstance(source, (str, Path)):
        source = resolve_checkpoint(source)
    if isinstance(source, Checkpoint):
        return _checkpoint_digest(source)
    from opd_probe.models.in_memory import state_digest
    from opd_probe.models.loading import LoadedModel
    from opd_probe.models.served.model import ServedModel

    if isinstance(source, ServedModel):
        return source.digest
    if isinstance(source, LoadedModel):
        return weights_digest(source.checkpoint) if source.is_as_loaded else state_digest(source.model)
    return state_digest(source)


def check_unchanged(source: Any, digest: object) -> None:
    """Refuse weights on disk that are others than those whose digest was taken, as of a checkpoint that is written over
    while it is read. Files that are gone meanwhile are no reason.

    Args:
        source: as for :func:`weights_digest`.
        digest: of before; None: it is not known.

    Raises:
        InputError: they changed.
    """
    if digest is None or not isinstance(source, (str, Path, Checkpoint)):
        return
    try:
        now = weights_digest(source)
        place = source.path if isinstance(source, Checkpoint) else str(source)
    except (OpdProbeError, OSError):
        return
    if now != digest and is_checkpoint(Path(place)):
        raise InputError(f"checkpoint {place}: its files changed while they were read; run the command again")


def _checkpoint_digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    checkpoint = localized(checkpoint)
    for file in _own_files(checkpoint):
        digest.update(content_digest(file))
    if (base := _adapted(checkpoint)) is not None:
        digest.update(weights_digest(base).encode())
    return digest.hexdigest()


def weights_files(checkpoint: Checkpoint) -> list[Path]:
    """All files that :func:`weights_digest` reads of a checkpoint, those of the base of an adapter among them.

    Raises:
        OpdProbeError: as it does.
    """
    local = localized(checkpoint)
    base = _adapted(local)
    return _own_files(local) + ([] if base is None else weights_files(resolve_checkpoint(base)))


def _own_files(local: Checkpoint) -> list[Path]:
    path, known = Path(local.path), format_of(local)
    files = [*known.weight_files(path), home_of(local) / "config.json", *(path / name for name in known.settings)]
    return [file for file in files if file.is_file()]


def _adapted(local: Checkpoint) -> str | None:
    """The base of an adapter; None of other checkpoints."""
    return local.base if format_of(local).adapter(Path(local.path)) else None


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, mtime_ns: int) -> bytes:
    """One teacher is asked for with every checkpoint, and reading it takes as long as its disk is slow."""
    del size, mtime_ns  # they are part of the cache's key only
    return file_digest(file)


def tokenizer_files_digest(place: Any) -> str | None:
    """sha256 over the tokenizer and template files at a directory or of a checkpoint; None where there are none."""
    place = getattr(place, "checkpoint", place)  # of a loaded model
    if isinstance(place, Checkpoint):
        local = localized(place)
        place = format_of(local).tokenizer(Path(local.path)) or home_of(local)
    if not isinstance(place, (str, Path)):
        return None
    if gguf.recognises(Path(place)):
        if gguf.TOKENS not in gguf.metadata(Path(place)):
            return None
        return content_digest(Path(place)).hex()
    files = [tokenizer_home(Path(place)) / name for name in TOKENIZER_FILES]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest() if any(file.is_file() for file in files) else None


def content_digest(file: Path) -> bytes:
    """sha256 over a file's bytes, asked for once while its size and time of change stay."""
    state = file.stat()
    return _file_digest(real_path(file), state.st_size, state.st_mtime_ns)
