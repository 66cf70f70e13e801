"""What the documentation says of precision is what was measured last, and what measures it is right on small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import precision
from opd_probe.metrics import METRICS
from opd_probe.types import Rollout
from tests import reference
from tests.real import test_replay
from tests.real.truth import Llama, metrics
from tests.samples import confident_pair, random_pair


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(precision.RESULTS.read_text())
    return found


def test_the_documentation_shows_what_was_measured_last(report: dict[str, Any]) -> None:
    _, _, rest = precision.DOCS.read_text().partition(precision.BEGIN)
    assert rest.partition(precision.END)[0].strip() == precision.as_markdown(report)


def test_everything_was_measured(report: dict[str, Any]) -> None:
    """Every metric, on every path that there is."""
    assert list(report["pairs"]) == ["as it is", "sharpened"]
    whole = precision.chosen(report, pair="as it is", against="model", weights="float32")
    assert {row["path"] for row in whole} == {*test_replay.PATHS, precision.BY_HAND}
    for row in report["rows"]:
        if row["path"] not in ("served teacher", "one model alone", "`trace_logits`"):
            assert set(row["metrics"]) == set(METRICS), row["path"]
    for weights in ("float32", "float64", "float16", "bfloat16"):
        assert precision.chosen(report, against="model", weights=weights)


def test_what_is_promised_was_measured(report: dict[str, Any]) -> None:
    """The sentences around the tables."""
    for row in precision.chosen(report, against="logits"):
        assert row["other_sets"] == 0
        for name in ("reverse_kl", "forward_kl", "jsd"):
            if name in row["metrics"]:
                assert row["metrics"][name]["relative"] <= 1e-5
    for row in precision.chosen(report, against="model", weights="float32"):
        assert row["metrics"]["student_entropy"]["worst"] < 1e-3


def test_a_report_is_kept(tmp_path: Path, report: dict[str, Any]) -> None:
    precision.write(report, tmp_path / "kept.json")
    assert json.loads((tmp_path / "kept.json").read_text()) == report


def test_the_page_is_written_between_its_marks(tmp_path: Path, report: dict[str, Any]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{precision.BEGIN}\nold\n{precision.END}\nafter\n")
    precision.show_in(page, report)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert precision.as_markdown(report) in text


@pytest.mark.parametrize("logits", [random_pair(4, 300, seed=1), confident_pair(4, 300)], ids=["unsure", "confident"])
def test_its_metrics_are_those_of_the_slow_reference(logits: tuple[Any, Any, Any]) -> None:
    student, teacher, tokens = (np.asarray(values) for values in logits)
    sides = [torch.from_numpy(values).double() for values in (student, teacher)]
    found = metrics(sides[0], sides[1], torch.from_numpy(tokens), np.array([1.0, 0.0, 1.0, np.nan]), 8, 16)
    for at, correct in enumerate((True, False, True, None)):
        expected = reference.state(student[at], teacher[at], int(tokens[at]), 8, trace_k=16, correct=correct)
        assert set(expected) == set(METRICS)
        for name, value in expected.items():
            assert found[name][at] == pytest.approx(value, rel=1e-7, abs=1e-13, nan_ok=True), name


def test_its_forward_pass_is_a_llamas(tmp_path: Path) -> None:
    """transformers takes norms and angles in float32, whatever the weights: nearer than that it does not come."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(float(parameter.ndim == 1), 0.2)
    model.save_pretrained(tmp_path)
    rollout = Rollout("r", list(range(5, 25)), list(range(40, 60)))
    with torch.inference_mode():
        expected = model.double()(torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])).logits[0, 19:-1]
    exact = Llama(tmp_path)
    found = exact.hidden([rollout]) @ exact.output.t()
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
