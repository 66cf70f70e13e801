"""Whether the responses of a trace were sampled as its models are scored, and what to say where they were not."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from opd_probe.trace import Trace

SAMPLER_LIMIT = 0.05
"""Mean |Δ| in nats between log-probabilities of the sampler and replayed ones, above which they are of two models."""

AS_SCORED = "as scored"

_KNOWN: WeakKeyDictionary[Trace, str | None] = WeakKeyDictionary()


def sampling_label(trace: Trace) -> str | None:
    """How the responses of a trace were sampled, beside how it scores them.

    Returns:
        :data:`AS_SCORED`: at the temperature that both models are scored at, without truncation. Otherwise what is
        known of it, as ``temperature 0.7, top_p 0.95``, and where the mean |sampler's log-probability − student's| is
        above :data:`SAMPLER_LIMIT`, that mean. None where nothing is known.
    """
    if trace not in _KNOWN:
        _KNOWN[trace] = _label(trace)
    return _KNOWN[trace]


def _label(trace: Trace) -> str | None:
    names = trace.rollouts.column_names
    used = np.diff(trace.rollout_offsets) > 0
    told = trace.rollouts.column("sampling").to_pylist() if "sampling" in names else []
    words = sorted({word for word, there in zip(told, used.tolist(), strict=False) if there and word is not None})
    scored = f"temperature {float(trace.provenance.get('temperature', 1.0)):g}"
    off = sampler_difference(trace)
    parts = [] if words in ([], [scored]) else [" / ".join(words)]
    if off > SAMPLER_LIMIT:
        parts.append(f"sampler off by {off:.2g} nats")
    known = bool(words) or not np.isnan(off)
    return "; ".join(parts) if parts else AS_SCORED if known else None


def sampler_difference(trace: Trace) -> float:
    """Mean |log-probability of the sampler − the student's replayed one| in nats; NaN where none is known."""
    if "sampler_logprob" not in trace.columns:
        return float("nan")
    total, count = 0.0, 0
    for block in trace.blocks(["sampler_logprob", "student_logprob"]):
        with np.errstate(invalid="ignore"):
            change = np.abs(block["sampler_logprob"].astype(np.float64) - block["student_logprob"])
        known = np.isfinite(change)
        total, count = total + float(change[known].sum()), count + int(known.sum())
    return total / count if count else float("nan")


def sampling_remark(labels: Sequence[tuple[str, str | None]]) -> str | None:
    """One line on traces whose responses were not sampled as they are scored; None where all were, or nothing is known.

    Args:
        labels: for each trace its name and its :func:`sampling_label`.
    """
    off: dict[str, dict[str, None]] = {}
    for name, label in labels:
        if label not in (None, AS_SCORED):
            off.setdefault(str(label), {})[name] = None
    if not off:
        return None
    count = sum(label in off for _, label in labels)
    of = "; ".join(f"{', '.join(names)}: {label}" for label, names in off.items())
    text = (
        f"responses of {count} of {len(labels)} traces were not sampled as they are scored ({of}): their states are "
        "not the student's own, and sampled_reward and reward_auroc are of those samples"
    )
    if len({label or AS_SCORED for _, label in labels}) > 1:
        text += "; a difference between these traces may come from that alone"
    return text
