"""Served teachers whose lists are none, or of other weights: what is unknown, what is refused, what is made anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opd_probe
from opd_probe.curves.summary import summary_row
from opd_probe.errors import OpdProbeWarning, ServerError
from opd_probe.integrations.probe import make_probe
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import connect
from opd_probe.trace import Trace
from tests.models.served import cases
from tests.models.served.recorded_server import Served, serving
from tests.models.served.sglang_server import SGLangAnswers
from tests.models.served.vllm_server import VLLMAnswers
from tests.tiny import tiny_model

PATH = "/v1/completions"
ROLLOUT, POSITION = "r2", 3
"""The state whose list is broken."""


@pytest.fixture(scope="module")
def student() -> LoadedModel:
    return load_model(cases.student())


@pytest.fixture
def answers() -> VLLMAnswers:
    return VLLMAnswers(cases.teacher())


@pytest.fixture
def server(answers: VLLMAnswers) -> Iterator[Served]:
    with serving(answers) as served:
        yield served


@pytest.fixture(scope="module")
def whole(student: LoadedModel) -> Trace:
    """What the same replay holds of a server without faults."""
    with serving(VLLMAnswers(cases.teacher())) as served:
        return replayed(served, student)


def replayed(server: Served, student: Any, **options: Any) -> Trace:
    return opd_probe.replay(student, server.url, cases.rollouts(), **{"k": cases.K, **options})


def broken() -> tuple[list[int], int]:
    """The ids that are asked of the rollout, and the place of the broken state."""
    row = next(row for row in cases.rollouts() if row["id"] == ROLLOUT)
    return row["prompt_ids"] + row["response_ids"], len(row["prompt_ids"]) + POSITION


def breaking(change: Callable[[list[Any], int], None]) -> Callable[[Any, Any], None]:
    """A change of the entries of the broken rollout alone, called with them and the place."""
    ids, place = broken()

    def applied(answer: Any, body: Any) -> None:
        if body["prompt"] == ids:
            change(answer["choices"][0]["prompt_logprobs"], place)

    return applied


def null_list(entries: list[Any], place: int) -> None:
    entries[place] = None


def not_a_number(entries: list[Any], place: int) -> None:
    next(iter(entries[place].values()))["logprob"] = math.nan


@pytest.mark.parametrize(
    ("change", "came"), [(null_list, "null in place of a list"), (not_a_number, "NaN in place of a log-probability")]
)
def test_a_state_without_a_list_is_unknown_and_counted(
    change: Any, came: str, server: Served, answers: VLLMAnswers, student: LoadedModel, whole: Trace
) -> None:
    answers.change = breaking(change)
    said = f"1 of {whole.n_states} states are unknown.*'{ROLLOUT}', position {POSITION} .{came}"
    with pytest.warns(OpdProbeWarning, match=said):
        trace = replayed(server, student)
    assert [body["prompt"] for body in server.bodies(PATH)].count(broken()[0]) == 2  # asked again once
    check_unknown(trace, whole)
    line = {f.check: f for f in opd_probe.doctor(student, server.url, cases.rollouts(), k=cases.K)}["unknown_scores"]
    assert (line.status, line.values["n_unknown"], line.values["n_unreadable"]) == ("warn", 1, 1)
    assert f"rollout '{ROLLOUT}', position {POSITION} ({came})" in line.figure


def check_unknown(trace: Trace, whole: Trace) -> None:
    """One state's teacher is unknown, whatever is known of the others is unchanged."""
    unknown = np.isnan(trace.column("teacher_logprob"))
    assert unknown.sum() == 1
    (row,) = np.flatnonzero(unknown)
    assert (trace.column("teacher_top_ids")[row] == -1).all()
    assert np.isnan(trace.column("teacher_top_logprobs")[row]).all()
    assert np.isnan(trace.column("teacher_logprobs_at_student_top")[row]).all()
    for name in trace.columns:
        expected = whole.column(name)[~unknown]
        np.testing.assert_allclose(trace.column(name)[~unknown], expected, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(trace.column("student_logprob"), whole.column("student_logprob"))
    states = opd_probe.state_metrics(trace, 4)
    for name in ("overlap_ratio", "overlap_advantage", "sampled_reward", "teacher_topk_mass", "teacher_overlap_mass"):
        assert np.isnan(states[name].to_numpy()[row]), name
    row = summary_row(trace, 4, resamples=0)
    assert row["overlap_ratio_n"] == row["sampled_reward_n"] == trace.n_states - 1


def test_what_is_told_the_second_time_is_taken(
    server: Served, answers: VLLMAnswers, student: LoadedModel, whole: Trace
) -> None:
    breaks, seen = breaking(null_list), []

    def once(answer: Any, body: Any) -> None:
        if body["prompt"] == broken()[0]:
            seen.append(body)
            if len(seen) == 1:
                breaks(answer, body)

    answers.change = once
    trace = replayed(server, student)
    assert len(seen) == 2
    assert not np.isnan(trace.column("teacher_logprob")).any()
    np.testing.assert_array_equal(trace.column("teacher_top_ids"), whole.column("teacher_top_ids"))


class Nulls(SGLangAnswers):
    """SGLang at the border of a cached prefix: one list of one answer is null."""

    def find(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        status, answer = super().find(method, path, body)
        ids, place = broken()
        if path == "/generate" and body["input_ids"] == ids:
            answer["meta_info"]["input_top_logprobs"][place] = None
        return status, answer


def test_a_null_list_of_sglang(student: LoadedModel, whole: Trace) -> None:
    said = f"1 of {whole.n_states} states are unknown.*{ROLLOUT}.*position {POSITION} .null in place of a list"
    with serving(Nulls(cases.teacher())) as server, pytest.warns(OpdProbeWarning, match=said):
        check_unknown(replayed(server, student), whole)


@pytest.mark.parametrize("raw", [60.0, 8.0])
def test_raw_logits_are_refused(
    raw: float, server: Served, answers: VLLMAnswers, student: LoadedModel, tmp_path: Path
) -> None:
    answers.raw = raw
    said = r"rollout 'r\d', position \d+: .*(above 0|the least possible is|the most possible is).*--logprobs-mode"
    with pytest.raises(ServerError, match=said) as caught:
        replayed(server, student, out=tmp_path / "trace.parquet")
    assert "\n" not in str(caught.value)


def test_a_server_without_lists_of_most_states_is_of_another_kind(
    server: Served, answers: VLLMAnswers, student: LoadedModel, whole: Trace, tmp_path: Path
) -> None:
    def few(answer: Any, _: Any) -> None:
        entries = answer["choices"][0]["prompt_logprobs"]
        entries[:-2] = [None] * (len(entries) - 2)

    answers.change = few
    said = rf"told no list of log-probabilities of \d+ states, of {whole.n_states} in all; of rollout 'r\d', position 0"
    for _ in range(2):  # what came the first time is kept by nobody
        with pytest.raises(ServerError, match=said):
            replayed(server, student, out=tmp_path / "trace.parquet")
    assert not (tmp_path / "trace.parquet").exists()


def test_weights_that_were_replaced_in_place(
    server: Served, answers: VLLMAnswers, student: LoadedModel, whole: Trace, tmp_path: Path
) -> None:
    out = tmp_path / "trace.parquet"
    replayed(server, student, out=out)
    before = len(server.bodies(PATH))
    replayed(server, student, out=out)
    assert len(server.bodies(PATH)) == before + 1  # the same weights: the trace is used again
    answers.model = tiny_model(cases.WIDTH, hidden=64, seed=8, tied=False)
    with pytest.warns(OpdProbeWarning, match="teacher's answers changed since it was made"):
        trace = replayed(server, student, out=out)
    expected = opd_probe.replay(student, answers.model, cases.rollouts(), k=cases.K)
    np.testing.assert_allclose(trace.column("teacher_logprob"), expected.column("teacher_logprob"), atol=1e-4)
    later = load_model(tiny_model(cases.WIDTH, hidden=64, seed=5, tied=False))
    answers.model = cases.teacher()
    beside = replayed(server, later, out=tmp_path / "another.parquet")
    np.testing.assert_array_equal(beside.column("teacher_top_ids"), whole.column("teacher_top_ids"))


def test_a_version_of_the_weights_that_the_server_tells(
    server: Served, answers: VLLMAnswers, student: LoadedModel, tmp_path: Path
) -> None:
    answers.version = "step-1"
    trace = replayed(server, student, out=tmp_path / "trace.parquet")
    assert trace.provenance["teacher"]["weight_version"] == "step-1"
    answers.version = "step-2"
    with pytest.warns(OpdProbeWarning, match="teacher weights changed since it was made"):
        replayed(server, student, out=tmp_path / "trace.parquet")


def test_weights_that_are_replaced_between_two_steps_of_a_training(
    server: Served, answers: VLLMAnswers, student: LoadedModel, tmp_path: Path
) -> None:
    """The same states at every step: what was told of them before is used again by the same teacher alone."""
    options = {"k": 4, "trace_k": cases.K}
    probe = make_probe(
        tmp_path, prompts=None, rollouts=cases.rollouts(), teacher="t", run=None, out=None, options=options
    )
    answers.version = "1"
    teacher = connect(parse_endpoint(server.url))
    first = probe.measure(student, teacher, 1, {})
    before = len(server.bodies(PATH))
    probe.measure(student, teacher, 2, {})
    assert len(server.bodies(PATH)) == before + 1
    answers.model, answers.version = tiny_model(cases.WIDTH, hidden=64, seed=8, tied=False), "2"
    third = probe.measure(student, teacher, 3, {})
    assert third.provenance["teacher"]["weight_version"] == "2"
    expected = opd_probe.replay(student, answers.model, cases.rollouts(), k=cases.K)
    np.testing.assert_allclose(third.column("teacher_logprob"), expected.column("teacher_logprob"), atol=1e-4)
    assert np.abs(third.column("teacher_logprob") - first.column("teacher_logprob")).max() > 1


@pytest.mark.parametrize("tells", [True, False])
def test_weights_that_are_replaced_while_they_are_asked(
    tells: bool, server: Served, answers: VLLMAnswers, student: LoadedModel, tmp_path: Path
) -> None:
    out, asked = tmp_path / "trace.parquet", []
    answers.version = "1" if tells else None

    def replace(_: Any, body: Any) -> None:
        asked.append(body)
        if len(asked) == 3:
            answers.model = answers.model if tells else tiny_model(cases.WIDTH, hidden=64, seed=8, tied=False)
            answers.version = "2" if tells else None

    answers.change = replace
    with pytest.raises(ServerError, match=r"its weights changed .*meanwhile; give the command again"):
        replayed(server, student, out=out)
    trace = replayed(server, student, out=out)
    expected = opd_probe.replay(student, answers.model, cases.rollouts(), k=cases.K)
    np.testing.assert_allclose(trace.column("teacher_logprob"), expected.column("teacher_logprob"), atol=1e-4)


def test_a_servers_own_noise_is_no_other_weights(
    server: Served, answers: VLLMAnswers, student: LoadedModel, tmp_path: Path
) -> None:
    answers.noise = 0.02
    made = replayed(server, student, out=tmp_path / "trace.parquet")
    again = replayed(server, student, out=tmp_path / "trace.parquet")
    np.testing.assert_array_equal(again.column("teacher_logprob"), made.column("teacher_logprob"))
    answers.model = tiny_model(cases.WIDTH, hidden=64, seed=8, tied=False)
    with pytest.warns(OpdProbeWarning, match="teacher's answers changed"):
        replayed(server, student, out=tmp_path / "trace.parquet")


def test_a_rollout_that_a_server_refuses_is_named(server: Served, answers: VLLMAnswers, student: LoadedModel) -> None:
    answers.cards[0]["max_model_len"] = None  # it does not tell, and refuses
    rows = [{"id": "short", "prompt_ids": [5], "response_ids": [7, 8]},
            {"id": "long", "prompt_ids": [5] * 40, "response_ids": [8] * 88}]  # fmt: skip
    with pytest.raises(ServerError, match=r"rollout 'long' \(128 tokens\): server .* answers 400 .*context length"):
        opd_probe.replay(student, server.url, rows, k=cases.K)


def test_an_adapter_has_the_context_of_its_parent(student: LoadedModel) -> None:
    rows = [{"id": "long", "prompt_ids": [5] * 40, "response_ids": [8] * 88}]
    said = r"'long': .* 128 tokens, lora at .* scores 127 at most"
    with (
        serving(VLLMAnswers(cases.teacher(), adapters=("lora",))) as server,
        pytest.raises(opd_probe.OpdProbeError, match=said),
    ):
        opd_probe.replay(student, f"{server.url}#lora", rows, k=cases.K)
