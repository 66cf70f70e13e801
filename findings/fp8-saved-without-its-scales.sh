#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11; seen on 2026-11-29. Gone in transformers 5.24.0.
#
# Seen: a checkpoint with weights of 8 bits in blocks (quant_method fp8, as DeepSeek stores it) is loaded on a CPU, where
# transformers unpacks it, and saved again with save_pretrained. What is written is packed once more, 8 bits and scales, but
# its config.json has no quantization_config. Loaded from there, the 8-bit numbers are taken for the weights, the scales are
# listed among the unexpected keys of the loading info, and the logits are those of another model.
#
# Why it surprises: from_pretrained and save_pretrained are meant to be inverse, nothing is raised, and the model answers.
#
# Ends with 0 as long as this is so, and with 1 once the copy says what the original says.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - "$place" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

place, side = Path(sys.argv[1]), 128
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=96, hidden_size=side, intermediate_size=2 * side, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, initializer_range=0.1,
)
LlamaForCausalLM(config).save_pretrained(place / "original")
packed = {}
for name, weight in load_file(place / "original" / "model.safetensors").items():
    if "proj" not in name:
        packed[name] = weight
        continue
    blocks = weight.reshape(weight.shape[0] // side, side, weight.shape[1] // side, side)
    scales = blocks.abs().amax((1, 3)) / 448
    packed[name] = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    packed[name.replace("weight", "weight_scale_inv")] = scales
save_file(packed, place / "original" / "model.safetensors", metadata={"format": "pt"})
stated = json.loads((place / "original" / "config.json").read_text())
stated["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [side, side]}
(place / "original" / "config.json").write_text(json.dumps(stated))

loaded = AutoModelForCausalLM.from_pretrained(place / "original", device_map="cpu")
loaded.save_pretrained(place / "copy")
again, info = AutoModelForCausalLM.from_pretrained(place / "copy", device_map="cpu", output_loading_info=True)
kinds = sorted({str(weight.dtype) for weight in load_file(place / "copy" / "model.safetensors").values()})
says = "quantization_config" in json.loads((place / "copy" / "config.json").read_text())
print("types in the copy:", kinds, "- its config.json has a quantization_config:", says)
print("unexpected when the copy is loaded:", len(info["unexpected_keys"]))
ids = torch.tensor([[3, 9, 4, 17, 60, 2, 5]])
with torch.no_grad():
    one, other = (model.float()(input_ids=ids).logits.log_softmax(-1) for model in (loaded, again))
change = float((one - other).abs().max())
print(f"largest difference of a log-probability between original and copy: {change:.2f} nats")
sys.exit(not (change > 1 and not says))
PYTHON
