"""Responses as text: from the trace alone, and from the rollouts that were replayed where they are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import InputError, OpdProbeError
from opd_probe.models.decoding import Decoder
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.files import read_rollouts
from opd_probe.trace import Trace
from opd_probe.types import Rollout

BEFORE, AFTER = 32, 12
"""Tokens of context before and after a state."""

MASKED = " [masked] "

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Responses:
    """The tokens of some rollouts.

    Attributes:
        table: the rows of the trace's rollout table, all of them.
        tokens: positions and ids of the states of each rollout that was asked for, by index.
        rollouts: those rollouts as they were replayed, by index; empty when they are not at hand.
    """

    table: Sequence[Mapping[str, Any]]
    tokens: Mapping[int, tuple[Ints, Ints]]
    rollouts: Mapping[int, Rollout]
    decoder: Decoder

    def rollout_id(self, index: int) -> str:
        """The rollout's id."""
        return str(self.table[index]["rollout_id"])

    def prompt(self, index: int) -> str | None:
        """The prompt as text, None when it is not at hand."""
        rollout = self.rollouts.get(index)
        return None if rollout is None else self.decoder.decode(rollout.prompt_ids)

    def ids(self, index: int) -> list[int | None]:
        """The response's ids by position; None where the trace alone does not know a masked token."""
        rollout = self.rollouts.get(index)
        if rollout is not None:
            return [int(token) for token in rollout.response_ids]
        positions, tokens = self.tokens[index]
        length = max(int(self.table[index]["response_length"] or 0), int(positions[-1]) + 1 if len(positions) else 0)
        ids: list[int | None] = [None] * length
        for position, token in zip(positions.tolist(), tokens.tolist(), strict=True):
            ids[position] = token
        return ids

    def texts(self, ids: Sequence[int | None]) -> list[str]:
        """The text that each token adds to those before it; a run of unknown ones says so once."""
        texts: list[str] = []
        start = 0
        while start < len(ids):
            stop = next((i for i in range(start, len(ids)) if (ids[i] is None) != (ids[start] is None)), len(ids))
            known = [token for token in ids[start:stop] if token is not None]
            texts += self.decoder.pieces(known) if known else [MASKED, *[""] * (stop - start - 1)]
            start = stop
        return texts

    def context(self, index: int, position: int) -> tuple[str, str, str]:
        """The text before, at and after a position of a response; the prompt's end where it is known."""
        ids = self.ids(index)
        rollout = self.rollouts.get(index)
        prompt = [] if rollout is None else [int(token) for token in rollout.prompt_ids]
        at = len(prompt) + position
        everything = [*prompt, *ids]
        start, stop = max(0, at - BEFORE), at + 1 + AFTER
        texts = self.texts(everything[start:stop])
        before = "".join(texts[: at - start])
        if start > 0:
            before = f"… {before}"
        elif rollout is None:
            before = f"[prompt unknown] {before}"
        return before, texts[at - start], "".join(texts[at - start + 1 :]) + (" …" if stop < len(everything) else "")


def read_responses(
    trace: Trace,
    tokens: Mapping[int, tuple[Ints, Ints]],
    given: str | None,
    decoder: Decoder,
    missing: list[str],
    advice: str = "give the replayed rollouts with --rollouts FILE",
) -> Responses:
    """The responses, with the rollouts of ``given`` or of the samples that lie beside the trace.

    Appends to ``missing`` what cannot be shown, and what would help (``advice``).

    Raises:
        OpdProbeError: ``given`` cannot be read, or holds other rollouts than the trace.
    """
    table = trace.rollouts.to_pylist()
    place = Path(given) if given is not None else beside(trace)
    rollouts: dict[int, Rollout] = {}
    if place is not None:
        try:
            rollouts = _matching(place, table, tokens, decoder)
        except OpdProbeError:
            if given is not None:
                raise
    if not rollouts:
        missing.append(f"Prompts: a trace does not hold them; {advice}.")
        if any(len(tokens[i][0]) < int(table[i]["response_length"] or 0) for i in tokens):
            missing.append(f"Masked tokens: a trace holds states alone; {advice}.")
    return Responses(table, tokens, rollouts, decoder)


def beside(trace: Trace) -> Path | None:
    """Where a command that sampled this trace's responses stored them: OUT/rollouts beside OUT/traces."""
    if trace.path is None:
        return None
    path = trace.path.absolute()
    if len(path.parents) < 4 or path.parents[2].name != "traces":
        return None
    place = path.parents[3] / "rollouts" / path.parents[1].name / path.name
    return place if place.is_file() else None


def _matching(
    place: Path, table: Sequence[Mapping[str, Any]], tokens: Mapping[int, tuple[Ints, Ints]], decoder: Decoder
) -> dict[int, Rollout]:
    by_id = {rollout.id: rollout for rollout in encode_rollouts(read_rollouts(place), decoder.tokenizer)}
    found: dict[int, Rollout] = {}
    for index, (positions, ids) in tokens.items():
        name = table[index]["rollout_id"]
        rollout = by_id.get(name)
        if rollout is None:
            raise InputError(
                f"--rollouts {place}: has no rollout {name!r}, which the trace has; give the replayed file"
            )
        response = np.asarray(rollout.response_ids, dtype=np.int64)
        inside = len(positions) == 0 or int(positions[-1]) < len(response)
        if not inside or not np.array_equal(response[positions], ids):
            raise InputError(
                f"--rollouts {place}: the response of rollout {name!r} is not the one in the trace; give the file that "
                "was replayed"
            )
        found[index] = rollout
    return found
