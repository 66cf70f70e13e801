from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedModel,
)

from opd_probe.errors import InputError, MissingError, OpdProbeError
from opd_probe.models.loading import LoadedModel, load_model
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

IDS = torch.tensor([[3, 9, 4, 4, 17, 60, 2, 5]])


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def _ours(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return loaded.output_layer.logits(loaded.hidden(IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_gives_its_own_logits(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tied=tied)
    loaded = load_model(save_checkpoint(tmp_path / "checkpoint-7", model, tiny_tokenizer()))
    assert torch.allclose(_ours(loaded), _logits(model), atol=1e-5)
    assert loaded.width == 64
    assert loaded.max_positions == 128
    assert not loaded.model.training
    assert loaded.tokenizer is not None
    assert len(loaded.tokenizer) == 64


def test_padding_on_the_right_changes_nothing_on_its_left(tmp_path: Path) -> None:
    loaded = load_model(save_checkpoint(tmp_path / "m", tiny_model()))
    with torch.no_grad():
        alone = loaded.hidden(IDS[:, :5])
        padded = loaded.hidden(torch.cat([torch.nn.functional.pad(IDS[:, :5], (0, 3)), IDS]))
    assert torch.allclose(alone[0], padded[0, :5], atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16", "float64"])
def test_the_type_is_as_stored_unless_asked(tmp_path: Path, stored: torch.dtype, asked: str | None) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model(dtype=stored))
    loaded = load_model(path, dtype=asked)
    expected = stored if asked is None else getattr(torch, asked)
    assert loaded.dtype == expected
    assert loaded.identity["dtype"] == str(expected).removeprefix("torch.")


def test_weights_are_what_is_stored_whatever_config_json_says(tmp_path: Path) -> None:
    model = tiny_model()
    path = save_checkpoint(tmp_path / "m", model)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    loaded = load_model(path)
    assert torch.equal(loaded.output_layer.weight, model.get_output_embeddings().weight)
    assert (loaded.identity["dtype"], loaded.identity["stored_dtype"]) == ("float32", "float32")


def test_a_few_wide_vectors_do_not_widen_the_model(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model(dtype=torch.bfloat16))
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(path)
    assert (loaded.identity["dtype"], loaded.identity["stored_dtype"]) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize("name", ["int8", "fp8", "auto", "Float32", ""])
def test_an_unknown_type_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="dtype"):
        load_model(save_checkpoint(tmp_path / "m", tiny_model()), dtype=name)


@pytest.mark.parametrize("name", ["tpu9", "cuda:99"])
def test_an_unknown_device_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="device"):
        load_model(save_checkpoint(tmp_path / "m", tiny_model()), device=name)


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    model = tiny_model(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert torch.allclose(_ours(load_model(tmp_path)), _logits(model), atol=1e-5)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        load_model(tmp_path)


def test_an_index_that_is_no_index_is_named(tmp_path: Path) -> None:
    tiny_model(tied=False).save_pretrained(tmp_path, max_shard_size="20KB")
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match=r"index\.json"):
            load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    _one_line(path, r"model\.safetensors")


@pytest.mark.parametrize(
    "config", ["{", "[]", '"x"', "{}", '{"model_type": "no-such-thing"}', '{"model_type": "qwen2", "hidden_size": "x"}']
)
def test_a_broken_config_is_named(tmp_path: Path, config: str) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    (path / "config.json").write_text(config)
    _one_line(path, "config" if "hidden_size" not in config else str(path))


def _one_line(path: Path, match: str) -> None:
    with pytest.raises(OpdProbeError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def _change_weights(path: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_lack_a_key_are_refused_not_invented(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    _change_weights(path, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    _one_line(path, r"model\.layers\.1\.mlp\.up_proj\.weight")


def test_layers_that_the_config_leaves_out_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model(layers=3))
    config = json.loads((path / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": config["layer_types"][:2]}
    (path / "config.json").write_text(json.dumps(config))
    _one_line(path, r"model\.layers\.2\.")


def test_an_untied_output_layer_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model(tied=False))
    _change_weights(path, lambda weights: weights.pop("lm_head.weight"))
    _one_line(path, "lm_head")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    _one_line(path, "mlp")


def test_a_model_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    _one_line(tmp_path, str(tmp_path))


def test_a_pickle_beside_the_weights_is_never_opened(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    (path / "training_args.bin").write_bytes(b"not a pickle")
    (path / "pytorch_model.bin").write_bytes(b"not a pickle")
    load_model(path)


def test_foreign_code_is_not_run(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    _one_line(path, "config")
    assert not (tmp_path / "ran").exists()


def test_eos_ids_are_those_of_generation_config_and_tokenizer(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [5, 9]
    assert load_model(save_checkpoint(tmp_path / "m", model, tiny_tokenizer())).eos_ids == (1, 5, 9)


def test_a_checkpoint_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model())
    assert load_model(path).tokenizer is None
    save_checkpoint(tmp_path / "t", tiny_model(), tiny_tokenizer())
    assert load_model(path, tokenizer=tmp_path / "t").tokenizer is not None
    with pytest.raises(MissingError, match="tokenizer"):
        load_model(path, tokenizer=path)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", tiny_model(), tiny_tokenizer())
    (path / "tokenizer.json").write_text("{")
    _one_line(path, "tokenizer")


def test_models_in_memory_are_accepted_as_they_are() -> None:
    model = tiny_model()
    loaded = load_model(model, tokenizer=tiny_tokenizer())
    assert loaded.model is model
    assert load_model(loaded) is loaded
    assert load_model(model).tokenizer is None
    with pytest.raises(InputError, match="expected a path"):
        load_model(3)  # type: ignore[arg-type]


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
ARCHITECTURES = {
    "cohere, logit scale": CohereConfig(**SMALL, **HEADS, logit_scale=0.3),
    "granite, logits scaling": GraniteConfig(**SMALL, **HEADS, logits_scaling=3.0),
    "gemma2, soft cap": Gemma2Config(**SMALL, **HEADS, head_dim=16, final_logit_softcapping=2.0),
    "llama": LlamaConfig(**SMALL, **HEADS),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64),
}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_output_layers_of_other_architectures(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0, 1.0)
    model.eval()
    loaded = load_model(model)
    assert torch.allclose(_ours(loaded), _logits(model), atol=1e-4)


def _adapter(model: PreTrainedModel, directory: Path, base: str, **options: Any) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    options = {"target_modules": ["q_proj", "v_proj", "up_proj"], **options}
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    for _ in range(4):
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(directory)
    return adapted.eval()


@pytest.mark.parametrize("relative", [True, False])
def test_an_adapter_is_applied_to_its_base(tmp_path: Path, relative: bool) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(), tiny_tokenizer())
    named = "../base" if relative else str(base)
    adapted = _adapter(tiny_model(), tmp_path / "checkpoint-4", named)
    loaded = load_model(tmp_path / "checkpoint-4")
    assert torch.allclose(_ours(loaded), _logits(adapted), atol=1e-5)
    assert not torch.allclose(_ours(loaded), _logits(tiny_model()), atol=1e-2)
    assert loaded.tokenizer is not None
    assert loaded.identity["format"] == "peft"
    assert loaded.identity["step"] == 4
    assert loaded.identity["base"] == str(base)


def test_an_adapter_of_a_bf16_base_is_not_rounded_away(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(dtype=torch.bfloat16))
    stored = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    adapted = _adapter(stored, tmp_path / "a", str(base))
    assert torch.equal(_logits(load_model(tmp_path / "a").model), _logits(adapted))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_of_the_output_layer(tmp_path: Path, tied: bool) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(tied=tied))
    adapted = _adapter(tiny_model(tied=tied), tmp_path / "a", str(base), target_modules=["lm_head", "q_proj"])
    assert torch.allclose(_ours(load_model(tmp_path / "a")), _logits(adapted), atol=1e-4)


def test_an_adapter_with_an_output_layer_of_its_own(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(tied=False))
    model = tiny_model(tied=False)
    adapted = _adapter(model, tmp_path / "a", str(base), modules_to_save=["lm_head"])
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    adapted.save_pretrained(tmp_path / "a")
    assert torch.allclose(_ours(load_model(tmp_path / "a")), _logits(adapted), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trained_with_added_tokens_widens_its_base(tmp_path: Path, tied: bool) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(tied=tied))
    model = tiny_model(tied=tied)
    model.resize_token_embeddings(70)
    adapted = _adapter(model, tmp_path / "a", str(base), modules_to_save=None if tied else ["embed_tokens", "lm_head"])
    loaded = load_model(tmp_path / "a")
    ids = torch.tensor([[3, 66, 5, 69]])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        ours = loaded.output_layer.logits(loaded.hidden(ids))
    assert loaded.width == 70
    assert torch.allclose(ours, expected, atol=1e-4)


def test_an_adapter_whose_own_output_layer_is_missing_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_checkpoint(tmp_path / "base", tiny_model(tied=False))
    _adapter(tiny_model(tied=False), tmp_path / "a", str(base), modules_to_save=["lm_head"])
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "lm_head" not in name}, file)
    _one_line(tmp_path / "a", "lm_head")


def test_weights_that_are_nan_are_left_for_the_replay_to_place(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = float("nan")
    loaded = load_model(save_checkpoint(tmp_path / "m", model))
    with torch.no_grad():
        assert bool(loaded.hidden(IDS).isnan().any())


def test_the_output_layer_is_the_model_s_own_tensor_and_not_a_copy(tmp_path: Path) -> None:
    loaded = load_model(save_checkpoint(tmp_path / "m", tiny_model()))
    assert loaded.output_layer.weight.data_ptr() == loaded.model.get_input_embeddings().weight.data_ptr()


def test_the_base_of_an_adapter_may_be_overridden(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "elsewhere", tiny_model())
    adapted = _adapter(tiny_model(), tmp_path / "a", "/no/such/base")
    with pytest.raises(MissingError, match="/no/such/base"):
        load_model(tmp_path / "a")
    assert torch.allclose(_ours(load_model(tmp_path / "a", base=str(base))), _logits(adapted), atol=1e-5)


def test_an_adapter_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_checkpoint(tmp_path / "base", tiny_model())
    _adapter(tiny_model(), tmp_path / "a", str(base))
    file = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file)
    _one_line(tmp_path / "a", "missing")


def test_broken_adapters_are_named(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model())
    _adapter(tiny_model(), tmp_path / "a", str(base))
    file = tmp_path / "a" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    _one_line(tmp_path / "a", r"adapter_model\.safetensors")
    file.write_bytes(content)
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    _one_line(tmp_path / "a", r"adapter_config\.json")


def test_an_adapter_in_memory(tmp_path: Path) -> None:
    adapted = _adapter(tiny_model(), tmp_path / "a", "x")
    assert torch.allclose(_ours(load_model(adapted)), _logits(adapted), atol=1e-5)


def test_a_hub_id_that_cannot_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match="not a local directory") as caught:
        load_model("no-such-org/no-such-model")
    assert "\n" not in str(caught.value)


def test_loading_is_quiet(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.top_k = 7  # without do_sample: transformers has advice about it
    path = save_checkpoint(tmp_path / "m", tiny_model(), tiny_tokenizer())
    stated = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**stated, "top_k": 7, "temperature": 0.3}))
    code = f"from opd_probe.models.loading import load_model; load_model({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
