"""What the checks look at: both models in outline, a handful of rollouts, and what two replays say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.engine.settings import BATCH_TOKENS
from opd_probe.models.vocabulary import SharedVocabulary
from opd_probe.types import Rollout

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]
"""Trace columns of one rollout's states."""

REPETITION_LENGTH = 10_000
"""L of the repetition rate, in characters."""


class Skip(Exception):
    """Raised by a check that the evidence is too thin for; its text is the reason."""


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What shapes the numbers (k, temperature) and what only shapes the work (batch_tokens).

    Attributes:
        k: of the top-k lists that a trainer would use.
        temperature: of both scored distributions.
        repetition_length: L of the repetition rate, in characters.
        sampled: whether the student sampled the rollouts for this very checklist.
    """

    k: int = 16
    temperature: float = 1.0
    batch_tokens: int = BATCH_TOKENS
    allow_special_mismatch: bool = False
    repetition_length: int = REPETITION_LENGTH
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """What the checks know of a model; the attributes mean what they mean of a :class:`LoadedModel`.

    Attributes:
        width, readable: None for a served model, which does not tell.
        generation_eos: end-of-sequence ids of generation_config alone.
        served: whether it is behind HTTP.
        dtype: what it computes in; empty for a served model.
        experts: among how many a layer chooses for each token; 0: it is dense, or does not tell.
    """

    name: str
    tokenizer: Any
    width: int | None
    max_positions: int | None
    eos_ids: tuple[int, ...]
    generation_eos: tuple[int, ...]
    served: bool = False
    placeholder_ids: tuple[int, ...] = ()
    readable: int | None = None
    dtype: str = ""
    experts: int = 0

    @property
    def pad_id(self) -> int | None:
        """The padding id of the tokenizer, where there is one."""
        token: int | None = None if self.tokenizer is None else self.tokenizer.pad_token_id
        return token

    def label(self, token: int) -> str:
        """A token's string and its id."""
        known = self.tokenizer is not None and token < len(self.tokenizer)
        text = self.tokenizer.convert_ids_to_tokens(int(token)) if known else None
        return f"{text or '?'} ({token})"


@dataclass(frozen=True)
class Evidence:
    """Everything that checks may look at.

    Attributes:
        rollouts: the handful, with token ids.
        left_out: by rollout index, why a replay of this pair cannot read it.
        vocabulary: the ids that both models share; None when a replay refuses the pair.
        states: by rollout index, the columns of a batched replay, as a trace would hold them.
        alone: likewise, each rollout by itself.
        two_paths: by side, the rollouts that took another path through its model in :attr:`alone`.
        teacher_prompts: by rollout index, the prompt ids that the teacher's own template makes of its messages.
        student_prompts: likewise, of the student's.
        prompt_change: by rollout index, log q of the states under the teacher's own prompt less that under the
            student's.
        in_process: by rollout index, the log-probabilities of the states by a served teacher's weights in this process.
        unreadable: what a server told in place of a list, by where.
        everything: what the handful was taken from; empty: it is all there is.
        missing: by the name of a part above, why it is not there.
    """

    student: Side
    teacher: Side
    rollouts: Sequence[Rollout]
    options: CheckOptions
    left_out: Mapping[int, str] = field(default_factory=dict)
    vocabulary: SharedVocabulary | None = None
    states: Mapping[int, Columns] = field(default_factory=dict)
    alone: Mapping[int, Columns] = field(default_factory=dict)
    two_paths: Mapping[str, frozenset[int]] = field(default_factory=dict)
    student_prompts: Mapping[int, Sequence[int]] = field(default_factory=dict)
    teacher_prompts: Mapping[int, Sequence[int]] = field(default_factory=dict)
    prompt_change: Mapping[int, Floats] = field(default_factory=dict)
    in_process: Mapping[int, Floats] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    everything: Sequence[Rollout] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def replayed(self) -> Mapping[int, Columns]:
        """:attr:`states`.

        Raises:
            Skip: there are none.
        """
        if not self.states:
            raise Skip(self.missing.get("states", "no rollout could be replayed"))
        return self.states

    def column(self, name: str) -> Floats:
        """A column of all replayed states, one rollout after another, float64 [n] or [n, K].

        Raises:
            Skip: nothing was replayed.
        """
        return np.concatenate([np.asarray(columns[name], dtype=np.float64) for columns in self.replayed().values()])

    def rewards(self) -> Mapping[int, Floats]:
        """By rollout index r_t = log q(y_t) − log p(y_t) of its states, in nats.

        Raises:
            Skip: nothing was replayed.
        """
        return {index: reward(columns) for index, columns in self.replayed().items()}

    def again(self) -> Mapping[int, Columns]:
        """:attr:`alone`.

        Raises:
            Skip: there are none.
        """
        if not self.alone:
            raise Skip(self.missing.get("alone", self.missing.get("states", "no rollout could be replayed")))
        return self.alone

    def mask(self, index: int) -> NDArray[np.bool_]:
        """[T]: which tokens of a response are states."""
        rollout = self.rollouts[index]
        if rollout.response_mask is None:
            return np.ones(len(rollout.response_ids), dtype=bool)
        return np.asarray(rollout.response_mask, dtype=bool)

    def end(self, index: int) -> int | None:
        """Where in a response the EOS is that ends it: the first of the EOS and padding at its end."""
        side, ids = self.student, self.rollouts[index].response_ids
        start = len(ids)
        while start and int(ids[start - 1]) in (*side.eos_ids, side.pad_id):
            start -= 1
        return next((place for place in range(start, len(ids)) if int(ids[place]) in side.eos_ids), None)


def reward(columns: Columns) -> Floats:
    """r_t = log q(y_t) − log p(y_t) of states, in nats."""
    teacher, student = (np.asarray(columns[f"{side}_logprob"], dtype=np.float64) for side in ("teacher", "student"))
    with np.errstate(invalid="ignore"):
        return np.asarray(teacher - student)


def teacher_scores(states: Mapping[int, Columns]) -> dict[int, Floats]:
    """By rollout index, the teacher's log-probabilities of its states."""
    return {index: np.asarray(columns["teacher_logprob"], dtype=np.float64) for index, columns in states.items()}


GREEDY = "0.0 of every token, as one at temperature 0 does: see the line 'sampler_logprobs'"
"""What is said of such log-probabilities."""


def says_zero_of_all(evidence: Evidence) -> bool:
    """Whether the sampler says exactly 0.0 of every counted token of every rollout that it says anything of: it took
    the most probable token each time, so that these are no placeholders among others."""
    given = [
        np.asarray(rollout.logprobs, dtype=np.float64)[evidence.mask(index)]
        for index, rollout in enumerate(evidence.rollouts)
        if rollout.logprobs is not None and len(rollout.logprobs) == len(rollout.response_ids)
    ]
    known = np.concatenate(given) if given else np.empty(0)
    known = known[~np.isnan(known)]
    return bool(len(known)) and not known.any()


def share(count: int, total: int) -> float:
    """count / total; NaN of nothing."""
    return count / total if total else float("nan")
