from __future__ import annotations

import numpy as np
import pytest

from opd_probe.errors import InputError
from opd_probe.rollouts.selection import check_steps, count_states, drawn, of_checkpoint, origin, without_rollouts
from opd_probe.types import Checkpoint, Rollout


def rollouts(steps: list[int | None], length: int = 3) -> list[Rollout]:
    return [Rollout(f"r{i}", [1], list(range(length)), step=step) for i, step in enumerate(steps)]


CKPTS = [Checkpoint("a/checkpoint-5", "a", 5), Checkpoint("a/checkpoint-10", "a", 10)]


def test_each_checkpoint_gets_the_rollouts_of_its_step() -> None:
    chosen = of_checkpoint(rollouts([5, 10, 5]), CKPTS[0], CKPTS, 0, "f")
    assert [rollout.id for rollout in chosen] == ["r0", "r2"]


def test_the_offset_is_added_to_the_checkpoints_step() -> None:
    chosen = of_checkpoint(rollouts([5, 6, 11]), CKPTS[0], CKPTS, 1, "f")
    assert [rollout.id for rollout in chosen] == ["r1"]


def test_without_steps_every_checkpoint_gets_all() -> None:
    assert len(of_checkpoint(rollouts([None, None]), CKPTS[1], CKPTS, 0, "f")) == 2


def test_a_checkpoint_without_rollouts_shows_both_lists() -> None:
    with pytest.raises(InputError, match=r"step 10 of run a.*steps 5, 10, the rollouts of steps 5, 7;"):
        of_checkpoint(rollouts([7, 5]), CKPTS[1], CKPTS, 0, "f")
    with pytest.raises(InputError, match="shift them with --step-offset 1 or leave"):
        of_checkpoint(rollouts([6, 11]), CKPTS[0], CKPTS, 0, "f")
    with pytest.raises(InputError, match=r"step unknown.*steps unknown"):
        of_checkpoint(rollouts([7, 5]), Checkpoint("m", "a", None), [Checkpoint("m", "a", None)], 0, "f")


def test_checkpoints_without_rollouts_are_told_while_others_have_some() -> None:
    assert without_rollouts(rollouts([5, 5]), CKPTS, 0, "f") == [CKPTS[1]]
    assert without_rollouts(rollouts([6, 7]), CKPTS, 1, "f") == [CKPTS[1]]
    assert without_rollouts(rollouts([5, 10]), CKPTS, 0, "f") == []
    assert without_rollouts(rollouts([7, 8]), CKPTS, 0, "f") == []  # of none: that is an error, told elsewhere
    assert without_rollouts(rollouts([None]), CKPTS, 0, "f") == []


def test_steps_on_some_rollouts_only_are_refused() -> None:
    with pytest.raises(InputError, match="'r1' has no step"):
        check_steps(rollouts([5, None]), "f")


def test_whose_states() -> None:
    assert origin(True, 3) == "own"
    assert origin(False, 3) == "fixed"
    assert origin(False, 1) == "unknown"


def test_the_sample_is_seeded_whole_and_in_file_order() -> None:
    many = rollouts([None] * 50)
    one, again, other = drawn(many, 31, 0), drawn(many, 31, 0), drawn(many, 31, 1)
    assert one == again != other
    assert len(one) == 11
    assert [many.index(rollout) for rollout in one] == sorted(many.index(rollout) for rollout in one)


def test_the_sample_has_at_least_one_rollout() -> None:
    assert len(drawn(rollouts([None] * 3), 1, 0)) == 1
    assert len(drawn(rollouts([None] * 3), None, 0)) == 3


def test_the_sample_leaves_out_no_long_rollouts() -> None:
    """Lengths are log-normal, and tokens of long rollouts have higher values: the mean over tokens, as in the file."""
    lengths = np.maximum(np.random.default_rng(0).lognormal(3.0, 1.0, 400), 1).astype(int)
    values = 5 + lengths / 100
    many = [Rollout(str(index), [1], range(length)) for index, length in enumerate(lengths.tolist())]
    means, rule_before = [], []
    for seed in range(2000):
        taken = [int(rollout.id) for rollout in drawn(many, 1000, seed)]
        assert 1000 <= lengths[taken].sum() < 1000 + lengths.max()
        assert lengths[taken].sum() - lengths[np.random.default_rng(seed).permutation(400)[len(taken) - 1]] < 1000
        means.append(np.average(values[taken], weights=lengths[taken]))
        order = np.random.default_rng(seed).permutation(400)
        short = order[lengths[order].cumsum() <= 1000]
        rule_before.append(np.average(values[short], weights=lengths[short]))
    whole = np.average(values, weights=lengths)
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - whole) < 3 * error
    assert whole - np.mean(rule_before) > 4 * error


def test_masked_tokens_are_no_states() -> None:
    assert count_states(Rollout("r", [1], [2, 3, 4], response_mask=[1, 0, 1])) == 2
