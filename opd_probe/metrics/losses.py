"""Losses on a support at student-visited states, and their gradients, from stored top lists.

p is the student's next-token distribution, q the teacher's, d = log p − log q, all at one state; z are the student's
logits. Gradients are with respect to z, as autograd gives them for the loss of that state. Every loss here is a
function of log p on a support S, so that with a(v) = ∂L / ∂ log p(v)

    ∂L / ∂z(u) = a(u) [u ∈ S] − p(u) Σ_{v∈S} a(v).

What a trace lacks is p and d outside its lists: there the sums that are not known lie within certified bounds
(:class:`Surroundings`), and so does everything that is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.errors import InputError
from opd_probe.metrics.variants.variant import product
from opd_probe.metrics.view import Bools, Floats, TopView, renormalised_kl

SUPPORTS = ("student", "teacher", "overlap", "non_overlap", "union")
"""S_p, S_q, S_p ∩ S_q, S_p △ S_q and S_p ∪ S_q."""

FORMS = ("renormalised", "plain", "reward")
"""See :func:`support_loss`."""

NOISE = 1e-6
"""A gradient no longer than this is the rounding of float32 log-probabilities, and has no direction."""

_ROUNDING = 2.0**-22
"""Of a stored log-probability and of what was summed of them, relative."""

Bounds = tuple[Floats, Floats]
"""The least and the most that a quantity can be, [n] each: equal where it is known."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """What a trainer cuts off.

    Attributes:
        name: ``none``, ``zero`` or ``verl:MIN:MAX``.
        log_prob_min: log-probabilities of both models below it count as it, and have no gradient (verl's
            ``log_prob_min_clamp``).
        loss_min, loss_max: the loss of a state on a support beyond them counts as they, and has no gradient (verl cuts
            its top-k loss at 0, and at its ``loss_max_clamp``). That of the sampled token is cut at −loss_max and
            loss_max.
    """

    name: str = "none"
    log_prob_min: float = -math.inf
    loss_min: float = -math.inf
    loss_max: float = math.inf

    @property
    def bounded(self) -> bool:
        """Whether a difference of log-probabilities has bounds under it."""
        return math.isfinite(self.log_prob_min) or math.isfinite(self.loss_max)


NO_CLAMP = Clamp()


def parse_clamp(text: str) -> Clamp:
    """``none``; ``zero``: a loss below 0 counts as 0; ``verl:MIN:MAX``, as ``verl:-10:10``: log-probabilities from MIN
    on, and losses from 0 to MAX.

    Raises:
        InputError: something else, or MIN is not below 0, or MAX not above it.
    """
    if text == "none":
        return NO_CLAMP
    if text == "zero":
        return Clamp("zero", loss_min=0.0)
    name, _, ends = text.partition(":")
    low, _, high = ends.partition(":")
    try:
        least, most = float(low), float(high or "inf")
    except ValueError:
        name, least, most = "", 0.0, 0.0
    if name != "verl" or not least < 0 < most:
        raise InputError(
            f"clamp {text!r}: expected none, zero, or verl:MIN:MAX such as verl:-10:10, the least log-probability "
            "(below 0) and the largest loss (above 0)"
        )
    return Clamp(text, least, 0.0, most)


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of each state: log p and log q, and which of the places hold one, [n, m] each."""

    log_p: Floats
    log_q: Floats
    mask: Bools

    @property
    def p(self) -> Floats:
        """Probabilities of the student, 0 off the mask."""
        return np.where(self.mask, np.exp(self.log_p), 0.0)


def support_of(view: TopView, support: str) -> Part:
    """One of :data:`SUPPORTS` of a block of states."""
    if support in ("student", "overlap"):
        mask = view.student_listed if support == "student" else view.in_overlap
        return Part(view.student_logprobs, view.teacher_logprobs_on_student, mask)
    if support == "teacher":
        return Part(view.student_logprobs_on_teacher, view.teacher_logprobs, view.teacher_listed)
    own = view.student_listed if support == "union" else view.student_only
    return Part(*view.union_logprobs, np.concatenate([own, view.teacher_only], axis=1))


