"""The engine on tiny real models against a naive full forward pass and the float64 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen2ForCausalLM

import opd_probe
from opd_probe.engine.replay import Replay
from opd_probe.engine.scoring import StateScorer, VocabularyMap
from opd_probe.engine.settings import ReplaySettings
from opd_probe.errors import InputError, LogitError
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.stats.projection import OutputProjection
from opd_probe.trace import Trace
from opd_probe.types import Rollout
from tests import reference
from tests.tiny import confident_pair, tiny_model

VOCABULARY = 64
Array = NDArray[Any]
Pair = tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]


@pytest.fixture(scope="module")
def student() -> Qwen2ForCausalLM:
    return tiny_model(VOCABULARY, seed=1)


@pytest.fixture(scope="module")
def teacher() -> Qwen2ForCausalLM:
    return tiny_model(VOCABULARY, seed=2, hidden=48, tied=False, spread=1.5)


@pytest.fixture(scope="module", params=["unsure", "confident"])
def models(request: pytest.FixtureRequest, student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> Pair:
    """Student and teacher: unrelated and unsure, and near each other with most mass on one token."""
    return (student, teacher) if request.param == "unsure" else confident_pair(VOCABULARY)


def some_rollouts(count: int = 9, *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Rollout]:
    """Ragged rollouts; every third is multi-turn, with a mask."""
    generator = np.random.default_rng(seed)
    result = []
    for index in range(count):
        length = int(generator.integers(1, 40))
        mask = None
        if index % 3 == 2:
            mask = generator.integers(0, 2, length)
            mask[0] = 1
        result.append(
            Rollout(
                id=f"r{index}",
                prompt_ids=generator.integers(0, vocabulary, int(generator.integers(1, 12))).tolist(),
                response_ids=generator.integers(0, vocabulary, length).tolist(),
                response_mask=None if mask is None else mask.tolist(),
                prompt_id=f"p{index // 2}",
            )
        )
    return result


def naive_logits(model: Qwen2ForCausalLM, rollout: Rollout) -> tuple[Array, list[int]]:
    """Logits that predict each response token that the student made, and their positions."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].float().numpy()
    mask = rollout.response_mask or [1] * len(rollout.response_ids)
    positions = [position for position, made in enumerate(mask) if made]
    return logits[[len(rollout.prompt_ids) - 1 + position for position in positions]], positions


def of_rollout(trace: Trace, index: int) -> dict[str, Array]:
    start, stop = trace.rollout_offsets[index : index + 2]
    return {name: trace.column(name)[start:stop] for name in trace.columns}


def check_against_naive(
    trace: Trace,
    models: Pair,
    rollouts: Sequence[Rollout],
    *,
    ids: Sequence[int] | None = None,
    temperature: float = 1.0,
    tolerance: float = 1e-4,
    read: Sequence[Rollout] | None = None,
) -> None:
    """Each state against a whole pass over its rollout alone; ``read``: the rollouts as the teacher reads them."""
    shared = np.arange(trace.vocabulary_size) if ids is None else np.asarray(ids)
    for index, rollout in enumerate(rollouts):
        rows = of_rollout(trace, index)
        (p_logits, positions), (q_logits, _) = (
            naive_logits(models[0], rollout),
            naive_logits(models[1], (read or rollouts)[index]),
        )
        assert rows["position"].tolist() == positions
        assert rows["token_id"].tolist() == [rollout.response_ids[position] for position in positions]
        for at in range(len(positions)):
            for side, logits in (("student", p_logits[at]), ("teacher", q_logits[at])):
                whole = np.exp(reference.log_softmax(logits, temperature))
                log_p = reference.log_softmax(logits[shared], temperature)
                top = rows[f"{side}_top_ids"][at]
                columns = np.searchsorted(shared, top)
                np.testing.assert_array_equal(shared[columns], top)
                np.testing.assert_allclose(rows[f"{side}_top_logprobs"][at], log_p[columns], atol=tolerance)
                ranked = reference.top_k(logits[shared], trace.K)
                gap = 1.0
                if len(shared) > trace.K:
                    beyond = reference.top_k(logits[shared], trace.K + 1)[-1]
                    gap = float(log_p[ranked[-1]] - log_p[beyond])
                if gap > 2 * tolerance:
                    assert set(top.tolist()) == set(shared[ranked].tolist())
                assert rows[f"{side}_entropy"][at] == pytest.approx(reference.entropy(log_p), abs=10 * tolerance)
                outside = 1 - whole[shared].sum()
                assert rows[f"{side}_mass_outside"][at] == pytest.approx(outside, abs=tolerance)
                token = int(rows["token_id"][at])
                if token in shared:
                    expected = log_p[np.searchsorted(shared, token)]
                    assert rows[f"{side}_logprob"][at] == pytest.approx(expected, abs=tolerance)
                else:
                    assert np.isnan(rows[f"{side}_logprob"][at])
            log_p = reference.log_softmax(p_logits[at][shared], temperature)
            log_q = reference.log_softmax(q_logits[at][shared], temperature)
            for name, expected in (
                ("reverse_kl", reference.kl(log_p, log_q)),
                ("forward_kl", reference.kl(log_q, log_p)),
            ):
                assert rows[name][at] == pytest.approx(expected, rel=10 * tolerance, abs=1e-8), name


