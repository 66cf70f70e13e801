from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from opd_probe.errors import InputError, MissingError
from opd_probe.models.checkpoints import is_checkpoint, resolve_checkpoint
from opd_probe.models.digests import weights_digest
from opd_probe.models.formats import FORMATS
from tests.tiny import save_checkpoint, tiny_model


def test_the_step_is_that_of_the_trainer_state_before_that_of_the_name(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoint-30", tiny_model(), step=25)
    assert resolve_checkpoint(path).step == 25
    (path / "trainer_state.json").unlink()
    assert resolve_checkpoint(path).step == 30


@pytest.mark.parametrize(
    ("name", "step"), [("global_step_100", 100), ("step_5", 5), ("final", None), ("checkpoint-x", None)]
)
def test_the_step_in_a_name(tmp_path: Path, name: str, step: int | None) -> None:
    assert resolve_checkpoint(save_checkpoint(tmp_path / name, tiny_model())).step == step


def test_a_hub_id_may_carry_a_revision() -> None:
    checkpoint = resolve_checkpoint("some-org/some-model@refs/pr/1", run="r")
    assert (checkpoint.path, checkpoint.revision) == ("some-org/some-model", "refs/pr/1")
    assert (checkpoint.format, checkpoint.run, checkpoint.step) == ("hub", "r", None)


@pytest.mark.parametrize("path", ["/no/such/place", "./no/such", "nowhere", "a/b/c"])
def test_a_path_that_is_not_there(path: str) -> None:
    with pytest.raises(MissingError, match="no such directory"):
        resolve_checkpoint(path)


def test_a_directory_without_a_checkpoint_says_what_it_holds_and_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "pytorch_model.bin").write_text("x")
    with pytest.raises(InputError) as caught:
        resolve_checkpoint(tmp_path)
    message = str(caught.value)
    assert "notes.txt" in message
    assert "pytorch_model.bin" in message
    assert all(known.accepted in message for known in FORMATS)
    assert "\n" not in message
    assert not is_checkpoint(tmp_path)


def test_an_empty_directory_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "f").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        resolve_checkpoint(tmp_path / "f")


def test_an_unreadable_trainer_state_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoint-1", tiny_model())
    for text in ("{", "[1]"):
        (path / "trainer_state.json").write_text(text)
        with pytest.raises(InputError, match=r"trainer_state\.json"):
            resolve_checkpoint(path)


def test_the_digest_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path / "a", tiny_model(seed=1))
    again = save_checkpoint(tmp_path / "b", tiny_model(seed=1), step=9)
    other = save_checkpoint(tmp_path / "c", tiny_model(seed=2))
    assert weights_digest(first) == weights_digest(resolve_checkpoint(again))
    assert weights_digest(first) != weights_digest(other)
    assert weights_digest(tiny_model(seed=1)) == weights_digest(tiny_model(seed=1))
    assert weights_digest(tiny_model(seed=1)) != weights_digest(tiny_model(seed=2))


def test_the_digest_sees_one_weight_the_configuration_and_the_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model(dtype=torch.bfloat16)
    first, loaded = save_checkpoint(tmp_path / "a", model), weights_digest(model)
    digests = {weights_digest(first)}
    shutil.copytree(first, tmp_path / "copy")
    assert weights_digest(tmp_path / "copy") in digests
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    digests.add(weights_digest(first))
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    digests.add(weights_digest(save_checkpoint(tmp_path / "b", model)))
    in_memory = {loaded, weights_digest(model)}
    model.config.rms_norm_eps = 1e-3
    in_memory.add(weights_digest(model))
    assert (len(digests), len(in_memory)) == (3, 3)

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    over = [resolve_checkpoint(tmp_path / "adapter", base=str(tmp_path / base)) for base in ("copy", "b")]
    assert weights_digest(over[0]) != weights_digest(over[1])


def test_the_digest_is_made_anew_when_a_file_changes_in_place(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a", tiny_model(seed=1))
    before = weights_digest(path)
    save_checkpoint(path, tiny_model(seed=2))
    assert weights_digest(path) != before


def test_the_digest_of_shards_covers_each_of_them(tmp_path: Path) -> None:
    model = tiny_model(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    before = weights_digest(tmp_path)
    shard = tmp_path / shards[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert weights_digest(tmp_path) != before
