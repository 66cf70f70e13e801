"""Reward quantiles by position, and cumulated signal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

import opd_probe
from opd_probe.errors import InputError
from opd_probe.plots import plot_depth
from tests.samples import grouped_trace, many_prompts

from .examples import LONG_NAMES
from .looking import band, legend_labels, line, note, panel, untidy_texts


def tables(runs: Sequence[str] = ("mine",), steps: Sequence[int | None] = (0, 50, 100)) -> list[pd.DataFrame]:
    parts: list[list[pd.DataFrame]] = [[], []]
    for number, run in enumerate(runs):
        for index, step in enumerate(steps):
            trace = grouped_trace(many_prompts(60, seed=number), seed=10 * number + index)
            curves = opd_probe.reward_by_depth(trace), opd_probe.signal_by_depth(trace, bins=8, resamples=50)
            for place, curve in enumerate(curves):
                parts[place].append(curve.assign(run=run, teacher="teacher", step=step, states="own"))
    return [pd.concat(part, ignore_index=True) for part in parts]


def test_the_last_step_as_a_fan_and_the_first_dashed() -> None:
    reward, signal = tables()
    ax = panel(plot_depth(reward, signal), "Reward by position")
    last, first = (reward[(reward["step"] == step) & (reward["n_states"] >= 20)] for step in (100, 0))
    np.testing.assert_allclose(line(ax, "sampled_reward_q50:mine:step 100").get_ydata(), last["sampled_reward_q50"])
    np.testing.assert_allclose(line(ax, "sampled_reward_q05:mine:step 0").get_ydata(), first["sampled_reward_q05"])
    (fan,) = [one for one in ax.collections if one.get_gid() == "fan:q05-q95:mine"]
    edge = fan.get_paths()[0].vertices[:, 1]
    assert edge.min() == pytest.approx(last["sampled_reward_q05"].min())
    assert edge.max() == pytest.approx(last["sampled_reward_q95"].max())


def test_the_signal_starts_at_nothing_and_ends_at_all() -> None:
    reward, signal = tables()
    figure = plot_depth(reward, signal)
    ax = panel(figure, "Where the signal lies")
    for step in (0, 50, 100):
        key = f"cumulative_signal:mine:step {step}"
        rows = signal[signal["step"] == step]
        np.testing.assert_allclose(line(ax, key).get_ydata(), [0, *rows["cumulative_signal"]])
        np.testing.assert_allclose(line(ax, key).get_xdata(), [0, *rows["relative"]])
    x, low, _ = band(ax, "cumulative_signal:mine:step 100")
    last = signal[signal["step"] == 100]
    np.testing.assert_allclose(x, [0, *last["relative"]])
    np.testing.assert_allclose(low, [0, *last["cumulative_signal_lo"]], atol=1e-12)
    assert legend_labels(figure) == ["step 0", "step 100"]
    assert "dark band = 25-75 %" in note(figure)


@pytest.mark.parametrize(
    ("runs", "steps"), [(("a", "b"), (0, 100)), (LONG_NAMES[:2], (None,)), (("a",), (5,))], ids=["two", "long", "one"]
)
def test_no_text_over_text(runs: Sequence[str], steps: Sequence[int | None]) -> None:
    assert untidy_texts(plot_depth(*tables(runs, steps))) == []


def test_no_reward_leaves_a_note() -> None:
    reward, signal = tables(steps=(0,))
    unknown = reward.assign(**{name: np.nan for name in reward if name.startswith("sampled_reward")})
    figure = plot_depth(unknown, signal.assign(cumulative_signal=np.nan))
    assert "no reward is known" in panel(figure, "Reward by position").texts[-1].get_text()
    assert "no signal" in panel(figure, "Where the signal lies").texts[-1].get_text()


def test_bad_tables() -> None:
    reward, signal = tables(steps=(0,))
    with pytest.raises(InputError, match="reward table: no column 'sampled_reward_q50'"):
        plot_depth(reward.drop(columns="sampled_reward_q50"), signal)
    with pytest.raises(InputError, match="signal table: expected at least one row"):
        plot_depth(reward, signal.iloc[:0])
    with pytest.raises(InputError, match="expected one row per"):
        plot_depth(pd.concat([reward, reward]), signal)
