"""Responses sampled from a server: what a real vLLM drew, which of its models is which checkpoint, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning, ServerError
from opd_probe.models.outline import Outline
from opd_probe.models.served.client import Patience
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import ServedModel, connect
from opd_probe.models.served.sampling import AT_ONCE, sample_from_server, served_checkpoint
from opd_probe.types import Checkpoint, Rollout
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, Fault, Served, serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.models.served.vllm_server import VLLMAnswers
from tests.tiny import tiny_model, tiny_tokenizer

QUICK = Patience(attempts=3, first=0.001, longest=0.01)
ALLOWED = np.setdiff1d(np.arange(cases.WIDTH), cases.BANNED)
OUTLINE = Outline("tiny-student", None, cases.WIDTH, 128, cases.EOS)


@pytest.fixture(scope="module")
def recorded() -> Exchanges:
    return Exchanges.read("vllm_student.jsonl")


@pytest.fixture
def server(recorded: Exchanges) -> Iterator[Served]:
    with serving(recorded) as served:
        yield served


def reach(server: Served) -> ServedModel:
    return connect(parse_endpoint(server.url), patience=QUICK)


def sampled(server: Served, outline: Outline = OUTLINE, **options: Any) -> list[Rollout]:
    return sample_from_server(outline, reach(server), cases.PROMPTS, **{**cases.SAMPLING, **options})


def drawn(server: Served) -> list[Any]:
    """The requests for responses; others ask for scores of the first of them."""
    return [body for body in server.bodies("/v1/completions") if "seed" in body]


def check(rollouts: list[Rollout], sampler: str) -> None:
    """Whole responses, by prompt and sample, with the student's own log-probabilities."""
    expected = [(f"{p.id}/{n}", p.ids, p.id) for p in cases.PROMPTS for n in range(cases.SAMPLING["num_rollouts"])]
    assert [(r.id, tuple(r.prompt_ids), r.prompt_id) for r in rollouts] == expected
    for rollout in rollouts:
        assert not set(rollout.response_ids[:-1]) & set(cases.EOS)
        stopped = rollout.response_ids[-1] in cases.EOS
        assert rollout.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(rollout.response_ids) == cases.SAMPLING["max_new_tokens"]
        assert (rollout.sampler, rollout.token_source) == (sampler, "sampled_ids")
    assert len({rollout.response_ids for rollout in rollouts}) > 3


def check_logprobs(rollouts: list[Rollout]) -> None:
    trace = opd_probe.replay(cases.student(), cases.student(), rollouts, k=2)
    np.testing.assert_allclose(trace.column("sampler_logprob"), trace.column("student_logprob"), atol=1e-3)


def test_what_vllm_drew(server: Served) -> None:
    counts: list[tuple[int, int]] = []
    rollouts = sampled(server, step=20, progress=lambda *done: counts.append(done))
    check(rollouts, "vllm 0.32.0, served")
    check_logprobs(rollouts)
    assert {rollout.step for rollout in rollouts} == {20}
    assert counts == [(done, 6) for done in range(1, 7)]
    assert server.most <= AT_ONCE
    seeds = [body["seed"] for body in drawn(server)]
    assert len(set(seeds)) == len(seeds)


def test_ids_that_are_not_shared_are_not_drawn(server: Served) -> None:
    rollouts = sampled(server, allowed_ids=ALLOWED)
    check(rollouts, "vllm 0.32.0, served")
    assert not {token for rollout in rollouts for token in rollout.response_ids} & set(cases.BANNED)
    assert rollouts != sampled(server)


def test_at_another_temperature_the_log_probabilities_are_unknown(server: Served) -> None:
    served = reach(server)
    rollouts = sample_from_server(OUTLINE, served, cases.PROMPTS[:1], **cases.SAMPLING, temperature=0.5)
    assert all(rollout.logprobs is None for rollout in rollouts)
    asked = [(body["temperature"], body["max_tokens"]) for body in drawn(server)]
    assert asked.count((0.5, 8)) == 3
    assert asked.count((1.0, 8)) == 1  # the server is held against itself


def test_text_is_decoded_here(server: Served) -> None:
    rollouts = sampled(server, replace(OUTLINE, tokenizer=tiny_tokenizer(cases.WIDTH)))
    assert all(rollout.response for rollout in rollouts)


def test_sglang_in_its_layout() -> None:
    with serving(SGLangAnswers(cases.student())) as server:
        rollouts = sampled(server)
        check(rollouts, "sglang 0.5.23, served")
        check_logprobs(rollouts)
        banned = sampled(server, allowed_ids=ALLOWED)
        assert not {token for rollout in banned for token in rollout.response_ids} & set(cases.BANNED)


