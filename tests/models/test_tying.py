"""Another output layer than the embeddings, stored beside a configuration that ties them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opd_probe.errors import OpdProbeWarning
from opd_probe.models.loading import load_model
from tests.tiny import save_checkpoint, tiny_model


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "tied", tiny_model(layers=1))


def store_head(place: Path, change: float) -> torch.Tensor:
    weights = load_file(place / "model.safetensors")
    head = weights["model.embed_tokens.weight"] + change
    save_file({**weights, "lm_head.weight": head}, place / "model.safetensors", metadata={"format": "pt"})
    return head


def test_another_head_is_used_and_said(place: Path) -> None:
    head = store_head(place, 0.5)
    with pytest.warns(OpdProbeWarning, match="tie_word_embeddings: true") as caught:
        loaded = load_model(place, device="cpu")
    assert len(caught) == 1
    assert torch.equal(loaded.output_layer.weight, head)
    assert "servers such as vLLM may skip it" in str(caught[0].message)


def test_the_same_head_twice_and_adapters_are_no_news(place: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    store_head(place, 0.0)
    adapted = get_peft_model(
        tiny_model(layers=1), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    adapted.peft_config["default"].base_model_name_or_path = str(place)
    adapted.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", OpdProbeWarning)
        load_model(place)
        load_model(tmp_path / "adapter")
