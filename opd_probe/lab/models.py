"""The lab's models and tokenizer: Qwen2-shaped, small, saved as ordinary Hugging Face directories.

The models have exactly Qwen2's architecture (biases on queries, keys and values alone, tied output layer), but are
held in transformers' Seed-OSS class, which can express it: weights, names and logits are the same to the last bit.
From a directory whose configuration says ``qwen2``, transformers 5 loads Qwen2's byte-level tokenizer whatever
tokenizer was saved there, so that a vocabulary of words could not travel with its model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, PreTrainedTokenizerFast, SeedOssConfig, SeedOssForCausalLM

from opd_probe.lab.task import VOCABULARY

__all__ = ["EOS_ID", "PAD_ID", "LabModel", "ModelRecipe", "build_model", "build_tokenizer", "load_model", "save_model"]

PAD_ID = VOCABULARY.index("<pad>")
EOS_ID = VOCABULARY.index("<eos>")

LabModel = SeedOssForCausalLM
"""The class of every model of the lab."""


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """The shape of a model: width, depth, attention heads, width of the feed-forward layer."""

    hidden_size: int = 96
    layers: int = 3
    heads: int = 3
    intermediate_size: int = 288
    max_positions: int = 128


def build_model(recipe: ModelRecipe, seed: int) -> LabModel:
    """A randomly initialised model in float32; the seed decides the weights."""
    config = SeedOssConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden_size // recipe.heads,
        max_position_embeddings=recipe.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attention_bias=True,
        attention_out_bias=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LabModel(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per space-separated word; encoding adds nothing, decoding joins with single spaces."""
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def save_model(model: LabModel, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write weights (as ``dtype``), configurations and tokenizer to ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    copy = LabModel(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(do_sample=True, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    copied: Any = copy
    copied.to(dtype=dtype).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)


def load_model(directory: Path) -> LabModel:
    """The model of a directory in float32, in evaluation mode."""
    model: Any = LabModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return model.eval()  # type: ignore[no-any-return]
