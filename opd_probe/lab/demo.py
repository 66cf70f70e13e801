"""The demo: two real distillation runs from the shipped base models, and the command that trained those.

The models before distillation are shipped in half precision under ``data/``; the runs train in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from transformers.utils.logging import disable_progress_bar

from opd_probe.lab.cache import trained_model
from opd_probe.lab.distill import DistillRecipe, StepLog, distill, write_checkpoint
from opd_probe.lab.models import load_model, save_model
from opd_probe.lab.progress import begin_worker, lines
from opd_probe.lab.recipes import RUNS
from opd_probe.lab.task import sample_problems, seeded

__all__ = ["DEMO_RUNS", "SHIPPED", "build_bases", "run_demo", "write_prompts"]

SHIPPED: Final = Path(__file__).parent / "data" / "models"
DEMO_RUNS: Final = ("compatible", "incompatible")
DEMO_SEED: Final = 0
_SHIPPED_MODELS: Final = ("student", "compatible-teacher", "incompatible-teacher")


def build_bases(out: Path = SHIPPED, seed: int = DEMO_SEED, cache: Path = Path("lab-cache")) -> list[Path]:
    """Train the demo's student and teachers from their seed and write them to ``out`` in float16."""
    begin_worker()
    written = []
    for name in _SHIPPED_MODELS:
        save_model(trained_model(cache, name, seed, lines), out / name, dtype=torch.float16)
        written.append(out / name)
    return written


def write_prompts(path: Path, count: int, seed: int) -> None:
    """Held-out problems as JSON lines with ``id``, ``prompt`` and ``answer``."""
    problems = sample_problems(seeded(seed, "demo prompts"), count)
    rows = [{"id": f"p{i}", "prompt": p.prompt, "answer": str(p.answer)} for i, p in enumerate(problems)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_demo(
    out: Path = Path("runs"),
    seed: int = DEMO_SEED,
    steps: int | None = None,
    prompts: int = 128,
    names: Sequence[str] = DEMO_RUNS,
    processes: int = 2,
) -> list[Path]:
    """Distil the shipped student from each shipped teacher, side by side, one thread each.

    Writes ``out/<run>/checkpoint-N``, ``out/<run>/opd-probe.yaml`` and ``out/<run>/prompts.jsonl``, and the
    models before distillation under ``out/.models``, which a shell's ``out/*`` does not match. Existing runs
    of these names are replaced.

    Args:
        steps: optimiser steps; None: as the recipe says. Checkpoints beyond it are left out.
        prompts: held-out problems for the measurement.
    """
    disable_progress_bar()
    models = out / ".models"
    for name in _SHIPPED_MODELS:
        save_model(load_model(SHIPPED / name), models / name)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_run, out, name, seed, steps, prompts) for name in names]
        return [job.result() for job in jobs]


def _run(out: Path, name: str, seed: int, steps: int | None, prompts: int) -> Path:
    """One run of the demo, in a process of its own."""
    begin_worker()
    recipe, place = RUNS[name], out / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    write_prompts(place / "prompts.jsonl", prompts, seed)
    manifest = {
        "teacher": f"../.models/{recipe.teacher}",
        "student": f"../.models/{recipe.student}",
        "prompts": "prompts.jsonl",
        "max_new_tokens": recipe.distillation.max_new_tokens,
        "num_rollouts": 2,
    }
    (place / "opd-probe.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))

    def on_checkpoint(step: int, student: Any, log: list[StepLog]) -> None:
        write_checkpoint(place, step, student, log)

    distill(
        load_model(out / ".models" / recipe.student),
        load_model(out / ".models" / recipe.teacher),
        _shortened(recipe.distillation, steps),
        seed,
        on_checkpoint,
        lines(name),
    )
    return place


def _shortened(recipe: DistillRecipe, steps: int | None) -> DistillRecipe:
    """The recipe ended after ``steps``, with a checkpoint there."""
    if steps is None:
        return recipe
    kept = {step for step in recipe.checkpoints if step < steps} | {steps}
    return replace(recipe, steps=steps, checkpoints=tuple(sorted(kept)))
