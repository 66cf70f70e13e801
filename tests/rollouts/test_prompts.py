from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from tokenizers import processors

from opd_probe.errors import InputError, MissingError
from opd_probe.rollouts.prompts import encode_prompts, read_prompts
from opd_probe.types import Prompt
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

VERL = Path(__file__).with_name("verl_prompts.parquet")


def _jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_lines(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": "x"}, {"id": 8, "messages": messages, "answer": 5}, {"prompt": messages}]
    first, second, third = read_prompts(_jsonl(tmp_path / "p.jsonl", *rows))
    assert first == Prompt(id="0", text="x")
    assert second == Prompt(id="8", messages=tuple(messages), answer="5")
    assert third.messages == tuple(messages)


def test_the_parquet_layout_of_verl() -> None:
    prompts = read_prompts(VERL)
    assert [prompt.id for prompt in prompts] == ["0", "1", "2"]
    assert prompts[0].answer == "142.0"
    assert prompts[0].messages is not None
    assert prompts[0].messages[0]["role"] == "user"
    assert prompts[0].messages[0]["content"].startswith("$\\frac{m}{n}$")
    encoded = encode_prompts(prompts, tiny_tokenizer(words=["<|user|>", "<|assistant|>"], chat_template=CHAT_TEMPLATE))
    assert encoded[0].ids is not None
    assert set(prompts[0].extra) == {"source", "data_source", "ability", "reward_model", "extra_info"}
    assert prompts[0].carried["messages"] == list(prompts[0].messages)
    assert (encoded[0].ids[0], encoded[0].ids[-1]) == (3, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, "no prompt"),
        ({"prompt": 3}, "prompt is int"),
        ({"messages": []}, "messages must be"),
        ({"messages": [{"content": "x"}]}, "messages must be"),
        ({"prompt_ids": [1, "x"]}, "prompt_ids must be"),
        ({"prompt_ids": []}, "prompt_ids must be"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(_jsonl(tmp_path / "p.jsonl", {"prompt": "x"}, row))
    assert "p.jsonl, line 2" in str(caught.value)


def test_an_id_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: id 'a' stands already at"):
        read_prompts(_jsonl(tmp_path / "p.jsonl", {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}))


def test_what_a_data_frame_lacks_is_absent(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["x", "y"], "id": ["a", None], "answer": [3.5, float("nan")]})
    frame.to_parquet(tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [Prompt("a", text="x", answer="3.5"), Prompt("1", text="y")]


def test_other_fields_are_kept_unless_json_cannot_hold_them(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "hint": "7", "info": {"a": [1]}, "image": b"\x00", "when": pd.Timestamp("2026-01-01")}]
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    (prompt,) = read_prompts(tmp_path / "p.parquet")
    assert prompt.extra == {"hint": "7", "info": {"a": [1]}} == prompt.carried


def test_text_is_encoded_as_it_stands_with_one_bos() -> None:
    tokenizer = tiny_tokenizer(words=["<bos>", "a", "b"])
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 3)]
    )
    prompts = [Prompt("0", text="a b"), Prompt("1", text="<bos> a b"), Prompt("2", ids=(9,))]
    assert [p.ids for p in encode_prompts(prompts, tokenizer)] == [(3, 4, 5), (3, 4, 5), (9,)]


def test_messages_end_with_the_generation_prompt_and_no_second_bos() -> None:
    tokenizer = tiny_tokenizer(words=["<|user|>", "<|assistant|>", "a"], chat_template=CHAT_TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 2)]
    )
    (encoded,) = encode_prompts([Prompt("0", messages=[{"role": "user", "content": "a"}])], tokenizer)
    assert encoded.ids == (3, 5, 4)


def test_what_cannot_be_encoded_is_named() -> None:
    chat = Prompt("c", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(InputError, match=r"'c'.*no chat template"):
        encode_prompts([chat], tiny_tokenizer())
    with pytest.raises(InputError, match=r"'t'.*--tokenizer"):
        encode_prompts([Prompt("t", text="x")], None)
    with pytest.raises(InputError, match=r"'t'.*no token"):
        encode_prompts([Prompt("t", text="")], tiny_tokenizer())
    refusing = tiny_tokenizer(chat_template="{{ raise_exception('no system\nturns') }}")
    with pytest.raises(InputError, match=r"'c'.*no system turns") as caught:
        encode_prompts([chat], refusing)
    assert "\n" not in str(caught.value)


def test_a_data_set_on_disk(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": str(i)}], "reward_model": {"ground_truth": str(i)}} for i in range(5)
    ]
    data = Dataset.from_list(rows)
    data.select([4, 2, 0]).save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict({"train": data}).save_to_disk(tmp_path / "split")
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    assert [(p.id, p.answer) for p in read_prompts(tmp_path / "one")] == [("0", "4"), ("1", "2"), ("2", "0")]
    expected = read_prompts(_jsonl(tmp_path / "p.jsonl", *rows))
    assert read_prompts(tmp_path / "split") == read_prompts(tmp_path / "splits" / "test") == expected
    (shard,) = (tmp_path / "split" / "train").glob("*.arrow")
    assert read_prompts(shard) == expected
    table = pa.ipc.open_stream(shard).read_all()
    with pa.ipc.new_file(tmp_path / "footer.arrow", table.schema) as writer:
        writer.write_table(table)
    assert read_prompts(tmp_path / "footer.arrow") == expected
    with pytest.raises(InputError, match="splits: holds the splits test, train; give the folder of one"):
        read_prompts(tmp_path / "splits")


def test_a_data_set_that_is_broken(tmp_path: Path) -> None:
    Dataset.from_list([{"prompt": "3"}]).save_to_disk(tmp_path / "set")
    (shard,) = (tmp_path / "set").glob("*.arrow")
    whole = shard.read_bytes()
    for content in (b"", b"abc", whole[: len(whole) // 2], b"ARROW1" + whole):
        shard.write_bytes(content)
        with pytest.raises(InputError, match="not a whole Arrow file") as raised:
            read_prompts(tmp_path / "set")
        assert "\n" not in str(raised.value)
    shard.unlink()
    with pytest.raises(InputError, match="not a whole Arrow file"):
        read_prompts(tmp_path / "set")
    for state in ("{}", "[", '{"_data_files": [1]}'):
        (tmp_path / "set" / "state.json").write_text(state)
        with pytest.raises(InputError, match="does not name the data files"):
            read_prompts(tmp_path / "set")
    with pytest.raises(MissingError, match="is a directory; expected a file, or what datasets' save_to_disk wrote"):
        read_prompts(tmp_path)
