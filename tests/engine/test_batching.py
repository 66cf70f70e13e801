"""Batches: within the budget, little padding, everything once, longest first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from opd_probe.engine.batching import SHARING_PAYS, Side, batches, plan_batches


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 2000))
def test_properties(lengths: list[int], budget: int) -> None:
    groups = batches([lengths], budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    flat = [lengths[index] for group in groups for index in group]
    assert flat == sorted(lengths, reverse=True)
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        assert padded <= budget or len(group) == 1
        assert padded - sum(lengths[index] for index in group) <= 0.1 * padded + 1e-9


def test_equal_lengths_fill_the_budget_in_order() -> None:
    assert batches([[8] * 7], 24) == [[0, 1, 2], [3, 4, 5], [6]]


def test_too_long_for_the_budget_goes_alone() -> None:
    assert batches([[5, 100, 5]], 10) == [[1], [0, 2]]


def test_nothing() -> None:
    assert batches([[]], 10) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), max_size=40),
    st.lists(st.integers(0, 400), min_size=4, max_size=4),
    st.integers(1, 4000),
)
def test_prompts_are_shared_where_it_pays_and_nothing_is_lost(
    rollouts: list[tuple[int, int]], prompt_lengths: list[int], budget: int
) -> None:
    prompts = [(prompt, prompt_lengths[prompt]) for prompt, _ in rollouts]
    lengths = [prompt_lengths[prompt] + response for prompt, response in rollouts]
    planned = plan_batches([Side(lengths, prompts)], budget)
    assert sorted(index for batch in planned for index in batch.members) == list(range(len(rollouts)))
    longest = [max(lengths[index] for index in batch.members) for batch in planned]
    assert longest == sorted(longest, reverse=True)
    for batch in planned:
        assert len(batch.members) * max(lengths[index] for index in batch.members) <= budget or len(batch.members) == 1
        (shared,) = batch.shared
        if shared:
            (prompt,) = {prompts[index] for index in batch.members}
            assert shared == prompt[1]
            total = sum(lengths[index] for index in batch.members)
            assert (len(batch.members) - 1) * shared >= SHARING_PAYS * total


def test_four_short_answers_to_a_long_prompt_share_it() -> None:
    planned = plan_batches([Side([120, 110, 112, 115, 40], [("a", 99)] * 4 + [("b", 20)])], 8192)
    assert [(batch.members, batch.shared) for batch in planned] == [([0, 3, 2, 1], (99,)), ([4], (0,))]


def test_long_answers_do_not() -> None:
    (batch,) = plan_batches([Side([1000, 990], [("a", 99)] * 2)], 8192)
    assert (batch.members, batch.shared) == ([0, 1], (0,))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300), st.integers(0, 200)), max_size=40),
    st.integers(1, 4000),
)
def test_both_sides_keep_to_the_budget(rollouts: list[tuple[int, int, int]], budget: int) -> None:
    """The teacher's prompt is longer by a context, which may differ between the rollouts of one prompt."""
    student = Side([50 + response for _, response, _ in rollouts], [(prompt, 49) for prompt, _, _ in rollouts])
    teacher = Side(
        [50 + response + context for _, response, context in rollouts],
        [((prompt, context), 49 + context) for prompt, _, context in rollouts],
    )
    planned = plan_batches([student, teacher], budget)
    assert sorted(index for batch in planned for index in batch.members) == list(range(len(rollouts)))
    for batch in planned:
        held = used = 0
        for side, shared in zip((student, teacher), batch.shared, strict=True):
            lengths = [side.lengths[index] for index in batch.members]
            assert len(lengths) * max(lengths) <= budget or len(lengths) == 1
            held, used = held + len(lengths) * max(lengths), used + sum(lengths)
            if shared:
                assert {side.prompts[index] for index in batch.members} == {(side.prompts[batch.members[0]][0], shared)}
        assert held - used <= 0.1 * held + 1e-9


def test_a_context_for_each_rollout_leaves_the_students_prompt_shared() -> None:
    student = Side([110] * 4, [("a", 99)] * 4)
    teacher = Side([120] * 4, [(f"a{index}", 109) for index in range(4)])
    (batch,) = plan_batches([student, teacher], 8192)
    assert (batch.members, batch.shared) == ([0, 1, 2, 3], (99, 0))
    assert plan_batches([student, student], 8192)[0].shared == (99, 99)
