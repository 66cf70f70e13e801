"""Which loss would see what: the losses of a trace's states on every support, and their gradients, by k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_probe.curves.accumulate import RolloutSums, check_average, clusters_of, prompts_with_states
from opd_probe.curves.bootstrap import RESAMPLES
from opd_probe.curves.clusters import Sums
from opd_probe.curves.intervals import Floats, Ints, ends, estimate, warn_few_prompts
from opd_probe.curves.looks import level_of
from opd_probe.curves.sampling import AS_SCORED, sampling_label
from opd_probe.errors import InputError
from opd_probe.metrics.losses import (
    FORMS,
    NO_CLAMP,
    SUPPORTS,
    Clamp,
    Gradient,
    Surroundings,
    full_gradient,
    loss_gradient,
    one_sample_variance,
    parse_clamp,
    sampled_loss,
    support_loss,
    surroundings,
)
from opd_probe.metrics.registry import REAL, UNIT_RANGES, Range
from opd_probe.metrics.states import check_k
from opd_probe.metrics.view import Bools, TopView
from opd_probe.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

KS = (1, 4, 16, 64)
"""Those of the paper's Fig. 15."""

CLAMPS = ("none", "verl:-10:10")
"""None, and what the scripts that verl brings set."""

FULL, SAMPLED = "full", "sampled"

AGREE = 0.01
"""Bounds no further apart than this share of the larger one (of 1 for a cosine) are a value, in their middle."""

_BLOCK = 2_048
"""States per block, of which every row of the table takes some columns."""

