"""How far two right ways through the same model differ: a replay can be no more exact than that."""

from __future__ import annotations

from typing import Any

import numpy as np

from opd_probe.checks.evidence import Evidence, Floats, Side, Skip, share
from opd_probe.checks.registry import Verdict, grade, register

TOLERANCE = 1e-4
"""|Δ| in nats of two log-probabilities that are the same but for float32 rounding, which stays a tenth of it."""

COMMON = 0.01
"""Share of tokens that may differ by more before it is worth a word."""


@register(
    "exactness",
    measures="share of sampled log-probs that differ by more than 1e-4 nats between two right paths of the same model, "
    "and the largest |Δ|, for both models: as in a replay (in batches, a prompt that several share computed once) "
    "against alone (the prompt apart, where the replay has it along with the response). Where the type is coarse, or "
    "rounding decides which experts are asked, one is as right as the other",
    rule="warn: above 1 % of a model's tokens. A served teacher, whose paths are its server's, is not compared",
    advice="no difference at single tokens that is smaller than the largest |Δ| means anything, between two replays, "
    "two tools or sampler and replay: load both in --dtype float32, or compare means over many states",
    known_from="SkyRL PR#2256",
)
def exactness(evidence: Evidence) -> Verdict:
    sides = {"student": evidence.student, "teacher": evidence.teacher}
    reasons = {name: _why_not(evidence, name, side) for name, side in sides.items()}
    if all(reasons.values()):
        raise Skip("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    values: dict[str, Any] = {"tolerance": TOLERANCE}
    figures = []
    for name, side in sides.items():
        sizes = _changes(evidence, name)
        beyond = int((sizes > TOLERANCE).sum())
        median, largest = (float(f(sizes)) if len(sizes) else float("nan") for f in (np.median, np.max))
        known: dict[str, Any] = {"share": share(beyond, len(sizes)), "median": median, "largest": largest}
        known |= {"n_different": beyond, "n_tokens": len(sizes), "dtype": side.dtype or None, "experts": side.experts}
        values |= {f"{name}_{what}": value for what, value in known.items()}
        found = f"{known['share']:.2g} of {len(sizes):,} tokens (|Δ| median {median:.2g}, largest {largest:.2g})"
        figures.append(f"{name}{_kind(side)} {reasons[name] or found}")
    figure = f"beyond {TOLERANCE:g} nats, as replayed against alone: {'; '.join(figures)}"
    return Verdict(grade(fail=False, warn=any(values[f"{name}_share"] > COMMON for name in sides)), figure, values)


def _why_not(evidence: Evidence, name: str, side: Side) -> str:
    """Why two paths of a model cannot be compared; empty where they can."""
    if side.served:
        return "n/a: behind HTTP, where its paths are the server's"
    if not evidence.two_paths.get(name):
        return "n/a: no rollout has a second exact path"
    return "" if len(_changes(evidence, name)) else "n/a: no token has a log-probability on both paths"


def _changes(evidence: Evidence, name: str) -> Floats:
    """|Δ| in nats of the sampled tokens of rollouts that took two paths through a model, [n]; infinite where one path
    alone says that a token is impossible."""
    column, alone = f"{name}_logprob", evidence.again()
    pairs = [
        np.stack([np.asarray(columns[index][column], dtype=np.float64) for columns in (evidence.states, alone)])
        for index in sorted(evidence.two_paths.get(name, ()))
        if index in evidence.states and index in alone
    ]
    both = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0))
    both = both[:, ~np.isnan(both).any(0)]
    with np.errstate(invalid="ignore"):
        return np.where(both[0] == both[1], 0.0, np.abs(both[0] - both[1]))


def _kind(side: Side) -> str:
    parts = [f"{side.experts} experts" if side.experts else "", side.dtype]
    known = ", ".join(part for part in parts if part)
    return f" ({known})" if known else ""
