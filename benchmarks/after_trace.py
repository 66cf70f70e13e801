"""What comes after a replay: metrics of a stored trace against formulas in pure Python, bytes on disk, memory.

    python -m benchmarks after-trace        # 10^6 states at K = 16, then 10^7 states within bounded memory
    python -m benchmarks.after_trace        # every figure by name

The pure-Python way computes overlap ratio, overlap advantage and both overlap masses of a state from its lists, for one
k at a time, as a public cookbook does; it is timed on a sample and scaled.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Row
from opd_probe.curves import mass_curve, summarize
from opd_probe.engine.logits import trace_logits
from opd_probe.engine.scoring import Columns
from opd_probe.trace import Trace, rollout_table, write_trace
from opd_probe.trace.parquet import ROW_GROUP

K = 16
TOKENS = 500
"""States per rollout."""

PROBE = 5_000
"""States that the pure-Python way is timed on."""


def sample_trace(states: int, width: int = 4_000) -> Trace:
    """Real statistics of random logits that agree about as well as a student and its teacher do."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in range(0, states, 4_096):
        count = min(4_096, states - start)
        student = torch.randn(count, width, generator=generator) * 3
        teacher = student + torch.randn(count, width, generator=generator)
        parts.append(trace_logits(student, teacher, torch.randint(0, width, (count,), generator=generator), K))
    arrays = {name: np.concatenate([part.column(name) for part in parts]) for name in parts[0].columns}
    return Trace(rollout_table([{"rollout_id": "r", "n_states": states}]), parts[0].provenance, arrays=arrays)


def store(path: Path, base: Trace, states: int) -> Trace:
    """A trace file of ``states`` states, the base's repeated, written block by block."""
    rollouts = states // TOKENS
    rows = [
        {"rollout_id": f"r{i}", "prompt_id": f"p{i // 4}", "n_states": TOKENS, "response_length": TOKENS}
        for i in range(rollouts)
    ]
    held = {name: base.column(name) for name in base.columns}

    def blocks() -> Iterator[Columns]:
        for start in range(0, rollouts * TOKENS, ROW_GROUP):
            place = np.arange(start, min(start + ROW_GROUP, rollouts * TOKENS))
            block = {name: values[place % base.n_states] for name, values in held.items()}
            yield {**block, "position": (place % TOKENS).astype(np.int32), "rollout": place // TOKENS}

    return write_trace(path, blocks(), base.columns, rollout_table(rows), base.provenance)


def pure_python(trace: Trace, states: int, k: int) -> tuple[float, list[float]]:
    """CPU seconds for ``states`` states at one k, from lists in memory; and the sums of four numbers per state."""
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
    return time.process_time() - started, totals


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads of this process while ``work`` runs."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(states: int = 1_000_000, stream: int = 10_000_000, repeats: int = 5) -> dict[str, Any]:
    """Everything that this module measures, as JSON types.

    The pure-Python way and the package take turns ``repeats`` times, so that others on the machine slow both alike; a
    speedup is the median over neighbours in time, with its range.
    """
    # A row group of states that do not repeat: they would compress too well.
    base = sample_trace(min(ROW_GROUP, states))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.parquet"
        trace = store(path, base, states)
        bytes_per_state = path.stat().st_size / trace.n_states
        probe = min(PROBE, trace.n_states)
        python, every_k, one_k = [], [], []
        for _ in range(repeats):
            python.append(sum(pure_python(trace, probe, k)[0] for k in range(1, K + 1)) * trace.n_states / probe)
            every_k.append(cpu_seconds(lambda: mass_curve(trace, resamples=0)))
            one_k.append(cpu_seconds(lambda: summarize(trace, K)))
        streamed = stream_in_bounded_memory(path, base, stream)
    ratios = [slow / fast for slow, fast in zip(python, every_k, strict=True)]
    return {
        "K": K,
        "states": trace.n_states,
        "repeats": repeats,
        "bytes_per_state": bytes_per_state,
        "pure_python_every_k_cpu_seconds": statistics.median(python),
        "every_k_cpu_seconds": statistics.median(every_k),
        "every_k_speedup": statistics.median(ratios),
        "every_k_speedup_lowest": min(ratios),
        "every_k_speedup_highest": max(ratios),
        "summarize_one_k_all_metrics_cpu_seconds": statistics.median(one_k),
        **streamed,
    }


def stream_in_bounded_memory(path: Path, base: Trace, states: int) -> dict[str, Any]:
    """Time and peak memory of both summaries of a trace that does not fit, in a process of their own."""
    trace = store(path, base, states)
    command = [sys.executable, "-c", STREAMED, str(path), str(K)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return {"streamed_states": trace.n_states, "streamed_file_gb": path.stat().st_size / 1e9, **report}


STREAMED = """
import json, resource, sys, time
import opd_probe
trace = opd_probe.read_trace(sys.argv[1])
started = time.perf_counter()
opd_probe.summarize(trace, int(sys.argv[2]))
summarized = time.perf_counter()
opd_probe.mass_curve(trace)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps({
    "stream_summarize_wall_seconds": summarized - started,
    "stream_mass_curve_wall_seconds": time.perf_counter() - summarized,
    "stream_peak_memory_gb": peak,
}))
"""


def rows(report: dict[str, Any]) -> list[Row]:
    """What :func:`measure` found as lines of the table of all benchmarks."""
    every_k = f"every k up to {K} of {report['states']:,} stored states, in CPU time"
    lowest, highest = 1 / report["every_k_speedup_highest"], 1 / report["every_k_speedup_lowest"]
    ours: Row = {
        "workload": every_k,
        "path": "opd-probe",
        "wall_over_naive": 1 / report["every_k_speedup"],
        "wall_over_naive_range": [lowest, highest],
        "states_per_second": report["states"] / report["every_k_cpu_seconds"],
        "bytes_per_state": report["bytes_per_state"],
    }
    python: Row = {
        "workload": every_k,
        "path": "naive: the formulas in lean pure Python",
        "wall_over_naive": 1.0,
        "states_per_second": report["states"] / report["pure_python_every_k_cpu_seconds"],
    }
    streamed: Row = {
        "workload": f"{report['streamed_states']:,} stored states summarised, memory of the whole process",
        "path": "opd-probe",
        "states_per_second": report["streamed_states"] / report["stream_summarize_wall_seconds"],
        "extra_memory_gb": report["stream_peak_memory_gb"],
    }
    return [ours, python, streamed]


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:<44}{value:>14,.2f}" if isinstance(value, float) else f"{name:<44}{value:>14,}")
