"""What the script of the page reads: the numbers and top lists of its states, and the scale of each quantity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opd_probe.curves.intervals import Floats
from opd_probe.models.decoding import Decoder
from opd_probe.plots.labels import METRICS as LABELS
from opd_probe.results.states import QUANTITIES, quantities, top_lists, unknown_quantities

LISTED = 10
"""Ranks of both top lists in the panel of a token; extreme states show all k."""

DIVERGING = ("sampled_reward", "extreme_advantage_gap")
REVERSED = (
    "overlap_ratio", "overlap_advantage", "student_overlap_mass", "teacher_overlap_mass",
    "student_token_probability", "teacher_token_probability",
)  # fmt: skip
"""Quantities of which a lack is what one looks for: low values are shaded."""

READINGS = {
    "reverse_kl": "KL(student ‖ teacher) at the state before the token: where the two models disagree most.",
    "sampled_reward": "log q − log p of the token. Orange: the teacher gives it less than the student, blue: more.",
    "forward_kl": "KL(teacher ‖ student): where the student misses what the teacher would say.",
    "student_entropy": "Where the student hesitates.",
    "teacher_entropy": "Where the teacher hesitates.",
    "entropy_gap": "|teacher's − student's entropy|.",
    "overlap_ratio": "Shared part of the two top-k sets. Shaded: little is shared.",
    "overlap_advantage": "At most 0. Shaded: the distributions differ in shape on the shared tokens.",
    "student_overlap_mass": "The student's probability of the shared tokens. Shaded: little.",
    "teacher_overlap_mass": "The teacher's probability of the shared tokens. Shaded: little.",
    "extreme_advantage_gap": "p − q at the shared token with the largest advantage. Orange: the student gives it less.",
    "student_token_probability": "The student's probability of its own token. Shaded: little.",
    "teacher_token_probability": "The teacher's probability of the student's token. Shaded: little.",
    "teachability": "Disagreement that lies within the student's top k.",
}


class PageData:
    """What the script of the page reads, collected state by state."""

    def __init__(self, decoder: Decoder, k: int) -> None:
        self.unknown: list[str] = []
        self._decoder, self._k = decoder, k
        self._values: list[dict[str, Floats]] = []
        self._states: list[dict[str, Any]] = []
        self._ids: set[int] = set()

    def add(self, rows: Mapping[str, Any]) -> int:
        """Take in the rows of a response; returns the number of its first state."""
        first = len(self._states)
        self._values.append(quantities(rows, self._k))
        for token, position, student, teacher in zip(
            rows["token_id"].tolist(), rows["position"].tolist(), *top_lists(rows, self._k), strict=True
        ):
            lists = {
                side: [[e["id"], e["own"], e["other"], int(e["shared"])] for e in entries[:LISTED]]
                for side, entries in (("s", student), ("t", teacher))
            }
            self._ids.update([token, *(entry[0] for entries in lists.values() for entry in entries)])
            self._states.append({"token": token, "position": position, **lists})
        return first

    def finish(self) -> dict[str, Any]:
        values = {name: np.concatenate([part[name] for part in self._values]) for name in QUANTITIES}
        self.unknown = unknown_quantities(values)
        names = [name for name in QUANTITIES if name not in self.unknown]
        for place, state in enumerate(self._states):
            state["v"] = [_plain(float(values[name][place])) for name in names]
        return {
            "quantities": [scale_of(name, values[name], self._k) for name in names],
            "labels": {str(token): self._decoder.label(token) for token in sorted(self._ids)},
            "states": self._states,
        }


def _plain(value: float) -> float | str | None:
    """A number of four digits, None for NaN, a sign with ∞ for what JSON cannot say."""
    if value != value:
        return None
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    return float(f"{value:.4g}")


def scale_of(name: str, values: Floats, k: int) -> dict[str, Any]:
    """Title, unit and scale of one quantity; the scale leaves the 2 % of the most extreme states to its end."""
    finite = values[np.isfinite(values)]
    label = LABELS[name]
    quantity: dict[str, Any] = {
        "name": name,
        "title": label.title.format(k=k),
        "unit": label.unit,
        "reading": READINGS[name],
        "clipped_low": False,
        "clipped_high": False,
    }
    if name in DIVERGING:
        bound = _round_up(float(np.quantile(np.abs(finite), 0.98)))
        clipped = bool((np.abs(finite) > bound).any())
        return quantity | {
            "scale": "diverging", "low": -bound, "high": bound, "clipped_low": clipped, "clipped_high": clipped
        }  # fmt: skip
    if name in REVERSED:
        top = 0.0 if name == "overlap_advantage" else 1.0
        low = top - _round_up(top - float(np.quantile(finite, 0.02)))
        return quantity | {
            "scale": "reversed", "low": float(f"{low:.4g}"), "high": top,
            "clipped_low": bool((finite < low - 1e-9).any()),
        }  # fmt: skip
    high = _round_up(float(np.quantile(finite, 0.98)))
    return quantity | {"scale": "sequential", "low": 0.0, "high": high, "clipped_high": bool((finite > high).any())}


def _round_up(value: float) -> float:
    """The next number of two digits, at least 1e-6: the end of a scale."""
    value = max(value, 1e-6)
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(f"{np.ceil(value / step - 1e-9) * step:.3g}")
