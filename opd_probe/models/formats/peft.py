"""PEFT adapters: small weights that change a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_probe.errors import InputError
from opd_probe.models.directories import subdirectories
from opd_probe.models.formats.headers import read_json_object
from opd_probe.models.formats.huggingface import pickled
from opd_probe.models.steps import step_name
from opd_probe.texts import real_path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ACCEPTED = f"{CONFIG} with {WEIGHTS}"


def recognises(path: Path) -> bool:
    """adapter_config.json beside adapter weights in safetensors."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def inside(path: Path) -> Path | None:
    """The adapter below a step's directory: peft puts one that has a name into a folder of that name."""
    below = _below(path)
    return below[0] if len(below) == 1 else None


def refuses(path: Path) -> str | None:
    """An adapter that is pickled, or a step with several of them."""
    if (path / CONFIG).is_file() and not recognises(path):
        return pickled(path, "adapter_model")
    below = _below(path)
    if len(below) > 1:
        return f"holds {len(below)} adapters ({', '.join(place.name for place in below)}); name the directory of one"
    return None


def _below(path: Path) -> list[Path]:
    if step_name(path.name) is None or (path / "config.json").is_file() or recognises(path):
        return []
    return [place for place in subdirectories(path) if recognises(place)]


def weight_files(path: Path) -> list[Path]:
    """The adapter's one file; the base model has its own."""
    return [path / WEIGHTS]


def read_config(path: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        InputError: it is not a JSON object.
    """
    return read_json_object(path / CONFIG)


def base(path: Path) -> str | None:
    """The base model: a path, made absolute when it exists relative to the adapter or to here, or a hub id."""
    name = read_config(path).get("base_model_name_or_path")
    if not name:
        return None
    if not isinstance(name, str):
        raise InputError(f"{path / CONFIG}: base_model_name_or_path is {name!r}; expected a path or a hub id")
    for candidate in (path / name, Path(name)):
        if candidate.is_dir():
            return str(real_path(candidate))
    return name
