"""Models and tokenizer travel together, and the architecture is Qwen2's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from opd_probe.lab.models import EOS_ID, PAD_ID, LabModel, ModelRecipe, build_model, load_model, save_model
from opd_probe.lab.task import encode, sample_problems, seeded

SHAPE = ModelRecipe(hidden_size=32, layers=2, heads=2, intermediate_size=48)


@pytest.fixture(scope="module")
def model() -> LabModel:
    return build_model(SHAPE, seed=0)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [problem.prompt for problem in sample_problems(seeded(0, "test"), 8)]


def test_the_architecture_is_qwen2s(model: LabModel, prompts: list[str]) -> None:
    config = model.config
    twin = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            pad_token_id=PAD_ID,
        )
    )
    twin.load_state_dict(model.state_dict())
    ids = torch.tensor([encode(prompt) for prompt in prompts])
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_model_and_its_tokenizer_load_by_their_directory(
    model: LabModel, prompts: list[str], tmp_path: Path, dtype: torch.dtype
) -> None:
    save_model(model, tmp_path, dtype)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer(prompt)["input_ids"] for prompt in prompts] == [encode(prompt) for prompt in prompts]
    assert tokenizer.batch_decode([encode(prompt) for prompt in prompts]) == prompts
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS_ID, PAD_ID)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert stored.dtype == dtype
    for a, b in zip(load_model(tmp_path).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 if dtype == torch.float16 else 0.0, rtol=0.0)
    assert model.dtype == torch.float32


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_model(SHAPE, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    weights = [model.model.embed_tokens.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
