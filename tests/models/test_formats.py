"""Layouts of trainers: where the checkpoint is in a directory, and what is refused, in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opd_probe.errors import InputError, OpdProbeError
from opd_probe.models.checkpoints import Refused, is_checkpoint, locate, resolve_checkpoint
from opd_probe.models.formats import dcp, verl_fsdp
from opd_probe.models.loading import load_model
from opd_probe.models.merging import read_tensors
from tests.models.test_sharded import same_weights
from tests.tiny import save_checkpoint, tiny_model
from tests.training_jobs import WORLD, model_of

ROWS, COLUMNS = torch.arange(10.0).view(5, 2), torch.arange(14.0).view(2, 7)


def refusal(path: Path) -> str:
    """Why a directory is refused; the same whether it is looked at or resolved."""
    found = locate(path)
    assert isinstance(found, Refused)
    assert not is_checkpoint(path)
    with pytest.raises(InputError) as caught:
        resolve_checkpoint(path)
    assert str(caught.value) == f"checkpoint {found.path}: {found.reason}"
    assert "\n" not in found.reason
    return found.reason


@pytest.mark.parametrize(
    ("placement", "name", "expected"),
    [
        ("rows", "w", ROWS),
        ("columns", "w", COLUMNS),
        ("repeated", "w", ROWS),
        ("plain", "w", torch.arange(8.0)),
        ("plain", "scalar", torch.tensor(3.0)),
        ("buffers", "w", ROWS),
        ("buffers", "b", COLUMNS),
    ],
)
def test_placements(jobs: Path, placement: str, name: str, expected: torch.Tensor) -> None:
    path = jobs / "odd" / placement
    assert torch.equal(verl_fsdp.read(path)[name][...], expected)
    assert verl_fsdp.headers(path)[name].shape == tuple(expected.shape)


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        ("partial", "w: holds partial sums"),
        ("two", "split along 2 dimensions of the mesh (Shard(dim=0), Shard(dim=1))"),
    ],
)
def test_placements_that_are_refused(jobs: Path, placement: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        verl_fsdp.read(jobs / "odd" / placement)
    assert said in str(caught.value)


@pytest.mark.parametrize("run", ["fsdp2", "hsdp2"])
def test_a_mesh_as_earlier_versions_of_torch_pickle_it(jobs: Path, tmp_path: Path, run: str) -> None:
    whole = verl_fsdp.read(jobs / run / "global_step_5" / "actor")
    for file in verl_fsdp.weight_files(jobs / run / "global_step_5" / "actor"):
        tensors: dict[str, Any] = dict(read_tensors(file))
        mesh = next(iter(tensors.values())).device_mesh
        earlier = {"device_type": "cuda", "mesh": mesh.mesh.clone(), "mesh_dim_names": mesh.mesh_dim_names}
        for tensor in tensors.values():
            vars(tensor.device_mesh).clear()
            vars(tensor.device_mesh).update(earlier)
        torch.save(tensors, tmp_path / file.name)
    again = verl_fsdp.read(tmp_path)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name][...], whole[name][...]) for name in whole)


def test_nothing_but_tensors_is_unpickled(jobs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds a .*ShardedTensor, which is not unpickled") as caught:
        verl_fsdp.read(jobs / "odd" / "older")
    assert "\n" not in str(caught.value)
    shard = tmp_path / "model_world_size_1_rank_0.pt"
    for content, said in (
        ({"w": Touch(tmp_path / "ran")}, "not unpickled"),
        ({"w": [1.0]}, "w is a list; expected tensors by name"),
        ([torch.ones(1)], "holds a list; expected tensors by name"),
    ):
        torch.save(content, shard)
        with pytest.raises(InputError, match=said):
            verl_fsdp.read(tmp_path)
    assert not (tmp_path / "ran").exists()


class Touch:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def actor(jobs: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint of verl, to be spoilt."""
    shutil.copytree(jobs / "fsdp2", tmp_path / "run")
    return tmp_path / "run" / "global_step_5" / "actor"


def test_ranks_that_are_missing_or_of_two_jobs(actor: Path) -> None:
    (actor / "model_world_size_4_rank_0.pt").unlink()
    (actor / "model_world_size_4_rank_3.pt").unlink()
    assert "without model_world_size_4_rank_0.pt (2 of 4 ranks missing)" in refusal(actor.parent)
    (actor / "model_world_size_2_rank_0.pt").touch()
    assert "without model_world_size_4_rank_0.pt" in refusal(actor)  # fsdp_config.json says which job saved last
    (actor / "fsdp_config.json").unlink()
    assert "shards of 2 world sizes (2, 4)" in refusal(actor)