def test_whole_replay(models: Pair) -> None:
    student, teacher = models
    rollouts = some_rollouts()
    trace = opd_probe.replay(student, teacher, rollouts, k=16, jsd=True)
    assert trace.n_states == sum(sum(r.response_mask or [1] * len(r.response_ids)) for r in rollouts)
    check_against_naive(trace, (student, teacher), rollouts)
    table = opd_probe.state_metrics(trace, 8)
    row = 0
    for rollout in rollouts:
        logits, positions = naive_logits(student, rollout)
        other, _ = naive_logits(teacher, rollout)
        for at, position in enumerate(positions):
            expected = reference.state(logits[at], other[at], rollout.response_ids[position], 8, trace_k=16)
            for name in (
                "reverse_kl",
                "jsd",
                "topk_reverse_kl_union",
                "student_overlap_mass",
                "overlap_ratio",
            ):
                assert table[name][row] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
            row += 1


def test_a_long_job_says_the_same(models: Pair) -> None:
    """Compiled passes, which only jobs of many states use, change no value: a job's size must not show."""
    rollouts = some_rollouts(6)
    loaded = [load_model(model) for model in models]
    parts = {}
    for compiled in (False, True):
        settings = ReplaySettings(12, jsd=True, chunk=8, compiled=compiled)
        parts[compiled] = dict(Replay(loaded[0], loaded[1], rollouts, np.arange(VOCABULARY), settings).states())
    for index, columns in parts[False].items():
        for name, values in columns.items():
            found = parts[True][index][name]
            if values.dtype.kind == "i":
                np.testing.assert_array_equal(found, values, err_msg=name)
            else:
                np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-12, err_msg=name)


def test_the_pair_of_confident_states_is_one() -> None:
    """One token holds all but 1e-2 … 1e-8, at states of every magnitude."""
    student, teacher = confident_pair(VOCABULARY)
    trace = opd_probe.replay(student, teacher, some_rollouts(12), k=4)
    rest = -np.expm1(trace.column("student_top_logprobs")[:, 0].astype(np.float64))
    assert all(((rest < 10.0**-n) & (rest > 10.0 ** -(n + 1))).sum() >= 3 for n in range(2, 7))
    assert np.median(trace.column("reverse_kl")) < 1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.6])
def test_temperature(models: Pair, temperature: float) -> None:
    rollouts = some_rollouts(3)
    trace = opd_probe.replay(*models, rollouts, k=8, temperature=temperature)
    assert trace.provenance["temperature"] == temperature
    check_against_naive(trace, models, rollouts, temperature=temperature)


def test_output_layers_of_different_width(student: Qwen2ForCausalLM) -> None:
    wide = tiny_model(80, seed=3, tied=False)
    rollouts = [
        *some_rollouts(4),
        Rollout("masked", [1, 2], [3, 70, 5, 71], response_mask=[1, 0, 1, 0]),
    ]
    with pytest.raises(InputError, match="token id 70 is outside the vocabulary"):
        opd_probe.replay(student, wide, rollouts, k=8)
    del rollouts[-1]
    for pair in ((student, wide), (wide, student)):
        with pytest.warns(opd_probe.OpdProbeWarning, match="lies outside the shared vocabulary"):
            trace = opd_probe.replay(*pair, rollouts, k=8)
        assert trace.vocabulary_size == VOCABULARY
        assert trace.provenance["vocabulary"]["assumed"] is True
        check_against_naive(trace, pair, rollouts)


