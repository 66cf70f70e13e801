"""Megatron's sharded checkpoints (verl, slime, miles): only the Hugging Face export beside them can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import opd_probe.models.formats.huggingface as huggingface
from opd_probe.errors import InputError
from opd_probe.models.directories import subdirectories
from opd_probe.models.formats.headers import read_json_object
from opd_probe.texts import within

ACCEPTED = "verl's ckpt_contents.json"
MANIFEST = "ckpt_contents.json"
_ITERATION = re.compile(r"iter_\d+|release")
_MERGE = "merge it with verl's model merger (python -m verl.model_merger merge --backend megatron) and give the result"


def inside(path: Path) -> Path | None:
    """The Hugging Face weights that the manifest names, and ``actor`` of a step directory."""
    if (path / "actor" / MANIFEST).is_file():
        return path / "actor"
    if (saved := _only_iteration(path / "policy" / "weights")) is not None:  # of NeMo-RL
        return saved
    if (path / MANIFEST).is_file() and not _adapters(path):
        for entry in (_entry(path, "hf_model"), _entry(path, "model")):
            place = _named(path, entry)
            if entry.get("format") == "huggingface" and huggingface.recognises(place):
                return place
    return None


def refuses(path: Path) -> str | None:
    """Shards that only Megatron can put together."""
    if (path / MANIFEST).is_file():
        if inside(path) is not None:
            return None
        if _adapters(path):
            return f"verl's Megatron layout with adapters in Megatron's shards, beside which are base weights; {_MERGE}"
        entry = _entry(path, "model")
        if entry.get("format") == "huggingface":
            return (
                f"{MANIFEST} names {entry.get('path')}, which lacks {huggingface.ACCEPTED}; copy the whole checkpoint"
            )
        return f"verl's Megatron shards ({MANIFEST} has the model in format {entry.get('format')}); {_MERGE}"
    if (path / "dist_ckpt").is_dir() or _is_actor(path / "actor"):
        return f"verl's older Megatron layout (dist_ckpt/); {_MERGE}"
    names = {entry.name for entry in path.iterdir()}
    older = any(name.startswith("mp_rank_") for name in names)
    if older or "common.pt" in names or (_ITERATION.fullmatch(path.name) and ".metadata" in names):
        return (
            "Megatron's shards, as slime and miles save them; give the Hugging Face export, which --save-hf writes "
            "beside them or their converter (tools/convert_torch_dist_to_hf.py) makes"
        )
    return None


def _named(path: Path, entry: dict[str, Any]) -> Path:
    """Where an entry of the manifest lies.

    Raises:
        InputError: outside of the checkpoint.
    """
    try:
        return within(path, str(entry.get("path")))
    except ValueError as error:
        raise InputError(f"{path / MANIFEST}: {error}; copy the whole checkpoint") from None


def _only_iteration(path: Path) -> Path | None:
    found = [place for place in subdirectories(path) if _ITERATION.fullmatch(place.name)]
    return found[0] if len(found) == 1 else None


def _is_actor(path: Path) -> bool:
    return (path / "dist_ckpt").is_dir() and not huggingface.recognises(path / "huggingface")


def _adapters(path: Path) -> bool:
    contents = read_json_object(path / MANIFEST).get("contents")
    return isinstance(contents, dict) and ("peft_adapters" in contents or "peft_adapter_path" in _entry(path, "model"))


def _entry(path: Path, name: str) -> dict[str, Any]:
    """What the manifest says of one saved content; empty when it says nothing usable."""
    contents = read_json_object(path / MANIFEST).get("contents")
    entry = contents.get(name) if isinstance(contents, dict) else None
    return entry if isinstance(entry, dict) else {}
