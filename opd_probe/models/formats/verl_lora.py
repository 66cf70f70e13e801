"""verl's LoRA runs: adapter weights among the shards, with or without those of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import opd_probe.models.formats.peft as peft
import opd_probe.models.formats.verl_fsdp as verl_fsdp
from opd_probe.errors import InputError
from opd_probe.models.formats.headers import Headers, headers_of_values, read_json_object

META = "lora_train_meta.json"
ADAPTER = "lora_adapter"


def recognises(path: Path) -> bool:
    """Shards beside what states the scale of the adapter, which no weight tells."""
    return verl_fsdp.recognises(path) and ((path / META).is_file() or (path / ADAPTER / peft.CONFIG).is_file())


def refuses(path: Path) -> str | None:
    """As of any other shards."""
    return verl_fsdp.refuses(path) if recognises(path) else None


def inside(path: Path) -> Path | None:
    """The adapter in PEFT's own format, where there are no shards."""
    adapter = path / ADAPTER
    return adapter if peft.recognises(adapter) and not verl_fsdp.recognises(path) else None


def adapter(path: Path) -> bool:
    """Whether the shards hold the adapter alone, as ``save_lora_only`` makes verl do it.

    Raises:
        InputError: shards that cannot be read.
    """
    return all(is_adapter_weight(name) for name in verl_fsdp.merged(path))


def headers(path: Path) -> Headers:
    """Shapes and types of the merged weights.

    Raises:
        InputError: shards that cannot be read.
    """
    return headers_of_values(verl_fsdp.merged(path))


def base(path: Path) -> str | None:
    """The base model, as the adapter's own configuration names it.

    Raises:
        InputError: adapter_config.json cannot be read.
    """
    return peft.base(path / ADAPTER) if (path / ADAPTER / peft.CONFIG).is_file() else None


def is_adapter_weight(name: str) -> bool:
    """Whether a weight's name is that of an adapter."""
    return "lora_" in name


def adapter_name(name: str) -> str:
    """A weight's name as PEFT stores it."""
    return name.replace(".default.", ".")


def base_name(name: str) -> str:
    """A weight's name as the base model has it, without the layers that PEFT wraps around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def adapter_config(path: Path, names: list[str]) -> dict[str, Any]:
    """Rank, scale and layers of the adapter, from verl's own record; for shards without an adapter_config.json.

    Args:
        names: of the adapter's weights, which say what layers it changes.

    Raises:
        InputError: rank or scale are not stated.
    """
    stated = read_json_object(path / META)
    numbers = {key: stated.get(key) for key in ("r", "lora_alpha")}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{path / META}: {key} is {value!r}; expected a whole number above 0")
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in names}
    return {**numbers, "target_modules": sorted(layers)}
