"""One row per rollout of a trace: its reward, its length, and whether its answer is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opd_probe.curves.accumulate import RolloutSums
from opd_probe.curves.rollouts import ROLLOUT_QUANTITIES, rollout_values
from opd_probe.metrics.states import metric_blocks
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


def rollout_table(trace: Trace) -> pd.DataFrame:
    """What a histogram over rollouts needs, from one pass over a trace.

    Returns:
        One row per rollout with states: ``rollout_id``, ``prompt_id``, ``sequence_mean_reward`` (nats per token, §6.2),
        ``response_length`` (tokens), ``truncated`` and ``correct`` (0 or 1). What is unknown is NaN.
    """
    import pandas as pd

    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, 1)
    for block, values in metric_blocks(trace, trace.K, ["sampled_reward"]):
        sums.add(block["rollout"], values["sampled_reward"][:, None])
    names = {name: trace.rollouts.column(name).to_pylist() for name in ("rollout_id", "prompt_id")}
    values_of = rollout_values(trace, sums.rollout_means(0))
    table = pd.DataFrame(names | dict(zip(ROLLOUT_QUANTITIES, values_of.T, strict=True)))
    table = table.rename(columns={"truncation_rate": "truncated", "accuracy": "correct"})
    return table[np.diff(trace.rollout_offsets) > 0].reset_index(drop=True)
