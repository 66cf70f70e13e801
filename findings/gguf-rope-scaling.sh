#!/usr/bin/env bash
# transformers 5.23.0, gguf 0.19.0, torch 2.13.0, Python 3.11; seen on 2026-11-29.
#
# Seen: a GGUF file of a Llama whose header says that rotary positions are scaled linearly by 4 (the keys
# llama.rope.scaling.type and llama.rope.scaling.factor, which the writer of the gguf package sets itself) is loaded by
# transformers with unscaled positions, and nothing is said. Every weight is read to the bit.
#
# Why it surprises: the keys are the format's own, and the same package writes them; the loaded model answers fluently and is
# another model, so that whoever scores with it as a teacher measures the wrong teacher.
#
# Ends with 0 as long as this is so, and with 1 once the scaling is read.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0 gguf==0.19.0 numpy
"$place/venv/bin/python" - "$place" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoConfig

place = Path(sys.argv[1])
writer = gguf.GGUFWriter(place / "scaled.gguf", "llama")
writer.add_context_length(128)
writer.add_embedding_length(64)
writer.add_block_count(1)
writer.add_feed_forward_length(96)
writer.add_head_count(2)
writer.add_head_count_kv(1)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_freq_base(10000.0)
writer.add_vocab_size(64)
writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
writer.add_rope_scaling_factor(4.0)
writer.add_tensor("token_embd.weight", np.zeros((64, 64), dtype=np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

fields = gguf.GGUFReader(place / "scaled.gguf").fields
print("in the file:", fields["llama.rope.scaling.type"].contents(), fields["llama.rope.scaling.factor"].contents())
config = AutoConfig.from_pretrained(place, gguf_file="scaled.gguf")
print("in the configuration that transformers makes of it:", config.rope_parameters)
sys.exit(config.rope_parameters["rope_type"] != "default")
PYTHON