@dataclass(frozen=True, slots=True)
class StateLoss:
    """A loss at each of n states.

    Attributes:
        value: [n], nats; NaN where it is undefined or unknown.
        slopes: [n, m], a(v) = ∂L / ∂ log p(v) at the tokens of ``part``; 0 off its mask.
    """

    value: Floats
    slopes: Floats
    part: Part


def support_loss(view: TopView, support: str, form: str, clamp: Clamp = NO_CLAMP) -> StateLoss:
    """A loss on a support as trainers compute it.

    - ``renormalised`` (Eq. 5; TRL renormalises its top-k likewise): KL(p̄ ‖ q̄), both renormalised on S, differentiated
      as it stands: a = p̄ (log p̄ − log q̄ − KL(p̄ ‖ q̄)), which sums to 0, so that no logit off S moves.
    - ``plain``: Σ_{v∈S} p d with the true probabilities, differentiated as it stands (the form of verl's top-k losses,
      in the reverse direction): a = p (d + 1). The 1 lowers the loss by moving mass off S, whatever q says.
    - ``reward`` (thunlp/OPD, ``dp_actor.py``): each token of S has the reward −p̄ d, which is not differentiated, times
      log p: a = p̄ d. On S_p △ S_q that trainer does not renormalise, and a = p d. It has no clamps, so none acts here.

    An empty support has a plain loss of 0, and no other.

    Raises:
        InputError: an unknown form.
    """
    part = support_of(view, support)
    if form == "reward":
        clamp = NO_CLAMP
    elif form not in FORMS:
        raise InputError(f"form {form!r}: expected one of {', '.join(FORMS)}")
    with np.errstate(invalid="ignore", over="ignore"):
        log_p, log_q = (np.maximum(logs, clamp.log_prob_min) for logs in (part.log_p, part.log_q))
        weight = np.where(part.mask, np.exp(log_p), 0.0)
        apart = np.where(part.mask, log_p - log_q, 0.0)
        size = part.mask.sum(1)
        if form == "plain":
            value = product(weight, apart).sum(1)
            slopes = product(weight, apart + 1.0)
        else:
            mass = weight.sum(1)
            kept = np.where(mass > 0, mass, np.nan)[:, None]
            share = weight if form == "reward" and support == "non_overlap" else weight / kept
            terms = product(share, apart)
            if form == "reward":
                value, slopes = terms.sum(1), terms
            else:
                value = renormalised_kl(log_p, log_q, part.mask)
                slopes = np.where(size[:, None] > 1, terms - share * terms.sum(1, keepdims=True), 0.0)
                value = np.where(size == 1, np.where(np.isnan(value), value, 0.0), value)
            value = np.where(size > 0, value, np.nan)
        if form != "reward":
            slopes = np.where(part.log_p < clamp.log_prob_min, 0.0, slopes)
    unknown = (part.mask & (np.isnan(part.log_p) | np.isnan(part.log_q))).any(1)
    if support != "student":
        unknown |= np.isnan(view.where_told(np.zeros(len(value))))
    value = np.where(unknown, np.nan, value)
    outside = (value < clamp.loss_min) | (value > clamp.loss_max)
    slopes = np.where(outside[:, None], 0.0, np.where(part.mask, slopes, 0.0))
    return StateLoss(np.clip(value, clamp.loss_min, clamp.loss_max), slopes, part)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the gradients of a block of n states share: sums over the whole vocabulary, or their bounds.

    The gradient of KL(p ‖ q) over the full vocabulary (Eq. 4) is g(u) = p(u) (d(u) − KL(p ‖ q)). In the lists of the
    trace it is known. Outside them, where the student's mass is P, the teacher's Q, and no p above the last of the
    student's list: Σ p² lies between 0 and p_K P. Σ g is known, since g sums to 0, and so is Σ p d, since KL(p ‖ q) is
    stored. The negative part of g is at most P KL(p ‖ q) + Q / e, since p log (q / p) is at most q / e; what is left of
    Σ g is the positive part; and neither of their squares is less than the sum of squares.

    Attributes:
        kl: KL(p ‖ q), stored.
        p_square: Σ p². g_square: Σ g². p_times_g: Σ p g.
        mass: P, the student's mass outside the lists; 0 where no token of probability above 0 is.
        apart: Σ p d outside the lists.
        largest: [n], the most that a p outside the lists can be. own, other: log p_K and log q_K, the same of log q.
        part: the tokens in the lists. listed: bool [n], whether the sampled token is one of them.
    """

    kl: Floats
    p_square: Bounds
    g_square: Bounds
    p_times_g: Bounds
    mass: Bounds
    apart: Bounds
    largest: Floats
    own: Floats
    other: Floats
    part: Part
    listed: Bools

    def gradient(self, p: Floats, log_ratio: Floats) -> Floats:
        """g at tokens, [n, m]; 0 where p is."""
        return product(p, log_ratio - self.kl[:, None])


def surroundings(block: Mapping[str, NDArray[Any]], depth: int, vocabulary_size: int) -> Surroundings:
    """:class:`Surroundings` of a block of states with all columns of a trace.

    Args:
        depth: the K of the trace.
        vocabulary_size: ids that both models share.
    """
    view = TopView(block, depth)
    union = support_of(view, "union")
    part = Part(union.log_p, union.log_q, union.mask & ~np.isnan(union.log_p))
    kl, p = view.scalar("reverse_kl"), part.p
    none = ~view.student_listed[:, -1] | (part.mask.sum(1) >= vocabulary_size)  # nothing is outside
    largest = np.where(none, 0.0, np.exp(view.student_logprobs[:, -1]))
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = np.where(part.mask, part.log_p - part.log_q, 0.0)
        log_p, log_q = (np.where(part.mask & (p > 0), logs, 0.0) for logs in (part.log_p, part.log_q))
        slack = _ROUNDING * (p * (1.0 + np.abs(log_p))).sum(1)
        mass = _outside(1.0 - p.sum(1), slack, none)
        q = np.where(part.mask, np.exp(part.log_q), 0.0)
        rest = np.clip(1.0 - q.sum(1), 0.0, 1.0) + _ROUNDING * (1.0 + np.abs(log_q) * q).sum(1)
        terms = product(p, ratio)
        # Where nothing is outside, the sum itself is KL: to the last digit of what g is made of.
        kl = np.where(none & np.isfinite(kl), terms.sum(1), kl)
        apart = kl - terms.sum(1)
        slack = slack * (1.0 + np.abs(kl)) + _ROUNDING * (p * (np.abs(log_p) + np.abs(log_q) + np.abs(ratio))).sum(1)
        apart_bounds = (np.where(none, 0.0, apart - slack), np.where(none, 0.0, apart + slack))
        g = product(p, ratio - kl[:, None])
        negative = np.where(none, 0.0, mass[1] * kl + rest / math.e)
        positive = np.where(none, 0.0, np.maximum(apart_bounds[1] - mass[0] * kl + negative, 0.0))
        squares, p_squares, along = ((left * right).sum(1) for left, right in ((g, g), (p, p), (p, g)))
    ids = np.concatenate([block["student_top_ids"], block["teacher_top_ids"]], axis=1)
    return Surroundings(
        kl=kl,
        p_square=(p_squares, p_squares + largest * mass[1]),
        g_square=(squares, squares + negative**2 + positive**2),
        p_times_g=(along - largest * negative, along + largest * positive),
        mass=mass,
        apart=apart_bounds,
        largest=largest,
        own=view.student_logprobs[:, -1],
        other=view.teacher_logprobs[:, -1],
        part=part,
        listed=(part.mask & (ids == block["token_id"][:, None])).any(1),
    )


def _outside(left: Floats, slack: Floats, none: Bools) -> Bounds:
    low, high = np.clip(left - slack, 0.0, 1.0), np.clip(left + slack, 0.0, 1.0)
    return np.where(none, 0.0, low), np.where(none, 0.0, high)


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of a loss at each of n states, beside that of KL(p ‖ q) over the full vocabulary.

    Attributes:
        square: its squared length, [n] each. inner: its product with the full one. cosine: with the full one; NaN where
            either is no longer than :data:`NOISE`.
    """

    square: Bounds
    inner: Bounds
    cosine: Bounds

    @property
    def norm(self) -> Bounds:
        """Its length."""
        return np.sqrt(self.square[0]), np.sqrt(self.square[1])


