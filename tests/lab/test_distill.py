"""The distillation loop in miniature: it lowers the reverse KL, repeats itself, and leaves checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_probe.lab.corpus import Component, Corpus, DialectRecipe
from opd_probe.lab.distill import DistillRecipe, StepLog, distill, draw, write_checkpoint
from opd_probe.lab.losses import LossRecipe, per_state_loss
from opd_probe.lab.models import EOS_ID, LabModel, ModelRecipe, build_model, build_tokenizer
from opd_probe.lab.pretrain import PretrainRecipe, cosine, pretrain, states_of
from opd_probe.lab.task import RESPONSE_LENGTH, PromptRecipe, encode, pool, sample_problems, seeded

TINY = ModelRecipe(hidden_size=32, layers=1, heads=1, intermediate_size=64)


def corpus(label: str) -> tuple[Component, ...]:
    return (Component("A", 1.0, DialectRecipe(label, zipf=1.6, noise=1.5)),)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> tuple[LabModel, LabModel]:
    """A student and a teacher of one shape, trained on two wordings of pattern A for a few seconds."""
    models = []
    for label in ("student", "teacher"):
        model = build_model(TINY, seed=0)
        pretrain(model, PretrainRecipe(label, corpus(label), steps=80, learning_rate=1e-2, batch_size=16), seed=0)
        models.append(model)
    return models[0], models[1]


@torch.no_grad()
def reverse_kl(student: LabModel, teacher: LabModel) -> float:
    sample, _ = draw(student, sample_problems(seeded(99, "test"), 64), 24, seed=99)
    p, q = (states_of(model, sample.input_ids, sample.first_state).double() for model in (student, teacher))
    return float(per_state_loss(p, q, sample.response_ids, LossRecipe("full"))[sample.mask].mean())


def test_pretraining_lowers_the_loss_and_reports_every_step() -> None:
    said: list[tuple[int, int, str]] = []
    recipe = PretrainRecipe("test", corpus("test"), steps=30, learning_rate=1e-2, batch_size=8)
    pretrain(build_model(TINY, seed=0), recipe, 0, lambda *told: said.append(told))
    assert [told[:2] for told in said] == [(step, 30) for step in range(1, 31)]
    losses = [float(told[2].removeprefix("loss ")) for told in said]
    assert losses[-1] < 0.7 * losses[0]


def test_distillation_lowers_the_reverse_kl_at_the_students_own_states(
    pair: tuple[LabModel, LabModel],
) -> None:
    recipe = DistillRecipe("test", steps=40, learning_rate=3e-3, prompts_per_step=16, max_new_tokens=24)
    before = {name: tensor.clone() for name, tensor in pair[0].state_dict().items()}
    student, log = distill(*pair, recipe, seed=0)
    assert reverse_kl(student, pair[1]) < 0.6 * reverse_kl(*pair)
    assert [row["step"] for row in log] == list(range(1, 41))
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(torch.equal(before[name], tensor) for name, tensor in pair[0].state_dict().items())


@pytest.mark.parametrize("support", ["overlap", "union", "full", "sampled"])
def test_every_support_trains(pair: tuple[LabModel, LabModel], support: str) -> None:
    loss = LossRecipe(support, k=8)  # type: ignore[arg-type]
    recipe = DistillRecipe("test", loss, steps=3, prompts_per_step=4, samples_per_prompt=2, max_new_tokens=8)
    _, log = distill(*pair, recipe, seed=0)
    assert all(row["grad_norm"] > 0 for row in log)


def test_same_seed_same_run(pair: tuple[LabModel, LabModel]) -> None:
    recipe = DistillRecipe("test", steps=4, prompts_per_step=4, max_new_tokens=12)
    first, second, other = (distill(*pair, recipe, seed=seed)[1] for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_an_interrupted_run_ends_as_if_it_had_never_stopped(pair: tuple[LabModel, LabModel], tmp_path: Path) -> None:
    recipe = DistillRecipe("test", steps=6, checkpoints=(2, 4, 6), prompts_per_step=4, max_new_tokens=8)
    whole, log = distill(*pair, recipe, seed=0)

    def stop(step: int, *_: object) -> None:
        if step == 4:
            raise KeyboardInterrupt

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        distill(*pair, recipe, seed=0, on_checkpoint=stop, state=state)
    seen: list[int] = []
    resumed, again = distill(*pair, recipe, seed=0, on_checkpoint=lambda step, *_: seen.append(step), state=state)
    assert seen == [4, 6]
    assert again == log
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_takes_its_problems_from_where_its_recipe_says(pair: tuple[LabModel, LabModel]) -> None:
    prompts = PromptRecipe("answer", 3)
    recipe = DistillRecipe("test", steps=2, prompts_per_step=3, max_new_tokens=8, prompts=prompts)
    asked = {problem.prompt for problem in prompts.draw(seeded(0, "prompts", 1), 3, 0)}
    assert asked == {problem.told("answer").prompt for problem in pool(0, 3)}
    assert distill(*pair, recipe, seed=0)[1] != distill(*pair, replace(recipe, prompts=PromptRecipe()), seed=0)[1]


def test_the_log_tells_lengths_and_entropies(pair: tuple[LabModel, LabModel]) -> None:
    recipe = DistillRecipe("test", steps=2, prompts_per_step=4, max_new_tokens=6)
    _, log = distill(*pair, recipe, seed=0)
    assert all(0 < row["response_length"] <= 6 and 0 < row["student_entropy"] < 7 for row in log)


def test_checkpoints_are_ordinary_directories(pair: tuple[LabModel, LabModel], tmp_path: Path) -> None:
    recipe = DistillRecipe("test", steps=4, checkpoints=(2, 4), prompts_per_step=4, max_new_tokens=8)

    def on_checkpoint(step: int, student: LabModel, log: list[StepLog]) -> None:
        write_checkpoint(tmp_path, step, student, log)

    student, log = distill(*pair, recipe, seed=0, on_checkpoint=on_checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert [row["step"] for row in state["log_history"]] == [1, 2]
    assert state["log_history"][1] == log[1]
    assert {"loss", "grad_norm", "learning_rate", "reward"} <= set(log[0])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    ids = torch.tensor([encode(problem.prompt) for problem in sample_problems(seeded(0, "test"), 2)])
    torch.testing.assert_close(loaded(ids).logits, student(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-4")
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    factors = [cosine(step, 50, 5, floor=0.1) for step in range(50)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert 0.1 < factors[-1] < 0.11


def test_given_tokens_are_not_trained_on() -> None:
    """A corpus whose responses are given whole but for EOS teaches EOS alone."""
    (component,) = corpus("test")
    told: list[str] = []

    def train(given: int) -> float:
        recipe = PretrainRecipe("test", (replace(component, given=given),), 1, 1e-3, batch_size=4)
        pretrain(build_model(TINY, seed=0), recipe, 0, lambda *report: told.append(report[2]))
        return float(told[-1].removeprefix("loss "))

    model = build_model(TINY, seed=0)
    examples = Corpus((component,), 0).batch(seeded(0, "pretrain", "test", 0), 4)
    ids = torch.tensor([encode(f"{example.prompt} {example.response}") for example in examples])
    with torch.no_grad():
        expected = -model(ids).logits[:, -1].log_softmax(-1)[:, EOS_ID].mean()
    assert train(RESPONSE_LENGTH - 1) == pytest.approx(float(expected), abs=2e-3)
    assert train(0) != train(RESPONSE_LENGTH - 1)
