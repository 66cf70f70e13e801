"""Paired differences between two traces: every metric of both on the same resampled prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average
from opd_probe.curves.bootstrap import RESAMPLES, Resampling, percentile_interval
from opd_probe.curves.intervals import LEVEL, Estimate, Floats, Ints, difference, interval, warn_few_prompts
from opd_probe.curves.looks import level_of
from opd_probe.curves.remarks import difference_remark
from opd_probe.curves.rollouts import ROLLOUT_QUANTITIES, Auroc, rollout_sums, rollout_values
from opd_probe.curves.sampling import sampling_label, sampling_remark
from opd_probe.curves.timeline import same_states
from opd_probe.curves.whole import whole_sums
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.metrics import METRICS, TRACE_METRICS
from opd_probe.metrics.context import correctness
from opd_probe.metrics.states import check_k, metric_blocks, metric_names
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_QUANTILES = {"median": 0.5, "p90": 0.9}


def compare(
    a: Trace,
    b: Trace,
    k: int = 16,
    *,
    average: str = "token",
    seed: int = 0,
    resamples: int = RESAMPLES,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Paired differences b − a of every metric, over the prompts that both traces have.

    Each prompt is left out of both traces at once, so that what prompts have in common cancels: the interval of a
    difference is narrower than the two intervals beside each other suggest. A trace against itself differs by
    exactly 0.

    Args:
        a, b: two traces, such as two checkpoints, teachers or runs.
        k: the size of both top sets, at most the K of both traces.
        average: ``"token"``, means over all states, or ``"rollout"``, means over rollouts of their means.
        seed, resamples: of the bootstrap of the quantiles of ``<side>_k_for_<share>``; 0 resamples leave all intervals
            out.
        metrics: names from :data:`opd_probe.metrics.METRICS`; None for all of them, the quantities of whole traces
            and those of rollouts.

    Returns:
        One row per metric: ``metric``, ``unit``, ``k``, ``a``, ``b`` (values over the common prompts alone),
        ``difference`` = b − a with ``difference_lo`` and ``difference_hi``, the 95 % interval; ``n_a`` and ``n_b``
        (states or rollouts where it is defined), ``n_prompts``, and ``n_prompts_only_a`` and ``n_prompts_only_b``, the
        prompts left out. ``<side>_k_for_<share>`` is compared by its median and its 90th percentile. What is undefined
        or unknown in one of the two is NaN.

    Raises:
        InputError: no prompt is in both; or as :func:`opd_probe.summarize`.
    """
    import pandas as pd

    for trace in (a, b):
        check_k(trace, k)
    check_average(average)
    common, only = _common_prompts(a, b)
    _warn_of_mixture(a, b)
    names = metric_names(metrics)
    everything = metrics is None
    sides = [Side.of(trace, common, k, names, average, whole=everything, rollouts=everything) for trace in (a, b)]
    if resamples:
        warn_few_prompts(len(common))
    same_rollouts = same_states(a, b)
    same = same_rollouts and np.array_equal(sides[0].reward, sides[1].reward, equal_nan=True)
    resampling = Resampling(resamples, seed, max(level_of(trace) or LEVEL for trace in (a, b)))
    rows: list[dict[str, Any]] = []
    for first, second in zip(*(side.parts for side in sides), strict=True):
        found = _differ(first, second, resampling, exact=same_rollouts if first.of_rollouts else same)
        columns = ("a", "b", "difference", "difference_lo", "difference_hi")
        for index, (name, unit) in enumerate(first.names):
            row: dict[str, Any] = {"metric": name, "unit": unit, "k": k}
            row |= {column: values[index] for column, values in zip(columns, found, strict=True)}
            rows.append(row | {"n_a": int(first.defined[index]), "n_b": int(second.defined[index])})
    remark = difference_remark({row["metric"]: row for row in rows})
    if remark is not None:
        warnings.warn(remark, OpdProbeWarning, stacklevel=2)
    counts = {"n_prompts": len(common), "n_prompts_only_a": only[0], "n_prompts_only_b": only[1]}
    return pd.DataFrame(rows).assign(**counts)


