"""Rollouts of evaluation tools: files that lighteval 0.13.0 and inspect_ai 0.3.285 wrote of the lab's small student."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.files import read_rollouts
from opd_probe.rollouts.padding import ENDS_PADDED, SpecialIds, without_padding
from opd_probe.rollouts.reading import read_rollout_set
from opd_probe.types import Rollout
from tests.rollouts.left_behind import WRITERS, inspect_sample, lighteval_row

HERE = Path(__file__).parent / "evaluations"
STUDENT = Path(opd_probe.__file__).parent / "lab" / "data" / "models" / "student"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def of(kind: str, root: Path, *rows: dict[str, Any]) -> list[Rollout]:
    return read_rollout_set([WRITERS[kind](root, list(rows))]).rollouts


def test_what_lighteval_wrote() -> None:
    """Its ids without the pads of their batch: those of the query, and those of which the text was made."""
    found = read_rollout_set([HERE / "lighteval.parquet"])
    assert (found.kind, [rollout.id for rollout in found.rollouts]) == ("lighteval", ["1", "0", "2"])
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    with pytest.warns(OpdProbeWarning, match="11 tokens of padding stripped from 2 of 3 rows"):
        encoded = encode_rollouts(found.rollouts, tokenizer)
    queries = {"0": "3 4", "1": "5 6 7 8 9 1 2", "2": "1"}
    for rollout in encoded:
        assert list(rollout.prompt_ids) == tokenizer(queries[rollout.id])["input_ids"]
        assert tokenizer.decode(rollout.response_ids, skip_special_tokens=True) == rollout.response
        assert (rollout.token_source, rollout.score, rollout.extra["task_name"]) == ("sampled_ids", 0.0, "mine|0")


def test_what_inspect_ai_wrote() -> None:
    """Text alone: its log-probabilities are of other tokens than those that it sampled."""
    found = read_rollout_set([HERE / "inspect.eval"])
    assert (found.kind, dict(found.skipped)) == ("inspect-ai", {})
    ids = [(rollout.id, rollout.prompt_id) for rollout in found.rollouts]
    assert ids == [("1/1", "1"), ("2/1", "2"), ("3/1", "3"), ("1/2", "1"), ("2/2", "2"), ("3/2", "3")]
    first = found.rollouts[0]
    assert (first.response, first.answer, first.score) == ("7 ultimately 6 extend remove 4 ready shrink", "7", 1.0)
    assert found.rollouts[1].extra["answers"] == ["8", "9"]
    assert {rollout.logprobs for rollout in found.rollouts} == {None}
    assert first.sampling == {"temperature": 1.0}
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    tokenizer.chat_template = TEMPLATE
    (encoded, *_) = encode_rollouts(found.rollouts, tokenizer)
    rendered = tokenizer("user: 3 4\nassistant:", add_special_tokens=False)["input_ids"]
    assert (list(encoded.prompt_ids), encoded.token_source) == (rendered, "retokenized")
    assert tokenizer.decode(encoded.response_ids) == first.response


@pytest.mark.parametrize(
    ("pad", "eos", "given", "kept"),
    [
        (0, {1}, [5, 1, 0, 0], [5, 1]),
        (1, {1}, [5, 1, 1, 1], [5, 1]),  # the pad token is EOS: one of them was sampled
        (None, {1}, [5, 1, 1, 1], [5, 1]),
        (None, {1}, [5, 6, 7, 8], [5, 6, 7, 8]),
        (1, {1, 2}, [5, 2, 1, 1], [5, 2]),
        (1, {1}, [1, 1, 1], [1]),
        (0, {1}, [5, 6, 7, 1], [5, 6, 7, 1]),
        (0, {1}, [], []),
    ],
)
def test_padding_behind_the_end_of_a_response(
    pad: int | None, eos: set[int], given: list[int], kept: list[int]
) -> None:
    rollout = Rollout("a", [3], given, extra={ENDS_PADDED: True})
    (found,) = without_padding([rollout], SpecialIds(pad, None, frozenset(eos)), None)
    assert list(found.response_ids) == kept


def test_lighteval(tmp_path: Path) -> None:
    other = lighteval_row(doc={**lighteval_row()["doc"], "id": "2"}, metric={"em": 1, "f1": 0.5})
    first, second = of("lighteval", tmp_path, lighteval_row(), other)
    assert (first.prompt_ids, first.response_ids, first.step) == ((0, 0, 3, 4), (7, 1, 0, 0), 40)
    assert (first.id, first.answer, first.score) == ("5", "7", 1.0)
    assert (second.score, second.extra["f1"]) == (None, 0.5)


def test_lighteval_with_several_samples_without_ids_and_of_other_tasks(tmp_path: Path) -> None:
    row = lighteval_row()
    several = {**row["model_response"], "output_tokens": [[7, 1], [8, 1]], "text": ["7", "8"]}
    api = {"text": ["7"], "input": [{"role": "user", "content": "3 4"}]}
    found = of("lighteval", tmp_path / "a", {**row, "model_response": several})
    assert [(r.id, r.response_ids, r.score) for r in found] == [("5/0", (7, 1), None), ("5/1", (8, 1), None)]
    (text,) = of("lighteval", tmp_path / "b", {**row, "model_response": api})
    assert (text.token_source, text.extra["messages"], text.response) == ("retokenized", api["input"], "7")
    choice = {**row, "doc": {**row["doc"], "sampling_methods": ["LOGPROBS"]}}
    with pytest.raises(InputError, match="none left, out of 1 of a task that samples nothing"):
        of("lighteval", tmp_path / "c", choice)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"padded_tokens_count": 4}, "padded_tokens_count is 4; expected 0 to 4"),
        ({"padded_tokens_count": -1}, "padded_tokens_count is -1"),
        ({"output_tokens": [[7, -1]]}, "output_tokens holds the negative id -1"),
        ({"output_tokens": [[7], [8]]}, "output_tokens has 2 entries for 1 of text"),
        ({"text": [["a"]]}, "text is list; expected text"),
    ],
)
def test_lighteval_that_is_broken(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    row = lighteval_row()
    with pytest.raises(InputError, match=told):
        of("lighteval", tmp_path, {**row, "model_response": {**row["model_response"], **change}})


def test_inspect_ai(tmp_path: Path) -> None:
    rows = {
        "verdict of one half": (inspect_sample(scores={"a": {"value": "P"}}), 0.5),
        "number": (inspect_sample(id="x", scores={"a": {"value": 0.25}}), 0.25),
        "two scorers": (inspect_sample(id=6, scores={"a": {"value": "C"}, "b": {"value": "I"}}), None),
        "not judged": (inspect_sample(id=7, scores=None), None),
    }
    found = of("inspect-ai", tmp_path, *(row for row, _ in rows.values()))
    assert [(r.id, r.score) for r in found] == [("5/1", 0.5), ("x/1", 0.25), ("6/1", None), ("7/1", None)]
    assert (found[0].sampling, found[0].finish_reason) == ({"temperature": 0.7}, "stop")
    assert found[0].extra["messages"] == [{"role": "user", "content": "3 4"}]
    log = {"eval": {"model_generate_config": {"temperature": 0.7}}, "samples": [row for row, _ in rows.values()]}
    (tmp_path / "log.json").write_text(json.dumps(log, indent=2))
    assert [(r.id, r.score, r.sampling) for r in read_rollouts(tmp_path / "log.json")] == [
        (r.id, r.score, r.sampling) for r in found
    ]


def test_inspect_ai_puts_long_text_elsewhere(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "attachment://a"},
                {"role": "assistant", "content": [{"type": "text", "text": "attachment://b"}]}]  # fmt: skip
    (found,) = of("inspect-ai", tmp_path / "a", inspect_sample(messages=messages, attachments={"a": "3 4", "b": "7"}))
    assert (found.response, found.extra["messages"][0]["content"]) == ("7", "3 4")
    with pytest.raises(InputError, match="attachments has no 'b', which a message names"):
        of("inspect-ai", tmp_path / "b", inspect_sample(messages=messages, attachments={"a": "3 4"}))


def test_inspect_ai_samples_that_are_no_rollouts(tmp_path: Path) -> None:
    user, answer = inspect_sample()["messages"]
    parts = [{"type": "reasoning", "reasoning": "so"}, {"type": "text", "text": "7"}]
    thinking, tool = {"role": "assistant", "content": parts}, {"role": "tool", "content": "8"}
    rows = [
        inspect_sample(),
        inspect_sample(id=6, error={"message": "lost"}),
        inspect_sample(id=7, messages=[user]),
        inspect_sample(id=8, messages=[user, answer, tool, answer]),
        inspect_sample(id=9, messages=[user, thinking]),
    ]
    found = read_rollout_set([WRITERS["inspect-ai"](tmp_path, rows)])
    assert (len(found.rollouts), dict(found.skipped)) == (
        1,
        {
            "that ended in an error": 1,
            "of several turns as text, or without an answer": 2,
            "whose thinking stands apart, so that the context of the rest is not known": 1,
        },
    )


def test_archives_that_were_cut_off_or_changed(tmp_path: Path) -> None:
    whole = (HERE / "inspect.eval").read_bytes()
    broken = tmp_path / "broken.eval"
    for size in (0, 30, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a whole archive") as error:
            read_rollouts(broken)
        assert "\n" not in str(error.value)
    with zipfile.ZipFile(HERE / "inspect.eval") as archive:
        at = archive.getinfo("samples/2_epoch_1.json").header_offset + 200
    version = whole.index(b"PK\x01\x02") + 6
    for place in (at, version):
        changed = bytearray(whole)
        changed[place] ^= 255
        broken.write_bytes(bytes(changed))
        with pytest.raises(InputError, match="not a whole archive"):
            read_rollouts(broken)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.txt": "b"}, "no header.json in the archive; expected a log of inspect_ai"),
        ({"header.json": "{}"}, "the file is empty; expected one row per entry"),
        ({"header.json": "[]", "samples/1.json": "{}"}, "header.json holds list; expected an object"),
        ({"header.json": "{}", "samples/1.json": "{"}, "not a whole archive"),
        ({"header.json": "{}", "samples/1.json": "3"}, "holds int; expected an object"),
        ({"header.json": "{}", "samples/1.json": json.dumps({"epoch": 1})}, "not recognised by its fields"),
    ],
)
def test_archives_of_something_else(members: dict[str, str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "other.eval"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=told):
        read_rollouts(path)
