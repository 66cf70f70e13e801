"""Text becomes ids as the student read them, as far as that can be known."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import opd_probe
from opd_probe.errors import OpdProbeWarning
from opd_probe.rollouts.encoding import STRIPPED, encode_rollouts, warn_of_text
from opd_probe.rollouts.files import rollouts_from_dicts
from opd_probe.rollouts.restoring import Restored, Restorer
from tests.rollouts.left_behind import lines, verl_row
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special tokens and template of the Qwen family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def stripped(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], **options: object) -> list[object]:
    """The ids of a prompt, and its text as verl and TRL's distillation trainer write it."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [ids, tokenizer.decode(ids, skip_special_tokens=True)]


USER = {"role": "user", "content": "What is 3 + 4?\n\nThink."}
SYSTEM = {"role": "system", "content": "You add."}


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([USER], {}),
        ([SYSTEM, USER], {}),
        ([USER], {"enable_thinking": False}),
        ([SYSTEM, USER], {"enable_thinking": False}),
    ],
)
def test_special_tokens_come_back(chatml, messages, options) -> None:  # type: ignore[no-untyped-def]
    ids, text = stripped(chatml, messages, **options)
    assert "<|im_start|>" not in str(text)
    assert Restorer(chatml).restore(str(text)) == Restored(ids, messages)


@pytest.mark.parametrize(
    "messages",
    [
        [USER, {"role": "assistant", "content": "7"}, USER],
        [{"role": "user", "content": "one\nuser\ntwo"}],
        [{"role": "system", "content": "a\nuser\nb"}, USER],
    ],
    ids=["several turns", "words that a turn begins with", "two places for the user's message"],
)
def test_what_may_be_of_several_turns_is_not_restored(chatml, messages) -> None:  # type: ignore[no-untyped-def]
    assert Restorer(chatml).restore(str(stripped(chatml, messages)[1])) is None


def test_text_that_the_template_does_not_explain_is_not_restored(chatml) -> None:  # type: ignore[no-untyped-def]
    assert Restorer(chatml).restore("Question: 3 + 4?") is None
    assert Restorer(chatml).restore("system\nBe brief.\nuser\nhi\nassistant\nHm") is None
    assert Restorer(tiny_tokenizer(64)).restore("3 4") is None
    wordless = tiny_tokenizer(64, chat_template=CHAT_TEMPLATE)
    wordless.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    assert Restorer(wordless).restore("3 4") is None


def test_what_is_not_restored_is_read_as_it_stands_and_said(chatml) -> None:  # type: ignore[no-untyped-def]
    ids, text = stripped(chatml, [USER])
    rows = [
        {"id": "a", "prompt": text, "response": "7", **STRIPPED},
        {"id": "b", "prompt": "3 + 4?", "response": "7", "finish_reason": "stop", **STRIPPED},
        {"id": "c", "prompt": text, "response": "7"},
    ]
    with pytest.warns(OpdProbeWarning, match="^1 of 2 prompts were written without their special tokens"):
        a, b, c = encode_rollouts(rollouts_from_dicts(rows), chatml)
    with pytest.warns(OpdProbeWarning, match="^here: re-tokenised text"):
        warn_of_text([a], "here")
    assert (list(a.prompt_ids), a.extra["messages"]) == (ids, [USER])
    assert chatml.decode(b.prompt_ids) == "3 + 4?"
    assert b.response_ids[-1] == chatml.eos_token_id
    assert chatml.decode(c.prompt_ids) == text  # it is not known to lack anything
    assert {r.token_source for r in (a, b, c)} == {"retokenized"}


def test_a_dump_of_verl_is_replayed_at_the_states_of_the_run(chatml, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    student = save_checkpoint(tmp_path / "student", tiny_model(264), chatml)
    ids, text = stripped(chatml, [SYSTEM, USER])
    response = chatml("So 7.", add_special_tokens=False)["input_ids"]
    lines(tmp_path / "dump" / "5.jsonl", [verl_row(input=text, output="So 7.")])
    sampled = [{"prompt_ids": ids, "response_ids": response}]
    with pytest.warns(OpdProbeWarning, match="rollouts: re-tokenised text"):
        dumped = opd_probe.replay(student, tiny_model(264, seed=1), tmp_path / "dump", k=4)
    expected = opd_probe.replay(student, tiny_model(264, seed=1), sampled, k=4)
    for column in ("token_id", "student_logprob", "teacher_logprob", "student_top_ids"):
        np.testing.assert_array_equal(dumped.column(column), expected.column(column))


def test_ids_are_no_text_and_nothing_is_said() -> None:
    rollouts = rollouts_from_dicts([{"prompt_ids": [3], "response_ids": [4]}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode_rollouts(rollouts, None) == rollouts
        warn_of_text(rollouts, "here")


def sentencepiece(prepend: str) -> PreTrainedTokenizerFast:
    """Letters as tokens, and a mark for spaces that begins every text, or the first piece of it alone."""
    letters = ["<unk>", "</s>", "[INST]", "\n", "▁", *"abcdefghijklmnopqrstuvwxyz.:0123456789"]
    pieces = [*((letter, -9.0) for letter in letters), ("▁so", -1.0), ("▁is", -1.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    inner.decoder = decoders.Metaspace(prepend_scheme=prepend)
    inner.add_special_tokens([AddedToken("[INST]", special=True), AddedToken("</s>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}[INST] {{ m.content }}:{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("prepend", ["always", "first"])
def test_a_response_goes_on_with_its_prompt(prepend: str) -> None:
    """Its first token is none that only the beginning of a text has."""
    tokenizer = sentencepiece(prepend)
    assert tokenizer.tokenize("7 is so") == ["▁", "7", "▁is", "▁so"]
    chat = {"messages": [{"role": "user", "content": "a"}], "response": "7."}
    rows = [{"prompt": "a b:", "response": "7 is so"}, chat, {"prompt": "a b", "response": " so"}]
    plain, talk, spaced = encode_rollouts(rollouts_from_dicts(rows), tokenizer)
    pieces = [tokenizer.convert_ids_to_tokens(list(r.response_ids)) for r in (plain, talk, spaced)]
    assert pieces == [["7", "▁is", "▁so"], ["7", "."], ["▁so"]]
    assert tokenizer.convert_ids_to_tokens(list(plain.prompt_ids)) == ["▁", "a", "▁", "b", ":"]
    whole = tokenizer("a b:7 is so", add_special_tokens=False)["input_ids"]
    assert [*plain.prompt_ids, *plain.response_ids] == whole


def test_a_tokenizer_that_begins_no_text_is_asked_once(chatml) -> None:  # type: ignore[no-untyped-def]
    (rollout,) = encode_rollouts(rollouts_from_dicts([{"prompt": "a\n", "response": "\nb"}]), chatml)
    assert list(rollout.response_ids) == chatml("\nb", add_special_tokens=False)["input_ids"]
