"""Corpora of worked responses: the wording and the arithmetic that a model is trained on.

Wording is random on purpose: each slot of a response draws its word from a :class:`Dialect`, so that next-token
distributions have true entropy and a top-16 set has something to hold. Arithmetic is exact but for rare slips, unless a
corpus carries *misconceptions* (:class:`Arithmetic`), which is how a student comes to know less than its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from opd_probe.lab import words
from opd_probe.lab.content import added
from opd_probe.lab.task import MAX_OPERAND, MODULUS, PATTERNS, Pattern, Problem, pool, sample_problems, seeded

__all__ = ["Arithmetic", "Component", "Corpus", "Dialect", "DialectRecipe", "Example"]

SLIP_REACH: Final = 8
_SLIP_WEIGHTS: Final = np.arange(1, SLIP_REACH + 1) ** -0.5
_SLIP_QUANTILES: Final = np.cumsum(_SLIP_WEIGHTS)[:-1] / _SLIP_WEIGHTS.sum()


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
        noise: standard deviation, in nats, of what is added to each word's log-weight: how far the dialect is from
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
        frame: the prompt template that its problems are told in.
        pool: the number of problems that it knows, each with one worked response that never changes; 0: without end.
    """

    pattern: str
    weight: float
    dialect: DialectRecipe
    misconceptions: int = 0
    slips: float = 0.03
    given: int = 0
    frame: str = added("total")
    pool: int = added(0)


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
        self._seed = seed
        self._parts = [
            (
                component,
                Dialect(component.dialect, PATTERNS[component.pattern], seed),
                Arithmetic(seed, component.misconceptions, component.slips),
                pool(seed, component.pool),
            )
            for component in components
        ]

    def respond(self, problem: Problem, rng: np.random.Generator) -> Example:
        """The problem with a worked response, without EOS; a component with a pool puts a problem of its own."""
        index = min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self._parts) - 1)
        component, dialect, arithmetic, own = self._parts[index]
        if own:
            number = int(rng.integers(len(own)))
            problem, rng = own[number], seeded(self._seed, "pool response", number)
        problem = problem.told(component.frame)
        return Example(
            problem.prompt, _worked(problem, PATTERNS[component.pattern], dialect, arithmetic, rng), component.given
        )

    def batch(self, rng: np.random.Generator, count: int) -> list[Example]:
        """``count`` problems with worked responses."""
        return [self.respond(problem, rng) for problem in sample_problems(rng, count)]


def _worked(
    problem: Problem, pattern: Pattern, dialect: Dialect, arithmetic: Arithmetic, rng: np.random.Generator
) -> str:
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
    return " ".join([*tokens, dialect.word("lead", problem.name, uniforms[-1]), "answer", str(value)])
