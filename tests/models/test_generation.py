from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

import opd_probe
from opd_probe.errors import InputError, LogitError
from opd_probe.jobs.sampling import allowed_ids
from opd_probe.models import filling, generation
from opd_probe.models.filling import Filling
from opd_probe.models.generation import invert_cdf, sample_rollouts
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.options.settings import Settings
from opd_probe.types import Prompt, Rollout
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [Prompt(f"p{n}", ids=tuple(range(3, 5 + 3 * (n % 4))), answer=str(n)) for n in range(6)]


@pytest.fixture(scope="module")
def student() -> LoadedModel:
    return load_model(tiny_model(seed=1), tokenizer=tiny_tokenizer())


def _forward(student: LoadedModel, rollout: Rollout) -> torch.Tensor:
    """float64 logits [T, W] of a plain full forward, no cache and no batch."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
    with torch.no_grad():
        logits = student.model(input_ids=ids, use_cache=False).logits[0].double()
    return logits[len(rollout.prompt_ids) - 1 : -1]


def test_the_sampler_s_log_probabilities_are_those_of_a_plain_forward(student: LoadedModel) -> None:
    rollouts = sample_rollouts(student, PROMPTS, max_new_tokens=40)
    assert {len(r.prompt_ids) for r in rollouts} == {2, 5, 8, 11}  # so that batches are padded
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        expected = torch.log_softmax(_forward(student, rollout), -1)
        expected = expected.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        assert np.allclose(rollout.logprobs, expected, atol=1e-4)


def test_an_output_layer_wider_than_the_embeddings() -> None:
    """What cannot be read is not sampled, and is refused where it stands."""
    model: Any = tiny_model(40, seed=1, tied=False)
    narrow = model.lm_head.weight
    model.lm_head = torch.nn.Linear(narrow.shape[1], 64, bias=False)
    with torch.no_grad():
        model.lm_head.weight[:40], model.lm_head.weight[40:] = narrow, 3 * narrow[:24]
    wide = load_model(model, tokenizer=tiny_tokenizer())
    assert (wide.width, wide.readable) == (64, 40)
    given = [Prompt("p", ids=(3, 4))]
    for ids in (None, allowed_ids(wide, [], Settings())):
        rollouts = sample_rollouts(wide, given, allowed_ids=ids, num_rollouts=4, max_new_tokens=12)
        assert max(max(rollout.response_ids) for rollout in rollouts) < 40
    with pytest.raises(InputError, match="token id 41 is outside the vocabulary"):
        sample_rollouts(wide, [Prompt("p", ids=(3, 41))], max_new_tokens=2)
    with pytest.raises(InputError, match="token id 41"):
        opd_probe.replay(wide, wide, [{"prompt_ids": [3], "response_ids": [41, 4]}], k=4)
    assert opd_probe.replay(wide, wide, [{"prompt_ids": [3], "response_ids": [4, 41]}], k=4).n_states == 2


def test_at_another_temperature_and_on_fewer_ids(student: LoadedModel) -> None:
    allowed = np.array([1, 4, 5, 9, 20, 21, 22, 50])
    for rollout in sample_rollouts(student, PROMPTS, allowed_ids=allowed, temperature=0.7, max_new_tokens=12):
        assert set(rollout.response_ids) <= set(allowed.tolist())
        logits = _forward(student, rollout)[:, torch.from_numpy(allowed)] / 0.7
        places = torch.tensor([allowed.tolist().index(token) for token in rollout.response_ids])
        expected = torch.log_softmax(logits, -1).gather(1, places[:, None])[:, 0]
        assert np.allclose(rollout.logprobs, expected, atol=1e-4)


SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS: dict[str, Any] = {
    "gemma2, window shorter than the text": Gemma2Config(
        **SMALL, num_key_value_heads=1, intermediate_size=48, head_dim=16, final_logit_softcapping=2.0, sliding_window=8
    ),
    "gpt2, learnt positions": GPT2Config(**SMALL, n_positions=64),
}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS.keys())
def test_padded_batches_of_other_architectures(config: Any) -> None:
    torch.manual_seed(0)
    student = load_model(AutoModelForCausalLM.from_config(config).eval())
    for rollout in sample_rollouts(student, PROMPTS, num_rollouts=2, max_new_tokens=24):
        expected = torch.log_softmax(_forward(student, rollout), -1)
        expected = expected.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        assert np.allclose(rollout.logprobs, expected, atol=1e-4)


_PATHS = ("joined", "padded prompts", "prompts of one length")


def test_the_order_of_the_prompts_does_not_change_their_draws(student: LoadedModel) -> None:
    forth = sample_rollouts(student, PROMPTS, max_new_tokens=25)
    back = sample_rollouts(student, PROMPTS[::-1], max_new_tokens=25)
    assert {r.id: r.response_ids for r in back} == {r.id: r.response_ids for r in forth}


@pytest.mark.parametrize("batch_tokens", [1, 90, 333, 10**6])
def test_draws_do_not_depend_on_the_batch(student: LoadedModel, batch_tokens: int) -> None:
    expected = sample_rollouts(student, PROMPTS, max_new_tokens=25, batch_tokens=16384)
    got = sample_rollouts(student, PROMPTS, max_new_tokens=25, batch_tokens=batch_tokens)
    assert [r.response_ids for r in got] == [r.response_ids for r in expected]
    alone = sample_rollouts(student, [PROMPTS[3]], max_new_tokens=25)
    assert [r.response_ids for r in alone] == [r.response_ids for r in expected[12:16]]
    fewer = sample_rollouts(student, PROMPTS, num_rollouts=2, max_new_tokens=25)
    assert fewer[2].response_ids == expected[4].response_ids


def test_a_response_that_ends_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some go back for want of room and are read again; each prompt is read once but for those."""
    student = load_model(tiny_model(64, seed=3), tokenizer=tiny_tokenizer(64))
    begun, widths = [], []
    begin, draw = Filling._begin, generation._Sampler._draw

    def counted(self: Any, drafts: Any) -> Any:
        begun.extend({draft.prompt for draft in drafts if not draft.ids})
        return begin(self, drafts)

    def watched(self: Any, batch: Any, hidden: torch.Tensor, uniforms: torch.Tensor) -> Any:
        widths.append(len(batch))
        return draw(self, batch, hidden, uniforms)

    monkeypatch.setattr(Filling, "_begin", counted)
    monkeypatch.setattr(generation._Sampler, "_draw", watched)
    how: dict[str, Any] = {"num_rollouts": 4, "max_new_tokens": 80}
    alone = sample_rollouts(student, PROMPTS, batch_tokens=1, **how)
    assert set(widths) == {1}
    for bound, fewer in ((110, 1.3), (400, 3)):
        begun.clear()
        widths.clear()
        together = sample_rollouts(student, PROMPTS, batch_tokens=bound, **how)
        assert [(one.id, one.response_ids) for one in together] == [(one.id, one.response_ids) for one in alone]
        for one, other in zip(together, alone, strict=True):
            assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)  # type: ignore[arg-type]
        assert sorted(begun) == sorted(range(len(PROMPTS)))
        assert len(widths) < sum(len(one.response_ids) for one in together) / fewer
    lengths = {len(one.response_ids) for one in alone}
    assert min(lengths) < 15
    assert max(lengths) == 80


