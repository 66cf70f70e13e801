"""Faults of tokenizers, vocabularies and ends of responses, planted in the files of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opd_probe.checks import Finding
from opd_probe.lab.models import load_model
from tests.checks.clinic import Clinic, edit_json, edit_weights, embedding


def swap(first: str, second: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    return change


def rename(old: str, new: str) -> Any:
    """Another string for a special token, everywhere in tokenizer.json."""

    def change(content: dict[str, Any]) -> None:
        content["model"]["vocab"][new] = content["model"]["vocab"].pop(old)
        for entry in content["added_tokens"]:
            entry["content"] = new if entry["content"] == old else entry["content"]

    return change


def test_two_swapped_ids(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    edit_json(teacher / "tokenizer.json", swap("7", "8"))
    vocabulary = json.loads((clinic.root / "student" / "tokenizer.json").read_text())["model"]["vocab"]
    found = clinic.findings(teacher=teacher)
    line = found["tokenizers"]
    assert line.status == "fail"
    assert line.values == {"n_differing": 2, "first_id": vocabulary["7"]}
    assert f"2 ids differ, the first is {vocabulary['7']}: '7' (student), '8' (teacher)" in line.figure
    assert "--tokenizer" in line.advice
    skipped = {name for name, finding in found.items() if finding.status == "skip"}
    assert {"vocabulary", "shift_stored", "scoring_noise", "replay"} <= skipped
    assert "see the line 'tokenizers'" in found["scoring_noise"].figure
    assert found["lengths"].status == "ok"


def test_special_tokens_of_other_names(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    edit_json(teacher / "tokenizer.json", rename("<pad>", "<void>"))
    edit_json(teacher / "tokenizer_config.json", lambda content: content.update(pad_token="<void>"))
    assert clinic.findings(teacher=teacher)["tokenizers"].status == "fail"
    allowed = clinic.findings(teacher=teacher, allow_special_mismatch=True)
    assert allowed["tokenizers"].status == "warn"
    assert "'<pad>' (student), '<void>' (teacher)" in allowed["tokenizers"].figure
    assert allowed["replay"].status == "ok"


def test_a_text_that_is_split_another_way(clinic: Clinic, tmp_path: Path) -> None:
    assert clinic.findings()["pieces"].status == "ok"
    teacher = clinic.copy("teacher", tmp_path)
    word = clinic.models["student"].tokenizer.convert_ids_to_tokens(int(clinic.rollouts[0].response_ids[0]))
    replacing = {"type": "Replace", "pattern": {"String": word}, "content": ""}
    edit_json(teacher / "tokenizer.json", lambda content: content.update(normalizer=replacing))
    line = clinic.findings(teacher=teacher)["pieces"]
    assert line.status == "warn"
    assert line.values["differing_parts"] == ["normalizer"]
    assert repr(word) in line.values["student_piece"]
    assert repr(word) not in line.values["teacher_piece"]
    assert "by their normalizer; the first part at token" in line.figure
    assert 0.0 <= line.values["share_equal"] < 1.0


def test_no_tokenizer(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (teacher / name).unlink()
    found = clinic.findings(teacher=teacher)
    for name in ("tokenizers", "pieces", "special_tokens", "template_tails", "teacher_prompt"):
        assert found[name].status == "skip"
    assert "the teacher has no tokenizer" in found["tokenizers"].figure
    assert found["shift_replayed"].status == "ok"


def padded(model: Any) -> None:
    """Ten rows that no token has, one of them as probable as the most frequent word."""
    model.resize_token_embeddings(512, mean_resizing=False)
    embedding(model)[502:] = 0.0
    embedding(model)[505] = embedding(model)[model_word]


model_word = 12


def test_mass_on_padding_rows(clinic: Clinic, tmp_path: Path) -> None:
    teacher = edit_weights(clinic.copy("teacher", tmp_path), padded)
    line = clinic.findings(teacher=teacher)["vocabulary"]
    assert line.status == "warn"
    assert (line.values["student_width"], line.values["teacher_width"], line.values["shared"]) == (502, 512, 502)
    model = load_model(teacher)
    masses = []
    for rollout in clinic.rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].double()
        masses += logits.softmax(-1)[:, 502:].sum(-1).tolist()
    assert line.values["teacher_mass_outside"] == pytest.approx(np.mean(masses), rel=1e-4)
    assert line.values["teacher_mass_outside"] > 0.01
    assert line.values["student_mass_outside"] == 0.0
    assert f"{np.mean(masses):.2%}" in line.figure


def eos_of(clinic: Clinic, place: Path, config: Any, token: str = "<eos>") -> dict[str, Finding]:
    teacher = clinic.copy("teacher", place)
    edit_json(teacher / "generation_config.json", lambda content: content.update(eos_token_id=config))
    edit_json(teacher / "tokenizer_config.json", lambda content: content.update(eos_token=token))
    return clinic.findings(teacher=teacher)


def test_another_eos_in_generation_config(clinic: Clinic, tmp_path: Path) -> None:
    line = eos_of(clinic, tmp_path, 3)["eos"]
    assert line.status == "warn"
    assert line.values["teacher_generation_config"] == [3]
    assert line.values["student_generation_config"] == [line.values["teacher_tokenizer"]] == [1]
    assert "teacher: . (3) in generation_config, <eos> (1) in the tokenizer" in line.figure


def test_one_more_eos(clinic: Clinic, tmp_path: Path) -> None:
    assert eos_of(clinic, tmp_path, [1, 3])["eos"].status == "warn"


def test_no_eos_in_common(clinic: Clinic, tmp_path: Path) -> None:
    line = eos_of(clinic, tmp_path, 3, token=".")["eos"]
    assert line.status == "fail"
    assert "teacher: . (3) in generation_config, . (3) in the tokenizer" in line.figure


def test_a_teacher_that_does_not_end(clinic: Clinic, tmp_path: Path) -> None:
    def endless(model: Any) -> None:
        embedding(model)[1] *= -1.0

    teacher = edit_weights(clinic.copy("teacher", tmp_path), endless)
    line = clinic.findings(teacher=teacher)["ending"]
    assert line.status == "warn"
    assert line.values["n"] == len(clinic.rollouts)
    assert line.values["reward_at_eos"] < -5.0
    assert f"{line.values['reward_at_eos']:+.2f} nats at EOS" in line.figure


def test_nothing_has_ended(clinic: Clinic) -> None:
    cut = [{"prompt_ids": r.prompt_ids, "response_ids": r.response_ids[:12]} for r in clinic.rollouts]
    assert clinic.findings(cut)["ending"].status == "skip"  # type: ignore[arg-type]


def test_pad_that_is_eos_in_one(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    edit_json(teacher / "tokenizer_config.json", lambda content: content.update(pad_token="<eos>"))
    line = clinic.findings(teacher=teacher)["special_tokens"]
    assert line.status == "warn"
    assert (line.values["student_pad"], line.values["teacher_pad"]) == (0, 1)
    assert "pad 0 (student), 1 (teacher)" in line.figure


def test_a_token_that_is_special_in_one(clinic: Clinic, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)

    def special(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**content["added_tokens"][0], "id": 7, "content": "answer"})

    edit_json(teacher / "tokenizer.json", special)
    line = clinic.findings(teacher=teacher)["special_tokens"]
    assert line.status == "warn"
    assert line.values["special_in_one"] == [7]
    assert "answer (7)" in line.figure
