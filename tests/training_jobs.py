"""What sharded training jobs leave on disk, written by real processes; run as a module by the fixture that wants it.

Names and contents of the files are those of verl's FSDP checkpoint manager.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardedStateDictConfig, ShardingStrategy, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer

WORLD = 4
VOCABULARY = 61
"""No multiple of the number of ranks, so that shards are uneven."""


def model_of(step: int, dtype: torch.dtype = torch.float32) -> Qwen2ForCausalLM:
    """The unsharded model that a job saves at a step; its query heads are fewer than the ranks."""
    return tiny_model(VOCABULARY, seed=step, layers=1, dtype=dtype)


def adapted_of(step: int) -> Any:
    """That model with a LoRA adapter that says something."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(step)
    adapted = get_peft_model(model_of(step), settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    return adapted


def verl_save(actor: Path, state: dict[str, Any], model: Any, version: int) -> None:
    """What one rank of a verl job writes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    actor.mkdir(parents=True, exist_ok=True)
    torch.save(state, actor / f"model_world_size_{world}_rank_{rank}.pt")
    torch.save({"state": {}, "param_groups": []}, actor / f"optim_world_size_{world}_rank_{rank}.pt")
    torch.save({"lr_scheduler": None, "rng": {}}, actor / f"extra_state_world_size_{world}_rank_{rank}.pt")
    if rank == 0:
        model.config.save_pretrained(actor / "huggingface")
        tiny_tokenizer(VOCABULARY, chat_template=CHAT_TEMPLATE).save_pretrained(actor / "huggingface")
        stated = {"FSDP_version": version, "world_size": world}
        (actor / "fsdp_config.json").write_text(json.dumps(stated, indent=4))
        torch.save({"epoch": 0}, actor.parent / "data.pt")
        finished = actor.parent.parent / "latest_checkpointed_iteration.txt"
        finished.write_text(actor.parent.name.removeprefix("global_step_"))
    dist.barrier()


def prime_save(trainer: Path, state: dict[str, Any], model: Any, version: int) -> None:
    """What the ranks of a prime-rl job write together: weights and optimiser state under one wrapper."""
    del model, version
    moments = {name: {"exp_avg": torch.zeros_like(value), "step": torch.tensor(5.0)} for name, value in state.items()}
    app = {"model": state, "optimizers": {"state": moments}, "progress": {"step": 5, "total_tokens": 7}}
    dcp.save({"app": app}, checkpoint_id=trainer)


def pieces_save(place: Path, state: dict[str, Any], model: Any, version: int) -> None:
    """What the ranks write with torch's writer of safetensors, each its own pieces."""
    del model, version
    writer = dcp.HuggingFaceStorageWriter(str(place), save_distributed=True)
    place.mkdir(parents=True, exist_ok=True)
    dcp.save({name: value for name, value in state.items() if name != "lm_head.weight"}, storage_writer=writer)


def fsdp2(root: Path, mesh: Any, model: Any, save: Callable[..., None], names: Callable[[str], bool]) -> None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    state = {name: value for name, value in model.state_dict().items() if names(name)}
    save(root, state, inner, 2)


def fsdp1(root: Path, mesh: Any, model: Any, strategy: ShardingStrategy) -> None:
    wrap = partial(transformer_auto_wrap_policy, transformer_layer_cls={Qwen2DecoderLayer})
    sharded = FSDP(
        model, device_mesh=mesh, sharding_strategy=strategy, auto_wrap_policy=wrap, device_id=torch.device("cpu")
    )
    with FSDP.state_dict_type(sharded, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=False)):
        verl_save(root, sharded.state_dict(), model, 1)


def odd_shards(root: Path, flat: Any, hybrid: Any) -> None:
    """Placements one by one, each in a directory of its own."""
    rank, ones = dist.get_rank(), torch.ones(2, 2)
    rows, columns = torch.arange(10.0).view(5, 2), torch.arange(14.0).view(2, 7)
    tail = FSDP(torch.nn.Linear(3, 5), device_id=torch.device("cpu"))  # without a mesh: torch's older kind of shards
    with FSDP.state_dict_type(tail, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=False)):
        older = tail.state_dict()
    states: dict[str, dict[str, Any]] = {
        "rows": {"w": distribute_tensor(rows, flat, [Shard(0)])},  # 2, 2, 1 and 0 of them
        "columns": {"w": distribute_tensor(columns, flat, [Shard(1)])},
        "repeated": {"w": distribute_tensor(rows, flat, [Replicate()])},
        "plain": {"w": torch.arange(2.0) + 2 * rank, "scalar": torch.tensor(3.0)},
        "buffers": {"w": distribute_tensor(rows, flat, [Shard(0)]), "b": columns},
        "partial": {"w": DTensor.from_local(ones, flat, [Partial()])},
        "two": {"w": DTensor.from_local(ones, hybrid, [Shard(0), Shard(1)])},
        "older": older,
    }
    for name, state in states.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        torch.save(state, root / name / f"model_world_size_{WORLD}_rank_{rank}.pt")


def work(rank: int, root: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(WORLD))
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=WORLD)
    flat = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("fsdp",))
    hybrid = init_device_mesh("cpu", (2, WORLD // 2), mesh_dim_names=("ddp", "fsdp"))
    everything: Callable[[str], bool] = lambda _: True  # noqa: E731
    for step in (5, 10):
        fsdp2(root / f"fsdp2/global_step_{step}/actor", flat, model_of(step), verl_save, everything)
    fsdp2(root / "hsdp2/global_step_5/actor", hybrid, model_of(5, torch.bfloat16), verl_save, everything)
    fsdp1(root / "fsdp1/global_step_5/actor", flat, model_of(5), ShardingStrategy.FULL_SHARD)
    fsdp1(root / "hsdp1/global_step_5/actor", hybrid, model_of(5), ShardingStrategy.HYBRID_SHARD)
    for run, names in (("lora", everything), ("lora_only", lambda name: "lora_" in name)):
        actor = root / run / "global_step_5/actor"
        fsdp2(actor, flat, adapted_of(5), verl_save, names)
        if rank == 0:
            (actor / "lora_train_meta.json").write_text('{"r": 3, "lora_alpha": 12, "task_type": "CAUSAL_LM"}')
    fsdp2(root / "prime/step_5/trainer", flat, model_of(5), prime_save, everything)
    fsdp2(root / "odd/step-5", flat, model_of(5), pieces_save, everything)
    odd_shards(root / "odd", flat, hybrid)
    dist.barrier()
    dist.destroy_process_group()


def main(root: Path) -> None:
    """Run the jobs in forks of this process, which has imported everything, and save what they must be equal to."""
    torch.set_num_threads(1)
    mp.start_processes(work, (root,), nprocs=WORLD, start_method="fork")
    tokenizer = tiny_tokenizer(VOCABULARY, chat_template=CHAT_TEMPLATE)
    for step in (5, 10):
        save_checkpoint(root / f"whole/global_step_{step}", model_of(step), tokenizer)
    save_checkpoint(root / "base", model_of(5), tokenizer)
    adapted_of(5).save_pretrained(root / "peft")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
