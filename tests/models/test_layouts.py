"""Where trainers put the weights of a step, and what lies around them: written by torch's distributed checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.jobs.files import tokenizer_of
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.digests import tokenizer_files_digest
from opd_probe.models.loading import load_model
from opd_probe.runs.discovery import discover
from opd_probe.runs.inventory import inventory
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer
from tests.training_jobs import WORLD, model_of


def saved(place: Path, state: dict[str, Any]) -> Path:
    place.mkdir(parents=True)
    dcp.save(state, checkpoint_id=place, no_dist=True)
    return place


def moments(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"optimizer": {"state": {name: {"exp_avg": torch.zeros_like(value)} for name, value in state.items()}}}


def same(model: Any, step: int) -> bool:
    own = tiny_model(layers=1, seed=step).state_dict()
    return all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


@pytest.fixture
def accelerate(tmp_path: Path) -> Path:
    """A run of the Trainer with sharded FSDP: neither configuration nor tokenizer in a step, both in the run."""
    for step in (5, 10):
        state = tiny_model(layers=1, seed=step).state_dict()
        saved(tmp_path / "run" / f"checkpoint-{step}" / "pytorch_model_fsdp_0", {"model": state})
        saved(tmp_path / "run" / f"checkpoint-{step}" / "optimizer_0", moments(state))
        (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    tiny_model(layers=1).config.save_pretrained(tmp_path / "run")
    tiny_tokenizer().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_accelerates_sharded_models(accelerate: Path) -> None:
    (run,) = discover([str(accelerate)])
    assert [(one.step, one.format) for one in run.checkpoints] == [(5, "dcp"), (10, "dcp")]
    inner = accelerate / "checkpoint-10" / "pytorch_model_fsdp_0"
    assert discover([str(inner)])[0].checkpoints == (run.checkpoints[1],)
    for one in run.checkpoints:
        loaded = load_model(one)
        assert same(loaded.model, int(one.step or 0))
        assert loaded.tokenizer is not None
    rows = inventory([str(accelerate)])
    assert [(row["step"], row["refused"], row["tokenizer"]) for row in rows] == [(5, None, True), (10, None, True)]
    assert {row["parameters"] for row in rows} == {sum(v.numel() for v in tiny_model(layers=1).state_dict().values())}


def test_an_optimiser_is_no_checkpoint(accelerate: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        discover([str(accelerate / "checkpoint-5" / "optimizer_0")])
    (accelerate / "checkpoint-5" / "pytorch_model_fsdp_0").rename(accelerate.parent / "gone")
    assert [(row["step"], row["refused"] is None) for row in inventory([str(accelerate)])] == [(5, False), (10, True)]


def test_two_models_of_one_step_are_refused(accelerate: Path) -> None:
    step = accelerate / "checkpoint-5"
    saved(step / "pytorch_model_fsdp_1", {"model": tiny_model(layers=1).state_dict()})
    with pytest.raises(InputError, match=r"holds 2 models \(pytorch_model_fsdp_0, pytorch_model_fsdp_1\)"):
        discover([str(step)])
    assert same(load_model(step / "pytorch_model_fsdp_0").model, 5)


@pytest.mark.parametrize("weights", ["policy/weights", "policy/weights/model"])
def test_nemo_rls_steps(tmp_path: Path, weights: str) -> None:
    base = save_checkpoint(tmp_path / "base", tiny_model(layers=1))
    step = tmp_path / "results" / "step_10"
    state = tiny_model(layers=1, seed=10).state_dict()
    saved(step / weights, {"model": state})
    saved(step / "policy" / "optimizer" / "optim", moments(state))
    tokenizer = tiny_tokenizer(chat_template="{{ messages[0]['content'] }}")
    tokenizer.save_pretrained(step / "policy" / "tokenizer")
    (step / "config.yaml").write_text(f"policy:\n  model_name: {base}\n")
    ((one,),) = (run.checkpoints for run in discover([str(tmp_path / "results")]))
    assert (one.step, one.path, one.base) == (10, str(step / weights), str(base))
    loaded = load_model(one)
    assert same(loaded.model, 10)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.chat_template == tokenizer.chat_template == tokenizer_of(one, None).chat_template
    assert tokenizer_files_digest(one) == tokenizer_files_digest(step / "policy" / "tokenizer")
    ((row),) = inventory([str(tmp_path)])[-1:]
    assert (row["run"], row["step"], row["tokenizer"], row["refused"]) == ("results", 10, True, None)
    (step / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"weights without a config\.json"):
        load_model(resolve_checkpoint(step))
    assert same(load_model(resolve_checkpoint(step, base=str(base))).model, 10)


def hf_saved(place: Path, state: dict[str, torch.Tensor], **how: Any) -> Path:
    place.mkdir(parents=True)
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(place), **how), no_dist=True)
    return place


@pytest.mark.parametrize("where", ["beside", "above", "base"])
@pytest.mark.parametrize(
    "how",
    [{"save_distributed": True}, {"save_distributed": True, "enable_consolidation": True}, {"save_distributed": False}],
)
def test_safetensors_of_torchs_distributed_checkpoint(tmp_path: Path, how: dict[str, Any], where: str) -> None:
    state = tiny_model(layers=1, seed=10).state_dict()
    del state["lm_head.weight"]
    files = {name: 1 + number % 2 for number, name in enumerate(sorted(state))}
    place = hf_saved(tmp_path / "run" / "step-10", state, fqn_to_index_mapping=files, **how)
    base = {"beside": place, "above": place.parent, "base": tmp_path / "base"}[where]
    tiny_model(layers=1).config.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    given = str(base) if where == "base" else None
    ((one,),) = (run.checkpoints for run in discover([str(tmp_path / "run")], base=given))
    assert one.step == 10
    loaded = load_model(one)
    assert same(loaded.model, 10)
    assert loaded.tokenizer is not None
    (row,) = inventory([str(tmp_path / "run")], base=given)
    assert (row["step"], row["refused"], row["dtype"]) == (10, None, "float32")
    assert row["parameters"] == sum(value.numel() for value in state.values())


def test_pieces_of_several_ranks(jobs: Path, tmp_path: Path) -> None:
    """Four ranks wrote uneven pieces of each weight."""
    place = tmp_path / "step-5"
    shutil.copytree(jobs / "odd" / "step-5", place)
    assert len(list(place.glob("shard-*.safetensors"))) == WORLD
    assert resolve_checkpoint(place).format == "safetensors"
    own = model_of(5).state_dict()
    assert all(
        torch.equal(v, own[name]) for name, v in load_model(place, base=str(jobs / "base")).model.state_dict().items()
    )
    (place / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(InputError, match="copy the files of every rank"):
        load_model(place, base=str(jobs / "base"))


def test_the_weights_that_accelerate_saves_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run" / "epoch_1", tiny_model(layers=1, seed=3))
    (tmp_path / "run" / "epoch_1" / "config.json").rename(tmp_path / "run" / "config.json")
    with pytest.warns(OpdProbeWarning, match="named by epochs"):
        ((one,),) = (run.checkpoints for run in discover([str(tmp_path / "run")]))
    assert (one.step, one.format) == (1, "safetensors")
    assert same(load_model(one).model, 3)


ELSEWHERE = {
    "DeepSpeed's ZeRO shards (global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt)": (
        "checkpoint-10",
        ("latest", "zero_to_fp32.py", "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "zero_to_fp32.py",
    ),
    "DeepSpeed's ZeRO shards (zero_pp_rank_0_mp_rank_00_model_states.pt)": (
        "checkpoint-10/global_step10",
        ("zero_pp_rank_0_mp_rank_00_model_states.pt",),
        "zero_to_fp32.py",
    ),
    "weights in Mistral's own names (consolidated.safetensors)": (
        "model",
        ("consolidated.safetensors", "params.json", "tekken.json"),
        "convert_mistral_weights_to_hf",
    ),
    "Meta's original weights (consolidated.00.pth)": (
        "model/original",
        ("consolidated.00.pth", "params.json", "tokenizer.model"),
        "convert_llama_weights_to_hf",
    ),
    "Megatron's distributed checkpoint (__0_0.distcp)": (
        "model",
        (".metadata", "__0_0.distcp", "metadata.json"),
        "convert_checkpoints.py",
    ),
}


@pytest.mark.parametrize("said", ELSEWHERE)
def test_weights_of_other_programs_are_named_with_their_converter(tmp_path: Path, said: str) -> None:
    name, files, converter = ELSEWHERE[said]
    for file in files:
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_bytes(b"")
    if "latest" in files:
        (tmp_path / name / "latest").write_text("global_step10")
    if "metadata.json" in files:
        (tmp_path / name / "metadata.json").write_text(
            '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
        )
    (row,) = inventory([str(tmp_path / name)])
    assert said in row["refused"]
    for refuse in (discover, load_model):
        with pytest.raises(InputError) as caught:
            refuse([str(tmp_path / name)] if refuse is discover else tmp_path / name)
        assert said in str(caught.value)
        assert converter in str(caught.value)
        assert "\n" not in str(caught.value)


def test_deepspeeds_state_beside_whole_weights_is_passed_over(tmp_path: Path) -> None:
    step = save_checkpoint(tmp_path / "run" / "checkpoint-10", tiny_model(layers=1, seed=10), step=10)
    (step / "global_step10").mkdir()
    (step / "global_step10" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    (step / "latest").write_text("global_step10")
    assert [(row["step"], row["refused"]) for row in inventory([str(tmp_path)])] == [(10, None)]
    assert same(load_model(discover([str(step)])[0].checkpoints[0]).model, 10)
