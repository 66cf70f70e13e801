"""The teacher's prompt from chat messages: templates, system messages, thinking modes and contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd_probe.errors import InputError
from opd_probe.rollouts.prompts import render_messages
from opd_probe.rollouts.teacher_prompts import PromptMaker, TeacherPrompt, given_prompts
from opd_probe.types import Rollout
from tests.tiny import CHAT_TEMPLATE, QUESTION_TEMPLATE, tiny_tokenizer

WORDS = [*(str(number) for number in range(12)), "<|system|>", "<|user|>", "<|assistant|>", "Q:", "A:", "<think>",
         "</think>", "hint:", "be", "brief", "<|developer|>"]  # fmt: skip
USER = {"role": "user", "content": "1 2"}
SYSTEM = {"role": "system", "content": "be brief"}


def rollout(*messages: Any, id: str = "r", **extra: Any) -> Rollout:
    return Rollout(id, (3,), (4, 5), answer="3", extra={"messages": list(messages), **extra})


def prompts(wanted: TeacherPrompt, *rollouts: Rollout, template: str = CHAT_TEMPLATE) -> list[str]:
    tokenizer = tiny_tokenizer(words=WORDS)
    made = PromptMaker(wanted, template, "the template", tokenizer).ids(rollouts)
    return [" ".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in made]


def test_each_template_ends_with_its_generation_prompt() -> None:
    assert prompts(TeacherPrompt("own"), rollout(USER)) == ["<|user|> 1 2 <|assistant|>"]
    assert prompts(TeacherPrompt("own"), rollout(USER), template=QUESTION_TEMPLATE) == ["Q: 1 2 A:"]


def test_a_response_among_the_messages_is_not_part_of_the_prompt() -> None:
    answered = rollout(USER, {"role": "assistant", "content": "4 5"})
    assert prompts(TeacherPrompt("own"), answered) == ["<|user|> 1 2 <|assistant|>"]
    turns = rollout(USER, {"role": "assistant", "content": "4"}, {"role": "user", "content": "6"})
    assert prompts(TeacherPrompt("own"), turns) == ["<|user|> 1 2 <|assistant|> 4 <|user|> 6 <|assistant|>"]


@pytest.mark.parametrize(
    ("messages", "system", "expected"),
    [
        ([SYSTEM, USER], None, "<|system|> be brief <|user|>"),
        ([SYSTEM, USER], "5 6", "<|system|> 5 6 <|user|>"),
        ([SYSTEM, USER], "", "<|user|>"),
        ([USER], "5 6", "<|system|> 5 6 <|user|>"),
        ([USER], "", "<|user|>"),
        ([{**SYSTEM, "role": "developer"}, USER], "5", "<|developer|> 5 <|user|>"),
    ],
)
def test_the_system_message(messages: list[Any], system: str | None, expected: str) -> None:
    assert prompts(TeacherPrompt(system=system), rollout(*messages)) == [f"{expected} 1 2 <|assistant|>"]


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_the_thinking_mode(name: str) -> None:
    template = QUESTION_TEMPLATE.replace("enable_thinking", name)
    assert prompts(TeacherPrompt(thinking=False), rollout(USER), template=template) == ["Q: 1 2 A: <think> </think>"]
    assert prompts(TeacherPrompt(thinking=True), rollout(USER), template=template) == ["Q: 1 2 A:"]
    with pytest.raises(InputError, match=r"--teacher-thinking: the chat template the template says the same") as caught:
        prompts(TeacherPrompt(thinking=False), rollout(USER))
    assert "\n" not in str(caught.value)


def test_the_context_stands_at_the_end_of_the_last_user_message() -> None:
    wanted = TeacherPrompt(context="answer")
    turns = [USER, {"role": "assistant", "content": "4"}, {"role": "user", "content": "6"}]
    assert prompts(wanted, rollout(*turns)) == ["<|user|> 1 2 <|assistant|> 4 <|user|> 6 3 <|assistant|>"]
    text = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    parts = {"role": "user", "content": [{"type": "text", "text": "1 2"}]}
    assert prompts(wanted, rollout(parts), template=text) == ["1 2 3"]
    verbatim = "{{ messages[0]['content'] | replace('\n\n', ' <think> ') }}"
    assert prompts(wanted, rollout(USER), template=verbatim) == ["1 2 <think> 3"]  # after a blank line


def test_or_where_the_template_wants_it() -> None:
    template = "{% if context %}hint: {{ context }} {% endif %}" + CHAT_TEMPLATE
    assert prompts(TeacherPrompt(context="answer"), rollout(USER), template=template) == [
        "hint: 3 <|user|> 1 2 <|assistant|>"
    ]
    assert prompts(TeacherPrompt("own"), rollout(USER), template=template) == ["<|user|> 1 2 <|assistant|>"]


def test_the_template_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "teacher-prompts.md").read_text()
    template = page.split("```jinja\n")[1].split("```")[0]
    turns = [SYSTEM, USER]
    told = render_messages("x", turns, tiny_tokenizer(), template=template, variables={"context": "3"})
    plain = render_messages("x", turns, tiny_tokenizer(), template=template)
    assert plain == ("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n1 2<|im_end|>\n<|im_start|>assistant\n")
    assert told == plain.replace("1 2", "1 2\nA reference solution, which you must not mention:\n3")


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("hint", "7"),
        ("extra_info.solution", "8 9"),
        ("extra.dotted", "10"),
        ("hint: {hint} {extra_info.solution}", "hint: 7 8 9"),
        ("extra_info.number", "11"),
    ],
)
def test_fields_of_the_context(context: str, expected: str) -> None:
    told = rollout(USER, hint="7", extra_info={"solution": "8 9", "number": 11, "none": None}, **{"extra.dotted": "10"})
    assert prompts(TeacherPrompt(context=context), told) == [f"<|user|> 1 2 {expected} <|assistant|>"]


def test_each_rollout_reads_its_own_context() -> None:
    both = [rollout(USER, id=str(i), hint=str(i)) for i in range(2)]
    read = prompts(TeacherPrompt(context="hint"), *both)
    assert read == [f"<|user|> 1 2 {i} <|assistant|>" for i in range(2)]


@pytest.mark.parametrize(
    ("wanted", "given", "message"),
    [
        (TeacherPrompt("own"), Rollout("r", (1,), (2,)), r"rollout 'r': no chat messages \(only token ids\)"),
        (TeacherPrompt("own"), Rollout("r", (), (), prompt="x"), r"rollout 'r': no chat messages \(only text\)"),
        (TeacherPrompt("own"), rollout({"role": "assistant", "content": "4"}), "hold a response alone"),
        (TeacherPrompt("own"), rollout("x"), "messages must be"),
        (
            TeacherPrompt(context="solution"),
            rollout(USER, extra_info={"a": 1, "b": None}, hint="7"),
            r"no field 'solution' for --teacher-context; it has answer, extra_info.a, hint$",
        ),
        (TeacherPrompt(context="{hint} {none}"), rollout(USER, hint="7"), "no field 'none'"),
        (TeacherPrompt(context="answer"), rollout(SYSTEM), "no message of the user"),
    ],
)
def test_what_cannot_be_made_is_one_line(wanted: TeacherPrompt, given: Rollout, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prompts(wanted, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no system\nturns') }}", "{{ a.b.c }}"])
def test_a_template_that_fails_is_one_line(template: str) -> None:
    with pytest.raises(InputError, match="rollout 'r': the chat template refuses the messages") as caught:
        prompts(TeacherPrompt("x"), rollout(USER), template=template)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="makes an empty prompt"):
        prompts(TeacherPrompt("x"), rollout(USER), template="{# nothing #}")


def test_prompts_of_a_program() -> None:
    tokenizer = tiny_tokenizer(words=WORDS, chat_template=QUESTION_TEMPLATE)
    rollouts = [Rollout("a", (1,), (2,)), Rollout("b", (1,), (2,)), Rollout("c", (1,), ())]
    made = given_prompts([np.array([5, 6]), [USER], []], rollouts, lambda: tokenizer)
    assert [list(ids) for ids in made.ids] == [[5, 6], tokenizer.convert_tokens_to_ids(["Q:", "1", "2", "A:"]), []]
    bad: list[tuple[Any, str]] = [
        ([[1]], "1 for 3 rollouts"),
        ("abc", "str for 3 rollouts"),
        (7, "int for 3 rollouts"),
        ([[1], "x", [1]], "rollout 'b': its teacher prompt is str"),
        ([[1], [1.5], [1]], "rollout 'b': its teacher prompt holds something else than token ids"),
        ([[1], [None], [1]], "rollout 'b': its teacher prompt holds something else than token ids"),
        ([[1], [{"role": "user"}], [1]], "rollout 'b': its teacher prompt: messages must be"),
    ]
    for prompts, message in bad:
        with pytest.raises(InputError, match=message) as caught:
            given_prompts(prompts, rollouts, lambda: tokenizer)
        assert "\n" not in str(caught.value)
    for none in (None, tiny_tokenizer()):
        with pytest.raises(InputError, match=r"rollout 'b': .* the teacher has no chat template"):
            given_prompts([[1], [USER], [1]], rollouts, lambda none=none: none)  # type: ignore[misc]
