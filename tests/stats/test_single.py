"""One model's statistics: those of a pair's student to the bit, and those of plain float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opd_probe.errors import LogitError
from opd_probe.stats.pair import pair_statistics
from opd_probe.stats.single import single_statistics
from tests import reference
from tests.samples import random_pair


def test_the_students_part_of_a_pair_to_the_bit() -> None:
    student, teacher, tokens = (torch.from_numpy(array) for array in random_pair(40, 900, seed=3))
    tokens[5] = -1
    pair = pair_statistics(student, teacher, tokens, 12)
    single = single_statistics(student, tokens, pair.teacher_top_ids, 12)
    for ours, theirs in (
        (single.top_ids, pair.student_top_ids),
        (single.top_logprobs, pair.student_top_logprobs),
        (single.logprobs_at, pair.student_logprobs_at_teacher_top),
        (single.logprob, pair.student_logprob),
        (single.entropy, pair.student_entropy),
        (single.log_partition, pair.student_log_partition),
    ):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
    assert torch.isnan(single.logprob[5])


def test_against_float64_with_masked_logits_and_absent_ids() -> None:
    student, _, tokens = random_pair(9, 30, seed=1)
    student[2, 4:] = -np.inf
    student[3, 1:] = -np.inf
    at = np.array([[0, 5, -1]] * 9)
    found = single_statistics(*map(torch.from_numpy, (student, tokens, at)), 3)
    for row, logits in enumerate(student):
        logs = reference.log_softmax(logits.astype(np.float64))
        np.testing.assert_allclose(found.logprobs_at[row, :2], logs[[0, 5]], atol=1e-6)
        np.testing.assert_allclose(found.logprob[row], logs[tokens[row]], atol=1e-6)
        p = np.exp(logs)
        np.testing.assert_allclose(found.entropy[row], -(p[p > 0] * logs[p > 0]).sum(), atol=1e-6)
    assert torch.isnan(found.logprobs_at[:, 2]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_named_by_row(bad: float) -> None:
    student, _, tokens = random_pair(4, 30)
    student[2, 7] = bad
    with pytest.raises(LogitError, match="the student's logits are") as caught:
        single_statistics(torch.from_numpy(student), torch.from_numpy(tokens), torch.zeros(4, 1, dtype=torch.int64), 3)
    assert caught.value.row == 2