def gradient_of(slopes: Floats, p: Floats, log_ratio: Floats, around: Surroundings) -> Gradient:
    """The gradient with respect to the logits from a(v), p(v) and d(v) at the tokens of a support, [n, m] each."""
    with np.errstate(invalid="ignore", over="ignore"):
        total = slopes.sum(1)
        within = ((slopes - total[:, None] * p) ** 2).sum(1)
        held = (p**2).sum(1)
        low, high = (within + total**2 * np.maximum(end - held, 0.0) for end in around.p_square)
        g = np.where(slopes != 0, around.gradient(p, log_ratio), 0.0)
        along = (slopes * g).sum(1)
        ends = [along - total * end for end in around.p_times_g]
        inner = np.minimum(*ends), np.maximum(*ends)
    return Gradient((low, high), inner, _cosine(inner, (low, high), around.g_square))


def loss_gradient(loss: StateLoss, around: Surroundings) -> Gradient:
    """The gradient of a loss on a support; NaN where the loss is."""
    part = loss.part
    with np.errstate(invalid="ignore"):
        ratio = np.where(part.mask, part.log_p - part.log_q, 0.0)
    slopes = np.where(np.isnan(loss.value)[:, None], np.nan, loss.slopes)
    return gradient_of(slopes, part.p, ratio, around)


