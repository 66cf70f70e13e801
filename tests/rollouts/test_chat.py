"""Chat messages reach the template in the form that it takes, with tools and variables of their row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast
from trl import apply_chat_template

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.jobs.files import Files
from opd_probe.jobs.plan import plan_runs
from opd_probe.jobs.sampling import prompts_digest
from opd_probe.options.request import Request
from opd_probe.rollouts.chat import lost_words
from opd_probe.rollouts.encoding import encode_rollouts
from opd_probe.rollouts.files import rollouts_from_dicts
from opd_probe.rollouts.prompts import encode_prompts, read_prompts, render_messages
from opd_probe.rollouts.teacher_prompts import OWN, PromptMaker, TeacherPrompt, messages_of
from opd_probe.types import Prompt
from tests.rollouts.left_behind import lines
from tests.tiny import QUESTION_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

TEXTS = (
    "{% if tools %}[tools] {{ tools | tojson }} {% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content if m.content is string else '' }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% if enable_thinking is defined and not enable_thinking %}(no thinking)"
    "{% endif %}{% endif %}"
)
"""Takes content as text alone."""

PARTS = (
    "{% for m in messages %}[{{ m.role }}] {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""Takes content as parts alone."""

WHATEVER = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
"""Prints whatever content is: of parts the list, as Python writes it."""

