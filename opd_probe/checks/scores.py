"""Do two ways to the same log-probabilities agree, and is what they differ by small beside the signal?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opd_probe.checks.evidence import Evidence, Floats, Skip, reward, says_zero_of_all, teacher_scores
from opd_probe.checks.registry import Verdict, grade, register
from opd_probe.checks.stored import stored_teacher
from opd_probe.curves.sampling import SAMPLER_LIMIT

TYPICAL_LIMIT = 0.05
"""Median |Δ| in nats above which two paths do not score the same thing; between bf16 and float32 weights of the lab's
teacher it stays below a tenth of it."""

INFINITE_LIMIT = 0.01
"""Share of tokens of which one path says that they are impossible and the other does not."""

TAIL_LIMIT = 0.25
"""99th percentile of |Δ| in nats above which single tokens are off; there it stays below 0.15."""

NOISE_SHARE = 0.1
"""Noise worth a warning, as a share of the signal."""

OF_SERVERS = (
    "have the server answer alike: one replica behind the URL, or all of one revision; no weights replaced meanwhile; "
    "its prefix cache reset or off; batch-invariant kernels or float32; or do not read differences of this size as a "
    "signal"
)
"""What is advised where a server answers the same question in two ways."""


def compare_paths(first: Mapping[int, Floats], second: Mapping[int, Floats], names: tuple[str, str]) -> Verdict:
    """The verdict on two sets of log-probabilities of the same tokens under the same weights.

    Args:
        first, second: by rollout index, one value per state, in nats; NaN where unknown.
        names: what they are called.

    Raises:
        Skip: they have no token in common.
    """
    pairs = [np.stack([first[i], second[i]]) for i in first if i in second]
    both = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0))
    both = both[:, ~np.isnan(both).any(0)]
    if not both.shape[1]:
        raise Skip(f"{names[0]} and {names[1]} log-probabilities have no token in common")
    finite = both[:, np.isfinite(both).all(0)]
    median, tail = (
        (float(value) for value in np.quantile(np.abs(finite[0] - finite[1]), (0.5, 0.99)))
        if finite.shape[1]
        else (float("nan"), float("nan"))
    )
    infinite = [int((np.isinf(one) & np.isfinite(other)).sum()) for one, other in (both, both[::-1])]
    part = sum(infinite) / both.shape[1]
    values = {"p50": median, "p99": tail, "n_tokens": int(finite.shape[1]), "share_infinite": part}
    figure = f"|Δ| p50 {median:.2g}, p99 {tail:.2g} nats, {names[0]} against {names[1]}, {finite.shape[1]:,} tokens"
    for name, count in zip(names, infinite, strict=True):
        if count:
            figure += f"; {name} is −inf at {count:,} more ({count / both.shape[1]:.0%}), where the other is finite"
    fail = median > TYPICAL_LIMIT or part > INFINITE_LIMIT
    return Verdict(grade(fail=fail, warn=tail > TAIL_LIMIT or part > 0), figure, values)


_SELF_SCORE = (
    "fail: median above 0.05 nats (half of the tokens are scored as something else), or −inf in one path alone at more "
    "than 1 % of the tokens; warn: 99th percentile above 0.25 nats, or any −inf in one path alone. Between bf16 and "
    "float32 weights of the lab's teacher the two stay below 0.005 and 0.15"
)


@register(
    "self_score",
    measures="|Δ| of the teacher's log-probabilities between two paths of the same weights: for a served teacher the "
    "server and this process (--teacher-weights), for others batches and one rollout at a time",
    rule=_SELF_SCORE,
    advice="serve with the weights, dtype and tokenizer of the checkpoint, and compare in float32; a model whose "
    "numbers depend on its neighbours in a batch must not score",
    known_from="ms-swift#9671, slime#714, SkyRL PR#2256",
)
def self_score(evidence: Evidence) -> Verdict:
    here = teacher_scores(evidence.replayed())
    if not evidence.teacher.served:
        return compare_paths(here, teacher_scores(evidence.again()), ("batched", "single"))
    if not evidence.in_process:
        raise Skip(
            evidence.missing.get(
                "in_process", "the teacher is served; name its weights with --teacher-weights to compare"
            )
        )
    return compare_paths(here, evidence.in_process, ("served", "in-process"))


@register(
    "self_score_stored",
    measures="|Δ| between the teacher's log-probabilities that came along in the rollouts and the replayed ones",
    rule=_SELF_SCORE,
    advice="see that the trainer's teacher has these weights, this template and temperature 1, and that its scores are "
    "not shifted (line 'shift_stored')",
    known_from="ms-swift#9671, slime#714",
)
def self_score_stored(evidence: Evidence) -> Verdict:
    states = evidence.replayed()
    stored = {
        index: values[evidence.mask(index)] for index, values in stored_teacher(evidence).items() if index in states
    }
    return compare_paths(stored, teacher_scores(states), ("stored", "replayed"))


@register(
    "scoring_noise",
    measures="noise floor (|Δr| between two scorings in different batches) against the signal (|r|), both in the mean "
    "and in the median",
    rule="fail: as large as the signal in either; warn: above a tenth of it, or a signal of exactly 0 (both models say "
    "the same). Of a served teacher it is what the server answers the second time, too",
    advice="score with --dtype float32, or do not read differences of this size as a signal",
    known_from="SkyRL PR#2256",
)
def scoring_noise(evidence: Evidence) -> Verdict:
    again = evidence.again()
    pairs = [(value, reward(again[i])) for i, value in evidence.rewards().items() if i in again]
    batched, single = (np.concatenate([pair[n] for pair in pairs]) for n in (0, 1))
    known = np.isfinite(batched) & np.isfinite(single)
    if not known.any():
        raise Skip("no token has a finite reward in both scorings")
    change, size = np.abs(batched[known] - single[known]), np.abs(batched[known])
    served = _noise_of_server(evidence, change)
    noise, signal = float(change.mean()), float(size.mean())
    typical, middle = float(np.median(change)), float(np.median(size))
    values = {
        "noise": noise,
        "signal": signal,
        "median_noise": typical,
        "median_signal": middle,
        "n_tokens": int(known.sum()),
    }
    figure = (
        f"noise {noise:.2g} nats against a signal of {signal:.2g} (mean |Δr|, |r|; medians {typical:.2g}, {middle:.2g})"
    )
    if not size.any():
        return Verdict("warn", f"{figure}: both models say the same everywhere", values)
    if served is not None:
        values["noise_of_server"] = served
        figure += f"; {served:.2g} of it by what the server answers the second time"
    shares = [noise / signal, *([typical / middle] if middle else [])]  # like with like: most tokens may be certain
    advice = "" if served is None else OF_SERVERS
    return Verdict(grade(fail=max(shares) >= 1.0, warn=max(shares) > NOISE_SHARE), figure, values, advice)


def _noise_of_server(evidence: Evidence, change: Floats) -> float | None:
    """Mean |Δ log q| between both scorings, where a served teacher has the larger part of the noise; else None."""
    if not evidence.teacher.served:
        return None
    again = evidence.again()
    pairs = [
        np.stack([np.asarray(one["teacher_logprob"], np.float64) for one in (columns, again[index])])
        for index, columns in evidence.replayed().items()
        if index in again
    ]
    both = np.concatenate(pairs, axis=1)
    both = both[:, np.isfinite(both).all(0)]
    mean = float(np.abs(both[0] - both[1]).mean()) if both.size else 0.0
    return mean if mean > float(change.mean()) / 2 else None


@register(
    "unknown_scores",
    measures="states whose sampled token has no log-probability of the teacher, and the share of the student's top k "
    "that has none",
    rule="warn: any sampled token: r is null there, and never 0. Of the top k a served teacher tells its own alone, "
    "which is counted and no fault",
    advice="sample only ids that both models share; look into the server's log where it told no list; serve with more "
    "log-probabilities (vLLM: --max-logprobs), or score with the teacher's weights",
    known_from="vLLM#56860, ms-swift PR#10026",
)
def unknown_scores(evidence: Evidence) -> Verdict:
    sampled = np.isnan(evidence.column("teacher_logprob"))
    listed = float(np.isnan(evidence.column("teacher_logprobs_at_student_top")).mean())
    values = {"n_unknown": int(sampled.sum()), "n_states": len(sampled), "share_of_top_k_unknown": listed}
    figure = (
        f"{int(sampled.sum()):,} of {len(sampled):,} sampled tokens, and {listed:.1%} of the student's top "
        f"{evidence.options.k}"
    )
    if evidence.unreadable:
        values["n_unreadable"] = len(evidence.unreadable)
        where, came = next(iter(evidence.unreadable.items()))
        figure += f"; the server told no list of {len(evidence.unreadable):,} states, the first is {where} ({came})"
    return Verdict("warn" if sampled.any() else "ok", figure, values)


@register(
    "sampler_logprobs",
    measures="mean |Δ| between the sampler's own log-probabilities and the student's replayed ones, in nats per token",
    rule="warn: above 0.05; rounding explains less (below 0.01 between bf16 and float32 weights of the lab's student), "
    "so that the sampler had other weights, another temperature or truncation (top-p, top-k), or another prompt; or "
    "any −inf, which no sampled token has",
    advice="replay at the sampler's --temperature, and compare checkpoint step, top-p, top-k and prompt of both; a "
    "sampler that says 0.0 of every token was greedy, and its states are not what the student samples at temperature 1",
    known_from="many trainers",
)
def sampler_logprobs(evidence: Evidence) -> Verdict:
    states = evidence.replayed()
    given = np.concatenate([np.asarray(columns["sampler_logprob"], np.float64) for columns in states.values()])
    own = evidence.column("student_logprob")
    infinite = int((np.isinf(given) & ~np.isnan(own)).sum())
    known = np.isfinite(given) & np.isfinite(own)
    if not known.any() and not infinite:
        raise Skip("no rollout carries the sampler's log-probabilities")
    change = given[known] - own[known] if known.any() else np.array([np.nan])
    size, mean = float(np.abs(change).mean()), float(change.mean())
    values = {"mean_absolute_difference": size, "mean_difference": mean, "n_tokens": int(known.sum()),
              "n_infinite": infinite}  # fmt: skip
    figure = f"mean |Δ| {size:.2g} nats (mean Δ {mean:+.2g}), sampler against replay, {int(known.sum()):,} tokens"
    if infinite:
        figure += f"; the sampler says −inf of {infinite:,} more, which it cannot have sampled"
    if says_zero_of_all(evidence):
        figure += "; it says 0.0 of every token: sampled at temperature 0"
    return Verdict("warn" if size > SAMPLER_LIMIT or infinite else "ok", figure, values)
