"""Masks that hide the end of a response, count padding, or count what the student did not write."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import opd_probe
from opd_probe.checks import CheckOptions, Finding, Pair, examine, gather
from opd_probe.checks.mask import PLACEHOLDER, turn_markers
from opd_probe.lab.models import EOS_ID, PAD_ID
from opd_probe.models.loading import load_model
from opd_probe.types import Rollout
from tests.checks.clinic import Clinic, edit_json
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer


def masked(rollout: Rollout, *hidden: int) -> Rollout:
    bits = [1] * len(rollout.response_ids)
    for place in hidden:
        bits[place] = 0
    return replace(rollout, response_mask=bits)


def test_pad_that_is_eos_hides_the_end(clinic: Clinic, tmp_path: Path) -> None:
    """A mask made as ids != pad, from a tokenizer whose pad is EOS."""
    student = clinic.copy("student", tmp_path)
    edit_json(student / "tokenizer_config.json", lambda content: content.update(pad_token="<eos>"))
    hidden = [replace(r, response_mask=[int(token != EOS_ID) for token in r.response_ids]) for r in clinic.rollouts]
    line = clinic.findings(hidden, student=student)["mask_eos"]
    assert line.status == "fail"
    assert line.values["n_hidden"] == line.values["n_finished"] == len(clinic.rollouts)
    assert "the EOS of 16 is masked" in line.figure
    assert line.figure.endswith("; pad is EOS")
    assert "from lengths" in line.advice


def test_padding_that_is_counted(clinic: Clinic) -> None:
    def padded(rollout: Rollout) -> Rollout:
        return replace(rollout, response_ids=(*rollout.response_ids, PAD_ID, PAD_ID), logprobs=None, extra={})

    line = clinic.findings(clinic.altered(padded))["mask_eos"]
    assert (line.status, line.values["n_padding_counted"]) == ("fail", 16)
    ignored = [masked(padded(rollout), -1, -2) for rollout in clinic.rollouts]
    assert clinic.findings(ignored)["mask_eos"].status == "ok"


def test_an_end_that_was_stripped(clinic: Clinic) -> None:
    def stripped(rollout: Rollout) -> Rollout:
        return replace(rollout, response_ids=rollout.response_ids[:-1], logprobs=None, extra={})

    line = clinic.findings(clinic.altered(stripped))["mask_eos"]
    assert (line.status, line.values["n_missing"]) == ("warn", 16)


def test_placeholders_inside_the_mask(clinic: Clinic) -> None:
    first, second, *others = clinic.rollouts
    zeros = [0.0 if 3 <= place < 9 else value for place, value in enumerate(first.logprobs or ())]
    line = clinic.findings([replace(first, logprobs=zeros), second, *others])["mask_zeros"]
    refuted = sum(value < PLACEHOLDER for value in (first.logprobs or ())[3:9])
    assert line.status == "fail"
    assert line.values["n_placeholders"] == refuted > 0
    assert f"{refuted} counted tokens" in line.figure
    assert f"in rollout {first.id!r}" in line.figure
    hidden = masked(replace(first, logprobs=zeros), *range(3, 9))
    assert clinic.findings([hidden, second, *others])["mask_zeros"].status == "ok"


def test_placeholders_among_the_teachers(clinic: Clinic) -> None:
    def placed(rollout: Rollout) -> Rollout:
        return replace(rollout, extra={"teacher_logprobs": [0.0] * 4 + list(rollout.extra["teacher_logprobs"])[4:]})

    line = clinic.findings(clinic.altered(placed))["mask_zeros"]
    assert line.status == "fail"
    assert 1 <= line.values["longest_run"] <= 4


@pytest.mark.parametrize("above", [-0.05, -0.6])
def test_a_certain_token_is_no_placeholder(clinic: Clinic, above: float) -> None:
    """Rounding makes 0.0 of a log-probability near 0, and top-p of a token that alone is enough."""
    rounded = [
        replace(r, logprobs=[0.0 if value > above else value for value in r.logprobs or ()]) for r in clinic.rollouts
    ]
    assert any(0.0 in (rollout.logprobs or ()) for rollout in rounded)
    assert clinic.findings(rounded)["mask_zeros"].status == "ok"


MARKERS = ["<|user|>", "<|assistant|>", "<|tool|>"]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template whose turns open with special tokens."""
    words = [*MARKERS, *(str(number) for number in range(58))]
    tokenizer = tiny_tokenizer(words=words, chat_template=CHAT_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    return save_checkpoint(tmp_path_factory.mktemp("chat") / "model", tiny_model(64), tokenizer)


def turns(chat: Path, response: list[int], mask: list[int]) -> Finding:
    row: dict[str, Any] = {"prompt_ids": [3, 6, 4], "response_ids": response, "response_mask": mask}
    return {finding.check: finding for finding in opd_probe.doctor(chat, chat, [row])}["mask_tokens"]


def test_tool_turns_inside_the_mask(chat: Path) -> None:
    response = [7, 8, 5, 20, 21, 3, 22, 4, 9, 1]
    line = turns(chat, response, [1] * 10)
    assert line.status == "fail"
    assert line.values == {"n_tokens": 10, "n_of_other_turns": 2, "n_special": 1}
    assert "2 markers of other turns" in line.figure
    assert turns(chat, response, [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]).status == "ok"


def test_a_student_that_opens_another_turn_itself(chat: Path) -> None:
    rollout = Rollout("r", (5,), (7, 8, 5, 20, 1))
    load = partial(load_model, chat)
    for here, status in ((False, "fail"), (True, "warn")):
        found = examine(gather(Pair(load, load), [rollout], CheckOptions(k=4, sampled=here)))
        assert next(line.status for line in found if line.check == "mask_tokens") == status


def test_another_special_token_inside_the_mask(chat: Path) -> None:
    line = turns(chat, [7, 2, 8, 1], [1] * 4)
    assert line.status == "warn"
    assert "most often <unk> (2)" in line.figure


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'tool' %}<tool_response>{{ m['content'] }}</tool_response>"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    + CHATML[len("{% for m in messages %}") :]
)


