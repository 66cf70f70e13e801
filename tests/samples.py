"""Random logits and small traces for tests of everything that reads a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import opd_probe
from opd_probe.trace import Trace, rollout_table

Logits = NDArray[np.float32]


def random_pair(
    states: int, vocabulary: int, *, seed: int = 0, spread: float = 2.0, distance: float = 1.0
) -> tuple[Logits, Logits, NDArray[np.int64]]:
    """Student logits, teacher logits (the student's plus noise) and sampled tokens."""
    generator = np.random.default_rng(seed)
    student = generator.normal(0.0, spread, (states, vocabulary))
    teacher = student + generator.normal(0.0, distance, (states, vocabulary))
    tokens = generator.integers(0, vocabulary, states)
    return student.astype(np.float32), teacher.astype(np.float32), tokens


def confident_pair(states: int, vocabulary: int, *, seed: int = 0) -> tuple[Logits, Logits, NDArray[np.int64]]:
    """As :func:`random_pair`, with one token that holds all but 1e-4 … 1e-8 of the student's mass, and nearly so of the
    teacher's; at every second state it is the sampled one."""
    student, teacher, tokens = random_pair(states, vocabulary, seed=seed, distance=0.3)
    generator = np.random.default_rng(seed + 1)
    top = generator.integers(0, vocabulary, states)
    rests = np.logspace(-4, -8, states)
    for logits, rest in ((student, rests), (teacher, rests * generator.uniform(0.5, 2.0, states))):
        for row in range(states):
            others = np.logaddexp.reduce(np.delete(logits[row].astype(np.float64), top[row]))
            logits[row, top[row]] = others + np.log1p(-rest[row]) - np.log(rest[row])
    tokens[::2] = top[::2]
    return student, teacher, tokens


def grouped_trace(
    rollouts: Sequence[Mapping[str, Any]],
    *,
    vocabulary: int = 40,
    k: int = 8,
    seed: int = 0,
    jsd: bool = True,
    logits: tuple[Logits, Logits, NDArray[np.int64]] | None = None,
    positions: Sequence[int] | None = None,
) -> Trace:
    """A trace in memory of several rollouts; each is a row of the rollout table with ``n_states``."""
    total = sum(int(row["n_states"]) for row in rollouts)
    student, teacher, tokens = logits or random_pair(total, vocabulary, seed=seed)
    flat = opd_probe.trace_logits(student, teacher, tokens, k, jsd=jsd)
    arrays = {name: flat.column(name) for name in flat.columns}
    if positions is None:
        positions = [position for row in rollouts for position in range(int(row["n_states"]))]
    arrays["position"] = np.asarray(positions, dtype=np.int32)
    rows = [
        {"rollout_id": f"r{index}", "response_length": row["n_states"], "token_source": "sampled_ids", **row}
        for index, row in enumerate(rollouts)
    ]
    return Trace(rollout_table(rows), flat.provenance, arrays=arrays)


def as_served(trace: Trace, *, lost: Mapping[int, int] | None = None) -> Trace:
    """A trace in memory without what a served teacher does not tell, taken out state by state.

    Args:
        lost: for some states, how many entries at the end of the teacher's list are of ids that are not shared.
    """
    arrays = {name: np.array(trace.column(name)) for name in trace.columns}
    for name in ("teacher_entropy", "reverse_kl", "forward_kl", "jsd", "teacher_mass_outside"):
        if name in arrays:
            arrays[name][:] = np.nan
    for state in range(trace.n_states):
        listed = set(arrays["teacher_top_ids"][state].tolist())
        if count := (lost or {}).get(state, 0):
            arrays["teacher_top_ids"][state, -count:] = -1
            arrays["teacher_top_logprobs"][state, -count:] = np.nan
            arrays["student_logprobs_at_teacher_top"][state, -count:] = np.nan
            listed = set(arrays["teacher_top_ids"][state, :-count].tolist())
        known = listed | {int(arrays["token_id"][state])}
        for rank, token in enumerate(arrays["student_top_ids"][state].tolist()):
            if token not in known:
                arrays["teacher_logprobs_at_student_top"][state, rank] = np.nan
    provenance = {**trace.provenance, "teacher": {"source": "served"}}
    return Trace(trace.rollouts, provenance, arrays=arrays)


def many_prompts(prompts: int, per_prompt: int = 2, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rollouts of ragged lengths with scores and finish reasons, two for each prompt."""
    generator = np.random.default_rng(seed)
    return [
        {
            "prompt_id": f"p{prompt:03d}",
            "n_states": int(generator.integers(1, 9)),
            "score": float(generator.integers(0, 2)),
            "finish_reason": str(generator.choice(["stop", "length"])),
        }
        for prompt in range(prompts)
        for _ in range(per_prompt)
    ]
