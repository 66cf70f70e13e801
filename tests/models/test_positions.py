"""How many positions a model reaches, where its rotary positions are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen2Config, Qwen2ForCausalLM

import opd_probe
from opd_probe.errors import InputError
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.loading import load_model
from opd_probe.models.outline import read_outline
from opd_probe.models.positions import max_positions
from opd_probe.types import Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer


def scaled(**scaling: Any) -> dict[str, Any]:
    return {"rope_theta": 10000.0, **scaling}


@pytest.mark.parametrize(
    ("stated", "scaling", "reached"),
    [
        (32, scaled(rope_type="yarn", factor=8.0, original_max_position_embeddings=32), 256),
        (256, scaled(rope_type="yarn", factor=8.0, original_max_position_embeddings=32), 256),
        (32, scaled(rope_type="yarn", factor=8.0), 256),
        (40, scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32), 128),
        (32, scaled(rope_type="dynamic", factor=4.0), 128),
        (32, scaled(rope_type="linear", factor=2.0), 64),
        (32, scaled(rope_type="default"), 32),
        (
            256,
            scaled(
                rope_type="llama3",
                factor=8.0,
                original_max_position_embeddings=32,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
            256,
        ),
    ],
)
def test_the_length_before_the_scaling_times_its_factor(stated: int, scaling: dict[str, Any], reached: int) -> None:
    for kind in (Qwen2Config, LlamaConfig):
        assert max_positions(kind(max_position_embeddings=stated, rope_parameters=scaling)) == reached


def test_configurations_that_state_the_whole_length() -> None:
    linear = {
        "full_attention": scaled(rope_type="linear", factor=8.0),
        "sliding_attention": scaled(rope_type="default"),
    }
    assert max_positions(Gemma3TextConfig(max_position_embeddings=256, rope_parameters=linear)) == 256
    long = scaled(rope_type="longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48, factor=32.0)
    phi = Phi3Config(max_position_embeddings=256, original_max_position_embeddings=32, rope_parameters=long)
    assert max_positions(phi) == 256


def test_rollouts_beyond_the_stated_length_are_replayed_and_longer_ones_refused(tmp_path: Path) -> None:
    config = tiny_model().config
    config.max_position_embeddings = 32
    config.rope_parameters = scaled(rope_type="yarn", factor=8.0, original_max_position_embeddings=32)
    place = save_checkpoint(tmp_path / "yarn", Qwen2ForCausalLM(config), tiny_tokenizer())
    assert read_outline(resolve_checkpoint(place)).max_positions == load_model(place).max_positions == 256
    for length, fits in ((40, True), (252, True), (254, False)):
        rollout = Rollout("long", prompt_ids=(3, 4, 5, 6), response_ids=tuple(3 + i % 50 for i in range(length)))
        if fits:
            assert opd_probe.replay(place, place, [rollout]).n_states == length
        else:
            with pytest.raises(InputError, match=r"need 257 positions, .* has 256"):
                opd_probe.replay(place, place, [rollout])
