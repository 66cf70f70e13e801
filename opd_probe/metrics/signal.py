"""The reward of the sampled token, r = log q(ŷ) − log p(ŷ), looked at as a training signal: its sign, size and tail."""

from __future__ import annotations

import numpy as np

from opd_probe.metrics.divergence import sampled_reward
from opd_probe.metrics.registry import register, register_both
from opd_probe.metrics.view import Bools, Floats, TopView

NEAR_ZERO = 1e-4
"""|r| below which a token teaches nothing (nats); the bound of arXiv 2608.31046."""

TAIL_FLOOR = -2.0
"""The floor c of :func:`reward_tail_share` (nats): to the teacher the token is e² ≈ 7 times less probable."""

_SAMPLED = ("student_logprob", "teacher_logprob")


def share_where(condition: Bools, values: Floats) -> Floats:
    """1 where the condition holds and 0 elsewhere, NaN where the values are unknown, [n]."""
    return np.where(np.isnan(values), np.nan, condition.astype(np.float64))


@register(
    "absolute_reward",
    unit="nats",
    source="arXiv 2602.15260",
    definition="|r|, r the sampled reward: the size of the signal",
    needs=_SAMPLED,
    depends_on_k=False,
)
def absolute_reward(view: TopView) -> Floats:
    return np.abs(sampled_reward(view))


@register(
    "negative_reward_share",
    unit="share",
    source="arXiv 2603.25562",
    definition="1 where r < 0, else 0: states whose sampled token the teacher finds less probable than the student",
    needs=_SAMPLED,
    depends_on_k=False,
)
def negative_reward_share(view: TopView) -> Floats:
    reward = sampled_reward(view)
    return share_where(reward < 0, reward)


@register(
    "near_zero_reward_share",
    unit="share",
    source="arXiv 2608.31046",
    definition="1 where |r| < 1e-4, else 0",
    needs=_SAMPLED,
    depends_on_k=False,
)
def near_zero_reward_share(view: TopView) -> Floats:
    reward = sampled_reward(view)
    return share_where(np.abs(reward) < NEAR_ZERO, reward)


@register(
    "reward_tail_share",
    unit="share",
    source="arXiv 2603.11137",
    definition="1 where r < c, else 0, with the floor c = −2",
    needs=_SAMPLED,
    depends_on_k=False,
)
def reward_tail_share(view: TopView, floor: float = TAIL_FLOOR) -> Floats:
    """[n]; ``floor`` is c in nats."""
    reward = sampled_reward(view)
    return share_where(reward < floor, reward)


@register(
    "sign_noise",
    unit="share",
    source="arXiv 2608.31046",
    definition="1 where r < 0 in a correct rollout or r > 0 in a wrong one, else 0; null without a score",
    needs=(*_SAMPLED, "correct"),
    depends_on_k=False,
)
def sign_noise(view: TopView) -> Floats:
    reward, correct = sampled_reward(view), view.scalar("correct")
    return share_where(np.where(correct > 0, reward < 0, reward > 0), reward + correct)


@register_both(
    "{side}_token_probability",
    unit="probability",
    source="arXiv 2603.25562",
    definition="{letter}(ŷ) of the sampled token",
    needs="{side}_logprob",
    depends_on_k=False,
)
def token_probability(view: TopView, side: str) -> Floats:
    return np.exp(view.scalar(f"{side}_logprob"))


@register(
    "teacher_nll",
    unit="nats",
    source="arXiv 2604.10688",
    definition="−log q(ŷ) of the sampled token; exp of its mean over a rollout is the teacher's perplexity",
    needs=("teacher_logprob",),
    depends_on_k=False,
)
def teacher_nll(view: TopView) -> Floats:
    return 0.0 - view.scalar("teacher_logprob")
