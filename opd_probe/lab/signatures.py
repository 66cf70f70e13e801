"""The signatures of success and failure: what two runs must show, over several seeds, by rules fixed
beforehand.

Every seed draws its own arithmetic, wordings, student and teachers. A rule that does not hold is reported as
false.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

from opd_probe.lab.cache import cached_json, trained_model
from opd_probe.lab.distill import distill
from opd_probe.lab.evaluate import REPORTED, accuracy, measure, proportion_interval
from opd_probe.lab.progress import begin_worker, lines
from opd_probe.lab.recipes import RUNS, digest

__all__ = [
    "PUBLISHED",
    "RULES",
    "SIGNATURE_RUNS",
    "Rule",
    "apply_rules",
    "measure_run",
    "measure_seed",
    "render",
    "signatures",
]

PUBLISHED: Final = Path(__file__).parent / "data" / "signatures.json"
"""The table of the released lab, one entry per seed."""

SIGNATURE_RUNS: Final = ("compatible", "incompatible")

Seed = Mapping[str, Any]
"""Measurements of one seed: ``teachers`` (name → accuracy) and ``runs`` (name → stage → metrics)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A signature: a quantity of one seed's measurements, and the bound that it must keep."""

    name: str
    statement: str
    quantity: Callable[[Seed], float]
    comparison: Literal["at least", "at most", "above"]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` keeps the bound; NaN does not."""
        if self.comparison == "at least":
            return value >= self.bound
        return value <= self.bound if self.comparison == "at most" else value > self.bound


def _at(seed: Seed, run: str, stage: str, metric: str) -> float:
    return float(seed["runs"][run][stage][metric])


def _gain(seed: Seed, run: str, metric: str) -> float:
    return _at(seed, run, "end", metric) - _at(seed, run, "start", metric)


def _shrinkage(seed: Seed, run: str, metric: str) -> float:
    return abs(_at(seed, run, "start", metric)) / abs(_at(seed, run, "end", metric))


def _excess(seed: Seed, metric: str) -> float:
    return abs(_at(seed, "incompatible", "end", metric)) / abs(_at(seed, "compatible", "end", metric))


RULES: Final = (
    Rule(
        "accuracy_doubles",
        "compatible run: accuracy at the end over accuracy at the start",
        lambda s: _at(s, "compatible", "end", "accuracy") / _at(s, "compatible", "start", "accuracy"),
        "at least",
        2.0,
    ),
    Rule(
        "overlap_rises",
        "compatible run: overlap ratio at the end minus at the start",
        lambda s: _gain(s, "compatible", "overlap_ratio"),
        "above",
        0.0,
    ),
    Rule(
        "advantage_shrinks",
        "compatible run: |overlap advantage| at the start over at the end",
        lambda s: _shrinkage(s, "compatible", "overlap_advantage"),
        "at least",
        5.0,
    ),
    Rule(
        "entropy_gap_shrinks",
        "compatible run: entropy gap at the start over at the end",
        lambda s: _shrinkage(s, "compatible", "entropy_gap"),
        "at least",
        3.0,
    ),
    Rule(
        "mass_is_shared",
        "compatible run: student overlap mass at the end",
        lambda s: _at(s, "compatible", "end", "student_overlap_mass"),
        "at least",
        0.96,
    ),
    Rule(
        "teachers_are_equals",
        "accuracy of the incompatible teacher minus that of the compatible one, each on its own rollouts",
        lambda s: s["teachers"]["incompatible-teacher"]["accuracy"] - s["teachers"]["compatible-teacher"]["accuracy"],
        "at least",
        -0.05,
    ),
    Rule(
        "little_is_learned",
        "accuracy gained in the incompatible run over accuracy gained in the compatible one",
        lambda s: _gain(s, "incompatible", "accuracy") / _gain(s, "compatible", "accuracy"),
        "at most",
        1 / 3,
    ),
    Rule(
        "advantage_stagnates",
        "|overlap advantage| at the end of the incompatible run over that of the compatible one",
        lambda s: _excess(s, "overlap_advantage"),
        "at least",
        2.0,
    ),
    Rule(
        "entropy_gap_stagnates",
        "entropy gap at the end of the incompatible run over that of the compatible one",
        lambda s: _excess(s, "entropy_gap"),
        "at least",
        2.0,
    ),
)
"""The signatures, written before the runs."""


def apply_rules(seed: Seed) -> dict[str, dict[str, Any]]:
    """Every rule on one seed's measurements: its value, its bound and whether it holds."""
    verdicts = {}
    for rule in RULES:
        value = rule.quantity(seed)
        verdicts[rule.name] = {
            "statement": f"{rule.statement} is {rule.comparison} {rule.bound:.4g}",
            "value": value,
            "holds": rule.holds(value),
        }
    return verdicts


def measure_run(cache: Path, name: str, seed: int, rollouts: int) -> dict[str, Any]:
    """Distil one run and measure it at the start, on the way and at the end: stage → metrics."""
    run = RUNS[name]
    student = trained_model(cache, run.student, seed, lines)
    teacher = trained_model(cache, run.teacher, seed, lines)
    steps = run.distillation.steps
    middle = min(run.distillation.checkpoints, key=lambda step: abs(step - 0.4 * steps))
    stages = {"start": {"step": 0, **measure(student, teacher, rollouts, seed)}}

    def on_checkpoint(step: int, model: Any, _log: Any) -> None:
        if step == middle:
            stages["middle"] = {"step": step, **measure(model, teacher, rollouts, seed)}

    student, _ = distill(student, teacher, run.distillation, seed, on_checkpoint, lines(f"seed {seed} {name}"))
    stages["end"] = {"step": steps, **measure(student, teacher, rollouts, seed)}
    return stages


def measure_seed(cache: Path, seed: int, rollouts: int) -> dict[str, Any]:
    """Both runs and both teachers of a seed, from the cache where they are there; one thread."""
    begin_worker()
    result: dict[str, Any] = {"seed": seed, "teachers": {}, "runs": {}}
    for name in SIGNATURE_RUNS:
        # Bound by a default: the callback is called before the loop moves on, but says so.
        result["runs"][name] = cached_json(
            cache,
            name,
            seed,
            lambda name=name: measure_run(cache, name, seed, rollouts),  # type: ignore[misc]
            tag=f"rollouts{rollouts}",
        )
        teacher = RUNS[name].teacher
        share = accuracy(trained_model(cache, teacher, seed, lines), rollouts, seed)
        low, high = proportion_interval(share, rollouts)
        result["teachers"][teacher] = {"accuracy": share, "accuracy_lo": low, "accuracy_hi": high}
    return {**result, "rules": apply_rules(result)}


def signatures(
    out: Path = PUBLISHED,
    seeds: Sequence[int] = (0, 1, 2),
    cache: Path = Path("lab-cache"),
    rollouts: int = 1024,
    processes: int = 2,
) -> dict[str, Any]:
    """Train, distil and measure every seed, ``processes`` side by side, and write the table to ``out`` as
    JSON.

    Models and measurements are kept in ``cache`` under the digest of their recipe: a repeated call does only
    what is missing.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measure_seed, cache, seed, rollouts) for seed in seeds]
        rows = [job.result() for job in jobs]
    table = {"rollouts": rollouts, "recipes": {name: digest(name, 0) for name in SIGNATURE_RUNS}, "seeds": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_rounded(table), indent=1) + "\n")
    return table


def _rounded(value: Any) -> Any:
    """Floats to six significant digits, so that the table stays readable."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def render(table: Mapping[str, Any]) -> str:
    """The table as text: every seed's stages, teachers and verdicts."""
    out = []
    for row in table["seeds"]:
        teachers = ", ".join(f"{name} {entry['accuracy']:.3f}" for name, entry in row["teachers"].items())
        out.append(f"seed {row['seed']}: accuracy of {teachers}")
        for run, stages in row["runs"].items():
            for metric in REPORTED:
                values = " → ".join(f"{stage[metric]:8.4f}" for stage in stages.values())
                out.append(f"  {run:<14} {metric:<22} {values}")
        for name, verdict in row["rules"].items():
            out.append(f"  {'holds' if verdict['holds'] else 'FAILS'}  {name:<22} {verdict['value']:8.3f}")
    return "\n".join(out)
