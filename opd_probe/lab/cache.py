"""Trained models and finished measurements on disk, found again by the digest of their recipe and seed."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd_probe.lab.models import LabModel, build_model, load_model, save_model
from opd_probe.lab.pretrain import Report, pretrain
from opd_probe.lab.recipes import MODELS, digest

__all__ = ["cached_directory", "cached_json", "trained_model"]

Labelled = Callable[[str], Report]
"""Makes a progress callback for one named piece of work."""


def cached_directory(root: Path, name: str, seed: int, fill: Callable[[Path], None], tag: str = "") -> Path:
    """The cache's directory for ``name`` and ``seed``, filled by ``fill`` unless it is there already.

    It is filled beside its place and then renamed, so that a directory that is there is whole. ``tag`` tells
    apart what the recipe does not.
    """
    place = root / "-".join(filter(None, (name, f"seed{seed}", tag, digest(name, seed))))
    if not place.is_dir():
        unfinished = root / f".{place.name}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(place)
    return place


def cached_json(root: Path, name: str, seed: int, make: Callable[[], dict[str, Any]], tag: str = "") -> dict[str, Any]:
    """The cached JSON object for ``name`` and ``seed``, made by ``make`` unless it is there already."""

    def fill(directory: Path) -> None:
        (directory / "result.json").write_text(json.dumps(make(), indent=1) + "\n")

    result: dict[str, Any] = json.loads((cached_directory(root, name, seed, fill, tag) / "result.json").read_text())
    return result


def trained_model(root: Path, name: str, seed: int, progress: Labelled) -> LabModel:
    """The model of recipe ``name``; whatever of its lineage is not in the cache is trained first."""
    recipe = MODELS[name]

    def fill(directory: Path) -> None:
        if recipe.start is None:
            model = build_model(recipe.shape, seed)
        else:
            model = copy.deepcopy(trained_model(root, recipe.start, seed, progress))
        pretrain(model, recipe.training, seed, progress(f"seed {seed} {name}"))
        save_model(model, directory)

    return load_model(cached_directory(root, name, seed, fill))
