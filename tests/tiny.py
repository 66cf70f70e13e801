"""Tiny real models, tokenizers and checkpoints for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

QUESTION_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Q: {% endif %}{{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}A: {% if enable_thinking is defined and not enable_thinking %}<think> </think> "
    "{% endif %}{% endif %}"
)
"""Another one, with a thinking mode that is switched off as in Qwen3."""


def tiny_tokenizer(
    vocab_size: int = 64, *, words: list[str] | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """One word, one token: ``<pad>``, ``<eos>``, ``<unk>``, then ``words`` or the numbers 0, 1, 2, …"""
    words = words or [str(number) for number in range(vocab_size - 3)]
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(
    vocab_size: int = 64,
    *,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    tied: bool = True,
    spread: float = 1.0,
    max_positions: int = 128,
    dtype: torch.dtype = torch.float32,
) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights; ``spread`` scales its output layer, so that it has opinions."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.08)
        model.get_output_embeddings().weight.mul_(4.0 * spread)
    return model.to(dtype).eval()


def confident_pair(vocab_size: int = 64) -> tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]:
    """A student, and a teacher near it, with logits so large that one token holds all but 1e-2 … 1e-8 at most states.

    As a student does that has learnt its teacher, or any model inside what it knows by heart: what tells the two apart
    lies in the small rest.
    """
    pair = tiny_model(vocab_size, seed=1), tiny_model(vocab_size, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in pair[1].parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03 * float(parameter.std()))
        for model in pair:
            model.model.norm.weight.mul_(3.5)
    return pair


def save_checkpoint(
    directory: Path,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast | None = None,
    step: int | None = None,
) -> Path:
    """An ordinary checkpoint directory, as a trainer writes it."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    if step is not None:
        (directory / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    return directory
