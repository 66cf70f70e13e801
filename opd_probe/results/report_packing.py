"""The samples of a report, packed for the page's script: texts, numbers of single states, top lists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opd_probe.curves.intervals import Floats, Ints
from opd_probe.curves.tokens import EXTREMES
from opd_probe.metrics.context import CORRECT_FROM
from opd_probe.metrics.view import TopView
from opd_probe.models.decoding import Decoder
from opd_probe.results import packing
from opd_probe.results.courses import Judged
from opd_probe.results.report_states import Shown, Unit
from opd_probe.results.responses import Responses
from opd_probe.results.shading import scale_of
from opd_probe.results.states import QUANTITIES

ALWAYS = QUANTITIES[:4]
"""Quantities that a page has before it has more of fewer responses."""

JUMPS = 12
"""Extreme states of each kind that one can jump to, of each run and teacher."""

_TABLES: Mapping[str, Floats] = {
    "sampled_reward": packing.SIGNED,
    "overlap_advantage": packing.SIGNED,
    "extreme_advantage_gap": packing.DIFFERENCE,
    "student_overlap_mass": packing.SHARE,
    "teacher_overlap_mass": packing.SHARE,
    "student_token_probability": packing.SHARE,
    "teacher_token_probability": packing.SHARE,
}


@dataclass(frozen=True)
class Group:
    """The shown responses of one run and teacher.

    Attributes:
        responses: for each trace, their texts; None where no text may be shown.
    """

    judged: Judged
    units: Sequence[Unit]
    shown: Sequence[Shown]
    responses: Sequence[Responses] | None
    decoder: Decoder | None


class PackedSamples:
    """The samples of a page at some share of the responses."""

    def __init__(self, groups: Sequence[Group], share: float) -> None:
        self._groups = groups
        self._k = groups[0].judged.traces[0].settings.k
        self._packs = packing.Packs()
        self._texts: dict[tuple[str, int], int] = {}
        self._entries: dict[tuple[int | None, str], int] = {}
        self._at: dict[int, tuple[Ints, Ints]] = {}
        self._names: dict[str, int] = {}
        self._kept = [_kept_units(len(group.units), share) for group in groups]
        self.counts = [(len(kept), len(group.units)) for kept, group in zip(self._kept, groups, strict=True)]
        self.smallest = all(count == 1 or not of for count, of in self.counts)
        known = [name for name in QUANTITIES if self._is_known(name)]
        self._quantities: list[str] = []
        self.optional = [name for name in known if name not in ALWAYS]
        self._traces = [
            [self._trace(group, place, kept) for place in range(len(group.shown))]
            for group, kept in zip(groups, self._kept, strict=True)
        ]
        for name in known:
            if name in ALWAYS:
                self.add_quantity(name, None)

    @property
    def size(self) -> int:
        """Bytes that the page will need for it, nearly."""
        rest = json.dumps([self._traces, list(self._texts), list(self._names), self._units()], ensure_ascii=False)
        return self._packs.size + len(rest.encode("utf-8", "replace")) + 2_000 * (len(self._quantities) + 1)

    def _is_known(self, name: str) -> bool:
        return any(np.isfinite(shown.values[name]).any() for group in self._groups for shown in group.shown)

    def _states(self, shown: Shown, kept: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """For each kept response the places of its states."""
        return [
            np.arange(shown.starts[at], shown.starts[at + 1])
            for at, (_, unit) in enumerate(shown.rollouts)
            if unit in kept
        ]

    def _trace(self, group: Group, place: int, kept: Sequence[int]) -> dict[str, Any]:
        """One trace: its responses, their tokens and the lists of some states."""
        shown, measured = group.shown[place], group.judged.traces[place]
        numbers = {unit: number for number, unit in enumerate(kept)}
        rows = [(index, unit) for index, unit in shown.rollouts if unit in numbers]
        states = self._states(shown, kept)
        about: list[dict[str, Any]] = []
        tokens: list[int] = []
        places: list[Ints] = []
        for (index, unit), own in zip(rows, states, strict=True):
            entries, at = self._tokens(group, place, index, shown.positions[own])
            places.append(len(tokens) + at)
            tokens += entries
            about.append({"unit": numbers[unit], **self._about(measured.trace.rollouts, index, shown, own, at)})
        none: Ints = np.empty(0, dtype=np.int64)
        self._at[id(shown)] = np.concatenate([none, *states]), np.concatenate([none, *places])
        found: dict[str, Any] = {
            "step": "?" if measured.step is None else str(measured.step), "responses": about, "values": {},
            "tokens": None if group.responses is None else self._packs.add(np.array(tokens, dtype=np.uint32)),
            "lists": None if group.responses is None else self._lists(group, shown),
        }  # fmt: skip
        return found

    def _tokens(
        self, group: Group, place: int, index: int, positions: np.ndarray[Any, Any]
    ) -> tuple[list[int], np.ndarray[Any, Any]]:
        """The tokens of a response as places among the texts; and where its states stand among these."""
        if group.responses is None or group.decoder is None:
            return [0] * len(positions), np.arange(len(positions))
        responses = group.responses[place]
        ids = responses.ids(index)[: int(positions[-1]) + 1]
        entries = []
        for token, text in zip(ids, responses.texts(ids), strict=True):
            entry = self._entries.get((token, text))
            entries.append(self._entry(group.decoder, token, text) if entry is None else entry)
        return entries, positions

    def _entry(self, decoder: Decoder, token: int | None, text: str) -> int:
        name = -1 if token is None else self._name(decoder, token)
        place = self._texts.setdefault((text.replace("\n", "↵\n"), name), len(self._texts))
        self._entries[token, text] = place
        return place

    def _name(self, decoder: Decoder, token: int) -> int:
        label = decoder.label(token)
        return self._names.setdefault(label, len(self._names))

    def _about(
        self, table: Any, index: int, shown: Shown, own: np.ndarray[Any, Any], places: np.ndarray[Any, Any]
    ) -> dict[str, Any]:
        """What is said of a response; ``gaps`` are tokens that are no states, as [first, last + 1]."""
        names = ("score", "finish_reason", "response_length", "n_states")
        row = {name: table.column(name)[index].as_py() for name in names}
        kl = shown.values["reverse_kl"][own].astype(np.float64)
        n = int(places[-1]) + 1
        inside = np.zeros(n + 2, dtype=np.int8)
        inside[1 + places] = 1
        edges = np.flatnonzero(np.diff(inside))
        gaps = np.concatenate([[0], edges, [n]]).reshape(-1, 2)
        score = row["score"]
        return {
            "n": n, "states": len(own), "of": row["n_states"], "length": row["response_length"],
            "correct": None if score is None or score != score else int(score >= CORRECT_FROM),
            "cut": int(row["finish_reason"] == "length"),
            "kl": float(f"{kl[np.isfinite(kl)].mean():.4g}") if np.isfinite(kl).any() else None,
            "gaps": [[int(a), int(b)] for a, b in gaps if b > a],
        }  # fmt: skip

    def _lists(self, group: Group, shown: Shown) -> dict[str, Any] | None:
        """Both models' top k at some states, and where these stand among the tokens of the trace."""
        at, columns = shown.lists
        states, places = self._at[id(shown)]
        chosen = np.flatnonzero(np.isin(at, states))
        if not len(chosen) or group.decoder is None:
            return None
        k = self._k
        rows = {name: values[chosen] for name, values in columns.items()}
        view = TopView(rows, k)
        listed = np.concatenate([view.student_listed, view.teacher_listed], axis=1)
        ids = np.concatenate([rows["student_top_ids"][:, :k], rows["teacher_top_ids"][:, :k]], axis=1)
        listed &= ids >= 0
        shared = np.concatenate([view.in_overlap, view.teacher_in_overlap], axis=1)
        known, inverse = np.unique(np.where(listed, ids, -1), return_inverse=True)
        names = np.array([0 if token < 0 else 1 + self._name(group.decoder, int(token)) for token in known])
        logs = [
            np.concatenate([rows[a][:, :k], rows[b][:, :k]], axis=1)
            for a, b in (
                ("student_top_logprobs", "teacher_top_logprobs"),
                ("teacher_logprobs_at_student_top", "student_logprobs_at_teacher_top"),
            )
        ]
        return {
            "at": self._packs.add(places[np.searchsorted(states, at[chosen])].astype(np.uint32)),
            # a name's place in the higher bits, whether both lists have it in the lowest; 0 where a list has ended
            "ids": self._packs.add(((names[inverse.reshape(ids.shape)] << 1) | shared).astype(np.uint32)),
            "own": self._packs.add(packing.encode_logs(logs[0])),
            "other": self._packs.add(packing.encode_logs(logs[1])),
        }

    def add_quantity(self, name: str, budget: int | None) -> bool:
        """Take a quantity of all states in, unless that is more bytes than there are."""
        table = self._table(name)
        before = len(self._packs.texts), self._packs.size
        made = []
        for group, traces in zip(self._groups, self._traces, strict=True):
            for shown, trace in zip(group.shown, traces, strict=True):
                states, places = self._at[id(shown)]
                codes = np.full(sum(one["n"] for one in trace["responses"]), packing.UNKNOWN, dtype=np.uint8)
                codes[places] = packing.encode(shown.values[name][states], table)
                made.append((trace, self._packs.add(codes)))
        if budget is not None and self.size > budget:
            self._packs.drop(*before)
            return False
        for trace, place in made:
            trace["values"][name] = place
        self._quantities.append(name)
        return True

    def _table(self, name: str) -> Floats:
        if name == "overlap_ratio" and self._k < packing.CODES:
            return np.arange(self._k + 1) / self._k
        return _TABLES.get(name, packing.POSITIVE)

    def scale(self, name: str) -> dict[str, Any]:
        """Title, unit, reading and scale of a quantity, over every state of the page."""
        parts = [shown.values[name] for group in self._groups for shown in group.shown]
        return scale_of(name, np.concatenate(parts).astype(np.float64), self._k)

    def _units(self) -> list[list[dict[str, Any]]]:
        """For each group its units: what they are called, and the prompt where it is known and may be shown."""
        return [
            [_unit(group, number, place) for place, number in enumerate(kept, 1)]
            for group, kept in zip(self._groups, self._kept, strict=True)
        ]

    def document(self, names: Sequence[str]) -> dict[str, Any]:
        """Everything, in JSON types."""
        quantities = [
            {"key": name, **self.scale(name), "table": [float(f"{value:.5g}") for value in self._table(name)]}
            for name in self._quantities
        ]
        units = self._units()
        return {
            "quantities": quantities,
            "logs": packing.LOGS,
            "texts": [[text, name] for text, name in self._texts],
            "names": list(self._names),
            "packs": self._packs.texts,
            "k": self._k,
            "groups": [
                {"name": name, "units": units[at], "traces": self._traces[at], "extremes": self._extremes(at)}
                for at, name in enumerate(names)
            ],
        }

    def _extremes(self, at: int) -> dict[str, list[list[Any]]]:
        """By kind the most extreme of the states with lists: trace, response, token within it, value, its name."""
        group, kept = self._groups[at], self._kept[at]
        found: dict[str, list[list[Any]]] = {}
        for kind, (_, sign) in EXTREMES.items():
            rows = []
            for place, shown in enumerate(group.shown):
                for state, value in zip(shown.lists[0].tolist(), shown.extremes[kind].tolist(), strict=True):
                    response = int(np.searchsorted(shown.starts, state, side="right")) - 1
                    if value == value and shown.rollouts[response][1] in kept:
                        rows.append((value, place, response, int(state)))
            best = sorted(rows, key=lambda row: -row[0])[:JUMPS]
            found[kind] = [self._jump(group, kept, sign, *row) for row in best]
        return found

    def _jump(
        self, group: Group, kept: Sequence[int], sign: float, value: float, place: int, response: int, state: int
    ) -> list[Any]:
        shown = group.shown[place]
        before = sum(unit in kept for _, unit in shown.rollouts[:response])
        own = np.arange(shown.starts[response], state + 1)
        at = len(own) - 1 if group.responses is None else int(shown.positions[state])
        shown_value = sign * value
        name = -1 if group.decoder is None else self._name(group.decoder, int(shown.tokens[state]))
        return [place, before, at, shown_value if np.isfinite(shown_value) else _infinite(shown_value), name]


def _infinite(value: float) -> str:
    return "∞" if value > 0 else "−∞"


def _kept_units(n: int, share: float) -> list[int]:
    """The places of a share of n units, evenly spaced; at least one."""
    count = min(n, max(1, int(n * share)))
    return sorted({int(place) for place in np.round(np.linspace(0, n - 1, count))}) if count else []


def _unit(group: Group, number: int, place: int) -> dict[str, Any]:
    prompt, response = group.units[number]
    several = any(count > 1 for _, count in group.units)
    if group.responses is None:
        return {"name": f"prompt {place}" if not several else f"prompt {place}, response {response}", "prompt": None}
    text = None
    for shown, responses in zip(group.shown, group.responses, strict=True):
        index = next((index for index, unit in shown.rollouts if unit == number), None)
        if index is not None and (text := responses.prompt(index)) is not None:
            break
    return {"name": f"prompt {prompt}" + (f", response {response}" if several else ""), "prompt": text}
