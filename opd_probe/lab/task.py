"""The lab's task: multi-step ± arithmetic modulo 30, told and solved in words.

A problem is ``mia has 7 apples . mia finds 5 . mia loses 3 . … total ?``; a response works through it and
ends with ``answer 9 <eos>``. Two *thinking patterns* reach the same answers: A works in the order of the
story and names the operation before the operand, B works from the last sentence back to the first and names
the operand first.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from opd_probe.lab import words

__all__ = [
    "FRAMES",
    "MAX_OPERAND",
    "MODULUS",
    "PATTERNS",
    "RESPONSE_LENGTH",
    "SPECIAL_TOKENS",
    "STEPS",
    "STEP_LENGTH",
    "VOCABULARY",
    "Pattern",
    "Problem",
    "PromptRecipe",
    "encode",
    "grade",
    "pool",
    "sample_problems",
    "seeded",
]

MODULUS: Final = 30
MAX_OPERAND: Final = 5
STEPS: Final = 4

SPECIAL_TOKENS: Final = ("<pad>", "<eos>", "<unk>")
_FIXED: Final = (".", "?", "has", "total", "answer")
VOCABULARY: Final[tuple[str, ...]] = (
    *SPECIAL_TOKENS,
    *_FIXED,
    *(str(number) for number in range(MODULUS)),
    *words.NAMES,
    *words.OBJECTS,
    *words.GAIN_VERBS,
    *words.LOSS_VERBS,
    *(word for slot in words.SLOTS for word in words.SLOT_WORDS[slot]),
)
"""Every token of the language; a token's id is its index."""

_TOKEN_ID: Final = {token: index for index, token in enumerate(VOCABULARY)}
STEP_LENGTH: Final = 5
"""Tokens of one step of a response."""
RESPONSE_LENGTH: Final = STEP_LENGTH * STEPS + 4
"""Tokens of a well-formed response, EOS included."""

FRAMES: Final = {"total": "total ?", "answer": "answer ?"}
"""Prompt templates, by what a prompt asks for at its end."""


def seeded(seed: int, *labels: str | int) -> np.random.Generator:
    """A random generator for one purpose: the same seed and labels, the same draws."""
    return np.random.default_rng([seed, *(zlib.crc32(str(label).encode()) for label in labels)])


@dataclass(frozen=True, slots=True)
class Pattern:
    """A thinking pattern: the order of the steps and the order of the words within one.

    Attributes:
        backwards: whether the last sentence of the story is worked first.
        template: the five places of a step, drawn from ``connector``, ``operation``, ``operand``, ``equals``,
            ``result``.
        vocabulary: the range of word indices, within each slot's list, that the pattern uses.
        own_words: the part of it that the other pattern does not use.
    """

    name: str
    backwards: bool
    template: tuple[str, ...]
    vocabulary: tuple[int, int]
    own_words: tuple[int, int]


PATTERNS: Final = {
    "A": Pattern("A", False, ("connector", "operation", "operand", "equals", "result"), (0, 24), (0, 12)),
    "B": Pattern("B", True, ("connector", "operand", "operation", "equals", "result"), (12, 36), (24, 36)),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """``name`` starts with ``start`` of ``obj``; ``changes`` are signed amounts, told with ``verbs``.

    ``frame`` names the prompt template.
    """

    name: str
    obj: str
    start: int
    changes: tuple[int, ...]
    verbs: tuple[str, ...]
    frame: str = "total"

    @property
    def answer(self) -> int:
        """The exact result, in 0 … 29."""
        return (self.start + sum(self.changes)) % MODULUS

    def told(self, frame: str) -> Problem:
        """The same problem in another prompt template."""
        return replace(self, frame=frame)

    @property
    def prompt(self) -> str:
        """The problem in words; its tokens are separated by single spaces."""
        parts = [f"{self.name} has {self.start} {self.obj} ."]
        parts += [f"{self.name} {verb} {abs(change)} ." for verb, change in zip(self.verbs, self.changes, strict=True)]
        return " ".join([*parts, FRAMES[self.frame]])


@dataclass(frozen=True, slots=True)
class PromptRecipe:
    """Where the problems of a distillation run come from.

    Attributes:
        frame: the prompt template.
        pool: the number of problems that a teacher was trained on (see :class:`Component`); 0: fresh ones.
    """

    frame: str = "total"
    pool: int = 0

    def draw(self, rng: np.random.Generator, count: int, seed: int) -> list[Problem]:
        """``count`` problems; of a pool, without repetition as long as it lasts."""
        if not self.pool:
            return sample_problems(rng, count, self.frame)
        own = pool(seed, self.pool)
        picks = rng.choice(len(own), size=count, replace=count > len(own)).tolist()
        return [own[pick].told(self.frame) for pick in picks]


def pool(seed: int, count: int) -> list[Problem]:
    """The ``count`` problems of a teacher's own training set."""
    return sample_problems(seeded(seed, "pool"), count)


def sample_problems(rng: np.random.Generator, count: int, frame: str = "total") -> list[Problem]:
    """``count`` problems drawn independently; all prompts have the same length in tokens."""
    return [_sample_problem(rng, frame) for _ in range(count)]


def _sample_problem(rng: np.random.Generator, frame: str) -> Problem:
    amounts = rng.integers(1, MAX_OPERAND + 1, size=STEPS + 1).tolist()
    gains = rng.integers(0, 2, size=STEPS).tolist()
    picks = rng.random(STEPS + 2)
    verbs = tuple(
        (words.GAIN_VERBS if gain else words.LOSS_VERBS)[int(pick * len(words.GAIN_VERBS))]
        for gain, pick in zip(gains, picks[2:].tolist(), strict=True)
    )
    return Problem(
        name=words.NAMES[int(picks[0] * len(words.NAMES))],
        obj=words.OBJECTS[int(picks[1] * len(words.OBJECTS))],
        start=amounts[0],
        changes=tuple(a if gain else -a for a, gain in zip(amounts[1:], gains, strict=True)),
        verbs=verbs,
        frame=frame,
    )


def encode(text: str) -> list[int]:
    """Token ids of space-separated text; a word outside the vocabulary is a KeyError."""
    return [_TOKEN_ID[token] for token in text.split()]


def grade(response_text: str, answer: int | str) -> bool:
    """Whether the last number after the last ``answer`` of a response is the expected one.

    A grader that takes the last number of a text gives the same verdict on every response that has an ``answer``.
    """
    _, _, tail = response_text.rpartition("answer")
    numbers = [token for token in tail.split() if token.isdecimal()]
    return "answer" in response_text.split() and numbers[-1:] == [str(answer)]
