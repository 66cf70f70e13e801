"""The lab's task: multi-step ± arithmetic modulo 30, told and solved in words.

A problem is ``mia has 7 apples . mia finds 5 . mia loses 3 . … total ?``; a response works through it and
ends with ``answer 9 <eos>``. Two *thinking patterns* reach the same answers: A works in the order of the
story and names the operation before the operand, B works from the last sentence back to the first and names
the operand first.

Wording is random on purpose: each slot of a response draws its word from a :class:`Dialect`, so that
next-token distributions have true entropy and a top-16 set has something to hold. Arithmetic is exact but for
rare slips, unless a corpus carries *misconceptions* (:class:`Arithmetic`), which is how a student comes to
know less than its teacher.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from opd_probe.lab import words

__all__ = [
    "MODULUS",
    "PATTERNS",
    "RESPONSE_LENGTH",
    "SPECIAL_TOKENS",
    "VOCABULARY",
    "Arithmetic",
    "Component",
    "Corpus",
    "Dialect",
    "DialectRecipe",
    "Example",
    "Pattern",
    "Problem",
    "encode",
    "grade",
    "sample_problems",
    "seeded",
]

MODULUS: Final = 30
MAX_OPERAND: Final = 5
STEPS: Final = 4
SLIP_REACH: Final = 8
_SLIP_WEIGHTS: Final = np.arange(1, SLIP_REACH + 1) ** -0.5
_SLIP_QUANTILES: Final = np.cumsum(_SLIP_WEIGHTS)[:-1] / _SLIP_WEIGHTS.sum()

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
RESPONSE_LENGTH: Final = 5 * STEPS + 4
"""Tokens of a well-formed response, EOS included."""


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
    """``name`` starts with ``start`` of ``obj``; ``changes`` are signed amounts, told with ``verbs``."""

    name: str
    obj: str
    start: int
    changes: tuple[int, ...]
    verbs: tuple[str, ...]

    @property
    def answer(self) -> int:
        """The exact result, in 0 … 29."""
        return (self.start + sum(self.changes)) % MODULUS

    @property
    def prompt(self) -> str:
        """The problem in words; its tokens are separated by single spaces."""
        parts = [f"{self.name} has {self.start} {self.obj} ."]
        parts += [f"{self.name} {verb} {abs(change)} ." for verb, change in zip(self.verbs, self.changes, strict=True)]
        return " ".join([*parts, "total ?"])


def sample_problems(rng: np.random.Generator, count: int) -> list[Problem]:
    """``count`` problems drawn independently; all prompts have the same length in tokens."""
    return [_sample_problem(rng) for _ in range(count)]


def _sample_problem(rng: np.random.Generator) -> Problem:
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


class Arithmetic:
    """The arithmetic that a corpus believes: ``value ± operand`` modulo 30, with misconceptions and slips.

    A *misconception* is an operation (+7, say) that the corpus mostly gets wrong: with probability ``belief``
    its result is off by one fixed amount. Which operations, and by how much, depends on the seed alone. A
    *slip* is a rare near miss at distance 1 to ``SLIP_REACH``, the nearer the likelier (∝ 1/√distance), that
    every corpus makes: it gives the distribution of a result a tail that is worth knowing.
    """

    def __init__(self, seed: int, misconceptions: int, slips: float, belief: float = 2 / 3) -> None:
        rng = seeded(seed, "arithmetic")
        signed = [sign * operand for operand in range(1, MAX_OPERAND + 1) for sign in (1, -1)]
        order = rng.permutation(len(signed)).tolist()
        amounts = (rng.integers(1, 4, size=len(signed)) * rng.choice([-1, 1], size=len(signed))).tolist()
        self.offsets = {signed[index]: amounts[index] for index in order[:misconceptions]}
        self.slips = slips
        self.belief = belief

    def result(self, value: int, change: int, rng: np.random.Generator) -> int:
        """What the corpus writes for ``value + change``."""
        offset = 0
        if change in self.offsets and rng.random() < self.belief:
            offset = self.offsets[change]
        if rng.random() < self.slips:
            distance = 1 + int(np.searchsorted(_SLIP_QUANTILES, rng.random(), side="right"))
            offset += distance if rng.random() < 0.5 else -distance
        return (value + change + offset) % MODULUS


@dataclass(frozen=True, slots=True)
class DialectRecipe:
    """How a corpus words things.

    Attributes:
        label: names the draw of preferences; equal labels (and seeds) word things equally.
        zipf: log-weight of a word is −zipf · ln(rank): small is flat, large is sharp.
        noise: standard deviation, in nats, of what is added to each word's log-weight: how far the dialect is
        from
            the language's common order of words.
        cues: number of groups of protagonists; each group has preferences of its own (1: all alike).
        own_slots: slots in which it uses no word of the other pattern: there a word gives the pattern away.
    """

    label: str
    zipf: float = 1.6
    noise: float = 0.5
    cues: int = 1
    own_slots: tuple[str, ...] = ()


class Dialect:
    """Probabilities of the words of each slot, per group of protagonists."""

    def __init__(self, recipe: DialectRecipe, pattern: Pattern, seed: int) -> None:
        groups = seeded(seed, "groups", recipe.label).permutation(len(words.NAMES)) % recipe.cues
        self._group = dict(zip(words.NAMES, groups.tolist(), strict=True))
        self._cumulative: dict[str, NDArray[np.float64]] = {}
        self._words: dict[str, tuple[str, ...]] = {}
        for slot in words.SLOTS:
            low, high = pattern.own_words if slot in recipe.own_slots else pattern.vocabulary
            # The language's order of words is common to all dialects of a seed; a dialect perturbs it, and
            # words that both patterns use alike in both.
            count = len(words.SLOT_WORDS[slot])
            ranks = seeded(seed, "order", slot).permutation(count)[low:high].argsort().argsort()
            noise = seeded(seed, "dialect", recipe.label, slot).normal(size=(recipe.cues, count))[:, low:high]
            logits = -recipe.zipf * np.log(1.0 + ranks) + recipe.noise * noise
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            self._cumulative[slot] = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
            self._words[slot] = words.SLOT_WORDS[slot][low:high]

    def word(self, slot: str, name: str, uniform: float) -> str:
        """The word at quantile ``uniform`` in [0, 1) of a slot, for a problem about ``name``."""
        row = self._cumulative[slot][self._group[name]]
        return self._words[slot][min(int(np.searchsorted(row, uniform, side="right")), len(row) - 1)]

    def probabilities(self, slot: str, name: str) -> Mapping[str, float]:
        """Word → probability of a slot, for a problem about ``name``."""
        steps = np.diff(self._cumulative[slot][self._group[name]], prepend=0.0)
        return dict(zip(self._words[slot], steps.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a corpus: a pattern, its share, its wording, and how well it calculates.

    Attributes:
        misconceptions: how many operations, of 10, it mostly gets wrong.
        slips: the share of near misses among its results.
        given: tokens at the beginning of a response that are context and not trained on: a corpus of solutions
            that somebody else has begun.
    """

    pattern: str
    weight: float
    dialect: DialectRecipe
    misconceptions: int = 0
    slips: float = 0.03
    given: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A problem with a worked response, both as text; the first ``given`` tokens of the response are context."""

    prompt: str
    response: str
    given: int = 0


class Corpus:
    """Problems with worked responses, drawn from a mixture of components."""

    def __init__(self, components: Sequence[Component], seed: int) -> None:
        weights = np.array([component.weight for component in components])
        self._cumulative = np.cumsum(weights / weights.sum())
        self._parts = [
            (
                component.given,
                PATTERNS[component.pattern],
                Dialect(component.dialect, PATTERNS[component.pattern], seed),
                Arithmetic(seed, component.misconceptions, component.slips),
            )
            for component in components
        ]

    def respond(self, problem: Problem, rng: np.random.Generator) -> Example:
        """The problem with a worked response, without EOS."""
        index = min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self._parts) - 1)
        given, pattern, dialect, arithmetic = self._parts[index]
        value = problem.start
        changes = problem.changes[::-1] if pattern.backwards else problem.changes
        uniforms = rng.random(3 * len(changes) + 1).tolist()
        tokens: list[str] = []
        for step, change in enumerate(changes):
            value = arithmetic.result(value, change, rng)
            fields = {
                "connector": dialect.word("connector", problem.name, uniforms[3 * step]),
                "operation": dialect.word("minus" if change < 0 else "plus", problem.name, uniforms[3 * step + 1]),
                "operand": str(abs(change)),
                "equals": dialect.word("equals", problem.name, uniforms[3 * step + 2]),
                "result": str(value),
            }
            tokens += [fields[place] for place in pattern.template]
        tokens += [dialect.word("lead", problem.name, uniforms[-1]), "answer", str(value)]
        return Example(problem.prompt, " ".join(tokens), given)

    def batch(self, rng: np.random.Generator, count: int) -> list[Example]:
        """``count`` problems with worked responses."""
        return [self.respond(problem, rng) for problem in sample_problems(rng, count)]
