"""Many checkpoints of one run over the same rollouts: the whole job, from weights on disk to traces.

python -m benchmarks checkpoints
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import Row, paired
from benchmarks.replay import Shape, build, random_rollouts
from opd_probe.engine import stored
from opd_probe.engine.replay import Replay
from opd_probe.engine.sequences import sequence_batches
from opd_probe.engine.settings import TRACE_K, ReplaySettings
from opd_probe.engine.stored import state_hidden
from opd_probe.errors import OpdProbeWarning
from opd_probe.jobs.pipeline import measure as measured
from opd_probe.jobs.plan import make_plan
from opd_probe.models.loading import load_model
from opd_probe.options.request import Request
from opd_probe.progress import Silent
from opd_probe.rollouts.files import write_rollouts
from opd_probe.stats.threads import fitting_threads
from opd_probe.types import Rollout

TENTH = Shape(512, 2_048, 8, 8, 2, 6_600)
"""The output layer is a tenth of the work."""

WIDE = Shape(512, 2_048, 8, 8, 2)
"""The same layers below a vocabulary of 151,936."""

FLOOR = "floor: every student, 1 teacher, both output layers for each, statistics"
AGAIN = "the teacher run for every checkpoint"


@dataclass(frozen=True)
class Job:
    """Checkpoints of one run, a teacher of their size, and rollouts, all on disk."""

    root: Path
    steps: tuple[int, ...]
    rollouts: list[Rollout]
    outs: Iterator[int]

    def traces(self) -> None:
        """What the command does."""
        request = Request(
            ckpts=(str(self.root / "run"),),
            teachers=(str(self.root / "teacher"),),
            rollouts=str(self.root / "rollouts.parquet"),
            out=str(self.root / f"out-{next(self.outs)}"),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OpdProbeWarning)
            measured(make_plan(request), Silent())

    def again(self) -> None:
        """The same without room on the disk for the teacher's states."""
        share, stored.SHARE = stored.SHARE, 0.0
        try:
            self.traces()
        finally:
            stored.SHARE = share


def floor(job: Job) -> Callable[[], None]:
    """Every student once, the teacher once, and for every student both output layers with all statistics. The weights
    of one student stand for those of all."""
    student, teacher = load_model(job.root / "run" / f"checkpoint-{job.steps[0]}"), load_model(job.root / "teacher")

    @torch.inference_mode()
    def run() -> None:
        engine = Replay(student, teacher, job.rollouts, np.arange(teacher.width), ReplaySettings(TRACE_K))
        batches = sequence_batches(engine.sides, engine.settings.batch_tokens)
        with fitting_threads(teacher.output_layer.weight):
            others = [state_hidden(teacher, *batch) for (batch,) in batches]
            for _ in job.steps:
                scorer = engine._scorer()
                for (batch,), other in zip(batches, others, strict=True):
                    tokens = torch.from_numpy(np.concatenate([one.token_ids for one in batch[0]]))
                    scorer.score(state_hidden(student, *batch), other, tokens)

    return run


def measure_one(shape: Shape, states: int, workload: str, checkpoints: int = 8, repeats: int = 3) -> list[Row]:
    """One row per path."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        steps = tuple(range(10, 10 * checkpoints + 1, 10))
        places = [*(root / "run" / f"checkpoint-{step}" for step in steps), root / "teacher"]
        for seed, place in enumerate(places):
            build(shape, torch.float32, seed).model.save_pretrained(place)
        rollouts = random_rollouts(states // 160 or 1, 16, min(states, 160), shape.width)
        write_rollouts(root / "rollouts.parquet", rollouts)
        job = Job(root, steps, rollouts, count())
        paths = {FLOOR: floor(job), "opd-probe": job.traces, AGAIN: job.again}
        total = checkpoints * sum(len(rollout.response_ids) for rollout in rollouts)
        return paired(workload, paths, repeats, total, {"floor": FLOOR}, warm=False)


def measure() -> list[Row]:
    """Two vocabularies."""
    text = "8 checkpoints of {} over the same {:,} states, a teacher of their size, vocabulary {:,}"
    return [
        *measure_one(TENTH, 1_600, text.format("34 million parameters", 1_600, TENTH.width)),
        *measure_one(WIDE, 320, text.format("108 million parameters", 320, WIDE.width)),
    ]
