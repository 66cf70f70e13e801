"""Trained models, finished runs and measurements on disk, found again by the digest of their recipe and seed."""

from __future__ import annotations

import copy
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd_probe.atomic import whole_file
from opd_probe.lab.coldstart import ColdStartRecipe, cold_start
from opd_probe.lab.models import LabModel, build_model, load_model, save_model
from opd_probe.lab.pretrain import Report, pretrain
from opd_probe.lab.recipes import MODELS, RUNS, digest

__all__ = ["cached_directory", "cached_json", "model_of", "place_of", "trained_model", "write_json"]

Labelled = Callable[[str], Report]
"""Makes a progress callback for one named piece of work."""


def place_of(root: Path, name: str, seed: int, tag: str = "") -> Path:
    """Where the cache keeps ``name`` of ``seed``. ``tag`` tells apart what the recipe does not."""
    return root / "-".join(filter(None, (name, f"seed{seed}", tag, digest(name, seed))))


def cached_directory(
    root: Path, name: str, seed: int, fill: Callable[[Path], None], tag: str = "", *, resumable: bool = False
) -> Path:
    """The cache's directory for ``name`` and ``seed``, filled by ``fill`` unless it is there already.

    It is filled beside its place and then renamed, so that a directory that is there is whole; of two processes that
    want it one waits for the other.

    Args:
        resumable: whether ``fill`` goes on from what an interrupted one left; otherwise that is removed first.
    """
    place = place_of(root, name, seed, tag)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{place.name}.lock"):
        if not place.is_dir():
            unfinished = root / f".{place.name}.partial"
            if not resumable:
                shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(exist_ok=True)
            fill(unfinished)
            unfinished.rename(place)
    return place


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def cached_json(root: Path, name: str, seed: int, make: Callable[[], dict[str, Any]], tag: str = "") -> dict[str, Any]:
    """The cached JSON object for ``name`` and ``seed``, made by ``make`` unless it is there already."""
    place = cached_directory(root, name, seed, lambda directory: write_json(directory / "result.json", make()), tag)
    result: dict[str, Any] = json.loads((place / "result.json").read_text())
    return result


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object; the file appears whole."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1) + "\n")


def trained_model(root: Path, name: str, seed: int, progress: Labelled) -> LabModel:
    """The model of recipe ``name``; whatever of its lineage is not in the cache is trained first."""
    recipe = MODELS[name]

    def fill(directory: Path) -> None:
        if recipe.start is None:
            model = build_model(recipe.shape, seed)
        else:
            model = copy.deepcopy(trained_model(root, recipe.start, seed, progress))
        report = progress(f"seed {seed} {name}")
        if isinstance(recipe.training, ColdStartRecipe):
            teacher = trained_model(root, recipe.training.teacher, seed, progress)
            cold_start(model, teacher, recipe.training, seed, report)
        else:
            pretrain(model, recipe.training, seed, report)
        save_model(model, directory)

    return load_model(cached_directory(root, name, seed, fill))


def model_of(root: Path, name: str, seed: int, progress: Labelled) -> LabModel:
    """A trained model, or the end of a distillation run that is in the cache."""
    if name in RUNS:
        return load_model(place_of(root, name, seed) / "model")
    return trained_model(root, name, seed, progress)
