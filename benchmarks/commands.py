"""Whole commands over stored traces, start and imports included: when nothing is left to replay, and with more traces.

python -m benchmarks commands
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from benchmarks.after_trace import cpu_seconds
from benchmarks.measuring import Row
from benchmarks.replay import Shape, build, random_rollouts
from opd_probe.cli.main import main
from opd_probe.engine.logits import trace_logits
from opd_probe.rollouts.files import write_rollouts
from opd_probe.trace import Trace, rollout_table

Command = Callable[[Sequence[str]], float]
"""Runs a command and hands back its CPU seconds."""

TINY = Shape(64, 128, 1, 1, 1, 500)
STATES = 30
"""States of a rollout."""


def apart(words: Sequence[str]) -> float:
    """A command as a process of its own, with one thread of arithmetic."""
    before = os.times()
    code = "import sys; from opd_probe.cli.main import main; sys.exit(main())"
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, env=one)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def here(words: Sequence[str]) -> float:
    """A command within this process."""

    def run() -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            if main(words):
                raise RuntimeError(f"opd-probe {' '.join(words)} failed")

    return cpu_seconds(run)


def alternating(commands: Mapping[str, Sequence[str]], run: Command, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each command in each round, one after the other, so that others on the machine slow all alike."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            taken[name].append(run(words))
    return taken


def measure_stored(run: Command, checkpoints: int = 8, rounds: int = 3) -> list[Row]:
    """Commands on a run whose traces are all stored, relative to ``overlap`` over these traces."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for step in range(checkpoints):
            build(TINY, torch.float32, step).model.save_pretrained(root / "run" / f"checkpoint-{step}")
        build(TINY, torch.float32, checkpoints).model.save_pretrained(root / "teacher")
        write_rollouts(root / "rollouts.parquet", random_rollouts(10, 8, STATES, TINY.width))
        out = ["--out", str(root / "out")]
        ckpts = ["--ckpts", str(root / "run")]
        asked = [*ckpts, "--teacher", str(root / "teacher"), "--rollouts", str(root / "rollouts.parquet")]
        run(["overlap", *asked, *out])
        traces = sorted(map(str, (root / "out" / "traces").rglob("*.parquet")))
        floor = "floor: overlap --traces"
        commands = {
            floor: ["overlap", "--traces", *traces, *out],
            "opd-probe overlap --ckpts, nothing to do": ["overlap", *asked, *out],
            "opd-probe ckpts": ["ckpts", str(root / "run")],
            "opd-probe compare, of two": ["compare", traces[0], traces[-1], *out],
            "opd-probe figures": ["figures", "--traces", *traces, *out],
        }
        if run is here:  # which is to see that it runs
            commands.popitem()
        taken = alternating(commands, run, rounds)
    workload = f"whole commands on {checkpoints} checkpoints of which all traces are stored"
    return [
        {
            "workload": workload,
            "path": name,
            "cpu_over_floor": statistics.median(own / base for own, base in zip(spent, taken[floor], strict=True)),
        }
        for name, spent in taken.items()
    ]


def save_traces(root: Path, count: int) -> list[str]:
    """Small traces of two runs, step by step: their files."""
    files = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        student = torch.randn(10 * STATES, 300, generator=generator)
        teacher = student + torch.randn(10 * STATES, 300, generator=generator)
        flat = trace_logits(student, teacher, torch.randint(0, 300, (10 * STATES,), generator=generator), 16)
        arrays = {name: flat.column(name) for name in flat.columns}
        arrays["position"] = np.tile(np.arange(STATES, dtype=np.int32), 10)
        rows = [
            {"rollout_id": f"r{one}", "prompt_id": f"p{one // 2}", "n_states": STATES, "response_length": STATES}
            for one in range(10)
        ]
        labels = {"run": f"run-{'ab'[index % 2]}", "step": 10 * (index // 2), "teacher": "teacher", "states": "own"}
        path = root / labels["run"] / f"step-{labels['step']}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Trace(rollout_table(rows), {**flat.provenance, "labels": labels}, arrays=arrays).save(path)
        files.append(str(path))
    return files


def measure_growth(
    run: Command, names: Sequence[str] = ("overlap", "compare", "figures"), first: int = 10, rounds: int = 2
) -> list[Row]:
    """What a trace more takes between 5.5 and 10 times as many as at first, over what it takes between these."""
    sizes = (first, first * 11 // 2 // 2 * 2, first * 10)
    with tempfile.TemporaryDirectory() as directory:
        files = save_traces(Path(directory), sizes[-1])
        out = ["--out", f"{directory}/out"]

        def words(name: str, size: int) -> list[str]:
            given = files[:size]
            if name != "compare":
                return [name, "--traces", *given, *out]
            return _sides(Path(directory) / str(size), given, out)

        commands = {f"{name} {size}": words(name, size) for name in names for size in sizes}
        taken = alternating(commands, run, rounds)
    workload = f"CPU time per trace: of {sizes[1]} to {sizes[2]} small traces over that of {sizes[0]} to {sizes[1]}"
    rows: list[Row] = [{"workload": workload, "path": "floor: linear", "cpu_over_floor": 1.0}]
    for name in names:
        few, more, most = (min(taken[f"{name} {size}"]) for size in sizes)
        before, after = (more - few) / (sizes[1] - sizes[0]), (most - more) / (sizes[2] - sizes[1])
        rows.append({"workload": workload, "path": f"opd-probe {name}", "cpu_over_floor": max(after / before, 0.0)})
    return rows


def _sides(place: Path, files: Sequence[str], out: Sequence[str]) -> list[str]:
    """``compare`` takes a directory for each run."""
    for file in map(Path, files):
        link = place / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(file)
    return ["compare", str(place / "run-a"), str(place / "run-b"), *out]


def measure() -> list[Row]:
    """Both tables."""
    return [*measure_stored(apart), *measure_growth(apart)]


def measure_small() -> list[Row]:
    """Both within this process, on next to nothing."""
    return [*measure_stored(here, 2, 1), *measure_growth(here, ("compare",), 2, 1)]
