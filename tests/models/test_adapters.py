"""Adapters of every kind that peft writes, against peft's own forward."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import opd_probe
from opd_probe.errors import InputError
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import load_model
from opd_probe.models.outline import read_outline
from opd_probe.types import Prompt
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

IDS = torch.tensor([[3, 9, 4, 4, 17, 60, 2, 5, 33, 12, 8, 9]])
INNER = {"target_modules": ["q_proj", "v_proj", "up_proj"]}
HEAD = {"target_modules": ["q_proj", "up_proj", "lm_head"]}
INVOCATION = [17, 60]

LORA: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, **INNER},
    "dora": {"use_dora": True, **HEAD},
    "dora of the embedding": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "biases": {"bias": "all", **INNER},
    "a bias of its own on the head": {"lora_bias": True, **HEAD},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "the head whole": {"modules_to_save": ["lm_head"], **INNER},
    "a norm whole": {"modules_to_save": ["norm"], **INNER},
    "embedding and head whole": {"modules_to_save": ["embed_tokens", "lm_head"], **INNER},
    "trainable tokens": {"trainable_token_indices": [3, 9, 60], **INNER},
    "target_parameters": {"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}, **INNER},
    "activated": {"alora_invocation_tokens": INVOCATION, **INNER},
    "activated, on the head": {"alora_invocation_tokens": INVOCATION, **HEAD},
}

OTHERS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "tinit": 1, "tfinal": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["up_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [3, 9, 60], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 16, "topk": 2, "r": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}

PROMPTS: dict[str, dict[str, Any]] = {
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
}


def _lora(options: dict[str, Any]) -> Any:
    return peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)


def _config(kind: str, options: dict[str, Any]) -> Any:
    """Of another kind than LoRA, on the output layer too where its target is free."""
    made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    known = inspect.signature(made).parameters
    return made(**{name: v for name, v in {"task_type": "CAUSAL_LM", **HEAD, **options}.items() if name in known})


def _trained(
    base: Path, place: Path, config: Any, *, tied: bool = False, name: str = "default", model: Any = None
) -> Any:
    """An adapter as if it had been trained, and saved by peft."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(tiny_model(tied=tied) if model is None else model, config, adapter_name=name)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.peft_config[name].base_model_name_or_path = str(base)
    adapted.save_pretrained(place)
    return adapted.eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {tied: save_checkpoint(root / f"{tied}", tiny_model(tied=tied), tiny_tokenizer()) for tied in (True, False)}


