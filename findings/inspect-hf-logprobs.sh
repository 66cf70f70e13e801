#!/usr/bin/env bash
# inspect_ai 0.3.285, transformers 5.24.0, torch 2.13.0, Python 3.11; seen on 2026-11-29.
#
# Seen: inspect_ai's hf/ provider, asked for the log-probabilities of what it samples, stores at each place those of the most
# probable token, and its name: sampled at temperature 1, a text has entries of other tokens than those that it is made of. With
# greedy decoding both are the same.
#
# Why it surprises: the field is documented as the log-probability of the token that was generated, and with other providers is;
# perplexities and importance weights made of it are of a text that the model did not write, and look better than they are.
#
# Ends with 0 as long as this is so, and with 1 once every entry is of the token that was sampled.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check inspect_ai==0.3.285 transformers==5.24.0 accelerate
cd "$place"
HF_HUB_OFFLINE=1 INSPECT_DISPLAY=none "$place/venv/bin/python" - "$place" <<'PYTHON'
import sys
from pathlib import Path

import torch
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import generate
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

place = Path(sys.argv[1]) / "model"
words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(61))]
tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
tokens.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
).save_pretrained(place)
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                pad_token_id=0, eos_token_id=1, bos_token_id=None)
).save_pretrained(place)

log = eval(
    Task(dataset=MemoryDataset([Sample(input="w1 w2 w3", target="w4")]), solver=[generate()]),
    model="hf/model", model_args={"model_path": str(place), "device": "cpu"}, log_dir=str(place.parent / "logs"),
    temperature=1.0, max_tokens=16, logprobs=True, top_logprobs=1, seed=1,
)[0]  # fmt: skip
(choice,) = log.samples[0].output.choices
sampled = choice.message.text.split()
named = [entry.token for entry in choice.logprobs.content if entry.token.startswith("w")]  # the text lacks special ones
print("sampled:          ", " ".join(sampled))
print("log-probabilities:", " ".join(named))
sys.exit(named == sampled)
PYTHON
