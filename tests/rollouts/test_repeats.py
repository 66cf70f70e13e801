"""Circles in text, and texts that are nearly the same, against comparing every pair."""

from __future__ import annotations

import numpy as np

from opd_probe.rollouts.repeats import goes_in_circles, near_duplicates, same_text, words


def pairs(texts: list[str], similar: float) -> list[int | None]:
    """The obvious way: every text against those before it that stand for themselves."""

    def runs(text: str) -> set[tuple[str, ...]]:
        parts = same_text(text).split()
        return {tuple(parts[i : i + 5]) for i in range(len(parts) - 4)}

    found: list[int | None] = []
    for index, text in enumerate(texts):
        own, first = runs(text), None
        for other in range(index):
            there = runs(texts[other])
            alike = bool(own and there) and len(own & there) / len(own | there) >= similar
            if found[other] is None and (same_text(text) == same_text(texts[other]) or alike):
                first = other
                break
        found.append(first)
    return found


def test_near_duplicates_are_those_of_every_pair() -> None:
    generator = np.random.default_rng(0)
    texts: list[str] = []
    for _ in range(40):
        base = [f"w{number}" for number in generator.integers(0, 300, size=60)]
        texts.append(" ".join(base))
        for changes in (1, 2, 12):
            changed = list(base)
            for place in generator.integers(0, 60, size=changes):
                changed[place] = "other"
            texts.append(" ".join(changed))
    expected = pairs(texts, 0.8)
    assert near_duplicates(texts) == expected
    assert 30 < sum(twin is not None for twin in expected) < 120


def test_case_signs_and_short_texts() -> None:
    texts = ["What is 2 + 2?", "what is 2 2", "What is 2 + 3?", "", "!", "Привет, мир", "привет мир", "数学", "数学。"]
    assert near_duplicates(texts) == [None, 0, None, None, 3, None, 5, None, 7]


def test_circles() -> None:
    assert goes_in_circles(words("and so on " * 40))
    assert not goes_in_circles(words("and so on " * 20))  # 60 words are too few to say
    assert not goes_in_circles(words(" ".join(f"step {n} gives {n * n}" for n in range(40))))
    assert goes_in_circles([1, 2, 3, 4, 5] * 20)
    assert goes_in_circles(list(range(500)) + [7] * 64)
