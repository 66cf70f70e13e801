"""trace_logits: traces from logits at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import opd_probe
from opd_probe.engine import logits as engine_logits
from opd_probe.errors import InputError, LogitError
from tests import reference
from tests.samples import random_pair


@pytest.mark.parametrize("vocabulary", [10, 700])
def test_slices_equal_slices_bitwise(vocabulary: int) -> None:
    student, teacher, tokens = random_pair(23, vocabulary)
    whole = opd_probe.trace_logits(student, teacher, tokens, 8, jsd=True)
    for rows in (slice(0, 1), slice(3, 10), slice(10, 23)):
        part = opd_probe.trace_logits(student[rows], teacher[rows], tokens[rows], 8, jsd=True)
        for name in set(whole.columns) - {"position"}:
            np.testing.assert_array_equal(part.column(name), whole.column(name)[rows], err_msg=name)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, tokens = random_pair(23, 90)
    whole = opd_probe.trace_logits(student, teacher, tokens, 8, jsd=True)
    monkeypatch.setattr(engine_logits, "default_chunk", lambda *_: chunk)
    chunked = opd_probe.trace_logits(student, teacher, tokens, 8, jsd=True)
    for name in whole.columns:
        np.testing.assert_array_equal(chunked.column(name), whole.column(name), err_msg=name)


def test_different_widths_are_renormalised_below_the_smaller_one() -> None:
    student, teacher, _ = random_pair(5, 40)
    tokens = np.array([0, 1, 33, 2, 29])
    trace = opd_probe.trace_logits(student[:, :30], teacher, tokens, 6)
    assert trace.vocabulary_size == 30
    assert trace.provenance["vocabulary"]["assumed"] is True
    assert (trace.column("student_mass_outside") == 0).all()
    for row in range(5):
        q = np.exp(reference.log_softmax(teacher[row]))
        assert trace.column("teacher_mass_outside")[row] == pytest.approx(q[30:].sum(), rel=1e-4)
        expected = reference.state(student[row, :30], teacher[row, :30], int(tokens[row]) % 30, 6)
        assert trace.column("reverse_kl")[row] == pytest.approx(expected["reverse_kl"], rel=1e-4)
    assert np.isnan(trace.column("teacher_logprob")).tolist() == [False, False, True, False, False]
    row = opd_probe.summarize(trace, 6, resamples=0)
    assert row["n_outside_vocabulary"] == 1
    assert row["sampled_reward_n"] == 4
    assert row["n_states"] == 5


def test_k_is_capped_at_the_vocabulary() -> None:
    assert opd_probe.trace_logits(*random_pair(2, 12), 64).K == 12


def test_kinds_of_arrays_agree() -> None:
    student, teacher, tokens = random_pair(4, 30)
    plain = opd_probe.trace_logits(student, teacher, tokens, 5)
    tensors = opd_probe.trace_logits(torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(tokens), 5)
    lists = opd_probe.trace_logits(student.astype(np.float64).tolist(), teacher.tolist(), tokens.tolist(), 5)
    for name in plain.columns:
        np.testing.assert_array_equal(tensors.column(name), plain.column(name))
        np.testing.assert_array_equal(lists.column(name), plain.column(name))


def test_arguments_are_left_as_they_are() -> None:
    student, teacher, tokens = random_pair(4, 30)
    tensor = torch.from_numpy(student.copy())
    opd_probe.trace_logits(tensor, teacher, tokens, 5)
    np.testing.assert_array_equal(tensor.numpy(), student)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [3, 37])
def test_bad_logits_name_the_position(value: float, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a column that only the wider model has: its mass outside would be unknown."""
    monkeypatch.setattr(engine_logits, "default_chunk", lambda *_: 4)
    student, teacher, tokens = random_pair(11, 40)
    teacher[9, column] = value
    with pytest.raises(LogitError, match=r"position 9.*teacher") as caught:
        opd_probe.trace_logits(student[:, :30], teacher, tokens % 30, 5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": True}, "k = True"),
        ({"k": 1.5}, "k = 1.5"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"token_ids": np.zeros(3, dtype=int)}, "same number T"),
        ({"token_ids": np.array([0, 1, 2, -1])}, "id -1"),
        ({"token_ids": np.array([0, 1, 2, 30])}, "id 30"),
        ({"student_logits": np.zeros(30, dtype=np.float32)}, r"expected \[T, V\]"),
        ({"student_logits": np.zeros((0, 30), dtype=np.float32)}, r"expected \[T, V\]"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    student, teacher, tokens = random_pair(4, 30)
    arguments = {"student_logits": student, "teacher_logits": teacher, "token_ids": tokens, "k": 5}
    with pytest.raises(InputError, match=message) as caught:
        opd_probe.trace_logits(**(arguments | change))
    assert "\n" not in str(caught.value)


NARROW = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("kind", NARROW)
def test_narrow_logits_are_float32_ones_and_one_line_says_by_how_much_they_are_off(kind: torch.dtype) -> None:
    student, teacher, tokens = random_pair(9, 700)
    exact = torch.from_numpy(student) + 20.0
    given = exact.to(kind)
    with pytest.warns(opd_probe.OpdProbeWarning) as said:
        found = opd_probe.trace_logits(given, torch.from_numpy(teacher), torch.from_numpy(tokens), 16)
    assert len(said) == 1
    top = exact.topk(16).values
    worst = float((top.to(kind).float() - top).abs().max())
    size = float(str(said[0].message).split("rounded by up to ")[1].split()[0])
    assert str(said[0].message).startswith(f"student_logits in {str(kind)[6:]}, ")
    assert worst <= size <= 4 * worst
    wanted = opd_probe.trace_logits(given.float(), teacher, tokens, 16)
    for name in wanted.columns:
        np.testing.assert_array_equal(found.column(name), wanted.column(name), err_msg=name)
    assert [found.provenance[side]["dtype"] for side in ("student", "teacher")] == [str(kind)[6:], "float32"]


@pytest.mark.filterwarnings("ignore:student_logits in:opd_probe.OpdProbeWarning")
@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("width", [300, 20_000])
def test_ties_fall_the_same_way_whatever_k_is(kind: torch.dtype, width: int) -> None:
    """The top 16 is where the top 64 begins, and a model has all of it in common with itself."""
    logits = (torch.randn(40, width, generator=torch.Generator().manual_seed(0)) * 2 + 10).to(kind)
    tokens = torch.zeros(40, dtype=torch.int64)
    deep, shallow = (opd_probe.trace_logits(logits, logits, tokens, k) for k in (64, 16))
    assert (logits.float().sort(-1).values[:, -16] == logits.float().sort(-1).values[:, -17]).any()  # ties there
    np.testing.assert_array_equal(deep.column("student_top_ids")[:, :16], shallow.column("student_top_ids"))
    for trace in (deep, shallow):
        row = opd_probe.summarize(trace, 16, resamples=0)
        assert (row["overlap_ratio"], row["overlap_advantage"], row["reverse_kl"]) == (1.0, 0.0, 0.0)
    for row in range(40):
        assert shallow.column("student_top_ids")[row].tolist() == reference.top_k(logits[row].float(), 16)


def test_a_list_of_rows_is_a_matrix() -> None:
    student, teacher, tokens = random_pair(4, 30)
    rows = [torch.from_numpy(row) for row in student]
    found, wanted = (opd_probe.trace_logits(x, teacher, tokens, 5) for x in (rows, student))
    np.testing.assert_array_equal(found.column("reverse_kl"), wanted.column("reverse_kl"))
    with pytest.raises(InputError, match=r"student_logits: expected numbers \[T, V\]"):
        opd_probe.trace_logits([["a"]], teacher[:1], tokens[:1], 1)
