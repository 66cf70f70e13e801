"""A teacher behind HTTP, by what a real vLLM answered: what is compared with its weights, and what stays unknown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import opd_probe
from opd_probe.checks import Finding
from opd_probe.models.served.client import Patience
from opd_probe.models.served.endpoint import parse_endpoint
from opd_probe.models.served.model import connect
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, Fault, Served, serving
from tests.models.served.vllm_server import VLLMAnswers
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """What vLLM said of the teacher of ``cases``."""
    with serving(Exchanges.read("vllm_teacher.jsonl")) as running:
        yield running


def findings(teacher: object, **more: object) -> dict[str, Finding]:
    found = opd_probe.doctor(cases.student(), teacher, cases.rollouts(), k=cases.K, **more)  # type: ignore[arg-type]
    return {finding.check: finding for finding in found}


def test_the_server_and_the_weights_agree(server: Served) -> None:
    found = findings(server.url, teacher_weights=cases.teacher())
    line = found["self_score"]
    assert line.status == "ok"
    assert line.figure.endswith("served against in-process, 25 tokens")
    assert line.values["p99"] < 1e-3
    assert found["replay"].values["n_states"] == line.values["n_tokens"] == 25
    assert found["scoring_noise"].status == "ok"
    assert found["scoring_noise"].values["noise"] < 1e-5  # the student's: of the server one answer was recorded


def test_other_weights_are_served(server: Served) -> None:
    other = tiny_model(cases.WIDTH, hidden=64, seed=9, tied=False)
    line = findings(server.url, teacher_weights=other)["self_score"]
    assert line.status == "fail"
    assert "--teacher" not in line.figure
    assert "serve with the weights" in line.advice


def test_weights_that_cannot_read_the_rollouts(server: Served) -> None:
    line = findings(server.url, teacher_weights=tiny_model(40, seed=9))["self_score"]
    assert line.status == "skip"
    assert "outside the vocabulary" in line.figure


def test_what_a_server_does_not_tell(server: Served) -> None:
    found = findings(server.url)
    assert found["self_score"].status == "skip"
    assert "--teacher-weights" in found["self_score"].figure
    assert found["vocabulary"].status == "ok"
    assert "unknown (teacher)" in found["vocabulary"].figure
    line = found["unknown_scores"]
    assert (line.status, line.values["n_unknown"]) == ("ok", 0)
    trace = opd_probe.replay(cases.student(), server.url, cases.rollouts(), k=cases.K)
    unknown = trace.column("teacher_logprobs_at_student_top")
    assert line.values["share_of_top_k_unknown"] == pytest.approx(float((unknown != unknown).mean()))
    assert 0 < line.values["share_of_top_k_unknown"] < 1


def test_another_temperature_is_refused_in_a_line(server: Served) -> None:
    found = findings(server.url, temperature=0.7)
    assert found["replay"].status == "fail"
    assert "temperature = 0.7" in found["replay"].figure


def test_a_server_that_goes_away(server: Served) -> None:
    teacher = connect(parse_endpoint(server.url), patience=Patience(attempts=1))
    assert teacher.allowed(cases.K) == cases.K
    server.fail("/v1/completions", [Fault(503)] * 9)
    found = findings(teacher)
    server.fail("/v1/completions", [])
    assert found["replay"].status == "fail"
    assert server.url in found["replay"].figure
    assert found["shift_replayed"].status == "skip"


def test_weights_of_a_teacher_that_is_not_served() -> None:
    with pytest.raises(opd_probe.OpdProbeError, match="teacher_weights: the teacher is not served"):
        findings(cases.teacher(), teacher_weights=cases.teacher())


def test_a_server_that_answers_differently_the_second_time() -> None:
    answers = VLLMAnswers(cases.teacher())
    answers.noise = 0.5
    with serving(answers) as noisy:
        line = findings(noisy.url)["scoring_noise"]
    assert line.status == "warn"
    assert line.values["noise_of_server"] == pytest.approx(line.values["noise"], rel=0.1)
    assert "one replica" in line.advice
    assert "prefix cache" in line.advice
    assert "--dtype" not in line.advice


def test_an_adapter_has_the_tokenizer_and_the_context_of_its_parent(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "base", cases.teacher(), tiny_tokenizer(cases.WIDTH))
    save_checkpoint(tmp_path / "student", cases.student(), tiny_tokenizer(cases.WIDTH))
    answers = VLLMAnswers(cases.teacher(), adapters=("lora",))
    answers.cards[0]["root"] = str(tmp_path / "base")
    with serving(answers) as server:
        found = opd_probe.doctor(tmp_path / "student", f"{server.url}#lora", cases.rollouts(), k=cases.K)
    lines = {finding.check: finding for finding in found}
    assert lines["tokenizers"].status == "ok"
    assert lines["lengths"].values["teacher_positions"] == 127
    assert lines["vocabulary"].values["shared"] == cases.WIDTH
