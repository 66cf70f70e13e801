"""``opd-probe doctor --reference``, and how tables and titles name a quantised teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import opd_probe
from opd_probe.errors import OpdProbeWarning
from opd_probe.plots.tables import states_phrase
from tests.cli.workspace import Caller
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher in full, and the same teacher in fp8 with one scale for each block of its matrices."""
    root = tmp_path_factory.mktemp("pair")
    save_checkpoint(root / "student", tiny_model(seed=1, hidden=128), tiny_tokenizer())
    full = save_checkpoint(root / "full", tiny_model(seed=2, hidden=128), tiny_tokenizer())
    packed = save_checkpoint(root / "packed", tiny_model(seed=2, hidden=128), tiny_tokenizer())
    stored = {}
    for name, value in load_file(full / "model.safetensors").items():
        if value.ndim < 2 or "proj" not in name or value.shape[0] < 128:
            stored[name] = value
            continue
        blocks = value.reshape(value.shape[0] // 128, 128, value.shape[1] // 128, 128)
        scales = blocks.abs().amax((1, 3)) / 448
        stored[name] = (blocks / scales[:, None, :, None]).reshape(value.shape).to(torch.float8_e4m3fn)
        stored[name.replace("weight", "weight_scale_inv")] = scales
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["k_proj", "v_proj", "lm_head"],
    }
    (packed / "config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 60, (5,), generator=draw).tolist() for _ in range(4)]
    responses = [torch.randint(3, 60, (9,), generator=draw).tolist() for _ in range(8)]
    rows = [
        {"prompt_id": str(n // 2), "prompt_ids": prompts[n // 2], "response_ids": ids}
        for n, ids in enumerate(responses)
    ]
    (root / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_what_quantising_a_teacher_cost(call: Caller, pair: Path, tmp_path: Path) -> None:
    places = ["--student", str(pair / "student"), "--teacher", str(pair / "packed"), "--reference", str(pair / "full")]
    options = ["--rollouts", pair / "rollouts.jsonl", "--dtype", "float32", "--k", "8", "--out", tmp_path]
    done = call("doctor", *places, *options, "--format", "json")
    (row,) = (row for row in done.rows if row["check"] == "reference")
    trace = opd_probe.replay(pair / "packed", pair / "full", pair / "rollouts.jsonl", k=8, dtype="float32")
    with pytest.warns(OpdProbeWarning):  # of few prompts, and of lists of one token
        lists, first = opd_probe.summarize(trace, 8), opd_probe.summarize(trace, 1)
    expected = {"reverse_kl": lists["reverse_kl"], "forward_kl_lo": lists["forward_kl_lo"]}
    expected |= {"overlap_ratio": lists["overlap_ratio"], "top_1_agreement_hi": first["overlap_ratio_hi"]}
    assert {name: row["values"][name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert row["values"]["reverse_kl"] > 0
    table = pd.read_csv(tmp_path / "reference-packed.csv")
    assert list(table["value"]) == pytest.approx(
        [lists["reverse_kl"], lists["forward_kl"], lists["overlap_ratio"], first["overlap_ratio"]], rel=1e-4
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "reference-packed.csv",
        "reference-packed.pdf",
        "reference-packed.png",
    }


def test_a_quantised_teacher_is_named_in_tables_and_titles(call: Caller, pair: Path, tmp_path: Path) -> None:
    places = ["--ckpts", str(pair / "student"), "--teacher", str(pair / "packed"), "--dtype", "float32"]
    options = ["--rollouts", pair / "rollouts.jsonl", "--k", "8", "--out", tmp_path, "--format", "json"]
    (row,) = call("overlap", *places, *options).rows
    assert row["quantised"] == "8-bit teacher"
    assert "8-bit teacher" in states_phrase(pd.read_csv(tmp_path / "overlap.csv"))
    both = pd.DataFrame({"states": ["own", "own"], "quantised": ["4-bit teacher", None]})
    assert states_phrase(both).endswith("some with 4-bit teacher)")
    assert "bit" not in states_phrase(both.assign(quantised=None))