@torch.no_grad()
def _logprobs(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits.double().log_softmax(-1)


@torch.no_grad()
def _ours(source: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    loaded = load_model(source)
    outputs = loaded.outputs([ids[0].numpy()], [np.arange(ids.shape[1])])
    return loaded.output_layer.logits(outputs).double().log_softmax(-1)[None]


def _check(adapted: Any, place: Path, tied: bool) -> None:
    own = _logprobs(adapted)
    assert not torch.allclose(own, _logprobs(tiny_model(tied=tied)), atol=1e-2)
    assert torch.allclose(_ours(place), own, atol=1e-4)
    assert torch.allclose(_ours(adapted), own, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", LORA.values(), ids=LORA.keys())
def test_lora_in_all_its_forms(tmp_path: Path, bases: dict[bool, Path], options: dict[str, Any], tied: bool) -> None:
    _check(_trained(bases[tied], tmp_path, _lora(options), tied=tied), tmp_path, tied)


WIDENED: dict[str, tuple[bool, dict[str, Any]]] = {
    "an adapted head that is the embedding": (True, {"use_dora": True, "use_rslora": True, **HEAD}),
    "added tokens that were trained": (True, {"trainable_token_indices": [66, 69, 3], **INNER}),
    "added tokens beside a head of its own": (False, {"trainable_token_indices": [66, 69, 3], **INNER}),
    "an embedding kept whole": (False, {"modules_to_save": ["embed_tokens"], **INNER}),
}


@pytest.mark.parametrize(("tied", "options"), WIDENED.values(), ids=WIDENED.keys())
def test_wherever_peft_puts_a_widened_vocabulary(
    tmp_path: Path, bases: dict[bool, Path], tied: bool, options: dict[str, Any]
) -> None:
    wide = tiny_model(tied=tied)
    wide.resize_token_embeddings(70, mean_resizing=False)
    adapted = _trained(bases[tied], tmp_path, _lora(options), model=wide)
    ids = torch.tensor([[3, 66, 5, 69, 12]])
    assert torch.allclose(_ours(tmp_path, ids), _logprobs(adapted, ids), atol=1e-4)
    assert read_outline(resolve_checkpoint(tmp_path)).width == 70


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_kinds(tmp_path: Path, bases: dict[bool, Path], kind: str, tied: bool) -> None:
    _check(_trained(bases[tied], tmp_path, _config(kind, OTHERS[kind]), tied=tied), tmp_path, tied)


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_are_one_line_from_a_path_and_from_memory(
    tmp_path: Path, bases: dict[bool, Path], kind: str
) -> None:
    adapted = _trained(bases[False], tmp_path, _config(kind, PROMPTS[kind]))
    for source in (tmp_path, adapted):
        with pytest.raises(InputError, match=f"{kind} adds virtual tokens") as caught:
            load_model(source)
        assert "\n" not in str(caught.value)


def test_an_adapter_that_sees_later_tokens_is_refused(tmp_path: Path, bases: dict[bool, Path]) -> None:
    adapted = _trained(bases[False], tmp_path, _config("LILY", {"r": 4}))
    assert not torch.allclose(_logprobs(adapted)[:, :6], _logprobs(adapted, IDS[:, :6]), atol=1e-3)
    with pytest.raises(InputError, match="changes what the model says of those before it"):
        load_model(tmp_path)


def _invoked(count: int) -> list[dict[str, Any]]:
    """Rollouts in pairs of one prompt, prompts of several lengths with the invocation at several places."""
    draw = torch.Generator().manual_seed(0)

    def some(length: int) -> list[int]:
        return torch.randint(18, 59, (length,), generator=draw).tolist()

    prompts = [some(3 * index + 1) + INVOCATION + some(index) for index in range(count)]
    return [
        {
            "id": f"{index}/{sample}",
            "prompt_id": str(index),
            "prompt_ids": ids,
            "response_ids": some(5 + sample + index),
        }
        for index, ids in enumerate(prompts)
        for sample in range(2)
    ]


def test_an_activated_adapter_is_replayed_as_peft_runs_it(tmp_path: Path, bases: dict[bool, Path]) -> None:
    adapted = _trained(bases[False], tmp_path, _lora(LORA["activated"]))
    rollouts = _invoked(3)
    for source in (str(tmp_path), adapted):
        trace = opd_probe.replay(source, str(bases[False]), rollouts, k=16)
        index, position = trace.rollout_index(), trace.column("position")
        ids, stored = trace.column("student_top_ids").astype(np.int64), trace.column("student_top_logprobs")
        assert trace.n_states == sum(len(one["response_ids"]) for one in rollouts)
        for number, one in enumerate(rollouts):
            own = _logprobs(adapted, torch.tensor([one["prompt_ids"] + one["response_ids"]]))[0]
            for row in np.flatnonzero(index == number):
                expected = own[len(one["prompt_ids"]) - 1 + int(position[row])][torch.from_numpy(ids[row])]
                np.testing.assert_allclose(stored[row], expected, atol=1e-4)


def test_an_activated_adapter_samples_as_peft_runs_it(tmp_path: Path, bases: dict[bool, Path]) -> None:
    adapted = _trained(bases[False], tmp_path, _lora(LORA["activated"]))
    prompts = [Prompt(id=one["id"], ids=tuple(one["prompt_ids"])) for one in _invoked(3)[::2]]
    prompts.append(Prompt(id="never invoked", ids=(20, 21, 22, 23)))
    for one in sample_rollouts(load_model(tmp_path), prompts, num_rollouts=2, max_new_tokens=6, seed=3):
        own = _logprobs(adapted, torch.tensor([[*one.prompt_ids, *one.response_ids]]))[0]
        places = torch.arange(len(one.response_ids)) + len(one.prompt_ids) - 1
        np.testing.assert_allclose(one.logprobs, own[places, torch.tensor(one.response_ids)], atol=1e-4)


def test_an_activated_adapter_is_never_taken_for_its_base(tmp_path: Path, bases: dict[bool, Path]) -> None:
    adapted = _trained(bases[False], tmp_path / "a", _lora(LORA["activated"]))
    with pytest.raises(InputError, match="peft's own model alone switches on"):
        load_model(adapted.get_base_model())
    _trained(bases[False], tmp_path / "b", _lora({"alora_invocation_tokens": [60, 0], **INNER}))
    with pytest.raises(InputError, match="end in id 0"):
        load_model(tmp_path / "b")
    file = tmp_path / "b" / "adapter_config.json"
    stated = json.loads(file.read_text()) | {"alora_invocation_tokens": {"60": 0}}
    file.write_text(json.dumps(stated))
    with pytest.raises(InputError, match="expected token ids in a list"):
        load_model(tmp_path / "b")


def test_an_adapter_on_an_adapter_goes_on_what_its_base_became(tmp_path: Path, bases: dict[bool, Path]) -> None:
    first = _trained(bases[False], tmp_path / "first", _lora(INNER))
    second = _trained(tmp_path / "first", tmp_path / "second", _lora(HEAD), model=first.merge_and_unload())
    assert torch.allclose(_ours(tmp_path / "second"), _logprobs(second), atol=1e-4)


def test_an_adapter_of_the_head_of_a_bf16_model(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(tied=False, dtype=torch.bfloat16))
    _trained(base, tmp_path / "a", _lora(HEAD), model=tiny_model(tied=False, dtype=torch.bfloat16))
    loaded = load_model(tmp_path / "a")
    assert (loaded.dtype, loaded.identity["dtype"], loaded.identity["architecture"]) == (
        torch.bfloat16,
        "bfloat16",
        "Qwen2ForCausalLM",
    )
    wide = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    own = _logprobs(peft.PeftModel.from_pretrained(wide, str(tmp_path / "a")))
    assert torch.allclose(_ours(load_model(tmp_path / "a", dtype="float32")), own, atol=1e-4)


def test_a_named_adapter_below_a_checkpoint_is_found(tmp_path: Path, bases: dict[bool, Path]) -> None:
    step = tmp_path / "checkpoint-5"
    adapted = _trained(bases[False], step, _lora(INNER), name="policy")
    loaded = load_model(step)
    assert (loaded.identity["step"], loaded.identity["format"]) == (5, "peft")
    assert torch.allclose(_ours(loaded), _logprobs(adapted), atol=1e-4)
    _trained(bases[False], step, _lora(INNER), name="another")
    with pytest.raises(InputError, match=r"holds 2 adapters \(another, policy\); name the directory of one"):
        load_model(step)
    assert load_model(step / "policy").identity["format"] == "peft"


def _edited(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], **settings: Any
) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        config = place / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
        file = place / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return edit


def _kept(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights


FAULTS = {
    "values without a place": (_edited(_kept, target_modules=["q_proj", "v_proj"]), r"holds .*up_proj.*no place"),
    "magnitudes that are not there": (_edited(_kept, use_dora=True), r"missing: .*lora_magnitude_vector"),
    "biases that are not there": (_edited(_kept, bias="all"), r"missing: .*bias"),
    "names of another tool": (
        _edited(lambda weights: {name.removeprefix("base_model.model."): v for name, v in weights.items()}),
        r"holds model\.layers.*no place",
    ),
    "another rank": (_edited(_kept, r=8), "size mismatch"),
    "another task": (_edited(_kept, task_type="SEQ_CLS"), "task SEQ_CLS"),
    "an unknown kind": (_edited(_kept, peft_type="NO_SUCH"), "NO_SUCH"),
    "empty values": (_edited(lambda weights: {name: v[:0].clone() for name, v in weights.items()}), "cannot be loaded"),
}


@pytest.mark.parametrize(("edit", "match"), FAULTS.values(), ids=FAULTS.keys())
def test_an_adapter_whose_parts_do_not_fit_is_one_line(
    tmp_path: Path, bases: dict[bool, Path], edit: Callable[[Path], None], match: str
) -> None:
    _trained(bases[False], tmp_path, _lora(INNER))
    load_model(tmp_path)
    edit(tmp_path)
    with pytest.raises(InputError, match=match) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
