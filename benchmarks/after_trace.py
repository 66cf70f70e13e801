"""What comes after a replay: metrics of a stored trace against formulas in pure Python, bytes on disk, memory.

    python -m benchmarks.after_trace               # 10^6 states at K = 16, then 10^7 states within bounded memory
    python -m benchmarks.after_trace --states 20000 --stream 50000

The pure-Python way computes overlap ratio, overlap advantage and both overlap masses of a state from its lists, for one
k at a time, as a public cookbook does; it is timed on a sample and scaled.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opd_probe.curves import mass_curve, summarize
from opd_probe.engine.logits import trace_logits
from opd_probe.engine.scoring import Columns
from opd_probe.trace import Trace, read_trace, rollout_table, write_trace

K = 16
TOKENS = 500
"""States per rollout."""


def sample_trace(states: int, width: int = 4_000) -> Trace:
    """Real statistics of random logits that agree about as well as a student and its teacher do."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(states, width, generator=generator) * 3
    teacher = student + torch.randn(states, width, generator=generator)
    return trace_logits(student, teacher, torch.randint(0, width, (states,), generator=generator), K)


def store(path: Path, base: Trace, states: int) -> Trace:
    """A trace file of ``states`` states, the base's repeated, written block by block."""
    rollouts = states // TOKENS
    rows = [
        {"rollout_id": f"r{i}", "prompt_id": f"p{i // 4}", "n_states": TOKENS, "response_length": TOKENS}
        for i in range(rollouts)
    ]
    held = {name: base.column(name) for name in base.columns}

    def blocks() -> Iterator[Columns]:
        size = base.n_states
        for start in range(0, rollouts * TOKENS, size):
            count = min(size, rollouts * TOKENS - start)
            block = {name: values[:count] for name, values in held.items()}
            block["position"] = ((np.arange(count) + start) % TOKENS).astype(np.int32)
            yield {**block, "rollout": (np.arange(count) + start) // TOKENS}

    return write_trace(path, blocks(), base.columns, rollout_table(rows), base.provenance)


def pure_python(trace: Trace, states: int, k: int) -> float:
    """Seconds for ``states`` states at one k, lists in, four numbers per state out."""
    block = next(trace.blocks(trace.columns, states))
    names = ("student_top_ids", "student_top_logprobs", "teacher_logprobs_at_student_top", "teacher_top_ids")
    lists = [block[name][:states, :k].tolist() for name in names]
    started = time.process_time()
    totals = [0.0, 0.0, 0.0, 0.0]
    for ids, log_p, log_q, other in zip(*lists, strict=True):
        shared = set(ids) & set(other)
        totals[0] += len(shared) / k
        if not shared:
            continue
        pairs = [(math.exp(p), math.exp(q)) for token, p, q in zip(ids, log_p, log_q, strict=True) if token in shared]
        mass_p, mass_q = sum(p for p, _ in pairs), sum(q for _, q in pairs)
        totals[1] += sum(p / mass_p * (math.log(q / mass_q) - math.log(p / mass_p)) for p, q in pairs) / len(pairs)
        totals[2] += mass_p
        totals[3] += mass_q
    return time.process_time() - started


def main() -> None:
    """Print the figures, and write them as JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--states", type=int, default=1_000_000)
    parser.add_argument("--stream", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"K": K, "states": arguments.states, "streamed_states": arguments.stream}
    base = sample_trace(5_000)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.parquet"
        trace = store(path, base, arguments.states)
        report["bytes_per_state"] = path.stat().st_size / trace.n_states
        probe = min(5_000, trace.n_states)
        python = sum(pure_python(trace, probe, k) for k in range(1, K + 1)) * trace.n_states / probe
        started = time.process_time()
        mass_curve(trace, resamples=0)
        every_k = time.process_time() - started
        started = time.process_time()
        summarize(trace, K)
        report |= {
            "pure_python_every_k_cpu_seconds": python,
            "every_k_cpu_seconds": every_k,
            "every_k_speedup": python / every_k,
            "summarize_one_k_all_metrics_cpu_seconds": time.process_time() - started,
        }
        store(path, base, arguments.stream)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        summarize(read_trace(path), K)
        report["stream_wall_seconds"] = time.perf_counter() - started
        report["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        report["peak_memory_before_gb"] = before / 1e6
    for name, value in report.items():
        print(f"{name:<44}{value:>14,.2f}" if isinstance(value, float) else f"{name:<44}{value:>14,}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