def _warn_of_mixture(a: Trace, b: Trace) -> None:
    text = ["retokenized" in trace.rollouts.column("token_source").to_pylist() for trace in (a, b)]
    if text[0] != text[1]:
        of_text, other = ("A", "B") if text[0] else ("B", "A")
        warnings.warn(
            f"compare: {of_text} is of re-tokenised text, {other} of sampled ids; a difference may come from that "
            "alone",
            OpdProbeWarning,
            stacklevel=3,
        )
    stopped = [name for name, trace in (("A", a), ("B", b)) if trace.stopped is not None]
    if stopped:
        warnings.warn(
            f"compare: the replay of {' and of '.join(stopped)} stopped when it was precise; differences are over the "
            "prompts that both have, with intervals that are wide enough for it",
            OpdProbeWarning,
            stacklevel=3,
        )
    remark = sampling_remark([("A", sampling_label(a)), ("B", sampling_label(b))])
    if remark is not None:
        warnings.warn(f"compare: {remark}", OpdProbeWarning, stacklevel=3)


def _common_prompts(a: Trace, b: Trace) -> tuple[list[str], tuple[int, int]]:
    """The prompts with states in both, sorted, and how many are only in one."""
    lengths = [_prompt_lengths(trace) for trace in (a, b)]
    common = sorted(set(lengths[0]) & set(lengths[1]))
    if not common:
        examples = [min(found, default="none") for found in lengths]
        raise InputError(
            f"compare: no prompt is in both traces ({len(lengths[0])} and {len(lengths[1])} prompts, for example "
            f"{examples[0]!r} and {examples[1]!r}); paired differences need rollouts of the same prompts, under the "
            "same prompt_id"
        )
    differing = sum(lengths[0][prompt] != lengths[1][prompt] for prompt in common)
    if differing:
        warnings.warn(
            f"{differing} of {len(common)} common prompts differ in length between the two traces; right for another "
            "template, but otherwise one prompt_id means two prompts",
            OpdProbeWarning,
            stacklevel=3,
        )
    return common, (len(lengths[0]) - len(common), len(lengths[1]) - len(common))


def _prompt_lengths(trace: Trace) -> dict[str, Any]:
    """Tokens of each prompt that has states (None: unknown), by prompt id."""
    used = np.flatnonzero(np.diff(trace.rollout_offsets) > 0)
    prompts, lengths = (trace.rollouts.column(name).to_pylist() for name in ("prompt_id", "prompt_length"))
    return {prompts[index]: lengths[index] for index in used.tolist()}


@dataclass(frozen=True)
class _Part:
    """Metrics of one trace that are computed together.

    Attributes:
        names: (name, unit) each. defined: [m], in how many states or rollouts they are.
        source: their estimate or, where they are quantiles, the counts of tokens by prompt, [c, K + 2].
        of_rollouts: whether they are known of the rollouts alone, whatever the teacher.
    """

    names: list[tuple[str, str]]
    defined: Floats
    source: Estimate | Floats
    of_rollouts: bool = False


def _differ(first: _Part, second: _Part, resampling: Resampling, *, exact: bool) -> tuple[Floats, ...]:
    """Both values, their difference and the ends of its interval, [m] each.

    Args:
        exact: the two are of the same data: a difference that is the same for all prompts is known.
    """
    if isinstance(first.source, Estimate) and isinstance(second.source, Estimate):
        both = difference(first.source, second.source)
        lo, hi = interval(both, exact=exact, level=resampling.level)
        if not resampling.resamples:
            lo, hi = np.full_like(lo, np.nan), np.full_like(hi, np.nan)
        return first.source.value, second.source.value, both.value, lo, hi
    histograms = [part.source for part in (first, second) if not isinstance(part.source, Estimate)]
    ones = np.ones((1, len(histograms[0])))

    def quantiles(histogram: Floats, weights: Floats) -> Floats:
        counts = weights @ histogram
        return np.stack([histogram_quantile(counts, q) for q in _QUANTILES.values()], axis=1)

    def drawn(weights: Floats) -> Floats:
        return quantiles(histograms[1], weights) - quantiles(histograms[0], weights)

    lo, hi = percentile_interval(drawn, len(histograms[0]), resampling)
    if min(int((histogram.sum(1) > 0).sum()) for histogram in histograms) < 2:  # one prompt alone says nothing
        lo, hi = np.full_like(lo, np.nan), np.full_like(hi, np.nan)
    values = [quantiles(histogram, ones)[0] for histogram in histograms]
    return *values, drawn(ones)[0], lo, hi


