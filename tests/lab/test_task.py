"""The task: problems, patterns, grader, and the tokenizer that carries its words."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from opd_probe.lab import words
from opd_probe.lab.corpus import Arithmetic, Component, Corpus, Dialect, DialectRecipe
from opd_probe.lab.models import EOS_ID, build_tokenizer
from opd_probe.lab.task import (
    FRAMES,
    MODULUS,
    PATTERNS,
    RESPONSE_LENGTH,
    STEP_LENGTH,
    STEPS,
    VOCABULARY,
    PromptRecipe,
    encode,
    grade,
    pool,
    sample_problems,
    seeded,
)

PLAIN = DialectRecipe("plain")


def last_number(text: str) -> str:
    return re.findall(r"\d+", text)[-1]


def test_no_word_occurs_twice_and_top_16_is_a_small_part_of_the_vocabulary() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert 500 <= len(VOCABULARY) <= 1000
    assert all(len(words.SLOT_WORDS[slot]) == 36 for slot in words.SLOTS)


@given(seed=st.integers(0, 10_000))
def test_both_patterns_reach_the_answer_of_the_story(seed: int) -> None:
    (problem,) = sample_problems(seeded(seed, "test"), 1)
    for pattern in PATTERNS:
        corpus = Corpus([Component(pattern, 1.0, PLAIN, slips=0.0)], seed)
        response = corpus.respond(problem, seeded(seed, "response")).response
        assert grade(response, problem.answer)
        assert last_number(response) == str(problem.answer)
        assert len(response.split()) + 1 == RESPONSE_LENGTH


def test_answer_is_the_sum_told_in_the_prompt() -> None:
    for problem in sample_problems(seeded(0, "test"), 50):
        total = 0
        for sentence in problem.prompt.split(" . ")[:-1]:
            _, verb, amount = sentence.split()[:3]
            total += -int(amount) if verb in words.LOSS_VERBS else int(amount)
        assert total % MODULUS == problem.answer


def test_patterns_work_in_opposite_orders() -> None:
    (problem,) = sample_problems(seeded(3, "test"), 1)
    corpora = {p: Corpus([Component(p, 1.0, PLAIN, slips=0.0)], 0) for p in PATTERNS}
    forwards = corpora["A"].respond(problem, seeded(0, "x")).response.split()
    backwards = corpora["B"].respond(problem, seeded(0, "x")).response.split()
    assert [forwards[5 * i + 2] for i in range(4)] == [str(abs(change)) for change in problem.changes]
    assert [backwards[5 * i + 1] for i in range(4)] == [str(abs(change)) for change in problem.changes[::-1]]


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("then add 3 makes 7 finally answer 7", True),
        ("then add 3 makes 7 finally answer 8", False),
        ("answer 8 answer 7", True),
        ("then add 3 makes 7", False),
        ("finally answer", False),
        ("finally answer 8 dot 7", True),
        ("", False),
        ("answer 17", False),
    ],
)
def test_grader_reads_the_token_after_the_last_answer(response: str, verdict: bool) -> None:
    assert grade(response, 7) is verdict
    assert grade(response, "7") is verdict


def test_misconceptions_are_wrong_two_times_in_three_and_slips_are_near() -> None:
    arithmetic = Arithmetic(0, misconceptions=4, slips=0.0)
    assert len(arithmetic.offsets) == 4
    rng = seeded(0, "draws")
    change, offset = next(iter(arithmetic.offsets.items()))
    results = [arithmetic.result(10, change, rng) for _ in range(2000)]
    assert set(results) == {(10 + change) % MODULUS, (10 + change + offset) % MODULUS}
    assert np.mean(np.array(results) != (10 + change) % MODULUS) == pytest.approx(2 / 3, abs=0.05)
    slips = Arithmetic(0, misconceptions=0, slips=1.0)
    distances = [abs(slips.result(15, 1, rng) - 16) for _ in range(2000)]
    assert min(distances) == 1
    assert max(distances) == 8


def test_fewer_misconceptions_are_a_subset() -> None:
    assert Arithmetic(5, 2, 0.0).offsets.items() <= Arithmetic(5, 6, 0.0).offsets.items()


def test_dialect_draws_words_with_its_probabilities() -> None:
    dialect = Dialect(DialectRecipe("cued", cues=3), PATTERNS["B"], seed=1)
    name = words.NAMES[0]
    expected = dialect.probabilities("equals", name)
    assert sum(expected.values()) == pytest.approx(1.0)
    assert set(expected) == set(words.SLOT_WORDS["equals"][12:])
    drawn = [dialect.word("equals", name, u) for u in seeded(0, "u").random(20_000)]
    for word, probability in expected.items():
        assert drawn.count(word) / len(drawn) == pytest.approx(probability, abs=0.02)
    assert len({tuple(dialect.probabilities("equals", other).values()) for other in words.NAMES}) == 3


def test_same_seed_same_corpus() -> None:
    component = Component("A", 1.0, PLAIN, misconceptions=3)
    first, second = (Corpus([component], 7).batch(seeded(7, "b"), 20) for _ in range(2))
    assert first == second
    assert first != Corpus([component], 8).batch(seeded(7, "b"), 20)


def test_tokenizer_gives_exactly_the_ids_of_the_words(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for problem in sample_problems(seeded(0, "test"), 20):
        ids = tokenizer(problem.prompt)["input_ids"]
        assert ids == encode(problem.prompt)
        assert tokenizer.decode(ids) == problem.prompt
        assert tokenizer.decode([*ids, EOS_ID], skip_special_tokens=True) == problem.prompt
    assert tokenizer.eos_token_id == EOS_ID
    assert len(tokenizer) == len(VOCABULARY)


def test_own_slots_keep_to_the_words_of_one_pattern() -> None:
    recipe = DialectRecipe("own", own_slots=("connector",))
    for pattern, (low, high) in (("A", (0, 12)), ("B", (24, 36))):
        dialect = Dialect(recipe, PATTERNS[pattern], seed=0)
        name = words.NAMES[0]
        assert set(dialect.probabilities("connector", name)) == set(words.SLOT_WORDS["connector"][low:high])
        assert len(dialect.probabilities("equals", name)) == 24


def test_mixture_draws_components_by_weight_and_marks_what_is_given() -> None:
    corpus = Corpus([Component("A", 3.0, PLAIN, given=1), Component("B", 1.0, PLAIN)], seed=0)
    examples = corpus.batch(seeded(0, "mixture"), 800)
    assert {example.given for example in examples} == {0, 1}
    assert np.mean([example.given for example in examples]) == pytest.approx(0.75, abs=0.05)


def test_frames_change_the_end_of_a_prompt_alone() -> None:
    (problem,) = sample_problems(seeded(0, "test"), 1)
    told = {frame: problem.told(frame) for frame in FRAMES}
    assert len({p.prompt for p in told.values()}) == len(FRAMES)
    assert len({p.prompt.removesuffix(FRAMES[frame]) for frame, p in told.items()}) == 1
    assert len({(p.answer, len(encode(p.prompt))) for p in told.values()}) == 1


def test_a_pool_is_a_fixed_set_of_problems_told_in_the_frame_of_the_run() -> None:
    own = {p.prompt for p in pool(3, 10)}
    recipe = PromptRecipe("answer", 10)
    drawn = recipe.draw(seeded(3, "draw"), 10, seed=3)
    assert {problem.told("total").prompt for problem in drawn} == own
    assert all(problem.prompt.endswith(FRAMES["answer"]) for problem in drawn)
    assert len(recipe.draw(seeded(3, "draw"), 25, seed=3)) == 25
    assert {p.told("total").prompt for p in PromptRecipe().draw(seeded(3, "draw"), 10, seed=3)}.isdisjoint(own)


def test_a_component_with_a_pool_repeats_its_worked_responses() -> None:
    part = Component("A", 1.0, PLAIN, pool=5, frame="answer")
    examples = Corpus([part], seed=2).batch(seeded(2, "b"), 200)
    assert len({example.prompt for example in examples}) == 5
    assert len(set(examples)) == 5
    assert {example.prompt for example in examples} == {p.told("answer").prompt for p in pool(2, 5)}


def test_a_response_is_its_steps_and_its_end() -> None:
    assert STEPS * STEP_LENGTH + len(["lead", "answer", "number", "<eos>"]) == RESPONSE_LENGTH