@pytest.mark.parametrize(
    ("template", "eos", "own", "others"),
    [
        (CHATML, "<|im_end|>", {"<|im_end|>"}, {"<|im_start|>", "<tool_response>", "</tool_response>"}),
        (STRICT, "<|im_end|>", {"<|im_end|>"}, {"<|im_start|>"}),
        (CHANNELS, "<|return|>", {"<|channel|>", "<|message|>", "<|return|>"}, {"<|start|>", "<|end|>"}),
    ],
)
def test_markers_of_real_layouts(template: str, eos: str, own: set[str], others: set[str]) -> None:
    """ChatML as Qwen has it, one that refuses tools, and channels that the student itself opens."""
    tokenizer = tiny_tokenizer(words=["user", "assistant", "tool", "final", "a", "b", "c"], chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*own, *others} - {"<tool_response>"})})
    tokenizer.add_tokens(["<tool_response>"])  # added, but not special, as in Qwen3
    tokenizer.eos_token = eos
    found = turn_markers(tokenizer)
    assert tuple({tokenizer.convert_ids_to_tokens(token) for token in side} for side in found) == (own, others)


def test_markers_come_from_the_template() -> None:
    words = [*MARKERS, "a", "b", "c"]
    plain = tiny_tokenizer(words=words)
    assert turn_markers(plain) == ({1}, set())
    chatty = tiny_tokenizer(words=words, chat_template=CHAT_TEMPLATE)
    chatty.add_special_tokens({"additional_special_tokens": MARKERS})
    own, others = turn_markers(chatty)
    assert own == {1}
    assert {"<|user|>", "<|tool|>"} <= {chatty.convert_ids_to_tokens(token) for token in others}


def test_zeros_of_a_greedy_sampler_are_no_placeholders(clinic: Clinic) -> None:
    greedy = [replace(r, logprobs=[0.0] * len(r.response_ids), extra={}) for r in clinic.rollouts]
    found = clinic.findings(greedy)
    assert found["mask_zeros"].status == "skip"
    assert "temperature 0" in found["mask_zeros"].figure
    assert found["sampler_logprobs"].status == "warn"
    assert "sampled at temperature 0" in found["sampler_logprobs"].figure
    assert "--temperature" in found["sampler_logprobs"].advice
    some = [replace(greedy[0], logprobs=[-1.0] * len(greedy[0].response_ids)), *greedy[1:]]
    assert clinic.findings(some)["mask_zeros"].status == "fail"
    taught = [replace(r, extra={"teacher_logprobs": [0.0] * len(r.response_ids)}) for r in greedy]
    assert clinic.findings(taught)["mask_zeros"].status == "fail"  # no teacher is certain of all
