"""A teacher that reads prompts of its own: states align by response position, whatever precedes the response."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from opd_probe.engine.replay import Replay
from opd_probe.engine.settings import ReplaySettings
from opd_probe.engine.stored import StoredModel
from opd_probe.errors import InputError
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.trace import Trace, rollout_table
from opd_probe.types import Rollout
from tests import reference
from tests.engine.test_replay import check_against_naive, close, some_rollouts
from tests.tiny import tiny_model

VOCABULARY = 64
Prompts = list[list[int]]


@pytest.fixture(scope="module")
def student() -> LoadedModel:
    return load_model(tiny_model(VOCABULARY, seed=1))


@pytest.fixture(scope="module")
def teacher() -> LoadedModel:
    return load_model(tiny_model(VOCABULARY, seed=2, hidden=48, tied=False, spread=1.5))


def other_prompts(rollouts: Sequence[Rollout], *, seed: int = 7) -> Prompts:
    """Longer, shorter and equal ones, of other tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, int(generator.integers(1, 40))).tolist() for _ in rollouts]


def replayed(
    student: Any, teacher: Any, rollouts: Sequence[Rollout], prompts: Prompts | None, **settings: Any
) -> Trace:
    engine = Replay(student, teacher, rollouts, np.arange(VOCABULARY), ReplaySettings(16, **settings), prompts)
    parts = dict(engine.states())
    order = [index for index, count in enumerate(engine.state_counts) if count]
    names = [name for name in parts[order[0]] if name != "sampler_logprob"]
    arrays = {name: np.concatenate([parts[index][name] for index in order]) for name in names}
    rows = [
        {"rollout_id": rollout.id, "prompt_id": rollout.id, "n_states": count}
        for rollout, count in zip(rollouts, engine.state_counts, strict=True)
    ]
    return Trace(rollout_table(rows), {"K": 16, "vocabulary": {"size": VOCABULARY}}, arrays=arrays)


def as_read(rollouts: Sequence[Rollout], prompts: Prompts) -> list[Rollout]:
    return [dataclasses.replace(rollout, prompt_ids=ids) for rollout, ids in zip(rollouts, prompts, strict=True)]


@pytest.mark.parametrize("batch_tokens", [1, 120, 10**6])
def test_against_each_rollout_alone(student: LoadedModel, teacher: LoadedModel, batch_tokens: int) -> None:
    rollouts = some_rollouts(9)
    prompts = other_prompts(rollouts)
    trace = replayed(student, teacher, rollouts, prompts, batch_tokens=batch_tokens)
    models: Any = student.model, teacher.model
    check_against_naive(trace, models, rollouts, read=as_read(rollouts, prompts))


def test_against_float64() -> None:
    """Ids put together by hand, both models in float64: one token off would be seen at every state."""
    models = [tiny_model(VOCABULARY, seed=seed, dtype=torch.float64) for seed in (1, 2)]
    prompt, other, response = [5, 6, 7], [40, 41, 5, 6, 7, 42, 43], [9, 10, 11, 12, 13]
    rollout = Rollout("r", prompt, response, response_mask=[1, 0, 1, 1, 1])
    trace = replayed(load_model(models[0]), load_model(models[1]), [rollout], [other])
    logits: list[NDArray[np.float64]] = []
    for model, before in zip(models, (prompt, other), strict=True):
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([[*before, *response]])).logits[0]
        logits.append(whole[len(before) - 1 : -1].numpy())
    for row, position in enumerate((0, 2, 3, 4)):
        p, q = (reference.log_softmax(side[position]) for side in logits)
        assert trace.column("token_id")[row] == response[position]
        assert trace.column("student_logprob")[row] == pytest.approx(p[response[position]], abs=1e-5)
        assert trace.column("teacher_logprob")[row] == pytest.approx(q[response[position]], abs=1e-5)
        assert trace.column("reverse_kl")[row] == pytest.approx(reference.kl(p, q), abs=1e-5)


def test_the_students_own_prompts_give_the_same_bits(student: LoadedModel, teacher: LoadedModel) -> None:
    rollouts = some_rollouts(8)
    plain = replayed(student, teacher, rollouts, None)
    given = replayed(student, teacher, rollouts, [list(rollout.prompt_ids) for rollout in rollouts])
    for name in plain.columns:
        np.testing.assert_array_equal(given.column(name), plain.column(name), err_msg=name)


def test_each_side_computes_its_shared_prompt_once(student: LoadedModel, teacher: LoadedModel) -> None:
    rollouts = [Rollout(str(i), [3] * 20, [4 + i, 5, 6 + i]) for i in range(4)]
    read: list[tuple[int, ...]] = []
    assert teacher.cache_for("shared")  # tried when it is first asked for
    embeddings: Any = teacher.model.get_input_embeddings()
    common, own = [[8] * 30 for _ in rollouts], [[8] * 29 + [9 + i] for i in range(4)]
    models: Any = student.model, teacher.model
    for prompts, shape in ((common, (1, 29)), (own, (4, 32))):
        handle = embeddings.register_forward_hook(lambda _, given, __: read.append(tuple(given[0].shape)))
        trace = replayed(student, teacher, rollouts, prompts)
        handle.remove()
        assert read[0] == shape
        read.clear()
        check_against_naive(trace, models, rollouts, read=as_read(rollouts, prompts))


def test_hidden_states_of_the_student_on_disk(student: LoadedModel, teacher: LoadedModel) -> None:
    """They are of the prompts that the student read; one pass serves a plain teacher and one with its own prompts."""
    rollouts = some_rollouts(9)
    prompts = other_prompts(rollouts)
    for fill in (True, False):
        stored = StoredModel(student, rollouts)
        if fill:
            stored.fill(100)
        for given in (None, prompts):
            close(replayed(stored, teacher, rollouts, given), replayed(student, teacher, rollouts, given), 1e-4)


def test_self_distillation(student: LoadedModel) -> None:
    """One model on both sides: equal where the prompts are, and apart where the teacher knows more."""
    rollouts = [Rollout("same", [5, 6], [7, 8, 9]), Rollout("more", [5, 6], [7, 8, 9])]
    trace = replayed(student, student, rollouts, [[5, 6], [50, 51, 5, 6]])
    difference = np.abs(trace.column("student_logprob") - trace.column("teacher_logprob"))
    assert difference[:3].max() < 1e-5
    assert difference[3:].min() > 1e-4


def test_skipped_rollouts_need_no_prompt(student: LoadedModel, teacher: LoadedModel) -> None:
    rollouts = [Rollout("empty", [1], []), Rollout("fine", [1], [2, 3])]
    assert replayed(student, teacher, rollouts, [[], [4]]).n_states == 2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1]], r"teacher prompts: 1 for 2 rollouts"),
        ([[1], []], r"rollout 'b': the teacher's prompt has no token"),
        ([[1], [64]], r"rollout 'b': token id 64 is outside the vocabulary of Qwen2ForCausalLM"),
        ([[1], [2] * 126], r"rollout 'b': the teacher's prompt and response need 129 positions, .* has 128"),
    ],
)
def test_refused(student: LoadedModel, teacher: LoadedModel, prompts: Prompts, message: str) -> None:
    rollouts = [Rollout("a", [1], [2, 3]), Rollout("b", [1], [2, 3, 4, 5])]
    with pytest.raises(InputError, match=message) as caught:
        replayed(student, teacher, rollouts, prompts)
    assert "\n" not in str(caught.value)
