#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11; seen on 2026-11-29.
#
# Seen: LoRA with layer_replication, which lists spans of layers to run more than once and trains an adapter for each copy,
# works on Llama and Mistral. On Qwen2 and Qwen3 peft builds the model without a word, and its first forward is an IndexError:
# peft raises num_hidden_layers of the configuration and leaves its layer_types as long as they were.
#
# Why it surprises: peft's documentation lists no architecture that is left out, the four models have the same layers by
# name, and the configuration itself refuses such a pair of values when it is made.
#
# Ends with 0 as long as this is so, and with 1 once Qwen2 and Qwen3 run or another one fails.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0 peft==0.21.2
"$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

seen = {}
for kind in ("llama", "mistral", "qwen2", "qwen3"):
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )
    lora = LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
    try:
        model(input_ids=torch.tensor([[1, 2, 3]]))
        seen[kind] = "runs"
    except IndexError as error:
        seen[kind] = f"IndexError: {error}"
    listed = getattr(model.config, "layer_types", None)
    print(kind, seen[kind], "- num_hidden_layers", model.config.num_hidden_layers, "layer_types", listed)
    try:
        type(model.config).from_dict(model.config.to_dict())
    except Exception as error:
        print(f"    the same configuration, made anew: {type(error).__name__}")
runs = [kind for kind, outcome in seen.items() if outcome == "runs"]
sys.exit(runs != ["llama", "mistral"])
PYTHON