USER = {"role": "user", "content": "What is one plus two?"}
IN_PARTS = {"role": "user", "content": [{"type": "text", "text": "What is one"}, {"type": "text", "text": "plus two?"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(chat_template=template)


@pytest.mark.parametrize("template", [TEXTS, WHATEVER], ids=["text alone", "whatever there is"])
def test_text_parts_are_joined_as_servers_do(template: str) -> None:
    text = render_messages("p", [IN_PARTS], tokenizer(template))
    assert text.startswith("[user] What is one\nplus two? ")


def test_a_template_of_parts_gets_parts() -> None:
    assert render_messages("p", [USER], tokenizer(PARTS)) == "[user] What is one plus two? [assistant] "
    assert render_messages("p", [IN_PARTS], tokenizer(PARTS)) == "[user] What is oneplus two? [assistant] "


@pytest.mark.parametrize("template", [TEXTS, PARTS])
def test_parts_that_are_no_text_are_one_line(template: str) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(
        InputError, match="prompt '0': a message of the user holds a part of type 'image_url'; expected"
    ):
        encode_prompts([Prompt("0", messages=(image,))], tokenizer(template))


@pytest.mark.parametrize("stored", ["rows", "text"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tools_and_variables_of_a_row_are_rendered_as_trl_does(stored: str, suffix: str, tmp_path: Path) -> None:
    """In Parquet every function has the keys of all, null where it has none; some data sets keep them as text."""
    other = json.loads(json.dumps(TOOL))
    other["function"]["parameters"]["properties"] = {"b": {"type": "string"}}
    rows: list[dict[str, Any]] = [
        {"prompt": [USER], "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}},
        {"prompt": [USER], "tools": [other], "chat_template_kwargs": {"enable_thinking": True}},
        {"prompt": [USER], "tools": [], "chat_template_kwargs": None},
    ]
    expected = [
        apply_chat_template({"prompt": row["prompt"], "chat_template_kwargs": row["chat_template_kwargs"] or {}},
                            tokenizer(TEXTS), tools=row["tools"])["prompt"]
        for row in rows
    ]  # fmt: skip
    if stored == "text":
        rows = [{**row, "tools": json.dumps(row["tools"])} for row in rows]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    else:
        lines(tmp_path / "p.jsonl", rows)
    prompts = read_prompts(tmp_path / f"p.{suffix}")
    ids = [list(prompt.ids or ()) for prompt in encode_prompts(prompts, tokenizer(TEXTS))]
    assert ids == [tokenizer(TEXTS)(text, add_special_tokens=False)["input_ids"] for text in expected]
    texts = rollouts_from_dicts([{**p.carried, "id": p.id, "response": "3"} for p in prompts])
    assert [list(r.prompt_ids) for r in encode_rollouts(texts, tokenizer(TEXTS))] == ids
    made = PromptMaker(TeacherPrompt(template=OWN), TEXTS, "its own", tokenizer(TEXTS)).ids(texts)
    assert [list(one) for one in made] == ids
    assert prompts_digest(prompts) != prompts_digest([replace(p, extra={}) for p in prompts])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tools", {"name": "add"}, "tools is dict; expected a list of objects"),
        ("tools", "add", "tools is str; expected a list"),
        ("chat_template_kwargs", [1], "chat_template_kwargs is list; expected an object"),
    ],
)
def test_rows_that_say_something_else_to_the_template(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"prompt '0': {message}"):
        encode_prompts([Prompt("0", messages=(USER,), extra={field: value})], tokenizer(TEXTS))


BEGUN = [USER, {"role": "assistant", "content": "It is"}]


def test_a_prompt_that_ends_in_a_turn_of_the_assistant_goes_on() -> None:
    expected = apply_chat_template({"prompt": BEGUN}, tokenizer(TEXTS))["prompt"]
    assert expected.endswith("[assistant] It is")
    with pytest.warns(
        OpdProbeWarning, match="^prompts: 1 of 2 end in a turn of the assistant, which the response goes"
    ):
        begun, _ = encode_prompts([Prompt("0", messages=BEGUN), Prompt("1", messages=[USER])], tokenizer(TEXTS))
    assert list(begun.ids or ()) == tokenizer(TEXTS)(expected, add_special_tokens=False)["input_ids"]
    with pytest.warns(OpdProbeWarning, match="rollouts: prompts: 1 of 1 end in a turn"):
        (text,) = encode_rollouts(rollouts_from_dicts([{"messages": BEGUN, "response": "three"}]), tokenizer(TEXTS))
    assert text.prompt_ids == begun.ids
    assert messages_of("r", text) == BEGUN  # the teacher reads the beginning, too


def test_a_last_turn_that_is_the_response_is_no_beginning() -> None:
    talk = [USER, {"role": "assistant", "content": [{"type": "text", "text": "three"}]}]
    for row in ({"messages": talk}, {"messages": talk, "response": "three"}):
        (rollout,) = rollouts_from_dicts([row])
        assert (rollout.response, rollout.extra["messages"]) == ("three", [USER])
    (ids,) = rollouts_from_dicts([{"messages": talk, "prompt_ids": [3], "response_ids": [4], "response": "three"}])
    assert messages_of("r", ids) == [USER]


def test_words_that_the_template_leaves_out_are_told() -> None:
    no_tools = "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }} {% endif %}{% endfor %}"
    said = [USER, {"role": "assistant", "content": "<think>hm</think> Sum"}, {"role": "tool", "content": "seven 7"}]
    assert lost_words(said, "WHAT is one plus two? sum") == ["seven", "7"]
    assert lost_words([{"role": "user", "content": "größer (als) zwei"}], "user:größer (als)zwei") == []
    expected = (
        "^prompts: the chat template leaves out words of the messages of 1 of 2: of 'b' 'seven', '7'; the student"
    )
    with pytest.warns(OpdProbeWarning, match=expected):
        encode_prompts([Prompt("a", messages=[USER]), Prompt("b", messages=said)], tokenizer(no_tools))


def planned(root: Path, **options: Any) -> list[Prompt]:
    """The prompts of a request, rendered by its student."""
    if not (root / "student").exists():
        save_checkpoint(root / "student", tiny_model(hidden=16, layers=1), tokenizer(QUESTION_TEMPLATE))
        rows = [{"prompt": [USER]}, {"prompt": [USER], "chat_template_kwargs": {"enable_thinking": True}}]
        lines(root / "p.jsonl", rows)
    student = str(root / "student")
    (plan,) = plan_runs(Request(ckpts=(student,), teachers=(student,), prompts=str(root / "p.jsonl"), options=options))
    return encode_prompts(Files([plan]).prompts(plan), tokenizer(QUESTION_TEMPLATE))


def test_variables_by_option_go_before_those_of_a_row(tmp_path: Path) -> None:
    plain, off = planned(tmp_path), planned(tmp_path, thinking="off")
    assert plain[0].ids == plain[1].ids
    thought = tokenizer(QUESTION_TEMPLATE)("<think> </think>", add_special_tokens=False)["input_ids"]
    assert [list(p.ids or ()) for p in off] == [[*(p.ids or ()), *thought] for p in plain]
    assert [p.ids for p in planned(tmp_path, template_kwargs='{"enable_thinking": false}')] == [p.ids for p in off]
    assert [p.ids for p in planned(tmp_path, thinking="on")] == [p.ids for p in plain]
    with pytest.raises(InputError, match="--template-kwargs: "):
        planned(tmp_path, template_kwargs="[1]")
    with pytest.raises(InputError, match="--thinking: "):
        planned(tmp_path, thinking="maybe")
    (tmp_path / "student" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match=r"--thinking: the chat template of .* says the same with and without"):
        planned(tmp_path, thinking="on")