_MEANS = ("loss", "negative_share", "student_mass", "teacher_mass")
_BOUNDED = ("gradient_norm", "cosine")
_STACKED = ("inner", "square", "full_square")
_OF_ROW = (*_MEANS, *(f"{name}_{end}" for name in (*_BOUNDED, *_STACKED) for end in ("least", "most")))
_VARIANCES = ("variance", "variance_with_baseline")
_OF_VARIANCE = tuple(f"{name}_{end}" for name in _VARIANCES for end in ("least", "most", "estimate"))


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of the table is of."""

    support: str
    k: int | None = None
    form: str | None = None
    clamp: Clamp = NO_CLAMP

    @property
    def ranges(self) -> list[Range]:
        """Of the quantities in ``_OF_ROW``."""
        positive = self.form == "renormalised" or self.support == FULL
        least = -self.clamp.loss_max if self.support == SAMPLED else self.clamp.loss_min
        loss = max(0.0 if positive else -np.inf, least), self.clamp.loss_max
        share, cosine = UNIT_RANGES["share"], (-1.0, 1.0)
        of_bounds = [UNIT_RANGES["nats"]] * 2 + [cosine] * 2 + [REAL] * 6
        return [loss, share, share, share, *of_bounds]


def losses(
    trace: Trace,
    ks: Sequence[int] | None = None,
    *,
    clamps: Sequence[str] = CLAMPS,
    average: str = "token",
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """What each loss would see at the states of a trace: on every support, for every k, in every form and clamp.

    The losses are those of :func:`opd_probe.metrics.losses.support_loss`, beside KL(p ‖ q) over the full vocabulary
    (Eq. 4, support ``full``) and the sampled token (Eq. 3, ``sampled``). Gradients are with respect to the student's
    logits of a state. What a trace cannot say exactly, for want of what lies outside its lists, is between bounds that
    are certain (:class:`opd_probe.metrics.losses.Surroundings`).

    Args:
        trace: read once, block by block; about 50 kB per rollout are in memory beside a block.
        ks: sizes of both top sets, at most the K of the trace; None: those of :data:`KS` up to K, and a smaller K.
        clamps: see :func:`opd_probe.metrics.losses.parse_clamp`.
        average, resamples: as for :func:`opd_probe.summarize`.

    Returns:
        One row per ``support``, ``k``, ``form`` and ``clamp``, with ``_lo``, ``_hi`` (95 % over prompts) and ``_n``
        (states where it is defined) of each:

        - ``loss`` (nats) and ``negative_share``, the share of states whose loss is below 0.
        - ``student_mass``, ``teacher_mass``: what the support holds of both; an empty one 0.
        - ``gradient_norm``: the length of the gradient of a state; ``cosine``: its cosine with that of ``full``, where
          both are longer than float32's rounding (1e-6).
        - ``batch_cosine``: the same of all states' gradients as one vector, so that a state counts by how much it
          would move.
        - ``variance``, ``variance_with_baseline``, of ``sampled`` rows alone: the total variance over ŷ ~ p of the
          one-sample estimate, and of that with −KL(p ‖ q) as the baseline of its reward. Their value is what the lists
          say, and what the sampled tokens outside them show, where they were sampled as they are scored.

        All but the first two lines also have ``_least`` and ``_most``, between which the mean over these states lies
        whatever is outside the lists; the value is NaN where these are far apart (:data:`AGREE`), and the interval is
        from the lower end of the least to the upper end of the most. ``missing`` says why something is NaN.

    Raises:
        InputError, TraceError: a k, a clamp or an average that cannot be used.
    """
    import pandas as pd

    check_average(average)
    rows = _rows(trace, ks, clamps)
    sampled = [row for row in rows if row.support == SAMPLED]
    sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(rows) * len(_OF_ROW))
    varied = RolloutSums.empty(trace.rollouts.num_rows, 1, len(sampled) * len(_OF_VARIANCE))
    for block in trace.blocks(trace.columns, _BLOCK):
        around = surroundings(block, trace.K, trace.vocabulary_size)
        parts, unknown = zip(*_of_block(block, around, rows), strict=True)
        sums.add(block["rollout"], *parts)
        for index, where in enumerate(unknown):
            for column, name in enumerate(_OF_ROW) if where.any() else ():
                if name != "student_mass":  # which is known of all of the student's own tokens
                    sums.forget(block["rollout"], index * len(_OF_ROW) + column, where)
        varied.add(block["rollout"], *(_variances(block, trace.K, around, row) for row in sampled))
    if resamples:
        warn_few_prompts(prompts_with_states(trace))
    codes, n_clusters = clusters_of(trace)
    level = level_of(trace, resamples)
    of_rows = _estimates(sums, codes, n_clusters, average, [r for row in rows for r in row.ranges], level)
    nats = [UNIT_RANGES["nats"]] * len(sampled) * len(_OF_VARIANCE)
    of_variances = _estimates(varied, codes, n_clusters, average, nats, level)
    batches = _batch_cosines(sums.clustered(codes, n_clusters, average)[0], len(rows), level)
    drawn = sampling_label(trace) == AS_SCORED
    found = []
    for index, row in enumerate(rows):
        cells = {name: of_rows[index * len(_OF_ROW) + place] for place, name in enumerate(_OF_ROW)}
        cells |= {f"batch_cosine_{end}": batches[end][index] for end in ("least", "most")}
        if row.support == SAMPLED:
            start = sampled.index(row) * len(_OF_VARIANCE)
            cells |= {name: of_variances[start + place] for place, name in enumerate(_OF_VARIANCE)}
        found.append(_table_row(row, cells, drawn))
    return pd.DataFrame(found).astype({"k": "Int64"})


def default_ks(depth: int) -> list[int]:
    """Those of :data:`KS` up to the K of a trace, and a smaller K itself."""
    found = [k for k in KS if k <= depth]
    return found if depth in found or depth > KS[-1] else [*found, depth]


def _rows(trace: Trace, ks: Sequence[int] | None, clamps: Sequence[str]) -> list[Row]:
    chosen = default_ks(trace.K) if ks is None else list(dict.fromkeys(ks))
    for k in chosen:
        if k != 1 or isinstance(k, bool):  # of k = 1 every trace knows, and its renormalised rows say that they are 0
            check_k(trace, k)
    cuts = list(dict.fromkeys(parse_clamp(text) for text in clamps))
    if not cuts or not chosen:
        raise InputError("losses: no clamp or no k; expected at least one of each (none is a clamp)")
    rows = [Row(FULL)]
    rows += [Row(SAMPLED, clamp=cut) for cut in cuts if cut.bounded or cut == NO_CLAMP]
    for support in SUPPORTS:
        for k in sorted(chosen):
            for form in FORMS:
                rows += [Row(support, k, form, cut) for cut in (cuts if form != "reward" else [NO_CLAMP])]
    return rows


def _of_block(block: dict[str, Any], around: Surroundings, rows: Sequence[Row]) -> Iterator[tuple[Floats, Bools]]:
    """For each row its quantities at the states of a block, [n, len(_OF_ROW)], and where they are unknown, and not at
    random."""
    never = np.zeros(len(around.kl), dtype=bool)
    views: dict[int, TopView] = {}
    for row in rows:
        view = views.setdefault(row.k or 1, TopView(block, row.k or 1))
        if row.support == FULL:
            value, gradient, held = around.kl, full_gradient(around), (np.ones_like(around.kl),) * 2
        elif row.support == SAMPLED:
            value, gradient = sampled_loss(view, around, row.clamp)
            held = (np.exp(view.scalar("student_logprob")), np.exp(view.scalar("teacher_logprob")))
        else:
            loss = support_loss(view, row.support, str(row.form), row.clamp)
            value, gradient, part = loss.value, loss_gradient(loss, around), loss.part
            masses = (np.where(part.mask, np.exp(logs), 0.0).sum(1) for logs in (part.log_p, part.log_q))
            held = tuple(view.where_told(mass) if row.support != "student" else mass for mass in masses)  # type: ignore[assignment]
        selected = row.support in ("student", "non_overlap", "union")
        yield _columns(value, held, gradient, around), view.untold_on_student if selected else never


def _columns(value: Floats, held: Sequence[Floats], gradient: Gradient, around: Surroundings) -> Floats:
    negative = np.where(np.isnan(value), np.nan, value < 0)
    stacked = [*gradient.inner, *gradient.square, *around.g_square]
    if gradient.square is around.g_square:  # that of the full vocabulary, whose cosine with itself is 1
        stacked = [around.g_square[0]] * len(stacked)
    known = np.isfinite(np.stack(stacked)).all(0)
    columns = [value, negative, *held, *gradient.norm, *gradient.cosine]
    return np.stack([*columns, *(np.where(known, one, np.nan) for one in stacked)]).T


def _variances(block: dict[str, Any], depth: int, around: Surroundings, row: Row) -> Floats:
    view = TopView(block, depth)
    found = [one_sample_variance(view, around, row.clamp, baseline=baseline) for baseline in (False, True)]
    return np.stack([one for each in found for one in (*each.bounds, each.estimate)]).T


@dataclass(frozen=True, slots=True)
class Cell:
    """A mean with its interval and the number of states."""

    value: float
    lo: float
    hi: float
    n: int


def _estimates(
    sums: RolloutSums, codes: Ints, n_clusters: int, average: str, ranges: Sequence[Range], level: float | None
) -> list[Cell]:
    found = ends(sums.clustered(codes, n_clusters, average)[0].estimate(ranges), level)
    counts = sums.count[:, 0].sum(0)
    return [Cell(float(v), float(lo), float(hi), int(n)) for v, lo, hi, n in zip(*found, counts, strict=True)]


def _batch_cosines(sums: Sums, n_rows: int, level: float | None) -> dict[str, list[Cell]]:
    """Both bounds of the cosine of all states' gradients as one vector, by row."""
    places = [_OF_ROW.index(f"{name}_{end}") for name in _STACKED for end in ("least", "most")]

    def combine(total: Floats, end: int) -> Floats:
        inner, square, full = (total[..., 2 * part : 2 * part + 2] for part in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            short, long = (np.sqrt(square[..., side] * full[..., side]) for side in (0, 1))
            above = inner[..., end] > 0
            divisor = np.where(above == (end == 1), short, long)
            value = np.where(divisor > 0, inner[..., end] / divisor, np.nan)
            cut: Floats = np.clip(value, -1.0, 1.0)
        return cut

    columns = np.arange(n_rows)[:, None] * len(_OF_ROW) + np.array(places)
    total, count = sums.total[:, columns], sums.count[:, columns[:, 0]]
    found: dict[str, list[Cell]] = {}
    for end, name in enumerate(("least", "most")):

        def of(whole: Floats, end: int = end) -> Floats:
            return combine(whole, end)

        clusters, units = (count > 0).sum(0), sums.units[columns[:, 0]]
        values = ends(estimate((total,), of, clusters, units, [(-1.0, 1.0)] * n_rows), level)
        found[name] = [
            Cell(float(v), float(lo), float(hi), int(n)) for v, lo, hi, n in zip(*values, count.sum(0), strict=True)
        ]
    return found


def _table_row(row: Row, cells: dict[str, Cell], drawn: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"support": row.support, "k": row.k, "form": row.form, "clamp": row.clamp.name}
    for name in _MEANS:
        cell = cells[name]
        found |= {name: cell.value, f"{name}_lo": cell.lo, f"{name}_hi": cell.hi, f"{name}_n": cell.n}
    for name in (*_BOUNDED, "batch_cosine", *_VARIANCES):
        least, most = (cells.get(f"{name}_{end}") for end in ("least", "most"))
        if least is None or most is None:
            found |= dict.fromkeys((name, *(f"{name}_{end}" for end in ("lo", "hi", "least", "most"))), np.nan)
            found[f"{name}_n"] = 0
            continue
        value, lo, hi = _middle((least.value, most.value), "cosine" in name), least.lo, most.hi
        if drawn and name in _VARIANCES:
            shown = cells[f"{name}_estimate"]
            value, lo, hi = shown.value, shown.lo, shown.hi
        found |= {name: value, f"{name}_lo": lo, f"{name}_hi": hi, f"{name}_n": least.n}
        found |= {f"{name}_least": least.value, f"{name}_most": most.value}
    return found | {"missing": _missing(found, row)}


def _middle(of: tuple[float, float], cosine: bool) -> float:
    least, most = of
    if least == most:
        return least
    scale = 1.0 if cosine else max(abs(least), abs(most))
    agree = np.isfinite(scale) and most - least <= AGREE * scale
    return (least + most) / 2 if agree else float("nan")


def _missing(found: dict[str, Any], row: Row) -> str | None:
    """Why something of a row is NaN; None where nothing is that could be known."""
    wanted = (*_BOUNDED, "batch_cosine", *(_VARIANCES if row.support == SAMPLED else ()))
    absent = [name for name in wanted if np.isnan(found[name])]
    if not absent:
        return None
    reasons: dict[str, list[str]] = {}
    for name in absent:
        if not np.isnan(found[f"{name}_least"]):
            unbounded = np.isinf(found[f"{name}_most"])
            reason = "outside the lists log p − log q has no bound" if unbounded else "too much lies outside the lists"
        elif np.isnan(found["loss"]):
            reason = "the loss is not defined or not known at these states"
        else:
            reason = "a gradient is 0, or the reverse KL not known" if name != "gradient_norm" else "it is not known"
        reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
