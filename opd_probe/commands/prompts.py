"""``opd-probe prompts``: which prompts teach most, from what a trace says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd_probe.commands.result import Result
from opd_probe.curves.accumulate import RolloutSums, clusters_of
from opd_probe.errors import MissingError, warn
from opd_probe.metrics.context import correctness
from opd_probe.metrics.states import check_k, metric_blocks
from opd_probe.output import rows_file
from opd_probe.results.tables import json_row
from opd_probe.rollouts.prompts import read_prompts
from opd_probe.rollouts.repeats import near_duplicates
from opd_probe.rollouts.rows import read_rows, write_rows
from opd_probe.trace import Trace, read_trace
from opd_probe.types import Prompt

METRICS = ("teachability", "reverse_kl", "overlap_ratio", "teacher_overlap_mass", "student_entropy")
COLUMNS = ("rank", "prompt_id", *METRICS, "accuracy", "n_states")

FLOOR = 0.9
"""The share of the student's mean entropy over all prompts that the chosen ones keep: prompts that a teacher was
trained on lower it (paper §5.2), which mixing in others prevents."""


@dataclass(frozen=True)
class Measures:
    """What a trace says of its prompts: means over their states, by prompt id."""

    rows: dict[str, dict[str, float]]

    def score(self, prompt: str) -> float:
        """The mean teachability; −1 where it is not known."""
        value = self.rows[prompt]["teachability"]
        return value if np.isfinite(value) else -1.0

    def entropy(self, chosen: Sequence[str]) -> float:
        """The student's mean entropy over the states of some prompts."""
        weights = np.array([self.rows[one]["n_states"] for one in chosen])
        return float(weights @ [self.rows[one]["student_entropy"] for one in chosen] / weights.sum())


def prompts(
    trace: str,
    file: str,
    out: str,
    *,
    count: int | None = None,
    floor: float = FLOOR,
    k: int = 16,
    format: str = "table",
) -> Result:
    """Rank the prompts of a file by what a trace says they would teach, and write the best of them.

    A prompt is ranked by the mean teachability of its states (arXiv 2605.26844): the reverse KL, which is what there is
    to learn (novelty), times the teacher's mass on the student's top k, which is what can be learned at states that the
    student visits (alignment). Of prompts that are nearly the same the best is kept. Then those of the lowest entropy
    give way to the next best of higher entropy until the student's mean entropy is at least ``floor`` times that of
    all prompts.

    Args:
        out: the ``.jsonl`` or ``.parquet`` file to write: rows as they are in ``file``, the best first.
        count: how many; None: all that are left.

    Raises:
        OpdProbeError: bad input, in one line; then nothing is written.
    """
    path = rows_file(out, [file])
    stored = read_trace(trace)
    found = measures(stored, check_k(stored, min(k, stored.K)))
    given = read_prompts(file)
    rows = {prompt.id: row for prompt, (_, row) in zip(given, read_rows(file, "prompts"), strict=True)}
    known = [prompt for prompt in given if prompt.id in found.rows]
    if not known:
        raise MissingError(f"{file}: none of its {len(given)} prompts is in {trace}, whose prompts are named otherwise "
                           f"(for example {next(iter(found.rows), 'none')!r})")  # fmt: skip
    if len(known) < len(given):
        warn(f"{len(given) - len(known)} of {len(given)} prompts are not in the trace and are left out")
    ranked = sorted(known, key=lambda prompt: (-found.score(prompt.id), prompt.id))
    twins = near_duplicates([text_of(prompt) for prompt in ranked])
    single = [prompt.id for prompt, twin in zip(ranked, twins, strict=True) if twin is None]
    if len(single) < len(ranked):
        warn(f"{len(ranked) - len(single)} of {len(ranked)} prompts are nearly the same as a better one: left out")
    if count is not None and count > len(single):
        warn(f"{len(single)} prompts are left, asked for are {count}")
    chosen = mixed(single, min(count or len(single), len(single)), found, floor)
    write_rows(path, [rows[one] for one in chosen], list(dict.fromkeys(name for one in chosen for name in rows[one])))
    table = [json_row({"rank": rank, "prompt_id": one, **found.rows[one]}) for rank, one in enumerate(chosen, 1)]
    return Result(table, COLUMNS, format, (path,))


def mixed(ranked: Sequence[str], count: int, found: Measures, floor: float) -> list[str]:
    """The first ``count`` of the ranked prompts, changed as little as the entropy's floor allows."""
    chosen, rest = list(ranked[:count]), list(ranked[count:])
    least = floor * found.entropy(ranked)
    while found.entropy(chosen) < least:
        lowest = min(chosen, key=lambda one: found.rows[one]["student_entropy"])
        above = [one for one in rest if found.rows[one]["student_entropy"] > found.rows[lowest]["student_entropy"]]
        if not above:
            warn(
                f"the student's mean entropy on the chosen prompts is {found.entropy(chosen):.3g} nats, below the "
                f"floor of {least:.3g}: there are no others to mix in"
            )
            break
        better = [one for one in above if found.rows[one]["student_entropy"] >= least]
        taken = (better or above)[0]
        chosen[chosen.index(lowest)] = taken
        rest.remove(taken)
    place = {one: index for index, one in enumerate(ranked)}
    return sorted(chosen, key=place.__getitem__)


def measures(trace: Trace, k: int) -> Measures:
    """Means of the metrics over the states of each prompt, its accuracy and the number of its states."""
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(METRICS))
    for block, values in metric_blocks(trace, k, METRICS):
        sums.add_metrics(block["rollout"], block, values, METRICS, k)
    codes, n = clusters_of(trace)
    names = sorted(set(trace.rollouts.column("prompt_id").to_pylist()))
    by_prompt = sums.clustered(codes, n, "token")[0]
    states = np.bincount(codes, np.diff(trace.rollout_offsets), minlength=n)
    right = correctness(trace)
    rows = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        means = by_prompt.total / by_prompt.count
    for index, name in enumerate(names):
        if states[index] == 0:
            continue
        graded = right[(codes == index) & ~np.isnan(right)]
        rows[name] = {
            **dict(zip(METRICS, means[index].tolist(), strict=True)),
            "accuracy": float(graded.mean()) if len(graded) else float("nan"),
            "n_states": int(states[index]),
        }
    return Measures(rows)


def text_of(prompt: Prompt) -> str:
    """What a prompt says, its roles apart; of ids their numbers."""
    if prompt.messages is not None:
        return "\n".join(str(message.get("content") or "") for message in prompt.messages)
    return prompt.text if prompt.text is not None else " ".join(map(str, prompt.ids or ()))
