"""replay() of models and tokenizers that a program holds: what is known of an object is used again while it holds."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.errors import PassingWarning
from opd_probe.jobs.memory import LARGE
from opd_probe.models.digests import weights_digest
from opd_probe.models.loading import load_model
from opd_probe.trace import Trace
from opd_probe.types import Rollout
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

ROLLOUTS = [Rollout(str(n), (1, 2, 3 + n), tuple(range(4, 12 + n))) for n in range(2)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(one: Trace, other: Trace) -> bool:
    return all(np.array_equal(one.column(name), other.column(name), equal_nan=True) for name in one.columns)


def through_data(model: Any) -> None:
    model.lm_head.weight.data.mul_(3)


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(3)


def by_replacing(model: Any) -> None:
    model.lm_head.weight.data = model.lm_head.weight.data * 3


def by_an_optimiser(model: Any) -> None:
    model.requires_grad_(True)
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    model.zero_grad()


@pytest.mark.parametrize(
    ("wrapped", "change"),
    [(False, one) for one in (through_data, in_place, by_replacing, by_an_optimiser)]
    + [(True, one) for one in (through_data, in_place)],  # which holds the output layer that was found
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_changed_in_place_are_used(
    change: Callable[[Any], None], dtype: torch.dtype, wrapped: bool
) -> None:
    student, teacher = tiny_model(seed=1, dtype=dtype, tied=False), tiny_model(seed=2, dtype=dtype, tied=False)
    given = (load_model(student), load_model(teacher)) if wrapped else (student, teacher)
    first = opd_probe.replay(*given, ROLLOUTS, k=4)
    assert same(first, opd_probe.replay(*given, ROLLOUTS, k=4))
    change(student)
    after = opd_probe.replay(*given, ROLLOUTS, k=4)
    assert same(after, opd_probe.replay(copy.deepcopy(student), copy.deepcopy(teacher), ROLLOUTS, k=4))
    assert not same(first, after)


@pytest.mark.parametrize("change", [through_data, in_place, by_replacing])
def test_a_stored_trace_is_made_anew_when_weights_changed(change: Callable[[Any], None], tmp_path: Path) -> None:
    student, teacher = tiny_model(seed=1, tied=False), tiny_model(seed=2)
    out = tmp_path / "trace.parquet"
    before = weights_digest(student)
    opd_probe.replay(student, teacher, ROLLOUTS, k=4, out=out)
    written = out.stat().st_mtime_ns
    opd_probe.replay(student, teacher, ROLLOUTS, k=4, out=out)
    assert out.stat().st_mtime_ns == written
    change(student)
    with pytest.warns(PassingWarning, match="student weights changed"):
        opd_probe.replay(student, teacher, ROLLOUTS, k=4, out=out)
    assert weights_digest(student) == weights_digest(copy.deepcopy(student)) != before


def test_a_loaded_checkpoint_that_was_trained_on_is_not_taken_for_its_files(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a", tiny_model(seed=1))
    loaded = load_model(path)
    assert weights_digest(loaded) == weights_digest(path)
    opd_probe.replay(loaded, loaded, ROLLOUTS, k=4)
    assert weights_digest(loaded) == weights_digest(path)
    in_place(loaded.model)
    assert weights_digest(loaded) not in (weights_digest(path), weights_digest(load_model(path).model))


def test_a_tokenizer_with_another_token_is_noticed() -> None:
    models = tiny_model(seed=1), tiny_model(seed=2)
    tokenizer = tiny_tokenizer(60)
    first, again = (opd_probe.replay(*models, ROLLOUTS, k=4, tokenizer=tokenizer) for _ in range(2))
    assert first.vocabulary_size == again.vocabulary_size == 60
    assert first.provenance["vocabulary"] == again.provenance["vocabulary"]
    tokenizer.add_tokens(["<another>"])
    after = opd_probe.replay(*models, ROLLOUTS, k=4, tokenizer=tokenizer)
    assert after.vocabulary_size == 61
    digests = [one.provenance["vocabulary"]["student_tokenizer_sha256"] for one in (first, after)]
    assert digests[0] != digests[1]


def test_nothing_is_collected_for_models_that_stay() -> None:
    """A garbage collection takes longer than a short replay, and would give back nothing."""
    models = [tiny_model(seed=seed, vocab_size=LARGE // 60, hidden=64, layers=1) for seed in (1, 2)]
    assert sum(parameter.numel() for parameter in models[0].parameters()) > LARGE
    collected: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            collected.append(1)

    gc.disable()
    gc.callbacks.append(note)
    try:
        opd_probe.replay(*models, ROLLOUTS[:1], k=2)
        opd_probe.replay_teachers(models[0], {"a": models[1], "b": models[1]}, ROLLOUTS[:1], k=2, sequential=True)
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert not collected
