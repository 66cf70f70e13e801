"""Shapes and types of stored weights, without their values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.texts import parse_json, read_json

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_PACKED = {"qweight", "qzeros", "g_idx", "weight_packed", "weight_shape", "absmax", "quant_map", "SCB", "input_scale"}
"""Last parts of the names under which quantisation keeps what a weight is made of, ``weight_scale…`` aside."""

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2}
"""Bytes of one value; 1 for every other type."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One stored weight: its shape when merged, and its type as torch names it (``"bfloat16"``)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def values(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors refuses more."""

Headers = Mapping[str, TensorHeader]
"""Weights by name."""


def is_packing(name: str) -> bool:
    """Whether a value is by its name a part of a quantised weight, such as its scale."""
    last = name.rpartition(".")[2]
    return last in _PACKED or last.startswith("weight_scale")


def is_book_keeping(name: str) -> bool:
    """Whether a value is by its name a note of a library to itself, as Transformer Engine keeps beside every module: it
    is no weight, and may be empty."""
    return name.rpartition(".")[2] == "_extra_state"


def stored_dtype(headers: Headers) -> str | None:
    """The type of most floating-point values, of equally many the widest; None where there are none.

    Not the widest: a few vectors are kept in float32 beside weights of 16 bits.
    """
    counts: Counter[str] = Counter()
    for header in headers.values():
        if "float" in header.dtype or header.dtype not in _DTYPES.values():  # packed in a way of its own, as q4_k
            counts[header.dtype] += header.values
    return max(counts, key=lambda kind: (counts[kind], BYTES.get(kind, 1), kind), default=None)


def safetensors_headers(files: Iterable[Path]) -> Headers:
    """The headers of safetensors files together.

    Raises:
        InputError: names the file that is not whole.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, TensorHeader] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    piece = tensors.get_slice(name)
                    dtype = piece.get_dtype()
                    found[name] = TensorHeader(tuple(piece.get_shape()), _DTYPES.get(dtype, dtype.lower()))
        except (SafetensorError, OSError) as error:
            if (reason := _unreadable(file)) is not None:
                raise InputError(f"{file}: cannot be read ({reason})") from None
            short = shortfall(file)
            raise InputError(
                f"{file}: not a whole safetensors file ({short or ' '.join(str(error).split())}); "
                f"{'if it is being written, wait for that; else ' if short else ''}copy or save the checkpoint again"
            ) from None
    return found


def shortfall(file: Path) -> str | None:
    """What a safetensors file still lacks by its own header, as while it is written; None: nothing that it tells.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(0)
        stated = int.from_bytes(handle.read(8), "little")
        if size < 8:
            return f"has {size} of at least 8 bytes"
        if stated > _LONGEST_HEADER:
            return None
        if size < 8 + stated:
            return f"has {size} of at least {8 + stated} bytes"
        try:
            entries = parse_json(handle.read(stated))
            end = int(max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
            return None
    whole = 8 + stated + end
    return f"has {size} of {whole} bytes" if size < whole else None


def _unreadable(file: Path) -> str | None:
    """Why a file cannot be opened, of which safetensors says that it is not there."""
    try:
        file.open("rb").close()
    except OSError as error:
        return error.strerror
    return None


def of_weight_files(weight_files: Callable[[Path], list[Path]]) -> Callable[[Path], Headers]:
    """The headers of a format whose weight files are safetensors."""
    return lambda path: safetensors_headers(weight_files(path))


def headers_of_values(values: Mapping[str, Any]) -> Headers:
    """Shapes and types of weights that were read, or that wait to be put together."""
    return {
        name: TensorHeader(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in values.items()
    }


def read_json_object(file: Path) -> dict[str, Any]:
    """What a small JSON file beside the weights says.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        content = read_json(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); copy the checkpoint again") from None
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error}); save or copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content
