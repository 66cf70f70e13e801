"""An on-policy job as a whole, sample and replay: with the hidden states of sampling, and with a second pass of the
student.

    python -m benchmarks on-policy

Responses have the lengths of ``python -m benchmarks filling``. The base is what was done before responses made room for
one another: batches with room for the longest in each row, then both models over everything. CPU time, one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.lengths import SHAPE
from benchmarks.measuring import Row
from benchmarks.replay import Shape, build
from benchmarks.sampling import END, ending_at, planned_lengths, prompts_of, room_for_the_longest
from opd_probe.engine.replay import Replay
from opd_probe.engine.sampled import SampledModel
from opd_probe.engine.settings import ReplaySettings
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import LoadedModel
from opd_probe.models.sampled_states import SampledStates
from opd_probe.types import Prompt

BOUND, LONGEST = 4_096, 256
"""Tokens of a batch, a quarter of the default, and of the longest response, for responses an eighth as long."""

BEFORE = "in batches with room for the longest, both models over everything"


@dataclass
class Job:
    """A student, a teacher, and prompts with the lengths of their responses."""

    student: LoadedModel
    teacher: LoadedModel
    prompts: list[Prompt]
    samples: int
    longest: int

    def run(self, *, keeps: bool) -> float:
        """Sample and replay."""
        states = SampledStates(None, 1 << 34) if keeps else None
        with ending_at(planned_lengths(self.prompts, self.samples, self.longest)):
            rollouts = sample_rollouts(
                self.student,
                self.prompts,
                num_rollouts=self.samples,
                max_new_tokens=self.longest,
                batch_tokens=BOUND,
                states=states,
            )
        student: LoadedModel | SampledModel = self.student
        if states is not None:
            student = SampledModel(self.student, rollouts, states, None, "prefix")
            student.check(BOUND, 1e-4)
        ids = np.arange(self.student.width)
        engine = Replay(student, self.teacher, rollouts, ids, ReplaySettings(batch_tokens=BOUND))
        return float(sum(values["reverse_kl"].sum() for _, values in engine.states()))

    def before(self) -> float:
        """The same as it was."""
        with room_for_the_longest():
            return self.run(keeps=False)


def measure(
    count: int = 16, samples: int = 4, repeats: int = 1, longest: int = LONGEST, shape: Shape = SHAPE
) -> list[Row]:
    """Three rows for a teacher of the student's size, and three for one with three times the layers."""
    student = build(shape, torch.float32, 0)
    student.model.generation_config.eos_token_id = END
    student = replace(student, eos_ids=(END,))
    prompts = prompts_of(count, shape.width)
    rows: list[Row] = []
    for what, layers in (("of the student's size", shape.layers), ("three times larger", 3 * shape.layers)):
        job = Job(student, build(replace(shape, layers=layers), torch.float32, 1), prompts, samples, longest)
        paths: dict[str, Callable[[], float]] = {
            "opd-probe": lambda job=job: job.run(keeps=True),  # type: ignore[misc]
            "opd-probe, student replayed": lambda job=job: job.run(keeps=False),  # type: ignore[misc]
            BEFORE: job.before,
        }
        for model in (job.student, job.teacher):  # what is found out once for a model is no part of any path
            for path in ("joined", "padded prompts", "prompts of one length", "shared"):
                model.cache_for(path)
        states = sum(planned_lengths(prompts, samples, longest).values())
        rows += _rows(f"sample {count} × {samples} and replay, teacher {what}, in CPU time", paths, repeats, states)
    return rows


def _rows(workload: str, paths: dict[str, Callable[[], float]], repeats: int, states: int) -> list[Row]:
    """Paths that take turns, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in paths}
    try:
        for _ in range(repeats):
            for name, path in paths.items():
                started = time.process_time()
                path()
                taken[name].append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    rows: list[Row] = []
    for name, own in taken.items():
        ratios = [one / other for one, other in zip(own, taken[BEFORE], strict=True)]
        row: Row = {"workload": workload, "path": name, "wall_over_naive": statistics.median(ratios)}
        row["wall_over_naive_range"] = [min(ratios), max(ratios)]
        row["states_per_second"] = states / statistics.median(own)
        rows.append(row)
    return rows
