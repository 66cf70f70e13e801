"""torch's distributed checkpoints (prime-rl and others), read in one process."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.models.directories import files, is_directory, subdirectories
from opd_probe.models.formats.around import config_home
from opd_probe.models.formats.headers import Headers

ACCEPTED = "torch's .metadata with .distcp files"
METADATA = ".metadata"
_OPTIMISERS = re.compile(r"optim(izer)?(_?states?)?(_\d+)?", re.IGNORECASE)
"""Names of directories in which trainers keep an optimiser's state by itself."""

_MODELS = "pytorch_model_fsdp_"
_POLICY = "policy/weights"
_OPTIMISER = re.compile(r"(^|\.)optim\w*\.|\.(exp_avg\w*|max_exp_avg_sq|momentum_buffer|step)$")


def recognises(path: Path) -> bool:
    """Metadata beside files of chunks, which are no optimiser's."""
    return (path / METADATA).is_file() and bool(weight_files(path)) and not _is_optimiser(path)


def _is_optimiser(path: Path) -> bool:
    return _OPTIMISERS.fullmatch(path.name) is not None


def inside(path: Path) -> Path | None:
    """The chunks in what trainers make of a step: accelerate's ``pytorch_model_fsdp_0``, NeMo-RL's ``policy/weights``
    and the ``model`` in it."""
    models = _models(path)
    if len(models) == 1:
        return models[0]
    if is_directory(path / _POLICY):
        return path / _POLICY
    if path.parts[-2:] == tuple(_POLICY.split("/")) and not recognises(path) and is_directory(path / "model"):
        return path / "model"
    return None


def _models(path: Path) -> list[Path]:
    if recognises(path):
        return []
    return [place for place in subdirectories(path, _MODELS) if recognises(place)]


def refuses(path: Path) -> str | None:
    """Chunks without the metadata, which torch writes last, or several models."""
    if len(models := _models(path)) > 1:
        return f"holds {len(models)} models ({', '.join(place.name for place in models)}); name the directory of one"
    if _is_optimiser(path):
        return None
    if weight_files(path) and not (path / METADATA).is_file():
        return f"a torch distributed checkpoint without {METADATA}, which is written last: its save did not finish"
    return None


def weight_files(path: Path) -> list[Path]:
    """The files of chunks, optimiser state included, and the metadata that says what lies where."""
    chunks = files(path, "*.distcp")
    return [*chunks, path / METADATA] if chunks and (path / METADATA).is_file() else chunks


def home(path: Path) -> Path | None:
    """Where a configuration lies: torch writes none, trainers put one beside or above the chunks."""
    return config_home(path)


def headers(path: Path) -> Headers:
    """Shapes and types of the weights; what is by its name a state of the optimiser is left out.

    Raises:
        InputError: metadata that cannot be read, or a file of chunks that is not there.
    """
    from opd_probe.models.chunks import read_headers

    found = read_headers(path)
    return {name: header for name, header in found.items() if not _OPTIMISER.search(name)}


def read(path: Path, dtype: Any, names: frozenset[str]) -> dict[str, Any]:
    """The weights of the model by its own names, read in place in the type that is asked for.

    Args:
        dtype: of the weights; None: as stored.
        names: that the architecture has.

    Raises:
        InputError: as :func:`headers`; or no or several sets of the stored names are those of the architecture.
    """
    from opd_probe.models.chunks import read_chunks

    wrapper = wrapper_of(list(headers(path)), names, path)
    stored = [name for name in headers(path) if name.startswith(wrapper)]
    found = read_chunks(path, stored, dtype)
    return {name.removeprefix(wrapper): found[name] for name in stored}


def wrapper_of(stored: list[str], names: frozenset[str], path: Path) -> str:
    """What trainers put before the names of a model (``""``, ``model.``, ``app.model.``).

    Raises:
        InputError: no stored name ends in one of the architecture, or two wrappers fit as well.
    """
    counts: Counter[str] = Counter()
    for name in stored:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in names:
                counts["".join(f"{part}." for part in parts[:place])] += 1
    best = [wrapper for wrapper, count in counts.items() if count == max(counts.values())]
    if len(best) != 1:
        found = (
            f"under each of {', '.join(sorted(best))}"
            if best
            else f"none (it holds {', '.join(sorted(stored)[:3])}, …)"
        )
        raise InputError(
            f"checkpoint {path}: expected the weights of one model of the architecture in config.json, found {found}"
        )
    return best[0]
