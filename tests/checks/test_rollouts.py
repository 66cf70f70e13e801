"""Rollouts that cannot be read, did not end, go round in circles, or are not what was sampled."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd_probe.checks import CheckOptions, Pair, examine, gather
from opd_probe.checks.rollouts import compression
from opd_probe.lab.task import encode
from opd_probe.types import Rollout
from tests.checks.clinic import Clinic, edit_json, edit_weights, embedding, sampled


def bare(rollout: Rollout, **changes: Any) -> Rollout:
    """A rollout without what goes token by token."""
    return replace(rollout, **{"logprobs": None, "extra": {}, "finish_reason": None, **changes})


def test_ids_beyond_the_vocabulary(clinic: Clinic) -> None:
    first, *others = clinic.rollouts
    found = clinic.findings([bare(first, response_ids=(5, 600, 7)), *others])
    line = found["replay"]
    assert line.status == "fail"
    assert line.values["n_refused"] == 1
    assert f"rollout {first.id!r}: token id 600 is outside" in line.figure
    assert found["self_score"].values["n_tokens"] == sum(len(r.response_ids) for r in others)


def test_ids_that_no_tokenizer_has(clinic: Clinic) -> None:
    """Every line is there, and none is the error of a library."""
    found = clinic.findings([bare(clinic.rollouts[0], response_ids=(5, 2**40), prompt_ids=(2**50, 4))])
    assert found["replay"].status == "fail"
    assert str(2**50) in found["replay"].figure


def test_rollouts_without_a_state(clinic: Clinic) -> None:
    first, second, *others = clinic.rollouts
    masked = replace(first, response_mask=[0] * len(first.response_ids))
    line = clinic.findings([masked, bare(second, response_ids=()), *others])["replay"]
    assert line.status == "warn"
    assert (line.values["n_empty"], line.values["n_rollouts"]) == (2, len(others))


def test_nothing_to_replay(clinic: Clinic) -> None:
    found = clinic.findings([bare(clinic.rollouts[0], response_ids=())])
    assert found["replay"].status == "fail"
    assert "none of the 1 has a state" in found["replay"].figure
    assert found["mask_zeros"].status == "skip"
    assert found["tokenizers"].status == "ok"


def test_weights_that_are_nan(clinic: Clinic, tmp_path: Path) -> None:
    def broken(model: Any) -> None:
        embedding(model)[9, 0] = torch.nan

    found = clinic.findings(teacher=edit_weights(clinic.copy("teacher", tmp_path), broken))
    assert found["replay"].status == "fail"
    assert "NaN" in found["replay"].figure
    assert found["vocabulary"].status == "skip"
    assert "NaN" in found["vocabulary"].figure


def test_a_teacher_with_few_positions(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    edit_json(teacher / "config.json", lambda content: content.update(max_position_embeddings=30))
    found = clinic.findings(teacher=teacher)
    line = found["lengths"]
    longest = max(len(r.prompt_ids) + len(r.response_ids) - 1 for r in clinic.rollouts)
    assert line.status == "fail"
    assert line.values == {
        "longest": longest, "student_positions": 128, "teacher_positions": 30, "n_too_long": len(clinic.rollouts)
    }  # fmt: skip
    assert f"needs {longest} positions of 128 (student), 30 (teacher)" in line.figure
    assert (found["replay"].status, found["vocabulary"].status) == ("skip", "skip")
    assert "see the line 'lengths'" in found["replay"].figure


def test_one_rollout_too_long(clinic: Clinic) -> None:
    first, *others = clinic.rollouts
    found = clinic.findings([bare(first, response_ids=(*first.response_ids, *[12] * 120)), *others])
    assert (found["lengths"].status, found["lengths"].values["n_too_long"]) == ("fail", 1)
    assert found["replay"].status == "ok"
    assert found["replay"].values["n_rollouts"] == len(others)


def test_text_that_is_tokenised_again(clinic: Clinic) -> None:
    rows = [{"messages": r.extra["messages"], "response": r.response, "finish_reason": "stop"} for r in clinic.rollouts]
    found = clinic.findings(rows)  # type: ignore[arg-type]
    assert found["token_source"].status == "warn"
    assert found["token_source"].values == {"share_retokenized": 1.0, "n": len(rows)}
    assert found["token_source"].figure == "16 of 16 rollouts are re-tokenised text"
    assert found["replay"].status == "ok"


@pytest.mark.parametrize(("cut", "status"), [(3, "ok"), (5, "warn"), (16, "fail")])
def test_responses_that_reach_the_limit(clinic: Clinic, cut: int, status: str) -> None:
    rollouts = [*sampled(clinic.models["student"], max_new_tokens=10)[:cut], *clinic.rollouts[cut:]]
    line = clinic.findings(rollouts)["truncation"]
    assert line.status == status
    assert line.values == {"truncation_rate": cut / 16, "n": 16}
    assert f"{cut} of 16 rollouts ({cut / 16:.0%})" in line.figure


def test_truncation_without_finish_reasons(clinic: Clinic) -> None:
    whole = [bare(rollout) for rollout in clinic.rollouts[:8]]
    cut = [bare(rollout, response_ids=rollout.response_ids[:-1]) for rollout in clinic.rollouts[8:]]
    assert clinic.findings([*whole, *cut])["truncation"].values["truncation_rate"] == 0.5


def test_text_has_lost_its_eos(clinic: Clinic) -> None:
    texts = [{"id": f"t{n}", "prompt": "1 2 3", "response": "4 5 6 7"} for n in range(4)]
    line = clinic.findings(texts)["truncation"]  # type: ignore[arg-type]
    assert (line.status, line.figure) == ("skip", "no finish reasons, and no ids in which an EOS would be")


def test_a_limit_of_our_own_is_no_collapse(clinic: Clinic) -> None:
    models, cut = clinic.models, sampled(clinic.models["student"], max_new_tokens=4)
    for here, status in ((False, "fail"), (True, "warn")):
        options = CheckOptions(k=32, sampled=here)
        found = examine(gather(Pair(lambda: models["student"], lambda: models["teacher"]), cut, options))
        assert next(line.status for line in found if line.check == "truncation") == status


def test_padding_behind_eos_is_no_truncation(clinic: Clinic) -> None:
    padded = [bare(rollout, response_ids=(*rollout.response_ids, 0, 0)) for rollout in clinic.rollouts]
    assert clinic.findings(padded)["truncation"].values["truncation_rate"] == 0.0


def test_repeated_text(clinic: Clinic) -> None:
    loop = tuple(encode("answer " * 80))
    looping = [bare(rollout, response_ids=(*rollout.response_ids[:9], *loop)) for rollout in clinic.rollouts[:4]]
    line = clinic.findings([*looping, *clinic.rollouts[4:]], repetition_length=400)["repetition"]
    assert line.status == "warn"
    assert line.values["repetition_rate"] == 4 / 16
    assert line.values["n_long"] == 4
    tail = str(clinic.models["student"].tokenizer.decode(looping[0].response_ids))[-400:]  # type: ignore[union-attr]
    assert line.values["largest_compression"] == pytest.approx(400 / len(zlib.compress(tail.encode())))
    assert "4 of 16 rollouts (25%) end in repetition" in line.figure


def test_no_response_is_long_enough_for_repetition(clinic: Clinic) -> None:
    line = clinic.findings(repetition_length=10_000)["repetition"]
    assert line.status == "skip"
    assert "none of 16 responses has 10,000 characters" in line.figure
    assert line.advice == ""


def test_the_published_length_tells_a_loop_from_prose() -> None:
    """At L = 10,000 a loop compresses far beyond τ = 10, and digits that do not repeat stay far below."""
    digits = "".join(str(pow(7, n, 10_007)) for n in range(3_000))[:10_000]
    assert compression("so the answer is 5. " * 500) > 100
    assert compression(digits) < 3


def test_a_bos_that_two_wrote(clinic: Clinic, tmp_path: Path) -> None:
    student = clinic.copy("student", tmp_path)
    edit_json(student / "tokenizer_config.json", lambda content: content.update(bos_token="<eos>"))
    bos = clinic.models["student"].eos_ids[0]
    once, *others = (replace(r, prompt_ids=(bos, *r.prompt_ids)) for r in clinic.rollouts)
    twice = [replace(rollout, prompt_ids=(bos, *rollout.prompt_ids)) for rollout in others]
    line = clinic.findings([once, *twice], student=student)["double_bos"]
    assert (line.status, line.values["share_doubled"]) == ("fail", 15 / 16)
    assert "15 of 16 prompts (94%) begin with <eos>" in line.figure
    assert clinic.findings([once], student=student)["double_bos"].status == "ok"


def test_copies_of_one_response(clinic: Clinic) -> None:
    first, *others = clinic.rollouts
    copies = [replace(first, id=f"copy {n}") for n in range(8)]
    line = clinic.findings(copies, max_rollouts=2)["effective_rollouts"]  # counted over all that was given
    assert (line.status, line.values["effective"], line.values["n"]) == ("fail", 1.0, 8)
    more = [replace(others[2], id="other", prompt_id=first.prompt_id), *copies[:2]]
    line = clinic.findings(more)["effective_rollouts"]
    assert (line.status, line.values["effective"]) == ("ok", 9 / 5)
    assert clinic.findings([*more, *copies[3:7]])["effective_rollouts"].status == "warn"
