"""What the page of ``opd-probe tokens`` says, in plain values for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from opd_probe.curves.bootstrap import Floats
from opd_probe.curves.tokens import OverlapChange, Survey
from opd_probe.metrics.context import CORRECT_FROM
from opd_probe.models.decoding import Decoder
from opd_probe.pages import render_tokens
from opd_probe.plots.labels import METRICS as LABELS
from opd_probe.run.responses import Responses
from opd_probe.run.states import QUANTITIES, quantities, top_lists, unknown_quantities

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
_EXTREMES = {
    "reverse_kl": ("States of the largest reverse KL", "Largest KL", "KL(student ‖ teacher) over the full vocabulary."),
    "lowest_reward": ("Tokens that the teacher refuses most", "Lowest r", "The lowest sampled rewards r."),
    "highest_reward": ("Tokens that the teacher welcomes most", "Highest r", "The highest sampled rewards r."),
}
_SHOWN = (
    "reverse_kl", "sampled_reward", "student_entropy", "teacher_entropy", "overlap_ratio", "student_overlap_mass",
)  # fmt: skip


def build_page(
    document: Mapping[str, Any],
    found: Survey,
    chosen: Sequence[int],
    mean_kl: Floats,
    responses: Responses,
    decoder: Decoder,
    room: int,
    change: OverlapChange | None,
) -> str:
    """The HTML text.

    Args:
        document: as the command's JSON.
        chosen: the rollouts on the page, by index, with at most ``room`` states each.
        mean_kl: the mean reverse KL of every rollout.
    """
    trace, k = document["trace"], document["trace"]["k"]
    missing = list(document["missing"])
    data = _Data(decoder, k)
    rollouts = [_rollout(index, found.rows[index], responses, data, float(mean_kl[index])) for index in chosen]
    page_data = data.finish()
    if data.unknown:
        names = ", ".join(_title(name, k) for name in data.unknown)
        missing.append(f"Unknown at every state of this page: {names}.")
    return render_tokens(
        {
            "title": f"Tokens of {trace['run']}, step {'?' if trace['step'] is None else trace['step']}",
            "facts": _facts(document, responses),
            "missing": missing,
            "cards": _cards(document["summary"], k),
            "choice": _choice(len(chosen), mean_kl, room),
            "rollouts": rollouts,
            "lists": _lists(document, found, change),
            "extremes": [_extreme(kind, document["states"][kind], k) for kind in _EXTREMES],
            "data": page_data,
            "version": version("opd-probe"),
        }
    )


def _title(name: str, k: int) -> str:
    return LABELS[name].title.format(k=k)


def _facts(document: Mapping[str, Any], responses: Responses) -> list[tuple[str, str]]:
    trace, against = document["trace"], document["against"]
    states = {"own": "the checkpoint's own samples", "fixed": "one fixed set of rollouts"}
    facts = [
        ("Run", str(trace["run"])),
        ("Step", "unknown" if trace["step"] is None else str(trace["step"])),
        ("Teacher", str(trace["teacher"])),
        ("States", f"{trace['n_states']:,} in {len(responses.table):,} responses"),
        ("Sampled by", states.get(trace["states"], "unknown")),
        ("k", f"{trace['k']} (trace: {trace['K']})"),
        ("Tokenizer", str(trace["tokenizer"] or "none: ids are shown")),
    ]
    if against is not None:
        facts.append(("Earlier trace", f"{against['run']}, step {'?' if against['step'] is None else against['step']}"))
    return facts


def _cards(summary: Mapping[str, Any], k: int) -> list[dict[str, Any]]:
    names = (
        "reverse_kl", "sampled_reward", "overlap_ratio", "student_overlap_mass", "negative_reward_share",
        "top_1pct_signal_share", "special_token_gap", "confident_wrong_share",
    )  # fmt: skip
    cards = []
    for name in names:
        label, value = LABELS[name], summary[name]
        lo, hi = summary[f"{name}_lo"], summary[f"{name}_hi"]
        interval = f"{label.unit}, 95 %: {lo:.3g} to {hi:.3g}".replace("-", "−") if lo is not None else label.unit
        cards.append({"name": label.title.format(k=k), "value": value, "note": interval})
    return cards


def _choice(shown: int, mean_kl: Floats, room: int) -> str:
    there = int((~np.isnan(mean_kl)).sum())
    if shown == there:
        which = f"All {there} responses with a state" if there > 1 else "The one response with a state"
        which += ", from the largest mean reverse KL to the smallest."
    else:
        which = (
            f"{shown} of {there:,} responses, evenly spaced in rank from the largest mean reverse KL to the smallest, "
            "so that the worst, the usual and the best are here (--max-rollouts shows more)."
        )
    return f"{which} Of each, at most {room:,} states."


class _Data:
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
            "quantities": [_quantity(name, values[name], self._k) for name in names],
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


def _quantity(name: str, values: Floats, k: int) -> dict[str, Any]:
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


def _rollout(index: int, rows: Mapping[str, Any], responses: Responses, data: _Data, mean_kl: float) -> dict[str, Any]:
    row = responses.table[index]
    score = row["score"]
    verdict = None if score is None else ("correct" if score >= CORRECT_FROM else "wrong")
    length, n_states = row["response_length"], row["n_states"]
    about = [f"prompt {row['prompt_id']}", f"{length:,} tokens", f"mean reverse KL {mean_kl:.3g} nats"]
    if row["finish_reason"] is not None:
        about.append({"stop": "ended by itself", "length": "cut at the limit"}.get(row["finish_reason"], "ended"))
    held = len(rows["position"])
    return {
        "id": responses.rollout_id(index),
        "verdict": verdict,
        "about": " · ".join(about),
        "prompt": responses.prompt(index),
        "prompt_length": row["prompt_length"],
        "pieces": _pieces(index, rows, responses, data.add(rows), held < n_states),
        "cut": f"The first {held:,} of {n_states:,} states." if held < n_states else None,
    }


def _pieces(index: int, rows: Mapping[str, Any], responses: Responses, first: int, cut: bool) -> list[dict[str, Any]]:
    """The response as spans: states, tokens that are none (where they are known), and gaps (where they are not)."""
    ids = responses.ids(index)
    places = {int(position): first + place for place, position in enumerate(rows["position"].tolist())}
    if cut:
        ids = ids[: max(places) + 1]
    why = "masked: the student did not generate it"
    spans: list[dict[str, Any]] = []
    for position, text in enumerate(responses.texts(ids)):
        if ids[position] is None:
            if text:
                spans.append({"state": None, "text": text, "why": f"{why}, and the trace does not hold it"})
            continue
        state = places.get(position)
        # A line break is marked before it breaks, so that the token can be seen.
        spans.append({"state": state, "text": text.replace("\n", "↵\n"), "why": why, "first": state == first})
    return spans


def _lists(document: Mapping[str, Any], found: Survey, change: OverlapChange | None) -> list[dict[str, Any]]:
    lists = document["tokens"]
    outside = found.reverse_kl - float(found.counts.of("kl").sum())
    share = f"{outside / found.reverse_kl:.2%}" if found.reverse_kl > 0 else "none"
    sections = [
        {
            "key": "kl-tokens",
            "short": "Tokens by KL",
            "title": "Tokens that make up the reverse KL",
            "note": "KL(p ‖ q) = Σ over tokens of p (log p − log q), summed for each token over all states, whichever "
            f"token was sampled there. {share} of the whole comes from tokens outside both stored lists.",
            "tables": [
                _table(lists["reverse_kl"], "Largest contributions", {
                    "contribution": "nats per state", "share": "share of the KL", "n_states": "states",
                })
            ],
        },
        {
            "key": "reward-tokens",
            "short": "Tokens by r",
            "title": "Sampled tokens that the teacher refuses and welcomes",
            "note": "Σ r over the states where the token was sampled, per state of the trace: rare tokens of extreme r "
            "and frequent ones of moderate r both count.",
            "tables": [
                _table(lists[name], caption, {"contribution": "nats per state", "mean": "mean r", "n_states": "times"})
                for name, caption in (("lowest_reward", "Refused: low Σ r"), ("highest_reward", "Welcomed: high Σ r"))
            ],
        },
    ]  # fmt: skip
    if change is not None:
        how = (
            "Both traces have the same states: counted are the states where a token is in the overlap of one alone."
            if change.paired
            else "The two traces have different states: compared is how often a token is in the overlap."
        )
        columns = {"per_1000_states": "per 1,000 states", "n_states": "states", "net": "net"} if change.paired else {
            "per_1000_states": "per 1,000 states"
        }  # fmt: skip
        against = document["against"]
        sections.append(
            {
                "key": "overlap-tokens",
                "short": "Overlap",
                "title": "Tokens that enter and leave the overlap",
                "note": f"From the trace of {against['run']}, step {against['step']}, to this one. {how}",
                "tables": [
                    _table(lists["entering"], "Entering", columns),
                    _table(lists["leaving"], "Leaving", columns),
                ],
            }
        )
    return sections


def _table(rows: Sequence[Mapping[str, Any]], caption: str, columns: Mapping[str, str]) -> dict[str, Any]:
    first = next(iter(columns))
    sizes = [abs(row[first]) if isinstance(row[first], float) else 0.0 for row in rows]
    largest = max(sizes, default=0.0) or 1.0
    shown = []
    for row, size in zip(rows, sizes, strict=True):
        values = [row.get("infinite", {}).get(name, row[name]) for name in columns]
        if row.get("n_infinite"):
            values[0] = "∞"
        shown.append({**row, "shown": values, "bar": round(100 * size / largest)})
    return {"caption": caption, "columns": list(columns.values()), "rows": shown}


def _extreme(kind: str, states: Sequence[Mapping[str, Any]], k: int) -> dict[str, Any]:
    title, short, note = _EXTREMES[kind]

    def entries(state: Mapping[str, Any], side: str, own: str, other: str) -> list[dict[str, Any]]:
        return [
            {
                "id": entry["token_id"],
                "token": entry["token"],
                "own": entry[own],
                "other": entry[other],
                "shared": entry["shared"],
                "bar": round(100 * (entry[own] or 0)),
            }
            for entry in state[f"{side}_top"]
        ]

    def shown(state: Mapping[str, Any]) -> dict[str, Any]:
        values = state["values"]
        infinite = {"inf": "∞", "-inf": "−∞"}
        return {
            **{
                name: state[name] for name in ("rollout_id", "position", "token", "token_id", "before", "text", "after")
            },
            "numbers": [
                (_title(name, k), infinite.get(values.get("infinite", {}).get(name), values[name])) for name in _SHOWN
            ],
            "student": entries(state, "student", "p_student", "q_teacher"),
            "teacher": entries(state, "teacher", "q_teacher", "p_student"),
        }

    return {
        "key": f"extreme-{kind.replace('_', '-')}",
        "title": title,
        "short": short,
        "note": f"{note} Both models' top {k}, side by side.",
        "states": [shown(state) for state in states],
    }