def test_a_server_that_disregards_what_it_was_asked(server: Served, recorded: Exchanges) -> None:
    known = copy.deepcopy(recorded.known)
    for key, (_, answer) in known.items():
        if '"logit_bias"' in key and "choices" in answer:
            answer["choices"][0]["token_ids"][0] = cases.BANNED[0]
    server.exchanges = Exchanges(known)
    with pytest.raises(ServerError, match=r"'[ab]/[012]': holds an id that was not to be sampled"):
        sampled(server, allowed_ids=ALLOWED)
    for _, answer in known.values():
        if "choices" in answer and answer["choices"][0]["logprobs"] is not None:
            choice = answer["choices"][0]
            choice["token_ids"], choice["logprobs"]["token_logprobs"] = [3, 4], [-1.0, -2.0]
    with pytest.raises(ServerError, match=r"ended after 2 tokens without EOS \(the server says (stop|length)\)"):
        sampled(server)
    for _, answer in known.values():
        if "choices" in answer:
            answer["choices"][0]["token_ids"] = []
    with pytest.raises(ServerError, match=r"the answer of /v1/completions 0 sampled ids with 2 log-probabilities"):
        sampled(server)


def test_what_passes_is_tried_again(server: Served) -> None:
    server.fail("/v1/completions", [Fault(503), Fault(close=True)])
    check(sampled(server), "vllm 0.32.0, served")


def test_what_was_drawn_before_an_interrupt_is_not_drawn_again(server: Served, tmp_path: Path) -> None:
    drafts, path = tmp_path / "new" / ".drafts", "/v1/completions"
    whole = sampled(server)
    server.fail(path, [None, Fault(400, b"no"), None])
    with pytest.raises(ServerError, match="answers 400"):
        sampled(server, drafts=drafts)
    lines = drafts.read_text().splitlines()
    assert 2 <= len(lines) <= 6  # the key, and what was drawn beside the refused one
    drafts.write_text("\n".join([*lines, lines[-1][:20]]))  # cut off in the middle of a line
    server.fail(path, [])
    before = len(drawn(server))
    assert sampled(server, drafts=drafts) == whole
    assert len(drawn(server)) - before == 6 - (len(lines) - 1)
    before = len(server.bodies(path))
    assert sampled(server, drafts=drafts) == whole
    assert len(server.bodies(path)) == before
    before = len(drawn(server))
    assert sampled(server, drafts=drafts, allowed_ids=ALLOWED) != whole  # under another key
    assert len(drawn(server)) == before + 6 + len(cases.PROMPTS)  # an answer of all ids to each prompt


