"""Long sequences go through the layers piece by piece, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, Qwen2Config

from opd_probe.models import loading
from opd_probe.models.loading import load_model

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=1, intermediate_size=48),
    "gemma2, window shorter than a piece": Gemma2Config(
        **SMALL, num_key_value_heads=1, intermediate_size=48, head_dim=16, sliding_window=5
    ),
    "gpt2, learnt positions": GPT2Config(**SMALL, n_positions=64),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.inference_mode()
def test_pieces_give_the_hidden_states_of_the_whole(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = load_model(AutoModelForCausalLM.from_config(config).eval())
    ids = torch.randint(0, 64, (2, 37))
    whole = model.hidden(ids)
    lengths: list[int] = []
    advance = type(model).advance
    monkeypatch.setattr(
        type(model), "advance", lambda self, new, *rest: (lengths.append(new.shape[1]), advance(self, new, *rest))[1]
    )
    monkeypatch.setattr(loading, "PREFILL_TOKENS", 10)
    torch.testing.assert_close(model.hidden(ids), whole, rtol=1e-5, atol=1e-5)
    assert lengths == [10, 10, 10, 7]
