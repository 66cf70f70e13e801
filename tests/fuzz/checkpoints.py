"""A small real checkpoint of every format that the package declares, as trees of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from tests.fuzz.trees import Tree, tree_of
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

Maker = Callable[[Path, Path | None], list[Tree]]
VOCABULARY = 16


def _model(seed: int = 1) -> Any:
    return tiny_model(VOCABULARY, hidden=8, layers=1, seed=seed, max_positions=32)


def _whole(place: Path, step: int | None = 5) -> Path:
    return save_checkpoint(place, _model(), tiny_tokenizer(VOCABULARY, chat_template=CHAT_TEMPLATE), step)


def _settings(place: Path) -> None:
    """What says which model it is, without weights."""
    place.mkdir(parents=True, exist_ok=True)
    _model().config.save_pretrained(place)
    tiny_tokenizer(VOCABULARY).save_pretrained(place)


def huggingface(root: Path, jobs: Path | None) -> list[Tree]:  # noqa: ARG001
    single = _whole(root / "a" / "checkpoint-5").parent
    sharded = root / "b" / "checkpoint-5"
    tiny_model(VOCABULARY, hidden=8, layers=2, tied=False).save_pretrained(sharded, max_shard_size="2KB")
    return [tree_of(single), tree_of(sharded.parent)]


def peft(root: Path, jobs: Path | None) -> list[Tree]:  # noqa: ARG001
    found = []
    for name, more in (("plain", {}), ("retrained", {"modules_to_save": ["lm_head"]}), ("dora", {"use_dora": True})):
        run = root / name
        _whole(run / "base", None)
        _adapted(more).save_pretrained(run / "checkpoint-5")
        config = run / "checkpoint-5" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "../base"}))
        found.append(tree_of(run))
    return found


def _adapted(more: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = ["q_proj", "down_proj"]
    return get_peft_model(
        _model(), LoraConfig(r=2, lora_alpha=4, target_modules=modules, task_type="CAUSAL_LM", **more)
    )


def verl_fsdp(root: Path, jobs: Path | None) -> list[Tree]:
    actor = root / "run" / "global_step_5" / "actor"
    _settings(actor / "huggingface")
    state = _model().state_dict()
    torch.save(state, actor / "model_world_size_1_rank_0.pt")
    torch.save({"state": {}}, actor / "optim_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    found = [tree_of(root / "run")]
    if jobs is not None:
        found += [tree_of(jobs / "hsdp2"), tree_of(jobs / "fsdp1")]
    return found


def verl_lora(root: Path, jobs: Path | None) -> list[Tree]:
    actor = root / "run" / "global_step_5" / "actor"
    _settings(actor / "huggingface")
    named = {name.replace(".weight", ".default.weight") if "lora_" in name else name: value
             for name, value in _adapted({}).state_dict().items()}  # fmt: skip
    torch.save(named, actor / "model_world_size_1_rank_0.pt")
    (actor / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}')
    found = [tree_of(root / "run")]
    return found if jobs is None else [*found, tree_of(jobs / "lora_only")]


def megatron(root: Path, jobs: Path | None) -> list[Tree]:  # noqa: ARG001
    actor = root / "run" / "global_step_9" / "actor"
    _whole(actor / "model" / "huggingface", None)
    contents = {"model": {"path": "model/huggingface", "format": "huggingface"}}
    stated = {"schema_version": 2, "framework": "megatron", "global_step": 9, "contents": contents}
    (actor / "ckpt_contents.json").write_text(json.dumps(stated))
    shards = {"iter_0000010/.metadata": b"", "iter_0000010/__0_0.distcp": b"", "iter_0000010/metadata.json": b"{}"}
    return [tree_of(root / "run"), shards]


def torch_distributed(root: Path, jobs: Path | None) -> list[Tree]:
    step = root / "run" / "checkpoint-5"
    place = step / "pytorch_model_fsdp_0"
    place.mkdir(parents=True)
    dcp.save({"model": _model().state_dict()}, checkpoint_id=place, no_dist=True)
    _settings(root / "run")
    nemo = root / "nemo" / "step_10"
    (nemo / "policy" / "weights").mkdir(parents=True)
    dcp.save({"model": _model().state_dict()}, checkpoint_id=nemo / "policy" / "weights", no_dist=True)
    _settings(root / "nemo" / "base")
    (nemo / "config.yaml").write_text("policy:\n  model_name: base\n")
    found = [tree_of(root / "run"), tree_of(root / "nemo")]
    return found if jobs is None else [*found, tree_of(jobs / "prime")]


def prime_rl(root: Path, jobs: Path | None) -> list[Tree]:  # noqa: ARG001
    weights = _whole(root / "run" / "step_7" / "weights", None)
    (weights / "STABLE").touch()
    return [tree_of(root / "run")]


def pieces(root: Path, jobs: Path | None) -> list[Tree]:
    found = []
    state = {name: value for name, value in _model().state_dict().items() if name != "lm_head.weight"}
    for name, how in (("a", {"save_distributed": True}), ("b", {"save_distributed": False})):
        step = root / name / "step-5"
        step.mkdir(parents=True)
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(step), **how), no_dist=True)
        _settings(step if name == "a" else root / name)
        found.append(tree_of(root / name))
    return found if jobs is None else [*found, tree_of(jobs / "odd" / "step-5")]


def gguf(root: Path, jobs: Path | None) -> list[Tree]:  # noqa: ARG001
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models.gguf_files import write_gguf

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=32, tie_word_embeddings=False,
        )
    )  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    return [{"model-5.gguf": write_gguf(root / "model-5.gguf", model, "llama").read_bytes()}]


def hub_cache(root: Path, jobs: Path | None) -> list[Tree]:  # noqa: ARG001
    place = root / "models--org--name"
    _whole(place / "snapshots" / "0123abc", None)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    return [tree_of(root)]


def foreign(root: Path, jobs: Path | None) -> list[Tree]:
    """Of other programs, all of which are refused by their names."""
    rest: Tree = {"config.json": json.dumps(_model().config.to_dict(), default=str).encode()}
    del root, jobs
    return [
        {"latest": b"global_step5", "global_step5/mp_rank_00_model_states.pt": b"x", **rest},
        {"consolidated.00.pth": b"x", "params.json": b"{}"},
        {"consolidated.safetensors": b"x", "params.json": b"{}"},
        {"weights.00.distcp": b"x", "metadata.json": b'{"sharded_backend": "torch_dist"}'},
        {"pytorch_model.bin": b"x", **rest},
        {"model.safetensors": b"x", **rest},
    ]


MAKERS: dict[str, Maker] = {
    "huggingface": huggingface,
    "peft": peft,
    "verl-fsdp": verl_fsdp,
    "verl-lora": verl_lora,
    "megatron": megatron,
    "dcp": torch_distributed,
    "prime-rl": prime_rl,
    "safetensors": pieces,
    "gguf": gguf,
    "hub-cache": hub_cache,
    "foreign": foreign,
}
"""For each format, what makes checkpoints of it below a directory; several ranks' from what real jobs left."""