@dataclass(frozen=True)
class Side:
    """One trace, reduced to what differences over prompts need; and the mean reward of each rollout."""

    parts: list[_Part]
    reward: Floats

    @classmethod
    def of(
        cls,
        trace: Trace,
        common: Sequence[str],
        k: int,
        names: Sequence[str],
        average: str,
        *,
        whole: bool = False,
        rollouts: bool = False,
    ) -> Side:
        """A trace over the prompts ``common``: its metrics, and where asked for the quantities of whole traces and
        those of rollouts."""
        n = len(common)
        place = {prompt: index for index, prompt in enumerate(common)}
        codes = np.array([place.get(prompt, -1) for prompt in trace.rollouts.column("prompt_id").to_pylist()])
        codes = np.where(np.diff(trace.rollout_offsets) > 0, codes, -1).astype(np.int64)
        means = [name for name in names if METRICS[name].summary == "mean"]
        counted = [name for name in names if METRICS[name].summary == "quantiles"]
        read = means if "sampled_reward" in means else [*means, "sampled_reward"]
        sums, histograms = _read(trace, k, read, counted, codes, n)
        parts = [_mean_part(sums, means, codes, n, average)]
        parts += [_histogram_part(name, histograms[name]) for name in counted]
        reward = sums.rollout_means(read.index("sampled_reward"))
        if whole:
            parts.append(_whole_part(trace, codes, n))
        if rollouts:
            parts += _rollout_parts(trace, reward, codes, n)
        return cls(parts, reward)


def _read(
    trace: Trace, k: int, means: Sequence[str], counted: Sequence[str], codes: Ints, n: int
) -> tuple[RolloutSums, dict[str, Floats]]:
    """Sums by rollout, and for what is counted a histogram of 0 … K and beyond by prompt, from one pass."""
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(means))
    width = trace.K + 2
    histograms = {name: np.zeros(n * width) for name in counted}
    for block, values in metric_blocks(trace, k, [*means, *counted]):
        sums.add_metrics(block["rollout"], block, values, means, k)
        prompt = codes[block["rollout"]]
        for name in counted:
            whole = np.where(np.isnan(values[name]), width - 1, values[name]).astype(np.int64)
            cells = (prompt * width + whole)[prompt >= 0]
            histograms[name] += np.bincount(cells, minlength=n * width)
    return sums, {name: histogram.reshape(n, width) for name, histogram in histograms.items()}


def _mean_part(sums: RolloutSums, names: Sequence[str], codes: Ints, n: int, average: str) -> _Part:
    kept = sums.clustered(codes, n, average)[0].first(len(names))
    defined = sums.count[codes >= 0, 0, : len(names)].sum(0)
    labels = [(name, METRICS[name].unit) for name in names]
    return _Part(labels, defined, kept.estimate([METRICS[name].range for name in names]))


def _histogram_part(name: str, histogram: Floats) -> _Part:
    """Median and 90th percentile of a count of tokens; NaN where they lie beyond the trace's K."""
    labels = [(f"{name}_{kind}", METRICS[name].unit) for kind in _QUANTILES]
    return _Part(labels, np.full(2, histogram[:, :-1].sum()), histogram)


def histogram_quantile(histograms: Floats, q: float) -> Floats:
    """The q-quantile of each row of counts [b, K + 2] of 0 … K and beyond, as numpy's default; NaN beyond K."""
    total = histograms.sum(1, keepdims=True)
    cumulative = np.cumsum(histograms, axis=1)
    place = q * (total - 1)
    low, high = ((cumulative <= at).sum(1) for at in (np.floor(place), np.ceil(place)))
    between = low + (place - np.floor(place))[:, 0] * (high - low)
    return np.where((total[:, 0] > 0) & (high < histograms.shape[1] - 1), between, np.nan)


def _whole_part(trace: Trace, codes: Ints, n: int) -> _Part:
    whole = whole_sums(trace, codes >= 0)
    labels = [(name, metric.unit) for name, metric in TRACE_METRICS.items()]
    return _Part(labels, whole.defined[codes >= 0].sum(0), whole.estimate(codes, n))


def _rollout_parts(trace: Trace, reward: Floats, codes: Ints, n: int) -> list[_Part]:
    inside = codes >= 0
    sums = rollout_sums(rollout_values(trace, reward)[inside], codes[inside], n)
    labels = [(name, unit) for name, (unit, _) in ROLLOUT_QUANTITIES.items()]
    ranges = [of for _, of in ROLLOUT_QUANTITIES.values()]
    auroc = Auroc.of(reward, correctness(trace), codes, n)
    return [
        _Part(labels, sums.count.sum(0), sums.estimate(ranges), of_rollouts=True),
        _Part([("reward_auroc", "AUROC")], np.array([float(auroc.known)]), auroc.estimate),
    ]
