"""verl's FSDP checkpoints: a file of shards from each rank, put together in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import opd_probe.models.formats.huggingface as huggingface
from opd_probe.errors import InputError
from opd_probe.models.directories import files
from opd_probe.models.formats.headers import Headers, headers_of_values, read_json_object

ACCEPTED = "verl's model_world_size_W_rank_R.pt"
_SHARD = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")


def recognises(path: Path) -> bool:
    """Any rank's file of weights; :func:`refuses` says whether all are there."""
    return bool(_ranks(path))


def inside(path: Path) -> Path | None:
    """``actor`` of a step directory, and the Hugging Face weights that verl saves beside its shards when asked to."""
    actor = path / "actor"
    if actor.is_dir() and _files(actor):
        return actor
    exported = path / "huggingface"
    return exported if _files(path) and huggingface.recognises(exported) else None


def refuses(path: Path) -> str | None:
    """Ranks that are missing, or a state of the optimiser alone."""
    found = _ranks(path)
    if not found:
        return None if not _files(path) else "verl's optimiser state without weights (no model_world_size_W_rank_R.pt)"
    worlds = sorted({world for world, _ in found})
    world = _world(path, worlds)
    if world is None:
        return f"verl's shards of {len(worlds)} world sizes ({', '.join(map(str, worlds))}); leave one of them there"
    missing = [rank for rank in range(world) if (world, rank) not in found]
    if missing:
        return (
            f"verl's shards without model_world_size_{world}_rank_{missing[0]}.pt ({len(missing)} of {world} ranks "
            "missing); copy every rank's file there"
        )
    return None


def weight_files(path: Path) -> list[Path]:
    """The shards in the order of their ranks.

    Raises:
        InputError: one is missing.
    """
    if (problem := refuses(path)) is not None:
        raise InputError(f"checkpoint {path}: {problem}")
    found = _ranks(path)
    world = _world(path, sorted({world for world, _ in found}))
    return [file for (size, _), file in sorted(found.items()) if size == world]


def home(path: Path) -> Path | None:
    """Where verl writes configuration and tokenizer, whether or not it saves the weights there."""
    return next((place for place in (path / "huggingface", path) if (place / "config.json").is_file()), None)


def headers(path: Path) -> Headers:
    """Shapes and types of the merged weights.

    Raises:
        InputError: as :func:`read`.
    """
    return headers_of_values(read(path))


def read(path: Path, dtype: Any = None, names: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The weights by name, each merged only when it is sliced: at no time is there a second copy of the model.

    Raises:
        InputError: a file that cannot be read, shards that do not make a whole, or an adapter of unknown scale.
    """
    del dtype, names  # who slices a weight turns it into the type that is asked for
    weights = merged(path)
    adapter = [name for name in weights if "lora_" in name]
    if adapter:
        raise InputError(
            f"checkpoint {path}: holds a LoRA adapter ({adapter[0]}) whose lora_alpha nothing states; expected verl's "
            "lora_train_meta.json or lora_adapter/adapter_config.json beside the shards"
        )
    return weights


def merged(path: Path) -> dict[str, Any]:
    """As :func:`read`, an adapter's weights included."""
    from opd_probe.models.merging import merge_ranks

    return dict(merge_ranks(weight_files(path)))


def _ranks(path: Path) -> dict[tuple[int, int], Path]:
    """Files of weights by world size and rank."""
    named = ((_SHARD.fullmatch(file.name), file) for file in _files(path))
    return {(int(m[2]), int(m[3])): file for m, file in named if m is not None and m[1] == "model"}


def _files(path: Path) -> list[Path]:
    return [file for file in files(path, "*_world_size_*_rank_*.pt") if _SHARD.fullmatch(file.name)]


def _world(path: Path, worlds: list[int]) -> int | None:
    """The number of ranks that saved last; None where it cannot be told."""
    stated = path / "fsdp_config.json"
    world = read_json_object(stated).get("world_size") if stated.is_file() else None
    if world in worlds:
        return int(world)
    return worlds[0] if len(worlds) == 1 else None
