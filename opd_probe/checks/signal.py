"""Where the signal lies, and what top-k lists of this pair keep of it."""

from __future__ import annotations

import numpy as np

from opd_probe.checks.evidence import Evidence, Floats, Skip
from opd_probe.checks.registry import Verdict, register
from opd_probe.metrics.whole import TOP_SHARE

TOP_LIMIT = 0.5
"""The share of Σ|r| that the top 1 % of tokens may hold before they outweigh all others."""

FEWEST = 100
"""Tokens below which the top 1 % is not judged."""

MASS_LIMIT = 0.9
"""The least student mass on the lists; runs that work have 97 to 99 % of it on the tokens that both share."""


@register(
    "signal_share",
    measures="share of Σ|r| that tokens with |r| at or above its 99th percentile hold (top_1pct_signal_share of a "
    "trace), and the most frequent of them",
    rule="warn: above half: loss and gradient are those of a few tokens. Not judged below 100 tokens",
    advice="look at these tokens (opd-probe tokens); clip r, or mask them where they are template tokens",
    known_from="ms-swift#6600",
)
def signal_share(evidence: Evidence) -> Verdict:
    size = np.abs(np.concatenate(list(evidence.rewards().values())))
    tokens = evidence.column("token_id").astype(np.int64)
    known = np.isfinite(size)
    size, tokens = size[known], tokens[known]
    if len(size) < FEWEST:
        raise Skip(f"{len(size)} tokens; at least {FEWEST} are needed for a top 1 %")
    if not size.any():
        raise Skip("r is 0 at every token")
    top = size >= np.quantile(size, 1.0 - TOP_SHARE)
    part = float(size[top].sum() / size.sum())
    ids, counts = np.unique(tokens[top], return_counts=True)
    common = int(ids[np.argmax(counts)])
    values = {"top_share": part, "n_tokens": len(size), "token_id": common}
    label = evidence.student.label(common)
    figure = f"{part:.0%} of Σ|r| lies in {int(top.sum())} of {len(size):,} tokens, most often at {label}"
    return Verdict("warn" if part > TOP_LIMIT else "ok", figure, values)


@register(
    "top_k",
    measures="student mass on the teacher's top k, truncated KL over it and the share of states where it is negative: "
    "reverse Σ p (log p − log q), forward Σ q (log q − log p)",
    rule="warn: mass below 0.9, or a truncated KL whose mean is negative: it falls when mass leaves the support, and a "
    "trainer that clamps it at 0 loses its negative states silently (some are in every pair that agrees); k = 1: "
    "renormalised, it is always 0",
    advice="renormalise on the support or add a bucket for the rest, raise k, and watch the mass beside the loss",
    known_from="verl#7856, verl PR#5041, PR#7806, Rethinking-OPD#15",
)
def top_k(evidence: Evidence) -> Verdict:
    columns = evidence.replayed().values()
    p, q = (
        np.concatenate([np.asarray(one[name], dtype=np.float64) for one in columns])
        for name in ("student_logprobs_at_teacher_top", "teacher_top_logprobs")
    )
    k = p.shape[1]
    whole = ~np.isnan(p + q).any(1)  # a server's list may be short, or hold ids that the student does not share
    if not whole.any():
        raise Skip(f"no state has the teacher's whole top {k}")
    p, q = p[whole], q[whole]
    mass = float(np.exp(p).sum(1).mean())
    reverse, forward = _truncated(p, q), _truncated(q, p)
    values = {"k": k, "student_mass_on_teacher_top": mass}
    values |= {f"{name}_negative": float((kl < 0).mean()) for name, kl in (("reverse", reverse), ("forward", forward))}
    values |= {f"{name}_mean": float(kl.mean()) for name, kl in (("reverse", reverse), ("forward", forward))}
    figure = (
        f"k = {k}: {mass:.1%} of the student's mass is on the teacher's top k; truncated reverse KL "
        f"{values['reverse_mean']:.2g} nats, negative at {values['reverse_negative']:.1%} of states, forward "
        f"{values['forward_mean']:.2g}, negative at {values['forward_negative']:.1%}"
    )
    if k == 1:
        return Verdict("warn", f"{figure}; renormalised on one token every divergence is 0", values)
    falls = min(values["reverse_mean"], values["forward_mean"]) < 0
    return Verdict("warn" if mass < MASS_LIMIT or falls else "ok", figure, values)


def _truncated(p: Floats, q: Floats) -> Floats:
    """Σ p (log p − log q) over listed tokens, from log-probabilities [n, k]."""
    weight = np.exp(p)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(weight > 0, weight * (p - q), 0.0).sum(1))
