"""What torch.distributed.checkpoint wrote, read in one process and without running what is pickled in it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from opd_probe.errors import InputError
from opd_probe.models.formats.headers import TensorHeader
from opd_probe.models.guards import brief, one_line
from opd_probe.texts import within

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}
"""All that a metadata file needs. torch itself unpickles whatever stands there."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in _ALLOWED.get(module, ()):
            raise InputError(f"holds a {module}.{name}, which is not unpickled since that can run code")
        if module == "pathlib._local":  # as Python 3.13 writes it
            module = "pathlib"
        return super().find_class(module, "PurePosixPath" if name.endswith("Path") else name)


def read_metadata(path: Path) -> Metadata:
    """The metadata of a checkpoint.

    Raises:
        InputError: it is not what torch.distributed.checkpoint writes, or names a file that is not there.
    """
    file = path / ".metadata"
    try:
        with file.open("rb") as handle:
            found = _Unpickler(handle).load()
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # a broken pickle may raise anything
        raise InputError(
            f"{file}: not the metadata of torch.distributed.checkpoint ({type(error).__name__}: {brief(error)}); copy "
            "the checkpoint again"
        ) from None
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise InputError(
            f"{file}: holds a {type(found).__name__}; expected the metadata of torch.distributed.checkpoint"
        )
    with one_line(str(file), "cannot be used"):
        _check_chunks(path, found.storage_data)
    return found


def _check_chunks(path: Path, places: Mapping[Any, Any]) -> None:
    ends: dict[str, int] = {}
    for place in places.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        chunk = within(path, name)
        if not chunk.is_file():
            raise InputError(f"{path / '.metadata'}: names {name}, which is not there; copy the whole checkpoint")
        if (size := chunk.stat().st_size) < end:
            raise InputError(f"{chunk}: has {size} of at least {end} bytes; copy the whole checkpoint")


def _tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    stored = metadata.state_dict_metadata.items()
    return {name: entry for name, entry in stored if isinstance(entry, TensorStorageMetadata)}


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Shapes and types of the stored tensors, from the metadata alone.

    Raises:
        InputError: as :func:`read_metadata`.
    """
    with one_line(f"{path / '.metadata'}", "cannot be used"):
        return {
            name: TensorHeader(tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
            for name, entry in _tensors(read_metadata(path)).items()
        }


class _Reader(FileSystemReader):
    """torch's reader, with metadata that was unpickled with care."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(str(path))
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
        return self._metadata


def read_chunks(path: Path, names: Sequence[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Stored tensors by name, each read into its place.

    Args:
        dtype: of weights with several dimensions; vectors stay as they are stored, since they take no room and some
            architectures keep them in float32. None: as stored.

    Raises:
        InputError: chunks that cannot be read.
    """
    metadata = read_metadata(path)
    entries = _tensors(metadata)
    wanted: dict[str, Any] = {}
    for name in names:
        stored = entries[name].properties.dtype
        cast = dtype is not None and len(entries[name].size) > 1 and stored.is_floating_point
        wanted[name] = torch.empty(entries[name].size, dtype=dtype if cast else stored)
    with one_line(f"checkpoint {path}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process alone
        try:
            load(wanted, storage_reader=_Reader(path, metadata), no_dist=True)
        except CheckpointException as error:  # no Exception: torch wraps whatever happened, an interrupt too
            raise next(iter(error.failures.values()))[0] from None
    return wanted