def full_gradient(around: Surroundings) -> Gradient:
    """That of KL(p ‖ q) over the full vocabulary (Eq. 4) itself."""
    one = np.where(np.sqrt(around.g_square[0]) > NOISE, 1.0, np.nan)
    return Gradient(around.g_square, around.g_square, (one, one))


def _cosine(inner: Bounds, square: Bounds, other: Bounds) -> Bounds:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        short, long = (np.sqrt(left) * np.sqrt(right) for left, right in zip(square, other, strict=True))
        least = inner[0] / np.where(inner[0] < 0, short, long)
        most = inner[1] / np.where(inner[1] > 0, short, long)
        seen = (np.sqrt(square[0]) > NOISE) & (np.sqrt(other[0]) > NOISE)
    return (
        np.where(seen, np.clip(least, -1.0, 1.0), np.nan),
        np.where(seen, np.clip(most, -1.0, 1.0), np.nan),
    )


def clipped(log_p: Floats, log_q: Floats, clamp: Clamp) -> Floats:
    """d of tokens under a clamp: of log-probabilities, and of the loss log p − log q of a sampled token."""
    with np.errstate(invalid="ignore"):
        apart = np.maximum(log_p, clamp.log_prob_min) - np.maximum(log_q, clamp.log_prob_min)
        cut: Floats = np.clip(apart, -clamp.loss_max, clamp.loss_max)
        return cut


def sampled_loss(view: TopView, around: Surroundings, clamp: Clamp = NO_CLAMP) -> tuple[Floats, Gradient]:
    """The sampled token's loss log p(ŷ) − log q(ŷ) (Eq. 3), [n], and its gradient, the score-function estimate
    d(ŷ) ∇ log p(ŷ), whose mean over ŷ ~ p is that of KL(p ‖ q). A clamp acts on d, which is not differentiated."""
    log_p, log_q = view.scalar("student_logprob"), view.scalar("teacher_logprob")
    value = clipped(log_p, log_q, clamp)
    with np.errstate(invalid="ignore"):
        ratio = (log_p - log_q)[:, None]
    return value, gradient_of(value[:, None], np.exp(log_p)[:, None], ratio, around)


@dataclass(frozen=True, slots=True)
class Variance:
    """Of the one-sample estimate at each of n states.

    Attributes:
        bounds: the least and the most that it can be; +inf where what lies outside the lists has no bound.
        estimate: the part of the lists, and outside them what the sampled token shows: unbiased where it is drawn from
            p, as a mean over states needs.
    """

    bounds: Bounds
    estimate: Floats


