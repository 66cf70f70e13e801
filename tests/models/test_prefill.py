"""Long sequences go through the layers piece by piece, shared prompts once, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, MambaConfig, Qwen2Config

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


@pytest.mark.parametrize("piece", [8192, 6])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.inference_mode()
def test_a_shared_prompt_goes_through_once(config: Any, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = load_model(AutoModelForCausalLM.from_config(config).eval())
    ids = torch.cat([torch.randint(0, 64, (1, 11)).expand(3, -1), torch.randint(0, 64, (3, 9))], dim=1)
    whole = model.hidden(ids)
    monkeypatch.setattr(loading, "PREFILL_TOKENS", piece)
    model.hidden(ids, 11)  # the first time, whether that is exact is tried
    tokens: list[int] = []
    handle = model.model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: tokens.append(given[0].numel())
    )
    torch.testing.assert_close(model.hidden(ids, 11), whole[:, 11:], rtol=1e-5, atol=1e-5)
    handle.remove()
    assert sum(tokens) == 11 + 3 * 9


@torch.inference_mode()
def test_a_recurrent_model_reads_every_prompt_itself() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = load_model(AutoModelForCausalLM.from_config(config).eval())
    ids = torch.cat([torch.randint(0, 64, (1, 11)).expand(3, -1), torch.randint(0, 64, (3, 9))], dim=1)
    torch.testing.assert_close(model.hidden(ids, 11), model.hidden(ids)[:, 11:], rtol=0, atol=0)
