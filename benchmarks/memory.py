"""Memory of a replay: long responses at a large vocabulary, and two models that take turns.

python -m benchmarks memory
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import opd_probe
from benchmarks.measuring import PeakMemory, Row, seconds
from benchmarks.replay import Shape, build, random_rollouts
from opd_probe.types import Rollout

LONG = Shape(128, 512, 2, 2, 2)
LENGTHS = (300, 4_096, 32_768)
LARGE = Shape(1_024, 4_096, 16, 16, 16, 8_192)


def measure_long(lengths: tuple[int, ...] = LENGTHS, shape: Shape = LONG, k: int = 16) -> list[Row]:
    """A row for a single response of each length; the models are small, so that the logits are what counts."""
    models = build(shape, torch.float32, 0), build(shape, torch.float32, 1)
    rows = []
    for length in lengths:
        rollouts = random_rollouts(1, 64, length, shape.width)
        with PeakMemory() as peak:
            wall, _ = seconds(lambda: opd_probe.replay(*models, rollouts, k=k))  # noqa: B023 - called at once
        rows.append(
            {
                "workload": f"one response of {length:,} tokens, vocabulary {shape.width:,}",
                "path": "opd-probe",
                "states_per_second": length / wall,
                "extra_memory_gb": peak.extra / 1e9,
            }
        )
    return rows


def measure_sequential(shape: Shape = LARGE, k: int = 16) -> list[Row]:
    """A row for both models in memory and one for one after the other; memory includes the models here."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        places = [Path(directory) / name for name in ("student", "teacher")]
        for seed, place in enumerate(places):
            # Read as float32 below: weights of the stored type stay in the file, whose pages count as memory or not.
            build(shape, torch.bfloat16, seed).model.save_pretrained(place)
        size = 2 * sum(file.stat().st_size for place in places for file in place.glob("*.safetensors"))
        rollouts = random_rollouts(4, 32, 96, shape.width)
        for sequential in (True, False):
            # In a process of its own: what one way frees stays with the process, and the other would use it again.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                wall, extra = pool.submit(_replay, places, rollouts, k, sequential).result()
            rows.append(
                {
                    "workload": f"two models of {size / 1e9:.2g} GB together, read from disk, models included",
                    "path": "opd-probe, one after the other" if sequential else "opd-probe, both in memory",
                    "states_per_second": 4 * 96 / wall,
                    "extra_memory_gb": extra / 1e9,
                }
            )
    return rows


def _replay(places: list[Path], rollouts: list[Rollout], k: int, sequential: bool) -> tuple[float, int]:
    """Wall seconds, and bytes at the peak."""
    with PeakMemory() as peak:
        wall, _ = seconds(lambda: opd_probe.replay(*places, rollouts, k=k, sequential=sequential, dtype="float32"))
    return wall, peak.extra