@pytest.mark.filterwarnings("ignore:.*outside the shared vocabulary:opd_probe.OpdProbeWarning")
def test_a_shared_vocabulary_with_holes(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> None:
    """Sampled tokens in the holes keep their state, without a log-probability."""
    ids = np.array([*range(2, 40), 45, 46, 60], dtype=np.int64)
    rollouts = some_rollouts(5)
    engine = Replay(load_model(student), load_model(teacher), rollouts, ids, ReplaySettings(6))
    parts = dict(engine.states())
    assert sorted(parts) == list(range(5))
    columns = [name for name in parts[0] if name != "sampler_logprob"]
    arrays = {name: np.concatenate([parts[index][name] for index in range(5)]) for name in columns}
    from opd_probe.trace import rollout_table

    table = rollout_table(
        [
            {"rollout_id": r.id, "prompt_id": r.id, "n_states": n}
            for r, n in zip(rollouts, engine.state_counts, strict=True)
        ]
    )
    trace = Trace(table, {"K": 6, "vocabulary": {"size": len(ids)}}, arrays=arrays)
    check_against_naive(trace, (student, teacher), rollouts, ids=ids.tolist())
    outside = ~np.isin(trace.column("token_id"), ids)
    assert outside.any()
    assert not outside.all()
    reward = opd_probe.state_metrics(trace, 6)["sampled_reward"].to_numpy()
    np.testing.assert_array_equal(np.isnan(reward), outside)


def close(left: Trace, right: Trace, tolerance: float, names: Sequence[str] | None = None) -> None:
    for name in names or left.columns:
        one, two = left.column(name), right.column(name)
        if name.endswith("_top_ids"):
            side = name.split("_")[0]
            logs = left.column(f"{side}_top_logprobs")
            apart = (np.diff(logs, axis=1) < -2 * tolerance).all(1)
            assert apart.mean() > 0.5
            np.testing.assert_array_equal(one[apart], two[apart], err_msg=name)
        elif "_logprobs_at_" in name or one.dtype.kind == "i":
            continue  # by id: compared through the sets above
        else:
            bound = tolerance * np.maximum(1, np.abs(one))
            assert np.all((np.abs(one - two) <= bound) | (np.isnan(one) & np.isnan(two))), name


@pytest.mark.parametrize(
    "settings",
    [{"batch_tokens": 1}, {"batch_tokens": 50}, {"batch_tokens": 10**6}, {"chunk": 1}, {"chunk": 7}],
)
def test_batches_padding_and_chunks_do_not_matter(models: Pair, settings: dict[str, int]) -> None:
    rollouts = some_rollouts(12)
    whole = opd_probe.replay(*models, rollouts, k=12, jsd=True)
    other = opd_probe.replay(*models, rollouts, k=12, jsd=True, **settings)
    close(whole, other, 1e-4)
    for name in ("reverse_kl", "forward_kl", "jsd"):  # by their size: those of confident states are small
        np.testing.assert_allclose(other.column(name), whole.column(name), rtol=1e-3, atol=1e-8, err_msg=name)
    np.testing.assert_array_equal(whole.column("position"), other.column("position"))


def test_the_order_of_rollouts_does_not_matter(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> None:
    rollouts = some_rollouts(7)
    forward = opd_probe.replay(student, teacher, rollouts, k=12)
    backward = opd_probe.replay(student, teacher, rollouts[::-1], k=12)
    for index in range(7):
        one, two = of_rollout(forward, index), of_rollout(backward, 6 - index)
        for name in ("student_logprob", "teacher_logprob", "reverse_kl", "student_entropy"):
            np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)
    assert forward.rollouts.column("rollout_id").to_pylist() == [f"r{index}" for index in range(7)]
    assert backward.rollouts.column("rollout_id").to_pylist() == [f"r{index}" for index in range(7)][::-1]


def test_what_follows_a_state_does_not_matter(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> None:
    """A state is its prefix: replacing later tokens changes nothing before them."""
    first = Rollout("a", [1, 2, 3], list(range(10, 30)))
    second = Rollout("a", [1, 2, 3], [*range(10, 20), *[60] * 10])
    one = opd_probe.replay(student, teacher, [first], k=12)
    two = opd_probe.replay(student, teacher, [second], k=12)
    np.testing.assert_allclose(one.column("reverse_kl")[:11], two.column("reverse_kl")[:11], atol=1e-4)
    assert np.abs(one.column("reverse_kl")[11:] - two.column("reverse_kl")[11:]).max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
def test_same_hidden_states_give_the_same_statistics(chunk: int) -> None:
    """Exact sets, and values within 1e-5, whatever the chunk: the statistics stage alone."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 500, 32, generator=generator)
    hidden = torch.randn(2, 40, 32, generator=generator)
    tokens = torch.randint(0, 500, (40,), generator=generator)
    ids = np.arange(500)
    layers = [OutputProjection(weight, None, torch.from_numpy(ids)) for weight in weights]
    vocabulary = VocabularyMap(ids, 500, torch.device("cpu"))

    def scored(size: int, order: torch.Tensor) -> dict[str, Array]:
        scorer = StateScorer(layers[0], layers[1], vocabulary, 16, jsd=True, chunk=size)
        columns = scorer.score(hidden[0][order], hidden[1][order], tokens[order])
        back = torch.argsort(order).numpy()
        return {name: values[back] for name, values in columns.items()}

    whole = scored(40, torch.arange(40))
    other = scored(chunk, torch.randperm(40, generator=generator))
    for name, values in whole.items():
        if values.dtype.kind == "i":
            np.testing.assert_array_equal(other[name], values, err_msg=name)
        else:
            bound = 1e-5 * np.maximum(1, np.abs(values))
            assert np.all(np.abs(other[name] - values) <= bound), name


@pytest.mark.parametrize("tied", [True, False])
def test_identical_models(tied: bool) -> None:
    model = tiny_model(VOCABULARY, seed=5, tied=tied)
    trace = opd_probe.replay(model, model, some_rollouts(6), k=16, jsd=True)
    row = opd_probe.summarize(trace, 16, resamples=0)
    assert row["overlap_ratio"] == 1
    for name in ("reverse_kl", "forward_kl", "jsd", "sampled_reward", "entropy_gap"):
        assert row[name] == 0, name
        assert not trace.column(name).any() if name in trace.columns else True


def test_bf16_weights_are_scored_in_float32(teacher: Qwen2ForCausalLM) -> None:
    """The naive pass rounds its logits to bf16, which ties; ours is held against the product in float64."""
    model = tiny_model(VOCABULARY, seed=1, dtype=torch.bfloat16)
    rollouts = some_rollouts(3)
    trace = opd_probe.replay(model, teacher, rollouts, k=VOCABULARY, batch_tokens=1)
    loaded = load_model(model)
    for index, rollout in enumerate(rollouts):
        rows = of_rollout(trace, index)
        ids = torch.tensor(
            [[*rollout.prompt_ids, *rollout.response_ids][: len(rollout.prompt_ids) + rows["position"][-1]]]
        )
        with torch.no_grad():
            hidden = loaded.hidden(ids)[0, len(rollout.prompt_ids) - 1 + rows["position"]].double().numpy()
        logits = hidden @ loaded.output_layer.weight.double().numpy().T
        for at in range(len(logits)):
            log_p = reference.log_softmax(logits[at])
            np.testing.assert_allclose(rows["student_top_logprobs"][at], log_p[rows["student_top_ids"][at]], atol=1e-4)
            assert len(np.unique(rows["student_top_logprobs"][at])) > 0.9 * VOCABULARY
    assert trace.provenance["student"]["dtype"] == "bfloat16"


@pytest.mark.filterwarnings("ignore:.*one token:opd_probe.OpdProbeWarning")
def test_skipped_rollouts(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> None:
    rollouts = [
        Rollout("empty", [1], []),
        Rollout("fine", [1], [2, 3]),
        Rollout("masked", [1], [2, 3], response_mask=[0, 0]),
    ]
    trace = opd_probe.replay(student, teacher, rollouts, k=4)
    assert trace.rollouts.column("skipped").to_pylist() == ["empty response", None, "fully masked response"]
    assert trace.rollouts.column("n_states").to_pylist() == [0, 2, 0]
    assert opd_probe.summarize(trace, 4, resamples=0)["n_skipped"] == 2
    with pytest.raises(InputError, match=r"none of the 2 has a state \(empty response, fully masked response\)"):
        opd_probe.replay(student, teacher, [rollouts[0], rollouts[2]], k=4)


def test_the_last_response_token_is_never_read(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> None:
    """128 positions: a prompt of 8 and a response of 121 need 128, because nothing follows the last token."""
    generator = np.random.default_rng(0)
    fits = Rollout("fits", list(range(8)), generator.integers(0, 64, 121).tolist())
    trace = opd_probe.replay(student, teacher, [fits], k=4)
    assert trace.n_states == 121
    long = Rollout("long", list(range(8)), generator.integers(0, 64, 122).tolist())
    with pytest.raises(InputError, match=r"rollout 'long'.*129 positions.*128") as caught:
        opd_probe.replay(student, teacher, [fits, long], k=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (Rollout("x", [], [1, 2]), r"rollout 'x': prompt_ids is empty"),
        (Rollout("x", [1, 64], [1, 2]), r"rollout 'x': token id 64 is outside"),
        (Rollout("x", [1], [1, 99, 2]), r"rollout 'x': token id 99 is outside"),
        (Rollout("x", [1], [1, 99]), r"rollout 'x': token id 99 is outside"),
        (Rollout("x", [-1], [1, 2]), r"rollout 'x': token id -1 is outside"),
    ],
)
def test_refused(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM, rollout: Rollout, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opd_probe.replay(student, teacher, [Rollout("fine", [1], [2, 3]), rollout], k=4)
    assert "\n" not in str(caught.value)


def test_nan_weights_name_the_rollout(student: Qwen2ForCausalLM) -> None:
    """Which position depends on the attention: some kernels multiply masked NaN values by 0, which is NaN."""
    broken = tiny_model(VOCABULARY, seed=2, tied=False)
    with torch.no_grad():
        broken.get_input_embeddings().weight[33] = torch.nan
    rollouts = [Rollout("long", [1] * 9, [2] * 30), Rollout("short", [1], [2, 33, 5])]
    with pytest.raises(LogitError, match=r"rollout 'short', position \d: the teacher's logits are NaN") as caught:
        opd_probe.replay(student, broken, rollouts, k=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_nan_names_the_position(student: Qwen2ForCausalLM, chunk: int | None, batch_tokens: int) -> None:
    """NaN hidden states at one token alone: the position counts masked tokens."""

    class Broken(LoadedModel):
        def hidden(self, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
            marked = (input_ids[:, shared:] == 33).unsqueeze(-1)
            return super().hidden(input_ids, shared).masked_fill(marked, torch.nan)

    loaded = load_model(student)
    broken = Broken(**{field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)})
    rollouts = [
        Rollout("first", [1] * 9, [2] * 4),
        Rollout("second", [1], [2, 3, 33, 5, 33, 7], response_mask=[0, 1, 1, 0, 1, 1]),
    ]
    settings = ReplaySettings(4, chunk=chunk, batch_tokens=batch_tokens)
    with pytest.raises(LogitError, match=r"rollout 'second', position 5: the student's logits are NaN"):
        list(Replay(broken, loaded, rollouts, np.arange(VOCABULARY), settings).states())


def test_rollouts_of_one_prompt_share_it(models: Pair) -> None:
    student, teacher = models
    generator = np.random.default_rng(3)
    prompts = [generator.integers(0, 64, 20).tolist(), generator.integers(0, 64, 7).tolist()]
    rollouts = [
        Rollout(str(i), prompts[0 if i < 4 else 1], generator.integers(0, 64, 10 + i // 2).tolist()) for i in range(7)
    ]
    rollouts[2] = dataclasses.replace(rollouts[2], response_mask=[0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0])
    read: list[int] = []
    handle = student.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].shape[0]))
    trace = opd_probe.replay(load_model(student), load_model(teacher), rollouts, k=8)
    handle.remove()
    assert 4 in read  # the answers to the long prompt went together, behind it
    assert 1 in read
    check_against_naive(trace, (student, teacher), rollouts)


def test_longest_first_and_progress(student: Qwen2ForCausalLM, teacher: Qwen2ForCausalLM) -> None:
    rollouts = [Rollout(str(length), [1], [2] * length) for length in (3, 30, 1, 12)]
    seen: list[tuple[int, int]] = []
    engine = Replay(
        load_model(student), load_model(teacher), rollouts, np.arange(64), ReplaySettings(4, batch_tokens=1)
    )
    order = [index for index, _ in engine.states(progress=lambda done, total: seen.append((done, total)))]
    assert order == [1, 3, 0, 2]
    assert seen == [(0, 46), (30, 46), (42, 46), (45, 46), (46, 46)]
    assert [index for index, _ in engine.states(np.array([False, True, True, False]))] == [3, 0]


def test_a_loaded_model_passes_as_it_is(student: Qwen2ForCausalLM) -> None:
    loaded = load_model(student)
    assert isinstance(loaded, LoadedModel)
    assert load_model(loaded) is loaded
