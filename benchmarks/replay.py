"""Replay against the floor and against the naive way: paired, in one process; ratios and peak memory.

    python -m benchmarks.replay                # 494M and 630M parameters, V = 151,936: a few minutes
    python -m benchmarks.replay --small        # seconds, to see that it runs

The models are Qwen2-shaped with random weights; random weights make every token about equally hard.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.paths import Workload, floor, naive, ours, thunlp, verl
from opd_probe.engine.provenance import software
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.types import Rollout

PATHS: dict[str, Callable[[Workload], float]] = {
    "floor": floor,
    "ours": ours,
    "ours, compiled": lambda work: ours(work, compiled=True),
    "ours with jsd": lambda work: ours(work, jsd=True),
    "naive": naive,
    "thunlp/OPD": thunlp,
    "verl": verl,
}


def build(width: int, tied: bool, dtype: torch.dtype, small: bool, seed: int) -> LoadedModel:
    """A model of the shape of Qwen2.5-0.5B, or a small one."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=width,
        hidden_size=64 if small else 896,
        intermediate_size=128 if small else 4864,
        num_hidden_layers=2 if small else 24,
        num_attention_heads=2 if small else 14,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        dtype=dtype,
    )
    with torch.device("cpu"):
        model = Qwen2ForCausalLM(config).to(dtype)
    return load_model(model)


def workload(dtype: torch.dtype, small: bool, k: int) -> Workload:
    """Four responses of 160 tokens to prompts of 64, or small ones."""
    width = 2_000 if small else 151_936
    prompt, response = (8, 24) if small else (64, 160)
    generator = np.random.default_rng(0)
    rollouts = [
        Rollout(
            str(index),
            tuple(generator.integers(0, width, prompt).tolist()),
            tuple(generator.integers(0, width, response).tolist()),
        )
        for index in range(4)
    ]
    student = build(width, True, dtype, small, 0)
    teacher = build(width + 128, False, dtype, small, 1)
    return Workload(student, teacher, rollouts, k)


class PeakMemory:
    """The largest resident size of this process while the block runs, in bytes above what it was before."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._before = self._peak = _resident()
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(work: Workload, repeats: int) -> list[dict[str, Any]]:
    """One row per path; each repeat runs every path once, so that ratios are of neighbours in time."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in PATHS}
    memory: dict[str, int] = {}
    for name, path in PATHS.items():
        with PeakMemory() as peak:
            path(work)  # also the warm-up
        memory[name] = peak.extra
    for _ in range(repeats):
        for name, path in PATHS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            path(work)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = []
    for name in PATHS:
        pairs = list(zip(seconds[name], seconds["floor"], strict=True))
        wall = statistics.median(own[0] for own in seconds[name])
        rows.append(
            {
                "path": name,
                "cpu_over_floor": statistics.median(own[1] / base[1] for own, base in pairs),
                "wall_over_floor": statistics.median(own[0] / base[0] for own, base in pairs),
                "wall_over_floor_range": [
                    min(own[0] / base[0] for own, base in pairs),
                    max(own[0] / base[0] for own, base in pairs),
                ],
                "states_per_second": work.n_states / wall,
                "extra_memory_gb": memory[name] / 1e9,
            }
        )
    return rows


def main() -> None:
    """Print the table, and write it as JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = workload(getattr(torch, arguments.dtype), arguments.small, arguments.k)
    rows = measure(work, arguments.repeats)
    print(f"{arguments.dtype} weights, K = {arguments.k}, {work.n_states} states, {torch.get_num_threads()} threads")
    print(f"{'path':<16}{'CPU/floor':>10}{'wall/floor':>11}{'range':>14}{'states/s':>10}{'extra GB':>10}")
    for row in rows:
        low, high = row["wall_over_floor_range"]
        print(
            f"{row['path']:<16}{row['cpu_over_floor']:>10.2f}{row['wall_over_floor']:>11.2f}"
            f"{f'{low:.2f}-{high:.2f}':>14}{row['states_per_second']:>10.0f}{row['extra_memory_gb']:>10.2f}"
        )
    if arguments.json is not None:
        machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        report = {"dtype": arguments.dtype, "k": arguments.k, **machine, "software": software(), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
