"""GGUF files, as llama.cpp writes and reads them: configuration, tokenizer and packed weights in one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.models.directories import entries, subdirectories
from opd_probe.models.formats.gguf_header import check_header
from opd_probe.models.formats.headers import Headers, TensorHeader
from opd_probe.texts import real_path

ACCEPTED = "a .gguf file"
TOKENS = "tokenizer.ggml.tokens"
"""The key of the vocabulary, where a file has one."""

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def recognises(path: Path) -> bool:
    """A file that is named as one."""
    return path.suffix == ".gguf" and path.is_file()


def inside(path: Path) -> Path | None:
    """The one such file in a directory that holds no other weights."""
    found = _files(path)
    return found[0] if len(found) == 1 else None


def refuses(path: Path) -> str | None:
    """Several such files, which are as a rule several quantisations of one model."""
    found = _files(path)
    if len(found) < 2:
        return None
    return f"holds {len(found)} .gguf files ({', '.join(file.name for file in found[:4])}, …); name the path of one"


def _files(path: Path) -> list[Path]:
    """Those of a directory that holds nothing else: one with directories in it may be that of several models."""
    others = (path / "config.json", path / "adapter_config.json")
    if any(file.is_file() for file in others):
        return []
    found = [entry for entry in entries(path) if recognises(entry)]
    return [] if found and any(not d.name.startswith((".", "_")) for d in subdirectories(path)) else found


def weight_files(path: Path) -> list[Path]:
    """The file itself."""
    return [path]


def headers(path: Path) -> Headers:
    """Shapes of the unpacked weights by llama.cpp's names, and how each is packed (``q4_k``).

    Raises:
        InputError: the package that reads such files is not installed, or the file is not whole.
    """
    return {
        str(tensor.name): TensorHeader(
            tuple(int(size) for size in reversed(tensor.shape)),
            _TYPES.get(tensor.tensor_type.name, tensor.tensor_type.name.lower()),
        )
        for tensor in open_file(path).tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    """What the file says of its model, by llama.cpp's keys; long lists, such as the vocabulary, as their length.

    Raises:
        InputError: as :func:`headers`.
    """
    fields = open_file(path).fields
    long = {name for name, field in fields.items() if len(field.data) > 256}
    try:
        return {name: len(field.data) if name in long else field.contents() for name, field in fields.items()}
    except Exception as error:  # as of a file that is not whole
        raise _broken(path, error) from None


def open_file(path: Path) -> Any:
    """The package's reader of a file; its values stay on disk.

    Raises:
        InputError: as :func:`headers`.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _opened(real_path(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, mtime_ns: int) -> Any:
    """Every token of the vocabulary is looked at, which takes seconds."""
    del size, mtime_ns  # they are part of the cache's key only
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(f"{path}: is a GGUF file; install gguf: pip install 'opd-probe[gguf]'") from None
    try:
        check_header(path)
        return GGUFReader(path)
    except Exception as error:  # its errors on bad files have no common root
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return InputError(f"{path}: not a whole GGUF file ({reason}); copy it again")