@pytest.mark.parametrize("content", ["", "garbage", "[1]", '{"key": 3}\n[]', "\x00"])
def test_drafts_that_are_broken_are_started_afresh(server: Served, tmp_path: Path, content: str) -> None:
    (tmp_path / "drafts").write_text(content)
    assert len(sampled(server, drafts=tmp_path / "drafts")) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.001}, "sample temperature = 0.001; expected at least 0.01"),
        ({"max_new_tokens": 124}, "prompts of up to 5 tokens and 124 new ones need more"),
        ({"num_rollouts": 0}, "num_rollouts = 0"),
    ],
)
def test_refused_before_anything_is_asked(server: Served, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        sampled(server, replace(OUTLINE, max_positions=None), **options)
    assert server.bodies("/v1/completions") == []


def test_too_many_ids_to_leave_out() -> None:
    wide = replace(OUTLINE, width=5000)
    with serving(SGLangAnswers(cases.student())) as server:
        with pytest.raises(InputError, match=r"4990 of the student's 5000 ids are not shared.*1024 at most"):
            sampled(server, wide, allowed_ids=np.arange(10))
        assert server.bodies("/generate") == []


def cards(*entries: dict[str, Any]) -> Exchanges:
    filled = [{"owned_by": "vllm", "max_model_len": 128, "parent": None, **entry} for entry in entries]
    return Exchanges(
        {"GET /v1/models null": (200, {"data": filled}), "GET /version null": (200, {"version": "0.32.0"})}
    )


def test_which_model_is_which_checkpoint(tmp_path: Path) -> None:
    found = [Checkpoint(str(tmp_path / f"checkpoint-{step}"), step=step) for step in (10, 20, 30)]
    for checkpoint in found:
        Path(checkpoint.path).mkdir()
    base = {"id": "base", "root": "/models/base"}
    adapters = [
        {"id": "first", "root": found[0].path, "parent": "base"},
        {"id": found[1].path, "root": None, "parent": "base"},
        {"id": "ckpt-30", "root": "somewhere", "parent": "base"},
    ]
    with serving(cards(base, *adapters)) as server:

        def of(checkpoint: Checkpoint, model: str = "", *, alone: bool = False) -> str:
            return served_checkpoint(parse_endpoint(server.url + model), checkpoint, alone=alone, patience=QUICK).model

        assert of(found[0]) == "first"  # the server says where it loaded it from
        assert of(found[1]) == found[1].path
        with pytest.raises(InputError, match=r"none of its models \(base, first, .*\) says that it was loaded from"):
            of(found[2])
        assert of(found[2], "#ckpt-{step}") == "ckpt-30"
        with pytest.raises(InputError, match="has no model 'ckpt-20'"):
            of(found[1], "#ckpt-{step}")
        with pytest.raises(InputError, match="one model for several checkpoints"):
            of(found[0], "#base")
        assert of(found[0], "#base", alone=True) == "base"  # the user says so
        with pytest.raises(InputError, match=r"the step of .* is unknown"):
            of(replace(found[0], step=None), "#ckpt-{step}")
    with serving(cards({"id": "org/name", "root": "org/name"})) as server:
        hub = Checkpoint("org/name", format="hub")
        assert served_checkpoint(parse_endpoint(server.url), hub, alone=True, patience=QUICK).model == "org/name"


def test_answers_from_a_prefix_cache_of_other_weights(tmp_path: Path) -> None:
    answers = VLLMAnswers(cases.student())
    with serving(answers) as server:
        check_logprobs(sampled(server))
        answers.cached = tiny_model(cases.WIDTH, hidden=64, seed=4, tied=False, spread=0.5)
        drafts = tmp_path / "drafts"
        for options in ({}, {"temperature": 0.7}, {"allowed_ids": ALLOWED}):
            said = r"rollout '[ab]/\d': its log-probabilities of \d+ sampled tokens and its own scores .* reset"
            with pytest.raises(ServerError, match=said) as caught:
                sampled(server, drafts=drafts, **options)
            assert "\n" not in str(caught.value)
        assert not drafts.exists()  # none of them is used later


def test_raw_logits_in_place_of_log_probabilities() -> None:
    answers = VLLMAnswers(cases.student())
    with serving(answers) as server:
        for raw in (0.0, 60.0):
            answers.raw = raw
            with pytest.raises(ServerError, match="--logprobs-mode raw_logprobs"):
                sampled(server)


def test_a_small_difference_is_a_warning() -> None:
    answers = VLLMAnswers(cases.student())
    answers.noise = 0.1
    with serving(answers) as server, pytest.warns(OpdProbeWarning, match=r"differ by 0\.\d+ nats .*\d+ tokens"):
        sampled(server)


def test_an_adapter_has_the_context_of_its_parent() -> None:
    answers = VLLMAnswers(cases.student(), adapters=("lora",))
    longer = {"max_new_tokens": 124}
    unlimited = replace(OUTLINE, max_positions=None)
    with serving(answers) as server:
        served = connect(parse_endpoint(f"{server.url}#lora"), patience=QUICK)
        assert (served.context, served.max_positions) == (128, 127)
        with pytest.raises(InputError, match=r"lora at .*prompts of up to 5 tokens and 124 new ones .* context of 128"):
            sample_from_server(unlimited, served, cases.PROMPTS, **{**cases.SAMPLING, **longer})
        answers.cards[0]["max_model_len"] = None  # nothing tells: it cuts in silence, as vLLM does
        answers.context = 12
        served = connect(parse_endpoint(f"{server.url}#lora"), patience=QUICK)
        silent = replace(unlimited, eos_ids=(63,))
        with pytest.raises(ServerError, match=r"have 12 tokens: is that its context\? then lower --max-new-tokens"):
            sample_from_server(silent, served, cases.PROMPTS, **{**cases.SAMPLING, **longer})


def test_an_answer_that_is_broken_off_is_asked_for_again() -> None:
    answers, seen = VLLMAnswers(cases.student()), []

    def aborts(answer: Any, body: Any) -> None:
        if "seed" in body:
            seen.append(body)
            if len(seen) == 1:
                answer["choices"][0].update(finish_reason="abort", token_ids=[], logprobs={"token_logprobs": []})

    answers.change = aborts
    with serving(answers) as server:
        check(sampled(server), "vllm 0.32.0, served")
    assert len(seen) == 6 + 1