def test_shards_that_do_not_fit_each_other(actor: Path, jobs: Path) -> None:
    third = actor / "model_world_size_4_rank_2.pt"
    shutil.copy(jobs / "hsdp2/global_step_5/actor" / third.name, third)
    with pytest.raises(InputError, match="has several types"):
        load_model(actor)
    shutil.copy(actor / "model_world_size_4_rank_3.pt", third)
    (actor / "model_world_size_4_rank_1.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"rank_1\.pt: not a whole file of torch.save; copy it again"):
        load_model(actor)
    state = {"elsewhere": torch.ones(1)}
    torch.save(state, actor / "model_world_size_4_rank_1.pt")
    with pytest.raises(InputError, match=r"rank_1\.pt: elsewhere is in .* but not in both"):
        load_model(actor)


def test_shards_of_another_architecture(actor: Path) -> None:
    model_of(5).config.save_pretrained(actor / "huggingface")
    config = json.loads((actor / "huggingface/config.json").read_text())
    (actor / "huggingface/config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    with pytest.raises(InputError, match=r"has shape \[.*\], config.json asks for"):
        load_model(actor)
    (actor / "huggingface/config.json").unlink()
    with pytest.raises(InputError, match=r"weights without a config\.json; name a model .* with --base MODEL"):
        load_model(actor)
    whole = save_checkpoint(actor.parent.parent / "whole", model_of(5))
    assert same_weights(load_model(actor, base=str(whole)).model, model_of(5))


def test_weights_that_verl_exported_win_over_its_shards(actor: Path) -> None:
    other = tiny_model(61, seed=8, layers=1)
    save_checkpoint(actor / "huggingface", other)
    found = resolve_checkpoint(actor.parent)
    assert (found.path, found.format, found.step) == (str(actor / "huggingface"), "huggingface", 5)
    assert resolve_checkpoint(actor / "huggingface").step == 5
    assert same_weights(load_model(found).model, other)


def test_adapters_of_verl(jobs: Path, tmp_path: Path) -> None:
    for run in ("lora", "lora_only"):
        shutil.copytree(jobs / run, tmp_path / run)
    alone = tmp_path / "lora_only/global_step_5/actor"
    base = str(jobs / "base")
    expected = load_model(alone, base=base).model.state_dict()
    (alone / "lora_train_meta.json").write_text('{"r": 3, "lora_alpha": "x"}')
    with pytest.raises(InputError, match="lora_alpha is 'x'"):
        load_model(alone, base=base)
    (alone / "lora_train_meta.json").unlink()
    with pytest.raises(InputError, match=r"a LoRA adapter .* whose lora_alpha nothing states"):
        load_model(alone, base=base)
    shutil.copytree(jobs / "peft", alone / "lora_adapter")
    beside = resolve_checkpoint(alone, base=base)
    assert beside.format == "verl-lora"
    assert load_model(beside).model.state_dict().keys() == expected.keys()
    for file in verl_fsdp.weight_files(alone):
        file.unlink()
    for place in (alone, alone / "lora_adapter"):  # what verl writes for inference, in PEFT's own format
        found = resolve_checkpoint(place, base=base)
        assert (found.format, found.path, found.step) == ("peft", str(alone / "lora_adapter"), 5)
    with pytest.raises(OpdProbeError, match="names no base model"):
        load_model(jobs / "lora_only" / "global_step_5")


def test_exports_of_prime_rl_need_their_marker(tmp_path: Path) -> None:
    step = tmp_path / "step_7"
    for name in ("weights", "weight"):
        path = save_checkpoint(step / name, tiny_model())
        for place in (step, path):
            assert "without its STABLE marker" in refusal(place)
        for marker in (step / "STABLE", path / "STABLE"):
            marker.touch()
            for place in (step, path):
                found = resolve_checkpoint(place)
                assert (found.path, found.step, found.format) == (str(path), 7, "huggingface")
            marker.unlink()
        shutil.rmtree(step)
    broadcast = save_checkpoint(tmp_path / "broadcasts" / "step_3", tiny_model())
    assert "STABLE" in refusal(broadcast)
    (broadcast / "STABLE").touch()
    assert resolve_checkpoint(broadcast).step == 3


def test_verls_megatron_layout(tmp_path: Path) -> None:
    actor = tmp_path / "global_step_9" / "actor"
    save_checkpoint(actor / "model" / "huggingface", tiny_model())
    (actor / "model" / "dist_ckpt").mkdir()
    huggingface = {"path": "model/huggingface", "format": "huggingface"}
    shards = {"path": "model/dist_ckpt", "format": "megatron_dist_checkpoint"}

    def write(**contents: Any) -> None:
        manifest = {"schema_version": 2, "framework": "megatron", "global_step": 9, "contents": contents}
        (actor / "ckpt_contents.json").write_text(json.dumps(manifest))

    for contents in ({"model": huggingface}, {"model": shards, "hf_model": huggingface}):
        write(**contents)
        for place in (actor.parent, actor, actor / "model" / "huggingface"):
            found = resolve_checkpoint(place)
            assert (found.path, found.step) == (str(actor / "model" / "huggingface"), 9)
    write(model=shards)
    assert "in format megatron_dist_checkpoint" in refusal(actor.parent)
    assert "verl's model merger" in refusal(actor)
    write(model=huggingface, peft_adapters=shards)
    assert "adapters in Megatron's shards" in refusal(actor)
    write(model={**huggingface, "path": "elsewhere"})
    assert "names elsewhere, which lacks config.json" in refusal(actor)
    (actor / "ckpt_contents.json").write_text("[")
    with pytest.raises(InputError, match=r"ckpt_contents\.json: not valid JSON"):
        resolve_checkpoint(actor)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("iter_0000010", (".metadata", "__0_0.distcp", "metadata.json")),
        ("other", (".metadata", "__0_0.distcp", "common.pt", "metadata.json")),
        ("release", ("mp_rank_00_000/x",)),
    ],
)
def test_shards_of_megatron(tmp_path: Path, name: str, files: tuple[str, ...]) -> None:
    for file in files:
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).touch()
    assert "Hugging Face export, which --save-hf writes" in refusal(tmp_path / name)


