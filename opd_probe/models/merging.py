"""Weights that several ranks of a training job saved in pieces, put together one at a time."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.tensor  # makes sharded tensors known to torch.load
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Shard

from opd_probe.errors import InputError
from opd_probe.models.guards import brief

_FOREIGN = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Pieces:
    """One weight in pieces along dimension ``dim``, put together when it is sliced, as one of safetensors is read."""

    parts: Sequence[Tensor]
    dim: int
    shape: tuple[int, ...]
    dtype: str

    def __getitem__(self, index: Any) -> Tensor:
        whole = self.parts[0] if len(self.parts) == 1 else torch.cat(list(self.parts), self.dim)
        return whole[index]


def _is_zip(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # as of one that says that it goes on elsewhere
        return False


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote; their values stay on disk until they are used.

    Raises:
        InputError: not a whole file, or one that holds anything but tensors by name: nothing else is unpickled.
    """
    if not _is_zip(file):
        raise InputError(f"{file}: not a whole file of torch.save; copy it again, or wait until it is written")
    try:
        with _silent_meshes():
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's errors on bad files have no common root
        foreign = _FOREIGN.search(str(error))
        if foreign is not None:
            raise InputError(
                f"{file}: holds a {foreign[1]}, which is not unpickled since that can run code; expected tensors by "
                "name, as FSDP with a device mesh saves them; merge it with the trainer's own tool"
            ) from None
        raise InputError(
            f"{file}: cannot be read as torch.save writes it ({type(error).__name__}: {brief(error)})"
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: holds a {type(found).__name__}; expected tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{file}: {name} is a {type(value).__name__}; expected tensors by name")
        if not _has_values(value):
            raise InputError(f"{file}: {name} is a tensor of another kind; expected one with values of its own, or a "
                             "whole shard")  # fmt: skip
    return found


def _has_values(value: Tensor) -> bool:
    """Whether a tensor is dense, and a sharded one has its parts: what is unpickled has the attributes that it says."""
    if isinstance(value, DTensor):
        spec, local = getattr(value, "_spec", None), getattr(value, "_local_tensor", None)
        placements = getattr(spec, "placements", None)
        whole = isinstance(placements, tuple) and all(_is_placement(one, value.ndim) for one in placements)
        return whole and isinstance(local, Tensor) and local.ndim in (value.ndim, 1) and _has_values(local)
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _is_placement(value: object, ndim: int) -> bool:
    """Whether it is one, of a dimension that is there."""
    dim = getattr(value, "dim", 0)
    return isinstance(value, Placement) and isinstance(dim, int) and 0 <= dim < max(ndim, 1)


@contextmanager
def _silent_meshes() -> Iterator[None]:
    """torch warns that a mesh of processes is read where there are none, which is what merging is."""
    logger = logging.getLogger("torch.distributed.device_mesh")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def merge_ranks(files: Sequence[Path]) -> dict[str, Pieces]:
    """The weights of a sharded model by name.

    A sharded tensor says along which dimension of the device mesh it is split and along which it is repeated. What is
    no sharded tensor is whole on every rank when it stands among sharded ones and equal on all, as buffers are, and
    otherwise a piece along dimension 0.

    Args:
        files: of every rank, in the order of ranks.

    Raises:
        InputError: a file that cannot be read, or pieces that do not make a whole.
    """
    ranks = [read_tensors(file) for file in files]
    for file, tensors in zip(files, ranks, strict=True):
        if differing := sorted(tensors.keys() ^ ranks[0].keys()):
            raise InputError(f"{file}: {differing[0]} is in {files[0].name} or in it, but not in both")
    among_sharded = any(isinstance(value, DTensor) for value in ranks[0].values())
    merged = {}
    for name in ranks[0]:
        values = [tensors[name] for tensors in ranks]
        try:
            merged[name] = _sharded(values) if isinstance(values[0], DTensor) else _plain(values, among_sharded)
        except ValueError as error:
            raise InputError(f"{files[0]}: {name}: {error}") from None
    return merged


def _sharded(values: Sequence[Tensor]) -> Pieces:
    first: Any = values[0]
    placements = first.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError("holds partial sums, which only the training job can add up")
    split = [dim for dim, placement in enumerate(placements) if placement.is_shard()]
    if len(split) > 1 or any(type(placements[dim]) is not Shard for dim in split):
        kinds = ", ".join(repr(placement) for placement in placements)
        raise ValueError(f"is split along {len(split)} dimensions of the mesh ({kinds}); expected one (FSDP or HSDP)")
    dim = placements[split[0]].dim if split else 0
    parts = [_local(values[rank]) for rank in _one_group(first, split, dim, values)]
    return _pieces(parts, dim, tuple(first.shape))


def _local(value: Any) -> Tensor:
    if not isinstance(value, DTensor):
        raise ValueError("is sharded on some ranks only")
    return value._local_tensor


def _one_group(first: Any, split: Sequence[int], dim: int, values: Sequence[Tensor]) -> list[int]:
    """The ranks whose pieces make one whole, in order: the first of the groups that each hold all of it.

    The mesh of processes says so. How it is pickled changes with torch's versions, so that one of another version may
    not be readable; trainers count the ranks of a group one after the other, so that the first ones do whose pieces
    add up.
    """
    if not split:
        return [0]
    try:
        mesh = first.device_mesh.mesh
        ranks = mesh[tuple(slice(None) if axis in split else 0 for axis in range(mesh.ndim))].reshape(-1).tolist()
    except (AttributeError, TypeError, RuntimeError, ValueError, IndexError):
        lengths = [_length(_local(value), dim) for value in values]
        ranks = [rank for rank in range(len(values)) if sum(lengths[:rank]) < first.shape[dim]]
    if not ranks or not all(0 <= rank < len(values) for rank in ranks):
        raise ValueError(f"lies on ranks {ranks} of the mesh, which are not the ranks of the files")
    return [int(rank) for rank in ranks]


def _plain(values: Sequence[Tensor], among_sharded: bool) -> Pieces:
    if any(isinstance(value, DTensor) for value in values):
        raise ValueError("is sharded on some ranks only")
    alike = values[0].ndim == 0 or (among_sharded and all(torch.equal(value, values[0]) for value in values[1:]))
    parts = values[:1] if alike else values
    rows = sum(part.shape[0] for part in parts) if parts[0].ndim else 0
    return _pieces(parts, 0, (rows, *parts[0].shape[1:]) if parts[0].ndim else ())


def _pieces(parts: Sequence[Tensor], dim: int, shape: tuple[int, ...]) -> Pieces:
    if any(part.dtype != parts[0].dtype for part in parts):
        raise ValueError("has several types")
    across = [[*part.shape[:dim], *part.shape[dim + 1 :]] for part in parts if part.numel()]
    length = sum(_length(part, dim) for part in parts) if shape else 0
    if any(one != [*shape[:dim], *shape[dim + 1 :]] for one in across) or (shape and length != shape[dim]):
        raise ValueError(
            f"has pieces of shapes {[list(part.shape) for part in parts]}, which do not make {list(shape)}"
        )
    whole = [part for part in parts if part.numel()] or parts[:1]
    return Pieces(whole, dim, shape, str(parts[0].dtype).removeprefix("torch."))


def _length(part: Tensor, dim: int) -> int:
    """Along a dimension; a rank that holds nothing of a weight may keep an empty vector in place of a piece."""
    return part.shape[dim] if part.ndim > dim else 0
