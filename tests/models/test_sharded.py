"""Sharded checkpoints of real training jobs: merged, they are the unsharded model bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.digests import weights_digest
from opd_probe.models.loading import load_model
from opd_probe.models.outline import read_outline
from tests.training_jobs import VOCABULARY, model_of

IDS = torch.arange(12)[None] % VOCABULARY


def same_weights(ours: torch.nn.Module, expected: torch.nn.Module) -> bool:
    mine, theirs = ours.state_dict(), expected.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in theirs
    )


@pytest.mark.parametrize(
    ("run", "dtype"),
    [("fsdp1", torch.float32), ("fsdp2", torch.float32), ("hsdp1", torch.float32), ("hsdp2", torch.bfloat16)],
)
def test_merged_shards_are_the_unsharded_model(jobs: Path, run: str, dtype: torch.dtype) -> None:
    loaded = load_model(jobs / run / "global_step_5")
    assert same_weights(loaded.model, model_of(5, dtype))
    identity = loaded.identity
    assert (identity["format"], identity["step"], identity["dtype"]) == ("verl-fsdp", 5, str(dtype)[6:])
    assert identity["path"] == str(jobs / run / "global_step_5" / "actor")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.chat_template is not None
    assert loaded.eos_ids == (1,)


def test_a_chosen_type_is_that_of_the_same_model_saved_whole(jobs: Path) -> None:
    halved = load_model(jobs / "fsdp2" / "global_step_5", dtype="bfloat16")
    assert (halved.identity["dtype"], halved.identity["stored_dtype"]) == ("bfloat16", "float32")
    assert same_weights(halved.model, load_model(jobs / "whole" / "global_step_5", dtype="bfloat16").model)


@pytest.mark.parametrize("run", ["lora", "lora_only"])
def test_an_adapter_among_shards(jobs: Path, run: str) -> None:
    """The ranks are more than the adapter's, so that one of them holds nothing of it."""
    base = None if run == "lora" else str(jobs / "base")
    loaded = load_model(jobs / run / "global_step_5", base=base)
    expected = PeftModel.from_pretrained(model_of(5), str(jobs / "peft"))
    with torch.inference_mode():
        assert torch.equal(loaded.model(IDS).logits, expected(IDS).logits)
        assert not torch.allclose(loaded.model(IDS).logits, model_of(5)(IDS).logits, atol=0.1)
    assert loaded.identity["format"] == "verl-lora"


def test_a_distributed_checkpoint(jobs: Path) -> None:
    loaded = load_model(jobs / "prime" / "step_5", base=str(jobs / "base"))
    assert same_weights(loaded.model, model_of(5))
    assert (loaded.identity["format"], loaded.identity["step"]) == ("dcp", 5)
    assert loaded.tokenizer is not None


def test_the_outline_and_the_digest_need_no_merged_weights(jobs: Path) -> None:
    sharded, other = (resolve_checkpoint(jobs / "fsdp2" / f"global_step_{step}") for step in (5, 10))
    outline = read_outline(sharded)
    assert (outline.width, outline.max_positions, outline.eos_ids) == (VOCABULARY, 128, (1,))
    assert weights_digest(sharded) == weights_digest(jobs / "fsdp2" / "global_step_5" / "actor")
    assert weights_digest(sharded) != weights_digest(other)