def test_verls_older_megatron_layout(tmp_path: Path) -> None:
    (tmp_path / "global_step_9/actor/dist_ckpt").mkdir(parents=True)
    assert "older Megatron layout" in refusal(tmp_path / "global_step_9")
    assert "older Megatron layout" in refusal(tmp_path / "global_step_9/actor")


@pytest.fixture
def trainer(jobs: Path, tmp_path: Path) -> Path:
    """A copy of a torch distributed checkpoint, to be spoilt."""
    shutil.copytree(jobs / "prime", tmp_path / "prime")
    return tmp_path / "prime" / "step_5" / "trainer"


def test_a_distributed_checkpoint_finds_its_configuration(trainer: Path, jobs: Path) -> None:
    for place in (trainer, trainer / "huggingface", trainer.parent, trainer.parent / "weights"):
        shutil.copytree(jobs / "fsdp2/global_step_5/actor/huggingface", place, dirs_exist_ok=True)
        loaded = load_model(trainer)
        assert same_weights(loaded.model, model_of(5))
        assert loaded.tokenizer is not None
        (place / "config.json").unlink()
    settings = jobs / "fsdp2/global_step_5/actor/huggingface"  # a base without weights
    assert load_model(trainer, base=str(settings)).tokenizer is not None
    halved = load_model(trainer, base=str(jobs / "base"), dtype="bfloat16").model
    assert same_weights(halved, load_model(jobs / "base", dtype="bfloat16").model)


def test_optimiser_states_are_no_weights(trainer: Path) -> None:
    names = dcp.headers(trainer)
    assert set(names) == {f"app.model.{name}" for name in model_of(5).state_dict()}


def test_a_distributed_checkpoint_that_is_not_whole(trainer: Path, jobs: Path, tmp_path: Path) -> None:
    base = str(jobs / "base")
    other = save_checkpoint(tmp_path / "other", tiny_model(40, layers=1))
    with pytest.raises(InputError, match=r"has shape \[61, 32\], config.json asks for \[40, 32\]"):
        load_model(trainer, base=str(other))
    metadata, chunk = trainer / ".metadata", trainer / "__2_0.distcp"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"__2_0\.distcp: has \d+ of at least \d+ bytes"):
        load_model(trainer, base=base)
    chunk.write_bytes(bytes(len(whole)))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(trainer, base=base)
    chunk.unlink()
    with pytest.raises(InputError, match=r"names __2_0\.distcp, which is not there"):
        load_model(trainer, base=base)
    metadata.write_bytes(metadata.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"\.metadata: not the metadata of torch\.distributed\.checkpoint"):
        load_model(trainer, base=base)
    metadata.unlink()
    assert "without .metadata, which is written last" in refusal(trainer)


def test_the_metadata_runs_no_code(trainer: Path, jobs: Path, tmp_path: Path) -> None:
    for content, said in ((Touch(tmp_path / "ran"), "which is not unpickled"), ([1], "holds a list")):
        (trainer / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=said):
            load_model(trainer, base=str(jobs / "base"))
    assert not (tmp_path / "ran").exists()


def test_wrappers_of_names() -> None:
    names = frozenset({"model.embed.weight", "head.weight"})
    here = Path("x")
    for wrapper in ("", "model.", "app.model.", "_orig_mod."):
        stored = [*(wrapper + name for name in names), "optimizers.state.model.embed.weight.exp_avg"]
        assert dcp.wrapper_of(stored, names, here) == wrapper
    ema = [f"{wrapper}.{name}" for wrapper in ("model", "ema") for name in names]
    with pytest.raises(InputError, match=r"found under each of ema\., model"):
        dcp.wrapper_of(ema, names, here)
    with pytest.raises(InputError, match="found none"):
        dcp.wrapper_of(["a.b"], names, here)


def test_the_world_of_the_jobs() -> None:
    assert WORLD == 4  # as the names of files above have it
