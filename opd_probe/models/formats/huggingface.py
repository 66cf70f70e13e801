"""Hugging Face directories: what TRL, the transformers Trainer and most exporters write."""

from __future__ import annotations

import json
from pathlib import Path

from opd_probe.errors import InputError

ACCEPTED = "config.json with model.safetensors or its index and shards"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def recognises(path: Path) -> bool:
    """config.json beside weights in safetensors."""
    return (path / "config.json").is_file() and ((path / SINGLE).is_file() or (path / INDEX).is_file())


def refuses(path: Path) -> str | None:
    """Shards whose index, which is written last, is not there, or weights that are pickled."""
    if not (path / "config.json").is_file() or recognises(path):
        return None
    if any(path.glob("model-*-of-*.safetensors")):
        return f"shards without {INDEX}, which is written last: its save did not finish, or copy the whole checkpoint"
    return pickled(path, "pytorch_model")


def pickled(path: Path, stem: str) -> str | None:
    """Why weights that are there as a pickle alone are refused; None: there are none."""
    found = next(iter(sorted(path.glob(f"{stem}*.bin"))), None)
    if found is None:
        return None
    return f"weights in {found.name} alone, a pickle; load it in transformers and save_pretrained() it as safetensors"


def weight_files(path: Path) -> list[Path]:
    """The safetensors files, in name order.

    Raises:
        InputError: the index is not readable, or names a shard that is not there.
    """
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    index = path / INDEX
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not a safetensors index ({error}); save the checkpoint again") from None
    for name in names:
        if not (path / name).is_file():
            raise InputError(f"{index}: names the shard {name}, which is not there; copy the whole checkpoint")
    return [path / name for name in names]
