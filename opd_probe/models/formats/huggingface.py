"""Hugging Face directories: what TRL, the transformers Trainer and most exporters write."""

from __future__ import annotations

import json
from pathlib import Path

from opd_probe.errors import InputError

ACCEPTED = "config.json with model.safetensors or model.safetensors.index.json and its shards"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def recognises(path: Path) -> bool:
    """config.json beside weights in safetensors."""
    return (path / "config.json").is_file() and ((path / SINGLE).is_file() or (path / INDEX).is_file())


def weight_files(path: Path) -> list[Path]:
    """The safetensors files, in name order.

    Raises:
        InputError: the index is not readable, or names a shard that is not there.
    """
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    index = path / INDEX
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not a safetensors index ({error}); save the checkpoint again") from None
    for name in names:
        if not (path / name).is_file():
            raise InputError(f"{index}: names the shard {name}, which is not there; copy the whole checkpoint")
    return [path / name for name in names]
