"""Replay against the hand-written script on rollouts of real lengths, and prompts that rollouts share.

    python -m benchmarks lengths prompts

The script pads batches of 8 rollouts in the order of the file and keeps the full float32 logits of both models. Those
of a large vocabulary would not fit into memory at these lengths, so the vocabulary here is 8,192.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.measuring import Row, paired
from benchmarks.replay import Shape, build
from opd_probe.engine import batching
from opd_probe.engine.replay import Replay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.models.loading import LoadedModel
from opd_probe.types import Rollout

WIDTH = 8_192
K = 16
SHAPE = Shape(256, 1_024, 4, 4, 4, WIDTH)
MEDIAN, SPREAD = 300, 0.95


@dataclass
class Job:
    """Two models and rollouts of many lengths."""

    student: LoadedModel
    teacher: LoadedModel
    rollouts: list[Rollout]

    @property
    def states(self) -> int:
        """Response tokens in all."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)


def sample(count: int, prompt_length: int = 120, longest: int = 4_096, spread: float = SPREAD) -> list[Rollout]:
    """Rollouts of log-normal length, median 300, four to a prompt."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(min(MEDIAN, longest)), spread, count).astype(int), 8, longest)
    lengths[generator.integers(count)] = longest
    prompts = generator.integers(0, WIDTH, (-(-count // 4), prompt_length))
    return [
        Rollout(str(i), tuple(prompts[i // 4].tolist()), tuple(generator.integers(0, WIDTH, length).tolist()))
        for i, length in enumerate(lengths)
    ]


def ours(job: Job) -> float:
    """The replay engine."""
    engine = Replay(job.student, job.teacher, job.rollouts, np.arange(WIDTH), ReplaySettings(K))
    return float(sum(values["reverse_kl"].sum() for _, values in engine.states()))


def without_sharing(job: Job) -> float:
    """The replay engine, every rollout reading its own prompt."""
    before, batching.SHARING_PAYS = batching.SHARING_PAYS, float("inf")
    try:
        return ours(job)
    finally:
        batching.SHARING_PAYS = before


@torch.inference_mode()
def by_hand(job: Job) -> float:
    """Padded batches of 8, full logits, softmax, topk."""
    total = 0.0
    for start in range(0, len(job.rollouts), 8):
        rollouts = job.rollouts[start : start + 8]
        batch = [[*r.prompt_ids, *r.response_ids] for r in rollouts]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        s = torch.log_softmax(job.student.model(ids, attention_mask=mask).logits.float(), -1)
        t = torch.log_softmax(job.teacher.model(ids, attention_mask=mask).logits.float(), -1)
        p, q = s.exp(), t.exp()
        reverse, forward = (p * (s - t)).sum(-1), (q * (t - s)).sum(-1)
        entropy = -(p * s).sum(-1) - (q * t).sum(-1)
        top = s.topk(K, -1), t.topk(K, -1)
        crossed = t.gather(-1, top[0].indices).sum(-1) + s.gather(-1, top[1].indices).sum(-1)
        for row, rollout in enumerate(rollouts):
            first = len(rollout.prompt_ids) - 1
            total += float(reverse[row, first : first + len(rollout.response_ids)].sum())
        total += 0.0 * float(forward.sum() + entropy.sum() + crossed.sum())
    return total


def measure_lengths(count: int = 256, repeats: int = 1, shape: Shape = SHAPE, longest: int = 4_096) -> list[Row]:
    """Two rows: the engine, and the script relative to which it is timed."""
    job = Job(*_models(shape), sample(count, longest=longest))
    paths = {"opd-probe": lambda: ours(job), "naive, padded batches of 8": lambda: by_hand(job)}
    workload = f"{count} rollouts, median {MEDIAN} and up to {longest:,} tokens"
    # Minutes long: a warm-up would double them and change nothing.
    return paired(workload, paths, repeats, job.states, {"naive": "naive, padded batches of 8"}, warm=False)


def measure_prompts(count: int = 32, repeats: int = 5, shape: Shape = SHAPE, prompt: int = 768) -> list[Row]:
    """Two rows: four answers to each long prompt, with the prompt computed once and once for each answer."""
    job = Job(*_models(shape), sample(count, prompt, longest=400, spread=0.3))
    paths = {"opd-probe": lambda: ours(job), "every rollout reads its prompt": lambda: without_sharing(job)}
    workload = f"4 answers of about {MEDIAN} tokens to each prompt of {prompt}"
    return paired(workload, paths, repeats, job.states, {"naive": "every rollout reads its prompt"})


def _models(shape: Shape) -> tuple[LoadedModel, LoadedModel]:
    shape = replace(shape, width=WIDTH)
    return build(shape, torch.float32, 0), build(shape, torch.float32, 1)
