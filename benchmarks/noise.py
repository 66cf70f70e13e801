"""How much log-probabilities move when a rollout is replayed alone instead of in a batch, and when a student's hidden
states are those of sampling instead of a replay, by type of the weights.

    python -m benchmarks.noise            # 494M and 630M parameters, V = 151,936
    python -m benchmarks.noise --small
    python -m benchmarks.noise --sampled  # 15M parameters, V = 32,000: 16 responses of 96 tokens at a time

The numbers are the models' own rounding: matrix products of other shapes add in another order.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.replay import SMALL, Shape, build, workload
from benchmarks.sampling import prompts_of
from opd_probe.engine.replay import Replay
from opd_probe.engine.sampled import SampledModel
from opd_probe.engine.scoring import Columns
from opd_probe.engine.settings import ReplaySettings
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.sampled_states import SampledStates

MIDDLE = Shape(256, 1_024, 8, 4, 2, 32_000)


def columns(work_dtype: str, small: bool, k: int, batch_tokens: int) -> Columns:
    """All states of the benchmark's rollouts, in order, batched within ``batch_tokens``."""
    work = workload(getattr(torch, work_dtype), small, k)
    shared = np.arange(min(work.student.width, work.teacher.width))
    settings = ReplaySettings(k, batch_tokens=batch_tokens)
    # Of different lengths, so that a batch has padding and products of another shape than a rollout alone.
    rollouts = [replace(r, response_ids=r.response_ids[: -3 * i or None]) for i, r in enumerate(work.rollouts)]
    engine = Replay(work.student, work.teacher, rollouts, shared, settings)
    parts = dict(engine.states())
    return {name: np.concatenate([parts[index][name] for index in sorted(parts)]) for name in parts[0]}


def sampled_columns(dtype: str, shape: Shape, k: int, count: int, length: int) -> tuple[Columns, Columns]:
    """All states of sampled responses, by what sampling read of them and by a replay."""
    model = build(shape, getattr(torch, dtype), 0)
    model.model.generation_config.eos_token_id = None
    states = SampledStates(None, 1 << 34)
    how: dict[str, Any] = {"num_rollouts": 1, "max_new_tokens": length, "states": states}
    rollouts = sample_rollouts(model, prompts_of(count, shape.width), **how)
    own = SampledModel(model, rollouts, states, None, "prefix")
    found = []
    for student in (own, model):
        parts = dict(Replay(student, own, rollouts, np.arange(shape.width), ReplaySettings(k)).states())
        known = [parts[index] for index in sorted(parts) if index in own.given]
        found.append({name: np.concatenate([part[name] for part in known]) for name in known[0]})
    return found[0], found[1]


def main() -> None:
    """Print one row per type of the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--sampled", action="store_true", help="states of sampling against those of a replay")
    parser.add_argument("--k", type=int, default=16)
    arguments = parser.parse_args()
    print(f"{'weights':<10}{'median |Δ log p|':>18}{'p99':>10}{'max':>10}{'states with another top-k set':>32}")
    for dtype in ("float32", "bfloat16"):
        if arguments.sampled:
            job = (SMALL, arguments.k, 4, 12) if arguments.small else (MIDDLE, arguments.k, 16, 96)
            alone, together = sampled_columns(dtype, *job)
        else:
            alone = columns(dtype, arguments.small, arguments.k, 1)
            together = columns(dtype, arguments.small, arguments.k, 1 << 20)
        moved = np.abs(alone["student_logprob"] - together["student_logprob"])
        sets = [np.sort(part["student_top_ids"], axis=1) for part in (alone, together)]
        differ = float((sets[0] != sets[1]).any(1).mean())
        numbers = f"{np.median(moved):>18.1e}{np.quantile(moved, 0.99):>10.1e}{moved.max():>10.1e}"
        print(f"{dtype:<10}{numbers}{differ:>32.1%}")


if __name__ == "__main__":
    main()
