"""Text that goes in circles, and texts that are nearly the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

TAIL = 64
RUN = 4
DISTINCT = 0.5

SHINGLE = 5
ROWS, BANDS = 4, 24
SIMILAR = 0.8

_PIECE = re.compile(r"\w+|[^\w\s]")
_PRIME = (1 << 61) - 1


def goes_in_circles(pieces: Sequence[Hashable]) -> bool:
    """Whether a response ends in repetition: of the runs of four pieces (tokens or words) in its last 64 fewer than
    half are distinct. A response of fewer than 64 pieces does not."""
    tail = list(pieces[-TAIL:])
    if len(tail) < TAIL:
        return False
    runs = {tuple(tail[start : start + RUN]) for start in range(TAIL - RUN + 1)}
    return len(runs) < DISTINCT * (TAIL - RUN + 1)


def words(text: str) -> list[str]:
    """The words and signs of a text."""
    return _PIECE.findall(text)


def same_text(text: str) -> str:
    """What two texts have in common that are equal up to case, spaces and signs."""
    return " ".join(word.lower() for word in re.findall(r"\w+", text))


def near_duplicates(texts: Sequence[str], similar: float = SIMILAR) -> list[int | None]:
    """For each text the index of an earlier one that it nearly repeats, None where there is none.

    Two texts are nearly the same where their words, without case and signs, are, or where their runs of five words
    have a Jaccard similarity of at least ``similar``. Candidates are found by MinHash in 24 bands of 4 (arXiv
    2107.06499 does it so): a pair of similarity .8 is missed with a chance of 6e-6; every candidate is then compared
    exactly. Texts of fewer than five words are compared whole.
    """
    exact: dict[str, int] = {}
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    shingles: list[frozenset[tuple[str, ...]]] = []
    found: list[int | None] = []
    scale = np.random.default_rng(0).integers(1, _PRIME, size=(2, ROWS * BANDS), dtype=np.int64)
    for index, text in enumerate(texts):
        plain = same_text(text)
        parts = plain.split()
        own = frozenset(tuple(parts[start : start + SHINGLE]) for start in range(len(parts) - SHINGLE + 1))
        shingles.append(own)
        first = exact.get(plain)
        if first is None and own:
            bands = _bands(own, scale)
            candidates = sorted({other for key in bands for other in buckets[key]})
            first = next((other for other in candidates if _jaccard(own, shingles[other]) >= similar), None)
            if first is None:
                for key in bands:
                    buckets[key].append(index)
        if first is None:
            exact[plain] = index
        found.append(first)
    return found


def _bands(own: frozenset[tuple[str, ...]], scale: NDArray[np.int64]) -> list[tuple[int, bytes]]:
    """The keys of a text's bands: of each of many hash functions the least value over its runs of words."""
    from hashlib import blake2b

    hashed = [int.from_bytes(blake2b("\0".join(run).encode(), digest_size=7).digest(), "big") for run in own]
    values = np.array(hashed, dtype=np.uint64)[:, None]
    # Multiply-shift hashing: the high bits of an odd multiple modulo 2⁶⁴ are as good as random.
    mixed = values * (scale[0].astype(np.uint64) | np.uint64(1)) + scale[1].astype(np.uint64)
    least = (mixed >> np.uint64(16)).min(0).reshape(BANDS, ROWS)
    return [(band, least[band].tobytes()) for band in range(BANDS)]


def _jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)
