"""One type of each family against its own forward, on every path; ``make architectures`` tries all there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.build import TWO_SIDED
from tests.architectures.sweep import failures, known, main, outcomes, page, tried
from tests.architectures.trial import Finding

FAMILIES = (
    "bamba bart cohere2 deepseek_v3 falcon_h1 gemma2 gpt2 gpt_oss granitemoehybrid hyperclovax lfm2 llama mamba2 "
    "minimax modernbert-decoder nemotron_h olmo_hybrid openai-gpt qwen3_next qwen3_moe recurrent_gemma rwkv zamba2"
)
"""Attention of all kinds, recurrences and both together, learnt positions, scaled and capped logits, experts."""


@pytest.mark.parametrize("kind", FAMILIES.split())
def test_a_causal_type_is_exact(kind: str) -> None:
    found = tried("causal", kind, 1)
    assert (found.outcome, found.why) == ("exact", ""), found.errors


@pytest.mark.parametrize("kind", ["gemma3", "aya_vision"])
def test_the_text_model_in_a_wrapper_is_exact(kind: str) -> None:
    found = tried("image-text", kind, 1)
    assert (found.outcome, found.why) == ("exact", ""), found.errors


@pytest.mark.parametrize("kind", ["xlm", "bert-generation"])
def test_what_sees_to_the_right_is_refused(kind: str) -> None:
    assert kind in TWO_SIDED
    found = tried("two-sided", kind, 1)
    assert found.outcome == "refused"
    assert "expected a causal language model" in found.why


def test_what_a_sweep_says() -> None:
    findings = {
        ("causal", "fine", 1): Finding("fine", 1, "exact", ways="own logits"),
        ("causal", "fine", 2): Finding("fine", 2, "refused", "no room | here"),
        ("causal", "off", 1): Finding("off", 1, "wrong", errors={"batches": 0.3}),
        ("two-sided", "leaks", 1): Finding("leaks", 1, "exact"),
    }
    assert outcomes(findings, "causal") == {"fine": findings["causal", "fine", 2], "off": findings["causal", "off", 1]}
    assert [line.split(":")[0] for line in failures(findings)] == [
        "causal off, seed 1", "two-sided leaks, seed 1", "0 of 2 causal types are exact; expected at least 95 %"
    ]  # fmt: skip
    assert "| fine | refused | no room / here |" in page(findings)
    assert "| off | wrong | tried on seed 1 alone |" in page(findings)


def test_findings_are_kept(tmp_path: Path) -> None:
    place = tmp_path / "findings.jsonl"
    main(["--findings", str(place), "--only", "gpt2", "--seeds", "1"])
    assert known(place)["causal", "gpt2", 1].outcome == "exact"
    before = place.read_text()
    main(["--findings", str(place), "--only", "gpt2", "--seeds", "1"])
    assert place.read_text() == before