@pytest.mark.parametrize("unknown", [["joined"], ["joined", "padded prompts"], list(_PATHS)])
def test_batches_that_none_can_join_take_room_by_tokens_too(
    student: LoadedModel, unknown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have least go back and are read again; before that each prompt is read once."""
    begun, widths = [], []
    begin, draw = Filling._begin, generation._Sampler._draw

    def counted(self: Any, drafts: Any) -> Any:
        begun.extend({draft.prompt for draft in drafts if not draft.ids})
        return begin(self, drafts)

    def watched(self: Any, batch: Any, hidden: torch.Tensor, uniforms: torch.Tensor) -> Any:
        widths.append(len(batch) * max(len(PROMPTS[one.prompt].ids or ()) + len(one.ids) for one in batch))
        return draw(self, batch, hidden, uniforms)

    how: dict[str, Any] = {"num_rollouts": 4, "max_new_tokens": 25}
    alone = sample_rollouts(student, PROMPTS, batch_tokens=1, **how)
    monkeypatch.setattr(Filling, "_begin", counted)
    monkeypatch.setattr(generation._Sampler, "_draw", watched)
    for what in _PATHS:
        monkeypatch.setitem(student.paths.verdicts, what, None if what in unknown else student.cache_for(what))
    for bound, guess in ((70, 5), (150, 1), (4000, 256)):
        begun.clear()
        widths.clear()
        monkeypatch.setattr(filling, "_GUESS", guess)
        together = sample_rollouts(student, PROMPTS, batch_tokens=bound, **how)
        assert [(one.id, one.response_ids) for one in together] == [(one.id, one.response_ids) for one in alone]
        assert sorted(begun) == sorted(range(len(PROMPTS)))
        assert 25 < max(widths) <= bound


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_windows_and_states_of_those_that_join(config: Any) -> None:
    torch.manual_seed(2)
    student = load_model(AutoModelForCausalLM.from_config(config).eval())
    assert student.cache_for("joined") is not None
    how: dict[str, Any] = {"num_rollouts": 3, "max_new_tokens": 25}
    alone = sample_rollouts(student, PROMPTS, batch_tokens=1, **how)
    together = sample_rollouts(student, PROMPTS, batch_tokens=150, **how)
    for one, other in zip(together, alone, strict=True):
        assert one.response_ids == other.response_ids
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)  # type: ignore[arg-type]


def test_seeds_prompts_and_samples_have_streams_of_their_own(student: LoadedModel) -> None:
    same = [Prompt("a", ids=(3, 4)), Prompt("b", ids=(3, 4))]
    rollouts = sample_rollouts(student, same, max_new_tokens=20, num_rollouts=3)
    rollouts += sample_rollouts(student, same, max_new_tokens=20, num_rollouts=3, seed=1)
    assert len({r.response_ids for r in rollouts}) == 12


def test_what_a_rollout_carries(student: LoadedModel) -> None:
    rollouts = sample_rollouts(student, PROMPTS, num_rollouts=2, max_new_tokens=60, step=30)
    assert [r.id for r in rollouts[:3]] == ["p0/0", "p0/1", "p1/0"]
    for rollout in rollouts:
        prompt = PROMPTS[int(rollout.id[1])]
        assert (rollout.prompt_id, rollout.answer, rollout.step) == (prompt.id, prompt.answer, 30)
        assert tuple(rollout.prompt_ids) == prompt.ids
        assert len(rollout.logprobs or ()) == len(rollout.response_ids)
        assert rollout.token_source == "sampled_ids"
        ends = rollout.response_ids[-1] == 1
        assert rollout.finish_reason == ("stop" if ends else "length")
        assert 1 not in rollout.response_ids[:-1]
        assert ends or len(rollout.response_ids) == 60
        assert "<eos>" not in (rollout.response or "")


def test_generation_config_is_not_obeyed() -> None:
    model = tiny_model(seed=1)
    plain = sample_rollouts(load_model(model), PROMPTS, max_new_tokens=10)
    model.generation_config.update(temperature=0.01, top_k=1, do_sample=False, repetition_penalty=9.0)
    assert sample_rollouts(load_model(model), PROMPTS, max_new_tokens=10) == plain


def test_any_of_several_end_tokens_ends_a_response() -> None:
    model = tiny_model(seed=1)
    model.generation_config.eos_token_id = [1, 5, 6, 7, 8]
    rollouts = sample_rollouts(load_model(model), PROMPTS, max_new_tokens=60)
    lasts = {r.response_ids[-1] for r in rollouts if r.finish_reason == "stop"}
    assert len(lasts) > 1
    assert lasts <= {1, 5, 6, 7, 8}


def test_frequencies_are_the_model_s_probabilities(student: LoadedModel) -> None:
    n = 4000
    prompts = [Prompt("p", ids=(3, 9, 12))]
    rollouts = sample_rollouts(student, prompts, num_rollouts=n, max_new_tokens=1, batch_tokens=10**6)
    p = torch.softmax(_forward(student, rollouts[0]), -1)[0].numpy()
    counts = Counter(r.response_ids[0] for r in rollouts)
    observed = np.array([counts[token] for token in range(64)])
    # Pearson's statistic has mean 63 and standard deviation 11 on 63 degrees of freedom.
    assert float((((observed - n * p) ** 2) / (n * p)).sum()) < 63 + 5 * 11


def test_bf16_weights_are_sampled_from_float32_logits() -> None:
    student = load_model(tiny_model(seed=1, dtype=torch.bfloat16))
    rollout = sample_rollouts(student, PROMPTS[:1], num_rollouts=1, max_new_tokens=1)[0]
    with torch.no_grad():
        hidden = student.hidden(torch.tensor([rollout.prompt_ids]))[0, -1]
        logits = student.output_layer.weight.double() @ hidden.double()
    expected = torch.log_softmax(logits, -1)[rollout.response_ids[0]]
    assert rollout.logprobs is not None
    assert abs(rollout.logprobs[0] - float(expected)) < 1e-5


def test_the_company_of_bf16_changes_no_distribution() -> None:
    """Which token comes third, in narrow batches and in wide ones: two samples of one distribution."""
    student = load_model(tiny_model(seed=1, dtype=torch.bfloat16))
    prompts = [Prompt(f"p{n}", ids=tuple(range(3, 3 + length))) for n, length in enumerate((2, 9))]
    counts = np.zeros((2, 64))
    for number, (seed, bound) in enumerate(((0, 150), (1, 10**5))):
        how: dict[str, Any] = {"num_rollouts": 800, "max_new_tokens": 3, "seed": seed, "batch_tokens": bound}
        for one in sample_rollouts(student, prompts, **how):
            counts[number, one.response_ids[-1]] += 1
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    known = expected > 0
    statistic = float(((counts - expected)[known] ** 2 / expected[known]).sum())
    freedom = int((counts.sum(0) > 0).sum()) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_progress_counts_rollouts(student: LoadedModel) -> None:
    calls: list[tuple[int, int]] = []
    sample_rollouts(student, PROMPTS, max_new_tokens=30, batch_tokens=200, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 24)
    assert calls[-1] == (24, 24)
    assert calls == sorted(calls)


def test_a_prompt_that_leaves_no_room_is_named(student: LoadedModel) -> None:
    prompts = [PROMPTS[0], Prompt("long", ids=tuple([3] * 100))]
    with pytest.raises(InputError, match=r"'long'.*100.*29.*128.*--max-new-tokens") as caught:
        sample_rollouts(student, prompts, max_new_tokens=29)
    assert "\n" not in str(caught.value)
    assert sample_rollouts(student, prompts, max_new_tokens=28, num_rollouts=1)


@pytest.mark.parametrize(
    "options",
    [{"num_rollouts": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": float("nan")}],
)
def test_settings_that_cannot_be_used(student: LoadedModel, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options)).split("_")[-1]):
        sample_rollouts(student, PROMPTS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [None, (), (3, 64), (3, -1)])
def test_prompts_that_cannot_be_read(student: LoadedModel, ids: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError, match="'bad'"):
        sample_rollouts(student, [Prompt("bad", ids=ids)], max_new_tokens=4)


def test_logits_that_are_not_finite_name_the_prompt() -> None:
    model = tiny_model(seed=1, tied=False)
    student = load_model(model)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(LogitError, match="'p0', sample 0, position 0"):
        sample_rollouts(student, PROMPTS[:1], max_new_tokens=4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 10**6), st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
def test_inversion_against_a_plain_cumulative_sum(size: int, seed: int, uniforms: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, size, generator=generator).pow(8)
    weights[weights < 0.01] = 0.0
    weights[:, seed % size] = 0.5
    places, log_total = invert_cdf(weights, torch.tensor(uniforms, dtype=torch.float64))
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1]
    assert torch.allclose(log_total, total.log(), atol=1e-12)
    for row, (place, uniform) in enumerate(zip(places.tolist(), uniforms, strict=True)):
        assert weights[row, place] > 0
        target, slack = uniform * total[row], 1e-12 * total[row]
        assert cumulative[row, place] >= target - slack
        assert place == 0 or cumulative[row, place - 1] <= target + slack


def test_inversion_at_the_ends() -> None:
    weights = torch.zeros(2, 3000)
    weights[:, 1500] = 1.0
    weights[:, 2999] = 1e-30
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    places, _ = invert_cdf(weights, ends)
    assert places.tolist() == [1500, 1500]
    weights[:, 2999] = 0.0
    assert invert_cdf(weights, ends)[0].tolist() == [1500, 1500]


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses each call of the sampler was to draw."""
    drawn: list[int] = []
    original = generation._Sampler.fill

    def fill(self: Any, todo: list[Any], *more: Any) -> None:
        drawn.append(len(todo))
        original(self, todo, *more)

    monkeypatch.setattr(generation._Sampler, "fill", fill)
    return drawn


@pytest.mark.parametrize("after", [1, 5, 11])
def test_an_interrupted_job_draws_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    student = load_model(tiny_model(64, seed=3, spread=3.0))
    prompts = [Prompt(f"p{n}", ids=tuple(range(5, 8 + n))) for n in range(4)]
    how: dict[str, Any] = {"num_rollouts": 3, "max_new_tokens": 12, "seed": 4, "batch_tokens": 60}
    expected = sample_rollouts(student, prompts, **how)
    drawn = _counted(monkeypatch)
    ended = 0

    def stop(done: int, total: int) -> None:  # noqa: ARG001
        nonlocal ended
        ended = done
        if done >= after:
            raise KeyboardInterrupt

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        sample_rollouts(student, prompts, **how, progress=stop, drafts=kept, key="a")
    kept.write_text(kept.read_text() + '{"id": "p3/2", "ids": [1')  # killed while it was written
    drawn.clear()
    again = sample_rollouts(student, prompts, **how, drafts=kept, key="a")
    assert sum(drawn) == 12 - ended
    assert [(one.id, one.response_ids, one.finish_reason) for one in again] == [
        (one.id, one.response_ids, one.finish_reason) for one in expected
    ]
    for one, other in zip(again, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)  # type: ignore[arg-type]
    drawn.clear()
    assert sample_rollouts(student, prompts, **how, drafts=kept, key="a") == again
    assert drawn == []
    sample_rollouts(student, prompts, **how, drafts=kept, key="b")
    assert sum(drawn) == 12


KILLED = """
import os, signal, sys
from pathlib import Path
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import load_model
from opd_probe.types import Prompt
from tests.tiny import tiny_model

def stop(done, total):
    if done >= 5:
        os.kill(os.getpid(), signal.SIGKILL)

prompts = [Prompt(f"p{n}", ids=tuple(range(5, 8 + n))) for n in range(4)]
how = {"num_rollouts": 3, "max_new_tokens": 12, "seed": 4, "batch_tokens": 60}
how |= {"progress": stop, "drafts": Path(sys.argv[1]), "key": "a"}
sample_rollouts(load_model(tiny_model(64, seed=3, spread=3.0)), prompts, **how)
"""


def test_what_had_ended_when_sampling_was_killed_is_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with -9, of which a process learns nothing; in float32 the responses are those of one run."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "kept")], cwd=Path(__file__).parent.parent.parent, check=False
    )
    assert done.returncode == -signal.SIGKILL
    ended = len((tmp_path / "kept").read_text().splitlines()) - 1
    assert 5 <= ended < 12
    drawn = _counted(monkeypatch)
    student = load_model(tiny_model(64, seed=3, spread=3.0))
    prompts = [Prompt(f"p{n}", ids=tuple(range(5, 8 + n))) for n in range(4)]
    how: dict[str, Any] = {"num_rollouts": 3, "max_new_tokens": 12, "seed": 4, "batch_tokens": 60}
    again = sample_rollouts(student, prompts, **how, drafts=tmp_path / "kept", key="a")
    assert sum(drawn) == 12 - ended
    once = sample_rollouts(student, prompts, **how)
    assert [(one.id, one.response_ids) for one in again] == [(one.id, one.response_ids) for one in once]
