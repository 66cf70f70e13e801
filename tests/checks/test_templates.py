"""Prompts that the two models do not read alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opd_probe.lab.models import load_model
from opd_probe.lab.task import encode
from opd_probe.types import Rollout
from tests.checks.clinic import Clinic, template


@pytest.fixture(scope="module")
def other_frame(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with a template that ends in ``answer ?``."""
    teacher = clinic.copy("teacher", tmp_path_factory.mktemp("template"))
    (teacher / "chat_template.jinja").write_text(template("answer"))
    return teacher


def test_another_tail(clinic: Clinic, other_frame: Path) -> None:
    found = clinic.findings(teacher=other_frame)
    line = found["template_tails"]
    assert line.status == "warn"
    assert line.values["student_tail"][-2:] == ["total", "?"]
    assert line.values["teacher_tail"][-2:] == ["answer", "?"]
    assert "total ?' (student)" in line.figure
    assert "answer ?' (teacher)" in line.figure
    assert found["rendered_prompts"].status == "ok"


def test_the_same_responses_under_both_prompts(clinic: Clinic, other_frame: Path) -> None:
    line = clinic.findings(teacher=other_frame)["teacher_prompt"]
    changes = []
    model = load_model(other_frame)
    for rollout in clinic.rollouts:
        prompts = [list(rollout.prompt_ids), [*rollout.prompt_ids[:-2], *encode("answer ?")]]
        under = []
        for prompt in prompts:
            ids = torch.tensor([[*prompt, *rollout.response_ids]])
            with torch.no_grad():
                scores = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            under.append(scores.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0])
        changes += (under[1] - under[0]).tolist()
    assert line.values["mean_change"] == pytest.approx(np.mean(changes), abs=1e-5)
    assert line.values["mean_absolute_change"] == pytest.approx(np.mean(np.abs(changes)), abs=1e-5)
    assert line.values["n_tokens"] == len(changes)
    assert (np.mean(np.abs(changes)) < 0.05, line.status) == (True, "ok")  # this teacher hardly minds how it is asked
    assert f"{np.mean(changes):+.3f} nats per token" in line.figure


def test_a_teacher_that_is_given_its_own_prompt(clinic: Clinic, other_frame: Path) -> None:
    """The states are then scored under that prompt, and what it changes is told as before."""
    own = [[*rollout.prompt_ids[:-2], *encode("answer ?")] for rollout in clinic.rollouts]
    plain, found = clinic.findings(teacher=other_frame), clinic.findings(teacher=other_frame, teacher_prompts=own)
    before, after = plain["teacher_prompt"].values, found["teacher_prompt"].values
    assert after["mean_change"] == pytest.approx(before["mean_change"], abs=1e-6)
    assert found["shift_replayed"].status == "ok"
    difference = found["ending"].values["reward_at_eos"] - plain["ending"].values["reward_at_eos"]
    assert abs(difference) > 1e-3
    assert found["self_score_stored"].values["p50"] > plain["self_score_stored"].values["p50"]  # stored without it
    few = clinic.findings(teacher=other_frame, teacher_prompts=own, max_rollouts=4)
    assert few["teacher_prompt"].values["n_tokens"] == few["replay"].values["n_states"] < after["n_tokens"]


def test_a_system_prompt_before_the_same_tail(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    (teacher / "chat_template.jinja").write_text("mia has . " * 4 + template("total"))
    found = clinic.findings(teacher=teacher)
    assert found["template_tails"].status == "warn"
    assert "both end in" in found["template_tails"].figure
    assert found["template_tails"].values["teacher_piece"] == "mia"
    assert "they part at token 0, " in found["template_tails"].figure
    assert found["teacher_prompt"].status == "warn"
    assert found["teacher_prompt"].values["mean_absolute_change"] > 0.05


def test_no_template(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    (teacher / "chat_template.jinja").unlink()
    found = clinic.findings(teacher=teacher)
    assert (found["template_tails"].status, found["teacher_prompt"].status) == ("skip", "skip")
    assert found["template_tails"].figure == "the teacher has no chat template"
    assert "no chat template" in found["teacher_prompt"].figure


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('not for you') }}", "not for you"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% if", "end of template"),
    ],
)
def test_a_template_that_refuses(clinic: Clinic, tmp_path: Path, source: str, said: str) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    (teacher / "chat_template.jinja").write_text(source)
    found = clinic.findings(clinic.rollouts[:4], teacher=teacher)
    assert found["template_tails"].status == "skip"
    assert said in found["template_tails"].figure
    assert said in found["teacher_prompt"].figure
    assert found["replay"].status == "ok"


def test_plain_prompts(clinic: Clinic) -> None:
    found = clinic.findings([replace(rollout, extra={}) for rollout in clinic.rollouts])
    assert found["template_tails"].status == "ok"  # compared on a message of ours
    assert found["rendered_prompts"].figure == "no rollout has chat messages"
    assert (found["rendered_prompts"].status, found["teacher_prompt"].status) == ("skip", "skip")


def test_states_of_another_prompt(clinic: Clinic) -> None:
    def asked_otherwise(rollout: Rollout) -> Rollout:
        return replace(rollout, prompt_ids=(*rollout.prompt_ids[:-2], *encode("answer ?")))

    line = clinic.findings(clinic.altered(asked_otherwise))["rendered_prompts"]
    assert line.status == "warn"
    assert line.values == {"share_equal": 0.0, "n": len(clinic.rollouts)}
    assert "is answer (7), the template makes total" in line.figure


def test_a_teacher_that_expects_another_beginning(clinic: Clinic) -> None:
    """The stranger begins its responses with other words than the student, and goes on alike."""
    line = clinic.findings(teacher=clinic.models["stranger"])["thinking_boundary"]
    means: Any = line.values["reward_by_position"]
    assert line.status == "warn"
    assert len(means) == 8
    assert int(np.argmin(means)) == 0
    assert means[0] < line.values["reward_later"] - 3.0
    assert line.figure.startswith(f"r at positions 0-7: {means[0]:+.1f} ")


def test_responses_too_short_for_a_boundary(clinic: Clinic) -> None:
    short = clinic.altered(lambda rollout: replace(rollout, response_ids=rollout.response_ids[:8], logprobs=None))
    assert clinic.findings(short)["thinking_boundary"].status == "skip"


def test_the_doctor_fails_on_words_that_nobody_reads(clinic: Clinic, tmp_path: Path) -> None:
    student = clinic.copy("student", tmp_path)
    (student / "chat_template.jinja").write_text("{{ messages[0]['content'] }} ")
    rollouts = [
        replace(r, extra={"messages": [*r.extra["messages"], {"role": "user", "content": "and zebra"}]})
        for r in clinic.rollouts[:2]
    ]
    line = clinic.findings(rollouts, student=student)["message_words"]
    assert (line.status, line.values["share_lost"]) == ("fail", 1.0)
    assert "'zebra'" in line.figure or "'and'" in line.figure
