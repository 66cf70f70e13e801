"""Safetensors without a configuration beside them, whole or in the pieces of several ranks.

torch's distributed checkpoint writes such pieces with its HuggingFaceStorageWriter; accelerate's save_state and other
loops write whole weights alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import opd_probe.models.formats.huggingface as huggingface
from opd_probe.errors import InputError
from opd_probe.models.directories import files
from opd_probe.models.formats.around import config_home
from opd_probe.models.formats.dcp import wrapper_of
from opd_probe.models.formats.headers import Headers, TensorHeader, safetensors_headers
from opd_probe.models.steps import step_name
from opd_probe.texts import parse_json

ACCEPTED = "shard-…-model-…-of-….safetensors as torch's distributed checkpoint writes them"
_PIECES = "shard-*-model-*-of-*.safetensors"
_PLACES = "DCP_SHARDING_INFO"
"""Entry of a file's metadata with the offsets of each piece in its whole."""

_WHOLE = ("consolidated", "sharded")


def recognises(path: Path) -> bool:
    """Pieces; or whole weights where a configuration is around or the directory is that of a step."""
    if files(path, _PIECES):
        return True
    whole = (path / huggingface.SINGLE).is_file() or (path / huggingface.INDEX).is_file()
    if not whole or (path / "config.json").is_file():
        return False
    return step_name(path.name) is not None or config_home(path) is not None


def inside(path: Path) -> Path | None:
    """The whole weights that were made of pieces, or the pieces, in a folder of their own."""
    if huggingface.recognises(path) or (path / huggingface.INDEX).is_file():
        return None
    consolidated, sharded = (path / name for name in _WHOLE)
    if files(path, _PIECES) and (consolidated / huggingface.INDEX).is_file():
        return consolidated
    return sharded if files(sharded, _PIECES) else None


def weight_files(path: Path) -> list[Path]:
    """The files of all pieces, or of whole weights, in name order.

    Raises:
        InputError: an index that cannot be read, or that names a file that is not there.
    """
    return files(path, _PIECES) or huggingface.weight_files(path)


@dataclass(frozen=True)
class _Piece:
    file: Path
    name: str
    offsets: tuple[int, ...]
    header: TensorHeader


@dataclass(frozen=True)
class Pieced:
    """One weight in pieces, put together when it is sliced."""

    pieces: tuple[_Piece, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ends = ([o + n for o, n in zip(p.offsets, p.header.shape, strict=True)] for p in self.pieces)
        return tuple(max(column) for column in zip(*ends, strict=True))

    @property
    def dtype(self) -> str:
        """As torch names it."""
        return self.pieces[0].header.dtype

    def __getitem__(self, index: Any) -> Any:
        import torch
        from safetensors import safe_open

        parts = []
        for piece in self.pieces:
            with safe_open(piece.file, framework="pt") as tensors:
                parts.append(tensors.get_tensor(piece.name))
        if len(parts) == 1:
            return parts[0][index]
        whole = torch.empty(self.shape, dtype=parts[0].dtype)
        for piece, part in zip(self.pieces, parts, strict=True):
            whole[tuple(slice(o, o + n) for o, n in zip(piece.offsets, part.shape, strict=True))] = part
        return whole[index]


def headers(path: Path) -> Headers:
    """Shapes and types of the whole weights.

    Raises:
        InputError: a file that is not whole, or pieces that do not make a whole.
    """
    return {name: TensorHeader(weight.shape, weight.dtype) for name, weight in _weights(path).items()}


def read(path: Path, dtype: Any = None, names: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The weights by the architecture's names, each put together only when it is sliced.

    Raises:
        InputError: as :func:`headers`; or no or several sets of the stored names are those of the architecture.
    """
    del dtype  # who slices a weight turns it into the type that is asked for
    weights = _weights(path)
    wrapper = wrapper_of(list(weights), names, path)
    return {name.removeprefix(wrapper): weights[name] for name in weights if name.startswith(wrapper)}


def _weights(path: Path) -> dict[str, Pieced]:
    found: dict[str, list[_Piece]] = defaultdict(list)
    for file in weight_files(path):
        stored, offsets = safetensors_headers([file]), _offsets(file)
        for name, header in stored.items():
            found[name].append(_Piece(file, name, offsets.get(name, (0,) * len(header.shape)), header))
    weights = {name: Pieced(tuple(_each_once(pieces))) for name, pieces in found.items()}
    for name, weight in weights.items():
        held = sum(piece.header.values for piece in weight.pieces)
        if held != math.prod(weight.shape):
            raise InputError(
                f"checkpoint {path}: {name} has {held} of {math.prod(weight.shape)} values in the files of pieces that "
                "are there; copy the files of every rank"
            )
    return weights


def _each_once(pieces: list[_Piece]) -> list[_Piece]:
    """Without the copies that several ranks wrote of one piece."""
    return list({piece.offsets: piece for piece in reversed(pieces)}.values())[::-1]


def _offsets(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        stated = (tensors.metadata() or {}).get(_PLACES)
    try:
        entries = parse_json(stated) if stated else {}
        return {name: tuple(int(n) for n in entry["saved_offsets"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{file}: its {_PLACES} does not say where its pieces belong; save the checkpoint again"
        ) from None
