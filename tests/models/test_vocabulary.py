from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from opd_probe.errors import VocabularyError
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.vocabulary import load_tokenizer, shared_vocabulary, template_digest, tokenizer_digest
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer


def _model(width: int, tokenizer: PreTrainedTokenizerFast | None) -> LoadedModel:
    return load_model(tiny_model(width), tokenizer=tokenizer)


def _words(*words: str) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(words=list(words))


def test_output_layers_of_different_width_share_the_tokens_that_are_real() -> None:
    shared = shared_vocabulary(_model(70, tiny_tokenizer(64)), _model(80, tiny_tokenizer(64)))
    assert shared.ids.tolist() == list(range(64))
    assert shared.ids.dtype == np.int64
    assert (shared.size, shared.is_prefix, shared.assumed) == (64, True, False)
    assert (shared.student_width, shared.teacher_width) == (70, 80)
    assert shared.tokenizer_sha256[0] == shared.tokenizer_sha256[1] is not None


class _NotById(PreTrainedTokenizerFast):
    """A real tokenizer that will not be asked id by id, which takes seconds with 150,000 of them."""

    def convert_ids_to_tokens(self, *_: object, **__: object) -> object:  # type: ignore[override]
        raise AssertionError("asked by id")

    decode = convert_ids_to_tokens  # type: ignore[assignment]


def test_a_large_vocabulary_is_compared_at_once() -> None:
    n = 151_665
    inner = Tokenizer(models.WordLevel({f"w{index}": index for index in range(n)}, unk_token="w0"))
    sides = [
        load_model(tiny_model(width, hidden=4), tokenizer=_NotById(tokenizer_object=inner)) for width in (n + 7, n + 9)
    ]
    shared = shared_vocabulary(*sides)
    assert (shared.size, shared.is_prefix, shared.student_width, shared.teacher_width) == (n, True, n + 7, n + 9)


def test_ids_beyond_a_width_are_excluded() -> None:
    assert shared_vocabulary(_model(50, tiny_tokenizer(64)), _model(64, tiny_tokenizer(64))).size == 50


def test_ids_that_only_one_tokenizer_has_are_excluded() -> None:
    left, right = tiny_tokenizer(20), tiny_tokenizer(20)
    left.add_tokens([AddedToken("<left>", special=True)])
    shared = shared_vocabulary(_model(32, left), _model(32, right))
    assert shared.ids.tolist() == list(range(20))
    assert shared_vocabulary(_model(32, left), _model(32, left)).ids.tolist() == list(range(21))


def test_the_first_id_with_two_strings_is_named_with_both() -> None:
    left = _words("zero", "one", "two", "three")
    right = _words("zero", "eins", "zwei", "three")
    with pytest.raises(VocabularyError, match=r"id 4 is 'one' in the first and 'eins' in the second") as caught:
        shared_vocabulary(_model(16, left), _model(16, right))
    assert "\n" not in str(caught.value)
    with pytest.raises(VocabularyError):
        shared_vocabulary(_model(16, left), _model(16, right), allow_special_mismatch=True)


def test_special_tokens_may_differ_when_the_user_allows_it() -> None:
    left, right = tiny_tokenizer(20), tiny_tokenizer(20)
    left.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<same>", special=True)])
    right.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<same>", special=True)])
    pair = _model(32, left), _model(32, right)
    with pytest.raises(VocabularyError, match="id 20"):
        shared_vocabulary(*pair)
    shared = shared_vocabulary(*pair, allow_special_mismatch=True)
    assert shared.ids.tolist() == [*range(20), 21]
    assert not shared.is_prefix


@pytest.mark.parametrize("sides", [(False, False), (True, False), (False, True)])
def test_without_two_tokenizers_the_smaller_width_is_assumed(sides: tuple[bool, bool]) -> None:
    tokenizers = [tiny_tokenizer(20) if side else None for side in sides]
    shared = shared_vocabulary(_model(40, tokenizers[0]), _model(32, tokenizers[1]))
    assert shared.assumed
    assert shared.size == 32
    assert [digest is not None for digest in shared.tokenizer_sha256] == list(sides)


def test_tokenizers_without_a_common_id() -> None:
    inner = Tokenizer(models.WordLevel({"a": 10, "b": 11}, unk_token="a"))
    with pytest.raises(VocabularyError, match="share no token id"):
        shared_vocabulary(_model(12, PreTrainedTokenizerFast(tokenizer_object=inner)), _model(10, tiny_tokenizer(8)))


def test_digests_follow_the_vocabulary_and_the_template(tmp_path: Path) -> None:
    plain, chat = tiny_tokenizer(20), tiny_tokenizer(20, chat_template=CHAT_TEMPLATE)
    assert tokenizer_digest(plain) == tokenizer_digest(chat) != tokenizer_digest(tiny_tokenizer(21))
    assert template_digest(plain) is None
    assert template_digest(chat) is not None
    assert template_digest(chat) != template_digest(tiny_tokenizer(20, chat_template="x"))
    chat.save_pretrained(tmp_path)
    stored = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (tokenizer_digest(stored), template_digest(stored)) == (tokenizer_digest(chat), template_digest(chat))


def test_tokenizer_json_is_believed_whatever_the_model_type_says(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(words=["ann", "has", "5", "apples", "."])
    save_checkpoint(tmp_path, tiny_model(len(tokenizer)), tokenizer)
    loaded = load_tokenizer(tmp_path, required=True)
    assert loaded is not None
    text = "ann has 5 apples ."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"] == [3, 4, 5, 6, 7]
