"""Ids as text, with real tokenizers of three kinds: words, bytes, and pieces with a space in front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd_probe.errors import MissingError
from opd_probe.models.decoding import Decoder, find_decoder
from tests.tiny import tiny_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, as byte-level BPE without merges: characters beyond ASCII take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces as SentencePiece has them."""
    vocabulary = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3, "▁": 4}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


@pytest.mark.parametrize(
    "text", ["plain words", "naïve – 漢字 🙂 end", "line\nbreak\ttab", "🙂🙂🙂🙂🙂🙂🙂🙂", "x" * 50]
)
def test_pieces_of_bytes_make_up_the_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = Decoder(tokenizer).pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_pieces_keep_the_spaces_between_words() -> None:
    words = tiny_tokenizer(20)
    assert Decoder(words).pieces([3, 4, 15]) == ["0", " 1", " 12"]
    assert Decoder(piece_tokenizer()).pieces([1, 2, 3]) == ["the", " cat", "s"]
    assert Decoder(words).pieces([]) == []


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer, lambda: tiny_tokenizer(20)])
def test_pieces_are_those_of_decoding_ever_longer_beginnings(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    decoder = Decoder(tokenizer)
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, len(tokenizer), 40).tolist() for _ in range(5)]
    if make is byte_tokenizer:
        sequences = [tokenizer(text)["input_ids"] for text in ("漢字 a🙂ééééééééé x", "🙂z")]
    for ids in sequences:
        found = decoder.pieces(ids)
        assert found == decoder._walked(ids)
        assert "".join(found) == decoder.decode(ids)


def test_a_character_that_never_ends_is_still_shown() -> None:
    tokenizer = byte_tokenizer()
    half = tokenizer("🙂")["input_ids"][:1]
    pieces = Decoder(tokenizer).pieces(half * 30)
    assert len(pieces) == 30
    assert "\ufffd" in "".join(pieces)


def test_labels_show_white_space_and_what_is_no_text() -> None:
    tokenizer = byte_tokenizer()
    decoder = Decoder(tokenizer)
    space, newline = (tokenizer(sign)["input_ids"][0] for sign in (" ", "\n"))
    assert (decoder.label(space), decoder.label(newline)) == ("␣", "↵")
    half = tokenizer("漢")["input_ids"][0]
    assert decoder.label(half) == tokenizer.convert_ids_to_tokens(half)
    assert Decoder(piece_tokenizer()).label(2) == "␣cat"
    assert Decoder(tiny_tokenizer(20)).label(1) == "<eos>"


def test_without_a_tokenizer_ids_are_shown() -> None:
    decoder = Decoder()
    assert decoder.label(7) == "#7"
    assert "".join(decoder.pieces([7, 8])) == "#7 #8 "
    assert decoder.special_ids == set()
    assert Decoder(tiny_tokenizer(20)).label(10**6) == "#1000000"


def test_where_a_tokenizer_is_looked_for(tmp_path: Path) -> None:
    tiny_tokenizer(20).save_pretrained(tmp_path / "there")
    (tmp_path / "empty").mkdir()
    found = find_decoder(None, [None, str(tmp_path / "gone"), str(tmp_path / "empty"), str(tmp_path / "there")])
    assert found.name == str(tmp_path / "there")
    assert found.special_ids == {0, 1, 2}
    assert find_decoder(None, ["org/name"]).name is None
    (tmp_path / "empty" / "tokenizer.json").write_text("{broken")
    assert find_decoder(None, [str(tmp_path / "empty")]).name is None
    with pytest.raises(MissingError, match="no tokenizer files"):
        find_decoder(str(tmp_path), [])