def one_sample_variance(view: TopView, around: Surroundings, clamp: Clamp, *, baseline: bool) -> Variance:
    """The total variance (the trace of the covariance over ŷ ~ p) of (d(ŷ) − b) ∇ log p(ŷ), a vector of logits.

    It is Σ p (d − b)² (1 − 2p + Σ p²) − |Σ p (d − b) ∇ log p|², and the mean that is subtracted does not depend on b.

    Args:
        baseline: b is KL(p ‖ q), the mean of d without a clamp, which is a baseline of −KL for the reward −d; else 0.
    """
    part, p = around.part, around.part.p
    offset = around.kl if baseline else np.zeros(len(around.kl))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        apart = np.where(p > 0, clipped(part.log_p, part.log_q, clamp), 0.0)
        moved = p * (apart - offset[:, None]) ** 2
        weights = 1.0 - 2.0 * p
        second = [(moved * (weights + end[:, None])).sum(1) for end in around.p_square]
        least, most = _rest(around, clamp, offset)
        mean = _mean_square(around, clamp, p, apart)
        unknown = np.isnan(around.kl)
        low = np.maximum(second[0] + least - mean[1], 0.0)
        high = second[1] + most - mean[0]
        log_p, log_q = view.scalar("student_logprob"), view.scalar("teacher_logprob")
        drawn = (clipped(log_p, log_q, clamp) - offset) ** 2 * (1.0 - 2.0 * np.exp(log_p) + around.p_square[0])
        outside = np.where(around.listed | (around.mass[1] == 0), 0.0, drawn)
        estimate = second[0] + outside - mean[0]
    bounds = (np.where(unknown, np.nan, low), np.where(unknown, np.nan, high))
    return Variance(bounds, np.where(unknown, np.nan, estimate))


def _rest(around: Surroundings, clamp: Clamp, offset: Floats) -> Bounds:
    """Σ p (d − b)² (1 − 2p + Σ p²) outside the lists. Without a clamp Σ p d alone is known there, and the mean of
    squares is no less than the square of the mean."""
    mass, largest = around.mass, around.largest
    some = mass[1] > 0
    if not clamp.bounded:
        ends = [around.apart[0] - offset * mass[1], around.apart[1] - offset * mass[0]]
        nearest = np.where((ends[0] <= 0) & (ends[1] >= 0), 0.0, np.minimum(*np.abs(ends)))
        least = nearest**2 / np.where(some, mass[1], 1.0) * np.maximum(1.0 - 2.0 * largest + around.p_square[0], 0.0)
        return np.where(some, least, 0.0), np.where(some, np.inf, 0.0)
    low, high = _range(around, clamp)
    most = mass[1] * np.maximum((low - offset) ** 2, (high - offset) ** 2) * (1.0 + around.p_square[1])
    return np.zeros_like(most), np.where(some, most, 0.0)


def _range(around: Surroundings, clamp: Clamp) -> Bounds:
    """What d can be outside the lists, under a clamp."""
    floor = np.full_like(around.own, clamp.log_prob_min)
    high = np.maximum(around.own, floor) - floor
    low = floor - np.maximum(around.other, floor)
    return np.clip(low, -clamp.loss_max, clamp.loss_max), np.clip(high, -clamp.loss_max, clamp.loss_max)


def _mean_square(around: Surroundings, clamp: Clamp, p: Floats, apart: Floats) -> Bounds:
    """The squared length of the mean of the estimate, whose entries are p (d − Σ p d)."""
    if not clamp.bounded:
        return around.g_square
    low, high = _range(around, clamp)
    some = around.mass[1] > 0
    inside = (p * apart).sum(1)
    masses = around.mass
    ends = [
        inside + np.where(some, np.minimum(low * masses[0], low * masses[1]), 0.0),
        inside + np.where(some, np.maximum(high * masses[0], high * masses[1]), 0.0),
    ]
    # Σ p² (d − e)² is a parabola in e.
    at = [((p * (apart - end[:, None])) ** 2).sum(1) for end in ends]
    squares = (p**2).sum(1)
    vertex = (p**2 * apart).sum(1) / np.where(squares > 0, squares, 1.0)
    inner = np.clip(vertex, *ends)
    least = ((p * (apart - inner[:, None])) ** 2).sum(1)
    farthest = np.maximum(np.abs(low - ends[1]), np.abs(high - ends[0]))
    more = np.where(some, around.largest * around.mass[1] * farthest**2, 0.0)
    return least, np.maximum(*at) + more
