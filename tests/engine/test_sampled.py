"""Hidden states that sampling has read, in place of a pass of the student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, MambaConfig, MixtralConfig

from opd_probe.engine.replay import Replay
from opd_probe.engine.sampled import SampledModel
from opd_probe.engine.settings import ReplaySettings
from opd_probe.errors import OpdProbeWarning
from opd_probe.jobs.own_states import are_exact, sampled_model, states_to_keep
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.sampled_states import SampledStates
from opd_probe.options.settings import Settings
from opd_probe.types import Prompt, Rollout
from tests.tiny import tiny_model, tiny_tokenizer

ROOM = 10**8
PROMPTS = [Prompt(f"p{n}", ids=tuple(range(3, 5 + 3 * (n % 4)))) for n in range(4)] + [Prompt("p4", ids=(3, 4, 1))]
"""The last ends in EOS."""
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS: dict[str, Any] = {
    "gemma2, soft cap and window": Gemma2Config(
        **SMALL, num_key_value_heads=1, intermediate_size=48, head_dim=16, final_logit_softcapping=2.0, sliding_window=8
    ),
    "cohere, a scale": CohereConfig(**SMALL, num_key_value_heads=1, intermediate_size=48, logit_scale=0.25),
    "mamba, no keys": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
    "mixtral, experts": MixtralConfig(**SMALL, num_key_value_heads=1, intermediate_size=48, num_local_experts=4),
}
HOW: dict[str, Any] = {"num_rollouts": 3, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def student() -> LoadedModel:
    return load_model(tiny_model(64, seed=1), tokenizer=tiny_tokenizer(64))


@pytest.fixture(scope="module")
def teacher() -> LoadedModel:
    return load_model(tiny_model(64, seed=4, spread=2.0), tokenizer=tiny_tokenizer(64))


def _columns(student: Any, teacher: LoadedModel, rollouts: list[Rollout]) -> dict[int, dict[str, Any]]:
    return dict(Replay(student, teacher, rollouts, np.arange(64), ReplaySettings(8)).states())


def _holds_what_a_forward_says(model: LoadedModel, states: SampledStates, rollouts: list[Rollout]) -> None:
    for one in rollouts:
        ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
        with torch.no_grad():
            want = model.model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
        assert states.count(one.id) == len(one.response_ids)
        torch.testing.assert_close(model.output_layer.logits(states.of(one.id)), want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("unknown", [(), ("joined",), ("joined", "padded prompts"), ("prompts of one length",)])
@pytest.mark.parametrize("bound", [90, 4000])
def test_states_are_kept_in_any_company(student: LoadedModel, unknown: tuple[str, ...], bound: int) -> None:
    """Rows that join, that go back and are read again, that wait for others, and that are read anew at each token."""
    before = dict(student.paths.verdicts)
    if unknown == ("prompts of one length",):
        unknown = ("joined", "padded prompts", *unknown)
    try:
        student.paths.verdicts.update(dict.fromkeys(unknown))
        states = SampledStates(None, ROOM)
        rollouts = sample_rollouts(student, PROMPTS, batch_tokens=bound, states=states, **HOW)
    finally:
        student.paths.verdicts.clear()
        student.paths.verdicts.update(before)
    assert {one.finish_reason for one in rollouts} == {"stop", "length"}
    _holds_what_a_forward_says(student, states, rollouts)


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_states_of_other_architectures(config: Any) -> None:
    torch.manual_seed(2)
    model = load_model(AutoModelForCausalLM.from_config(config).eval())
    states = SampledStates(None, ROOM)
    rollouts = sample_rollouts(model, PROMPTS[:3], batch_tokens=150, states=states, num_rollouts=2, max_new_tokens=14)
    _holds_what_a_forward_says(model, states, rollouts)


@pytest.mark.parametrize("longest", [1, 24])
def test_a_replay_says_the_same_and_replays_a_hundredth(
    student: LoadedModel, teacher: LoadedModel, longest: int, tmp_path: Path
) -> None:
    states = SampledStates(tmp_path, ROOM)
    rollouts = sample_rollouts(student, PROMPTS, num_rollouts=3, max_new_tokens=longest, states=states)
    assert list(tmp_path.iterdir()) == []
    model = sampled_model(student, rollouts, states, ReplaySettings(8), tmp_path)
    assert model is not None
    assert model.origin["replayed"] == model.origin["checked"] == 1
    assert model.origin["rollouts"] == len(rollouts) - 1
    assert model.origin["largest_difference"] < 1e-5
    got, want = _columns(model, teacher, rollouts), _columns(student, teacher, rollouts)
    for index, columns in want.items():
        for name, values in columns.items():
            if name.startswith("teacher_top") or name == "teacher_logprob":
                np.testing.assert_array_equal(got[index][name], values)
            elif not name.endswith("_ids"):
                np.testing.assert_allclose(got[index][name], values, atol=1e-5)


def test_what_an_earlier_process_drew_is_replayed(student: LoadedModel, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:  # noqa: ARG001
        if done >= 6:
            raise KeyboardInterrupt

    how: dict[str, Any] = {**HOW, "drafts": tmp_path / "kept", "key": "a", "batch_tokens": 200}
    with pytest.raises(KeyboardInterrupt):
        sample_rollouts(student, PROMPTS, **how, progress=stop, states=SampledStates(None, ROOM))
    states = SampledStates(None, ROOM)
    rollouts = sample_rollouts(student, PROMPTS, **how, states=states)
    known = [one for one in rollouts if states.count(one.id)]
    assert 0 < len(known) <= len(rollouts) - 6
    model = SampledModel(student, rollouts, states, None, "prefix")
    model.check(4000, 1e-4)
    assert model.origin["rollouts"] == len(known) - 1
    fresh = SampledStates(None, ROOM)
    assert sampled_model(student, rollouts, fresh, ReplaySettings(8), None) is None


def _shuffled(states: SampledStates) -> None:
    for rows in states._rows.values():
        rows.reverse()


def _of_another(states: SampledStates) -> None:
    assert states._file is not None
    states._file.seek(0)
    states._file.write(np.random.default_rng(0).normal(size=32).astype(np.float32).tobytes() * states._count)


@pytest.mark.parametrize("spoil", [_shuffled, _of_another])
def test_states_that_do_not_agree_are_not_used(student: LoadedModel, spoil: Callable[[SampledStates], None]) -> None:
    states = SampledStates(None, ROOM)
    rollouts = sample_rollouts(student, PROMPTS, states=states, **HOW)
    spoil(states)
    with pytest.warns(OpdProbeWarning, match=r"differ by up to .* nats .*all rollouts are replayed"):
        assert sampled_model(student, rollouts, states, ReplaySettings(8), None) is None


def test_a_disk_without_room_costs_the_states_alone(student: LoadedModel, tmp_path: Path) -> None:
    states = SampledStates(tmp_path, 5_000)
    with pytest.warns(OpdProbeWarning, match="half of what was free.*the student is replayed"):
        rollouts = sample_rollouts(student, PROMPTS, states=states, **HOW)
    assert [one.response_ids for one in rollouts] == [
        one.response_ids for one in sample_rollouts(student, PROMPTS, **HOW)
    ]
    assert sampled_model(student, rollouts, states, ReplaySettings(8), None) is None
    with pytest.warns(OpdProbeWarning, match="cannot be written"):
        sample_rollouts(student, PROMPTS[:1], states=SampledStates(tmp_path / "gone", ROOM), **HOW)


def test_chosen_by_itself_where_it_is_exact(student: LoadedModel, tmp_path: Path) -> None:
    narrow = load_model(tiny_model(64, seed=3, dtype=torch.bfloat16))
    assert are_exact(student)
    assert not are_exact(narrow)
    assert states_to_keep(student, Settings(), tmp_path) is not None
    assert states_to_keep(student, Settings(student_states="replayed"), tmp_path) is None
    assert states_to_keep(narrow, Settings(), tmp_path) is None
    states = states_to_keep(narrow, Settings(student_states="sampled"), tmp_path)
    rollouts = sample_rollouts(narrow, PROMPTS, states=states, **HOW)
    model = sampled_model(narrow, rollouts, states, ReplaySettings(8), tmp_path)
    assert model is not None
    assert model.origin["largest_difference"] < 0.5
