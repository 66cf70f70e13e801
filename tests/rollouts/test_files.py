from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd_probe.errors import InputError, MissingError, OutputError
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.files import (
    prompt_key,
    read_rollouts,
    rollouts_digest,
    rollouts_from_dicts,
    write_rollouts,
)
from opd_probe.types import Rollout
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

GOOD: dict[str, Any] = {"prompt_ids": [3, 4], "response_ids": [5, 6, 1]}


def _jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_least_that_a_row_needs(tmp_path: Path) -> None:
    (rollout,) = read_rollouts(_jsonl(tmp_path / "r.jsonl", GOOD))
    assert rollout == Rollout(id="0", prompt_ids=(3, 4), response_ids=(5, 6, 1))


def test_everything_that_a_row_may_hold(tmp_path: Path) -> None:
    row = {
        **GOOD,
        "id": 7,
        "prompt_id": "p",
        "step": 20,
        "response_mask": [1, 0, 1],
        "prompt": "x",
        "response": "y",
        "answer": 42,
        "score": True,
        "logprobs": [-0.5, None, -1],
        "finish_reason": "stop",
        "reward_std": 0.25,
    }
    (rollout,) = read_rollouts(_jsonl(tmp_path / "r.jsonl", row))
    assert (rollout.id, rollout.prompt_id, rollout.step, rollout.answer) == ("7", "p", 20, "42")
    assert (rollout.response_mask, rollout.score, rollout.finish_reason) == ((1, 0, 1), 1.0, "stop")
    assert rollout.logprobs is not None
    assert rollout.logprobs[0] == -0.5
    assert math.isnan(rollout.logprobs[1])
    assert rollout.extra == {"reward_std": 0.25}


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_half_a_character_is_no_text(name: str, tmp_path: Path) -> None:
    rows = [{**GOOD, "note": "\U0001f600"}, {**GOOD, "note": "\ud800"}]
    path = _jsonl(tmp_path / name, *(rows if name == "r.jsonl" else [json.dumps(rows)]))
    with pytest.raises(InputError, match=r"(line 2|entry 1): holds \\ud800, half of a character"):
        read_rollouts(path)


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt_ids": ({"prompt_ids": None}, "no prompt_ids"),
    "no response_ids": ({"response_ids": None}, "no response_ids"),
    "ids that are text": ({"response_ids": "5 6"}, "response_ids is str; expected a list"),
    "an id that is a float": ({"response_ids": [5, 6.5]}, r"response_ids holds 6\.5"),
    "an id that is a bool": ({"prompt_ids": [True]}, "prompt_ids holds True"),
    "a nested id": ({"prompt_ids": [[3]]}, r"prompt_ids holds \[3\]"),
    "a negative id": ({"prompt_ids": [3, -2]}, "prompt_ids holds the negative id -2"),
    "a mask of another length": ({"response_mask": [1, 1]}, "response_mask has 2 entries for 3"),
    "a mask that is no mask": ({"response_mask": [1, 2, 0]}, "response_mask holds 2"),
    "log-probs of another length": ({"logprobs": [-1.0]}, "logprobs has 1 entries for 3"),
    "log-probs that are text": ({"logprobs": ["a", "b", "c"]}, "logprobs holds 'a'"),
    "a score that is text": ({"score": "good"}, "score is 'good'"),
    "a step that is a fraction": ({"step": 1.5}, r"step is 1\.5"),
    "a step of more than 64 bits": ({"step": 10**30}, "step is beyond 64 bits"),
    "a score beyond all floats": ({"score": 10**400}, "score holds a whole number beyond all floats"),
    "a step that is text": ({"step": "3"}, "step is '3'"),
    "a finish reason that is a number": ({"finish_reason": 3}, "finish_reason is int"),
    "an id that is a list": ({"id": [1]}, "id is list"),
    "an id beyond 64 bits": ({"prompt_ids": [2**70]}, "prompt_ids holds 1180591620717411303424"),
    "an unknown token source": ({"token_source": "guess"}, "token_source is 'guess'"),
}


