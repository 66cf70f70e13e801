#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, Python 3.11; seen on 2026-11-29. Not so in transformers 5.23.0.
#
# Seen: Llama4ForConditionalGeneration, a small one with random weights, is given token ids and no image. Its forward raises an
# AttributeError about image_outputs, a field that the output of the language model in it does not have. The language model
# itself answers the same ids.
#
# Why it surprises: images are optional in its signature, every prompt of text alone goes this way, and the release before
# answers. AutoModelForCausalLM gives the language model, but whoever loads the whole model cannot use it for text.
#
# Ends with 0 as long as this is so, and with 1 once the whole model answers.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

torch.manual_seed(0)
text = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "attention_chunk_size": 64,
}
vision = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}
model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).eval()
ids = torch.tensor([[3, 9, 4, 17, 60, 2, 5]])
with torch.no_grad():
    print("the language model in it:", list(model.language_model(input_ids=ids).logits.shape))
    try:
        print("the whole model:", list(model(input_ids=ids).logits.shape))
    except AttributeError as error:
        print(f"the whole model: AttributeError: {error}")
        sys.exit("image" not in str(error))
sys.exit(1)
PYTHON
