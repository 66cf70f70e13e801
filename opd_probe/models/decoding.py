"""Token ids as text to look at: one token by itself, and the pieces of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_probe.errors import OpdProbeError

_BROKEN = "\ufffd"  # what decoding makes of half a character
_WINDOW = 4
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


class Decoder:
    """Decodes ids with a tokenizer; without one, an id is shown as ``#id``.

    Attributes:
        tokenizer: None for ids alone.
        name: where the tokenizer comes from, None without one.
    """

    def __init__(self, tokenizer: Any = None, name: str | None = None) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.label = lru_cache(maxsize=None)(self._label)
        self._added = lru_cache(maxsize=None)(self._adds)

    @property
    def special_ids(self) -> set[int]:
        """The ids that the tokenizer calls special; none without a tokenizer."""
        if self.tokenizer is None:
            return set()
        from opd_probe.models.vocabulary import special_ids

        return special_ids(self.tokenizer)

    @property
    def digest(self) -> str | None:
        """The tokenizer's digest, as a trace's provenance has it."""
        if self.tokenizer is None:
            return None
        from opd_probe.models.vocabulary import tokenizer_digest

        return tokenizer_digest(self.tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence, special tokens included."""
        if self.tokenizer is None:
            return " ".join(f"#{token}" for token in ids)
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _label(self, token: int) -> str:
        """One token by itself, white space made visible; its raw string where it is no text by itself."""
        if self.tokenizer is None:
            return f"#{token}"
        raw = self.tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return f"#{token}"
        text = self.decode([token])
        if raw.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        if _BROKEN in text or not text:
            text = str(raw)
        return "".join(_VISIBLE.get(character, character) for character in text)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds to those before it; their concatenation is the text of the sequence.

        A token that ends within a character adds nothing, and the one that completes it adds the whole.
        """
        if self.tokenizer is None:
            return [f"#{token} " for token in ids]
        # Most tokens add the same text wherever they stand, so that each is decoded once. The whole text decides
        # whether that held: it is one call, where a call for each token takes minutes for long responses.
        pieces = self._gathered(ids)
        return pieces if "".join(pieces) == self.decode(ids) else self._walked(ids)

    def _adds(self, token: int) -> str | None:
        """The text that a token adds behind another one (itself); None where it ends within a character."""
        alone, twice = self.decode([token]), self.decode([token, token])
        return None if _BROKEN in twice or not twice.startswith(alone) else twice[len(alone) :]

    def _gathered(self, ids: Sequence[int]) -> list[str]:
        """The pieces of single tokens, and those of characters that are made of several."""
        pieces: list[str] = []
        while len(pieces) < len(ids):
            start = len(pieces)
            text = self._added(ids[start])
            if text is not None:
                pieces.append(text if start else self.decode(ids[:1]))
                continue
            stop = next((at for at in range(start, len(ids)) if self._added(ids[at]) is not None), len(ids))
            before = min(start, 1)
            pieces += self._walked(ids[start - before : stop])[before:]
        return pieces

    def _walked(self, ids: Sequence[int]) -> list[str]:
        """The pieces by decoding ever longer beginnings."""
        pieces: list[str] = []
        start, told = 0, ""  # the window's first token, and its text that pieces already hold
        for index in range(len(ids)):
            text = self.decode(ids[start : index + 1])
            if text.endswith(_BROKEN) and index - start < 2 * _WINDOW:
                pieces.append("")
                continue
            pieces.append(text[len(told) :])
            told = text
            if index - start >= _WINDOW:  # a window of few tokens: the cost stays linear
                start = index
                told = self.decode(ids[index : index + 1])
        return pieces


def find_decoder(given: str | None, candidates: Sequence[str | None]) -> Decoder:
    """A decoder for the tokenizer that was asked for, else for the first candidate that is a directory with one.

    Raises:
        OpdProbeError: ``given`` is there and cannot be loaded.
    """
    places = [place for place in candidates if place and Path(place).is_dir()]
    if given is None and not places:
        return Decoder()
    from opd_probe.models.vocabulary import load_tokenizer  # imports transformers, for which nobody waits in vain

    if given is not None:
        return Decoder(load_tokenizer(given, required=True), given)
    for place in places:
        try:
            tokenizer = load_tokenizer(place, required=False)
        except OpdProbeError:
            continue  # a broken tokenizer beside old weights is no reason to fail: ids can be shown
        if tokenizer is not None:
            return Decoder(tokenizer, place)
    return Decoder()
