"""What the page of ``opd-probe tokens`` says, in plain values for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from opd_probe.curves.intervals import Floats
from opd_probe.curves.timeline import OverlapChange
from opd_probe.curves.tokens import Survey
from opd_probe.digits import digits, true_minus
from opd_probe.metrics.context import CORRECT_FROM
from opd_probe.models.decoding import Decoder
from opd_probe.pages import render_tokens
from opd_probe.plots.labels import METRICS as LABELS
from opd_probe.results.responses import Responses
from opd_probe.results.shading import PageData

_EXTREMES = {
    "reverse_kl": ("States of the largest reverse KL", "Largest KL", "KL(student ‖ teacher) over the full vocabulary."),
    "lowest_reward": ("Tokens that the teacher refuses most", "Lowest r", "The lowest sampled rewards r."),
    "highest_reward": ("Tokens that the teacher welcomes most", "Highest r", "The highest sampled rewards r."),
}
_SHOWN = (
    "reverse_kl", "sampled_reward", "student_entropy", "teacher_entropy", "overlap_ratio", "student_overlap_mass",
)  # fmt: skip


_MEASURES = {"reverse_kl": "mean reverse KL", "sampled_loss": "mean log p − log q"}


def build_page(
    document: Mapping[str, Any],
    found: Survey,
    chosen: Sequence[int],
    apart: tuple[str, Floats],
    responses: Responses,
    decoder: Decoder,
    room: int,
    change: OverlapChange | None,
) -> str:
    """The HTML text.

    Args:
        document: as the command's JSON.
        chosen: the rollouts on the page, by index, with at most ``room`` states each.
        apart: what every rollout is ordered by; see :func:`opd_probe.curves.tokens.disagreement_by_rollout`.
    """
    measure = _MEASURES[apart[0]]
    trace, k = document["trace"], document["trace"]["k"]
    missing = list(document["missing"])
    data = PageData(decoder, k)
    rollouts = [
        _rollout(index, found.rows[index], responses, data, f"{measure} {apart[1][index]:.3g} nats") for index in chosen
    ]
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
            "choice": _choice(len(chosen), measure, apart[1], room),
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
        *([("Replay", f"stopped {trace['stopped']}")] if trace.get("stopped") else []),
        ("Sampled by", states.get(trace["states"], "unknown")),
        ("Token ids", "as sampled" if trace["token_source"] == "sampled_ids" else "re-tokenised text, not as sampled"),
        ("Sampling", str(trace["sampling"] or "unknown")),
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
        note = label.unit
        if value is not None and lo is not None and hi is not None:
            value, *ends = map(true_minus, digits(value, lo, hi))
            note = f"{label.unit}, 95 %: {' to '.join(ends)}"
        cards.append({"name": label.title.format(k=k), "value": value, "note": note})
    return cards


def _choice(shown: int, measure: str, apart: Floats, room: int) -> str:
    there = int((~np.isnan(apart)).sum())
    if shown == there:
        which = f"All {there} responses with a state" if there > 1 else "The one response with a state"
        which += f", from the largest {measure} to the smallest."
    else:
        which = (
            f"{shown} of {there:,} responses, evenly spaced in rank from the largest {measure} to the smallest, "
            "so that the worst, the usual and the best are here (--max-rollouts shows more)."
        )
    return f"{which} Of each, at most {room:,} states."


def _rollout(index: int, rows: Mapping[str, Any], responses: Responses, data: PageData, apart: str) -> dict[str, Any]:
    row = responses.table[index]
    score = row["score"]
    verdict = None if score is None else ("correct" if score >= CORRECT_FROM else "wrong")
    length, n_states = row["response_length"], row["n_states"]
    about = [f"prompt {row['prompt_id']}", f"{length:,} tokens", apart]
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
    share = "An unknown part" if np.isnan(outside) else "None"
    if found.reverse_kl > 0:
        share = f"{outside / found.reverse_kl:.2%}"
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
