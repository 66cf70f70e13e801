"""Paired timings in one process, peak memory, and what the machine is: shared by all benchmarks."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from opd_probe.versions import software

Row = dict[str, Any]
"""One line of the table: ``workload``, ``path``, and whichever of :data:`FIGURES` were measured."""

FIGURES = (
    "cpu_over_floor",
    "wall_over_floor",
    "wall_over_naive",
    "wall_over_thunlp",
    "wall_over_verl",
    "states_per_second",
    "extra_memory_gb",
    "bytes_per_state",
)
"""Ratios below 1 are faster than what they are relative to. Memory is what a path needs beyond the models."""


def machine() -> dict[str, Any]:
    """The processor, threads, the GPU if there is one, and versions of what shapes the figures."""
    found: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return {**found, "software": software()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class PeakMemory:
    """The largest size of this process (or, on a GPU, of torch's allocations) while the block runs, above the start."""

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = device.startswith("cuda")

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._before = self._peak = _resident()
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._peak = torch.cuda.max_memory_allocated()
            return
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self._peak = max(self._peak, _resident())
            time.sleep(0.002)

    @property
    def extra(self) -> int:
        """Bytes above the start."""
        return self._peak - self._before


def _resident() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def seconds(path: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """Wall and CPU seconds of one call, the device's work included."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    path()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def paired(
    workload: str,
    paths: Mapping[str, Callable[[], object]],
    repeats: int,
    states: int,
    relative_to: Mapping[str, str],
    device: str = "cpu",
    warm: bool = True,
) -> list[Row]:
    """One row per path. Each round runs every path once, so that ratios are of neighbours in time.

    Args:
        warm: run every path once before the first round; without it, memory is that of the first round.
        relative_to: for ``floor``, ``naive``, ``thunlp`` and ``verl`` the path that is meant, where there is one.
    """
    memory: dict[str, int] = {}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for turn in range(-1 if warm else 0, repeats):
        for name, path in paths.items():
            if name in memory:
                spent = seconds(path, device)
            else:
                with PeakMemory(device) as peak:
                    spent = seconds(path, device)
                memory[name] = peak.extra
            if turn >= 0:
                taken[name].append(spent)

    def ratios(name: str, base: str, clock: int) -> list[float]:
        return [own[clock] / other[clock] for own, other in zip(taken[name], taken[base], strict=True)]

    rows = []
    for name in paths:
        row: Row = {"workload": workload, "path": name}
        for reference, base in relative_to.items():
            found = ratios(name, base, 0)
            row[f"wall_over_{reference}"] = statistics.median(found)
            row[f"wall_over_{reference}_range"] = [min(found), max(found)]
        if "floor" in relative_to and not device.startswith("cuda"):
            row["cpu_over_floor"] = statistics.median(ratios(name, relative_to["floor"], 1))
        row["states_per_second"] = states / statistics.median(wall for wall, _ in taken[name])
        row["extra_memory_gb"] = memory[name] / 1e9
        rows.append(row)
    return rows