@pytest.mark.parametrize(("change", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_field_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = _jsonl(tmp_path / "r.jsonl", GOOD, "", {**GOOD, **change})
    with pytest.raises(InputError, match=message) as caught:
        read_rollouts(path)
    assert f"{path}, line 3" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message) as caught:
        rollouts_from_dicts([GOOD, {**GOOD, **change}])
    assert "row 1" in str(caught.value)


@pytest.mark.parametrize("line", ["{", '{"prompt_ids": [1}', "nonsense"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"r\.jsonl, line 2: not valid JSON"):
        read_rollouts(_jsonl(tmp_path / "r.jsonl", GOOD, line, GOOD))


@pytest.mark.parametrize("line", ["3", "[]", '"x"', "null"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match="line 1: expected a JSON object"):
        read_rollouts(_jsonl(tmp_path / "r.jsonl", line))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(InputError, match="empty"):
        read_rollouts(tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="empty"):
        rollouts_from_dicts([])


def test_a_file_that_is_not_there_or_not_of_a_known_kind(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_rollouts(tmp_path / "r.jsonl")
    for name, content in (("r.csv", b"x"), ("r.parquet", b"PAR1"), ("r.jsonl", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            read_rollouts(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_an_id_that_stands_twice_is_an_error() -> None:
    with pytest.raises(InputError, match=r"row 1: id 'a' stands already at rollouts, row 0"):
        rollouts_from_dicts([{**GOOD, "id": "a"}, {**GOOD, "id": "a"}])


def test_sampled_ids_and_text_are_never_pooled(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "r.jsonl", GOOD, {"prompt": "3", "response": "4"})
    with pytest.raises(InputError, match=r"r\.jsonl.*never pooled"):
        read_rollouts(path)


def test_empty_and_masked_responses_are_no_errors() -> None:
    rollouts = rollouts_from_dicts([{**GOOD, "response_ids": []}, {**GOOD, "response_mask": [0, 0, 0]}])
    assert [r.response_ids for r in rollouts] == [(), (5, 6, 1)]


def test_rows_of_a_data_frame() -> None:
    frame = pd.DataFrame(
        {
            "prompt_ids": [np.array([3]), [4]],
            "response_ids": [np.array([5, 6], dtype=np.int32), [np.int64(5), 6]],
            "score": [1.0, np.nan],
            "step": [5.0, np.nan],
            "prompt_id": ["a", np.nan],
        }
    )
    first, second = rollouts_from_dicts(frame.to_dict("records"))
    assert (first.prompt_ids, first.response_ids, first.score, first.step) == ((3,), (5, 6), 1.0, 5)
    assert (second.response_ids, second.score, second.step, second.prompt_id) == ((5, 6), None, None, None)


def test_numbers_of_numpy_and_missing_values_of_pandas() -> None:
    row = {
        "id": np.int64(4),
        "prompt_id": 7.0,  # an integer column with a gap becomes one of floats
        "prompt_ids": torch.tensor([3]),
        "response_ids": (np.int64(5), np.int32(6)),
        "logprobs": [np.float32(-0.5), np.float64("nan")],
        "response_mask": np.array([True, False]),
        "answer": pd.NA,
        "score": np.float32("nan"),
        "step": np.int64(3),
    }
    (rollout,) = rollouts_from_dicts([row])
    assert (rollout.id, rollout.prompt_id, rollout.step, rollout.response_mask) == ("4", "7", 3, (1, 0))
    assert (rollout.answer, rollout.score, rollout.prompt_ids) == (None, None, (3,))
    assert rollout.logprobs is not None
    assert rollout.logprobs[0] == -0.5
    assert math.isnan(rollout.logprobs[1])


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_rollouts(tmp_path / "r.jsonl")[0].response_ids == (5, 6, 1)


def test_rows_that_parquet_cannot_hold_leave_nothing(tmp_path: Path) -> None:
    mixed = [{"role": "user", "content": "3"}, {"role": "user", "content": [{"type": "text"}]}]
    rollouts = rollouts_from_dicts([{"messages": mixed, "response": "4"}])
    with pytest.raises(InputError, match=r"r\.parquet: Parquet cannot hold these rows") as caught:
        write_rollouts(tmp_path / "r.parquet", rollouts)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    write_rollouts(tmp_path / "r.jsonl", rollouts)
    assert read_rollouts(tmp_path / "r.jsonl") == rollouts


def test_an_empty_sampled_rollout_is_not_taken_for_text() -> None:
    empty = rollouts_from_dicts([{"prompt_ids": [], "response_ids": [], "response": ""}])
    assert encode_rollouts(empty, tiny_tokenizer()) == empty


def test_parquet_written_by_pandas(tmp_path: Path) -> None:
    rows = [{**GOOD, "score": 1.0, "response_mask": [1, 1, 0]}, {**GOOD, "score": None, "response_mask": None}]
    pd.DataFrame(rows).to_parquet(tmp_path / "r.parquet")
    assert read_rollouts(tmp_path / "r.parquet") == rollouts_from_dicts(rows)
    pd.DataFrame([{**GOOD, "response_mask": [1]}]).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"r\.parquet, row 0: response_mask"):
        read_rollouts(tmp_path / "r.parquet")


TOKENS = st.lists(st.integers(0, 2**31), max_size=5)
TEXT = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))


@st.composite
def rollout_lists(draw: st.DrawFn) -> list[Rollout]:
    rollouts = []
    for index in range(draw(st.integers(1, 3))):
        response = tuple(draw(TOKENS))
        n = len(response)
        lists = {
            "response_mask": st.lists(st.integers(0, 1), min_size=n, max_size=n),
            "logprobs": st.lists(st.floats(-1e3, 0), min_size=n, max_size=n),
        }
        chosen = {k: draw(st.one_of(st.none(), v.map(tuple))) for k, v in lists.items()}
        rollouts.append(
            Rollout(
                id=f"r{index}",
                prompt_ids=tuple(draw(TOKENS)),
                response_ids=response,
                prompt_id=draw(TEXT),
                step=draw(st.one_of(st.none(), st.integers(0, 10**9))),
                prompt=draw(TEXT),
                response=draw(TEXT),
                answer=draw(TEXT),
                score=draw(st.one_of(st.none(), st.floats(-1e6, 1e6))),
                finish_reason=draw(st.sampled_from([None, "stop", "length"])),
                sampler=draw(st.sampled_from([None, "vllm 0.32.0"])),
                extra=draw(st.sampled_from([{}, {"note": "x"}, {"a": [1, 2], "b": {"c": 0.5}}])),
                **chosen,
            )
        )
    return rollouts


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rollouts=rollout_lists())
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, rollouts: list[Rollout]) -> None:
    path = tmp_path / f"r.{suffix}"
    write_rollouts(path, rollouts)
    again = read_rollouts(path)
    assert again == rollouts
    assert rollouts_digest(again) == rollouts_digest(rollouts)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_text_is_written_as_text(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "3"}]
    rollouts = rollouts_from_dicts([{"messages": messages, "response": "4"}])
    for name in ("r.jsonl", "r.parquet"):
        write_rollouts(tmp_path / name, rollouts)
        assert read_rollouts(tmp_path / name) == rollouts


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_samples_carry_along_comes_back(tmp_path: Path, suffix: str) -> None:
    """Messages of every form in one file: a Parquet column would hold but one. None of it reaches a trace."""
    forms: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "3"}],
        [{"role": "user", "content": [{"type": "text", "text": "3"}]}],
        [{"role": "user", "content": "3"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
    ]
    rollouts = [
        Rollout(str(i), (1,), (2,), extra={"extra_info": {"solution": "4"}, "messages": messages})
        for i, messages in enumerate(forms)
    ]
    write_rollouts(tmp_path / f"r{suffix}", rollouts)
    assert [rollout.extra for rollout in read_rollouts(tmp_path / f"r{suffix}")] == [r.extra for r in rollouts]
    bare = [dataclasses.replace(rollout, extra={}) for rollout in rollouts]
    assert rollouts_digest(rollouts) == rollouts_digest(bare)
    text = Rollout("0", (), (), response="4", token_source="retokenized", extra={"messages": forms[0]})
    other = dataclasses.replace(text, extra={"messages": forms[1]})
    assert rollouts_digest([text]) != rollouts_digest([other])  # of these the ids are made


def test_parquet_adds_no_keys_to_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "3"}, {"role": "user", "content": "4", "name": "q"}]
    rollouts = rollouts_from_dicts([{"messages": messages, "response": "4"}])
    write_rollouts(tmp_path / "r.parquet", rollouts)
    assert read_rollouts(tmp_path / "r.parquet") == rollouts


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_rollouts(tmp_path / "file" / "r.jsonl", rollouts_from_dicts([GOOD]))
    with pytest.raises(InputError, match=r"\.jsonl or \.parquet"):
        write_rollouts(tmp_path / "r.txt", rollouts_from_dicts([GOOD]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_digest_sees_what_reaches_a_trace() -> None:
    base = {**GOOD, "id": "a"}
    changes: list[dict[str, Any]] = [
        {"response_ids": [5, 6, 2]},
        {"prompt_ids": [4, 3]},
        {"response_mask": [1, 1, 0]},
        {"step": 3},
        {"score": 1},
        {"answer": "4"},
        {"logprobs": [0, 0, -1]},
        {"id": "b"},
        {"prompt_id": "q"},
    ]
    digests = {rollouts_digest(rollouts_from_dicts([{**base, **change}])) for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1


def test_prompts_group_by_their_id_else_by_their_content() -> None:
    rows = [GOOD, GOOD, {**GOOD, "prompt_ids": [3, 4, 5]}, {**GOOD, "prompt_id": "x"}]
    keys = [prompt_key(rollout) for rollout in rollouts_from_dicts(rows)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == "x"
    texts = rollouts_from_dicts([{"prompt": "3", "response": "4"}, {"prompt": "5", "response": "4"}])
    assert len({prompt_key(rollout) for rollout in texts}) == 2


def test_text_is_encoded_with_eos_only_after_a_stop() -> None:
    tokenizer = tiny_tokenizer()  # the number n is the id n + 3
    rows = [
        {"prompt": "10 11", "response": "12 13", "finish_reason": "stop"},
        {"prompt": "10 11", "response": "12 13", "finish_reason": "length"},
        {"prompt": "10 11", "response": "12 13"},
    ]
    encoded = encode_rollouts(rollouts_from_dicts(rows), tokenizer)
    assert [r.prompt_ids for r in encoded] == [(13, 14)] * 3
    assert [r.response_ids for r in encoded] == [(15, 16, 1), (15, 16), (15, 16)]
    assert {r.token_source for r in encoded} == {"retokenized"}
    sampled = rollouts_from_dicts([GOOD])
    assert encode_rollouts(sampled, None) == sampled


def test_messages_go_through_the_chat_template() -> None:
    words = ["<|user|>", "<|assistant|>", "hello", "there", "you"]
    tokenizer = tiny_tokenizer(words=words, chat_template=CHAT_TEMPLATE)
    turn = {"role": "user", "content": "hello there"}
    rows = [
        {"messages": [turn], "response": "you"},
        {"messages": [turn, {"role": "assistant", "content": "you"}]},
    ]
    for rollout in encode_rollouts(rollouts_from_dicts(rows), tokenizer):
        assert rollout.prompt_ids == (3, 5, 6, 4)
        assert rollout.response_ids == (7,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x"}, "no prompt_ids and response_ids"),
        ({"prompt": "x"}, "no prompt_ids and response_ids"),
        ({"messages": [], "response": "x"}, "messages must be"),
        ({"messages": [{"role": "user"}], "response": "x"}, "messages must be"),
        ({"messages": "hi", "response": "x"}, "messages must be"),
        ({"prompt": "x", "response": "y", "token_source": "sampled_ids"}, "the row has no ids"),
        ({"prompt": "x", "response": "y", "response_mask": [1]}, "response_mask without response_ids"),
    ],
)
def test_text_rows_that_cannot_be_used(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rollouts_from_dicts([row])


def test_text_needs_a_tokenizer_and_messages_a_template() -> None:
    text = rollouts_from_dicts([{"id": "a", "prompt": "3", "response": "4"}])
    with pytest.raises(InputError, match=r"'a'.*--tokenizer"):
        encode_rollouts(text, None)
    chat = rollouts_from_dicts([{"id": "a", "messages": [{"role": "user", "content": "3"}], "response": "4"}])
    with pytest.raises(InputError, match=r"'a'.*no chat template"):
        encode_rollouts(chat, tiny_tokenizer())
