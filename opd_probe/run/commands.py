"""What each command does, without a word about the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from opd_probe import plots
from opd_probe.curves import diagnose, mass_curve, position_curve, reward_by_depth, signal_by_depth, summarize
from opd_probe.errors import InputError
from opd_probe.run.output import check_writable, save_figure
from opd_probe.run.plan import make_plan
from opd_probe.run.progress import Progress
from opd_probe.run.request import DEFAULT_OUT, Request
from opd_probe.run.result import Result
from opd_probe.run.settings import parse_options, settle
from opd_probe.run.stored import Measured, find_traces
from opd_probe.run.tables import as_table, json_row, present, records, sort_key, write_csv
from opd_probe.trace import read_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")
NAMES = ("run", "step", "teacher", "k", "states")
OVERLAP_COLUMNS = (
    *NAMES, "n_states", "overlap_ratio", "overlap_advantage", "entropy_gap",
    "student_overlap_mass", "reverse_kl", "accuracy",
)  # fmt: skip
MASS_COLUMNS = (
    *NAMES, "student_topk_mass", "teacher_topk_mass", "student_overlap_mass", "teacher_overlap_mass",
    "student_k_for_0.97_median", "student_k_for_0.99_median", "teacher_k_for_0.97_median",
)  # fmt: skip
ALIGN_COLUMNS = (
    *NAMES, "overlap_ratio", "overlap_advantage", "entropy_gap", "student_entropy", "teacher_entropy",
    "student_overlap_mass", "teacher_overlap_mass", "reverse_kl", "forward_kl",
)  # fmt: skip
POSITION_COLUMNS = (
    "run",
    "step",
    "teacher",
    "k",
    "position_lo",
    "position_hi",
    "n_states",
    *ALIGN_COLUMNS[5:],
)
DEPTH_COLUMNS = (
    "run", "step", "teacher", "position_lo", "position_hi", "n_states", "sampled_reward",
    *(f"sampled_reward_q{end}" for end in ("05", "25", "50", "75", "95")),
)  # fmt: skip
DRY_RUN_COLUMNS = (
    "run", "step", "teacher", "states", "states_are", "tokens", "bytes", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Gathered:
    measured: list[Measured]
    out: Path
    format: str
    progress: Progress


def overlap(request: Request, progress: Progress) -> Result:
    """Overlap and everything beside it, by checkpoint: ``overlap.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    rows = _summaries(gathered)
    return _finish(gathered, "overlap", rows, OVERLAP_COLUMNS, _by_k(rows, plots.plot_overlap))


def mass(request: Request, progress: Progress) -> Result:
    """Mass concentration, by checkpoint and rank: ``mass.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    summaries = _summaries(gathered)
    table = _mass_table(gathered, summaries)
    files = _write(gathered, "mass", table, [("", plots.plot_mass(table, as_table(summaries)))])
    if gathered.format == "table":  # K rows for each checkpoint are for files, not for eyes
        rows = [json_row(row) for row in summaries]
        return Result(rows, present(MASS_COLUMNS, rows), gathered.format, files)
    return Result([json_row(row) for row in records(table)], (), gathered.format, files)


def _mass_table(gathered: _Gathered, summaries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per trace and rank; what holds for all ranks (k for a share of the mass) repeats in each."""
    table = _curves(gathered, "mass", lambda m: mass_curve(m.trace, **_intervals(m)))
    wanted = [name for name in summaries[0] if "_k_for_" in name or name in ("n_prompts", "n_rollouts", "n_states")]
    ranks = [m.trace.K for m in gathered.measured]
    for name in wanted:
        table[name] = [row[name] for row, times in zip(summaries, ranks, strict=True) for _ in range(times)]
    return table


def align(request: Request, progress: Progress, *, x: str = "step", bins: int = 20) -> Result:
    """Alignment curves over steps or over positions in the response: ``align.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    if x == "step":
        rows = _summaries(gathered)
        return _finish(gathered, "align", rows, ALIGN_COLUMNS, _by_k(rows, plots.plot_alignment))
    if x == "depth":
        return _depth(gathered, bins)
    table = _curves(
        gathered, "align", lambda m: position_curve(m.trace, m.settings.k, bins=bins, **_intervals(m)), k=True
    )
    rows = records(table)
    draw = _by_k(rows, lambda part: plots.plot_alignment(part, x="position"))
    return _finish(gathered, "align", rows, POSITION_COLUMNS, draw)


def _depth(gathered: _Gathered, bins: int) -> Result:
    """Quantiles of the sampled reward by position, and where its signal lies."""
    reward = _curves(gathered, "reward by depth", lambda m: reward_by_depth(m.trace, bins=bins))
    signal = _curves(gathered, "signal by depth", lambda m: signal_by_depth(m.trace, bins=bins, seed=m.settings.seed))
    files = _write(gathered, "depth", reward, [("", plots.plot_depth(reward, signal))])
    files += (write_csv(signal, gathered.out / "depth-signal.csv"),)
    rows = [json_row(row) for row in records(reward)]
    return Result(rows, present(DEPTH_COLUMNS, rows), gathered.format, files)


def show(trace: str, *, k: int | None = None, average: str | None = None) -> dict[str, Any]:
    """A trace's provenance and summary, in JSON types.

    Without ``k`` the default k is lowered to the K of a shallower trace.

    Raises:
        MissingError, TraceError, InputError: no such trace, or a k that it cannot answer for.
    """
    stored = read_trace(trace)
    settings = settle(parse_options({"k": k, "average": average}), None, where=trace)
    used = settings.k if k is not None else min(settings.k, stored.K)
    row = summarize(stored, used, average=settings.average, seed=settings.seed)
    return {"path": str(trace), "provenance": stored.provenance, "summary": json_row(row)}


def _gather(request: Request, progress: Progress) -> _Gathered | Result:
    """The traces of a request: found, re-used or made. For a dry run, what making them would take."""
    if request.traces:
        _refuse_inputs_beside_traces(request)
        out = Path(request.out or DEFAULT_OUT)
        check_writable(out)
        measured = find_traces(request.traces, parse_options(request.options))
        return _Gathered(_ordered(measured), out, request.format or "table", progress)
    plan = make_plan(request)
    # Imported here because both import torch, which nobody should wait for who only reads traces.
    if plan.dry_run:
        from opd_probe.run.estimate import estimate

        rows = [json_row(row) for row in estimate(plan)]
        return Result(rows, present(DRY_RUN_COLUMNS, rows), plan.format)
    from opd_probe.run.pipeline import measure

    return _Gathered(_ordered(measure(plan, progress)), plan.out, plan.format, progress)


def _refuse_inputs_beside_traces(request: Request) -> None:
    given = {
        "--ckpts": request.ckpts,
        "--teacher": request.teachers,
        "--rollouts": request.rollouts,
        "--prompts": request.prompts,
    }
    for option, value in given.items():
        if value:
            raise InputError(f"{option} and --traces: both are given; stored traces need none, so keep one of them")


def _ordered(measured: Iterable[Measured]) -> list[Measured]:
    return sorted(measured, key=lambda m: sort_key(m.key))


def _intervals(measured: Measured) -> dict[str, Any]:
    return {"average": measured.settings.average, "seed": measured.settings.seed}


def _summaries(gathered: _Gathered) -> list[dict[str, Any]]:
    rows = []
    gathered.progress.begin("summarise")
    for done, measured in enumerate(gathered.measured):
        gathered.progress.update(done, len(gathered.measured))
        row = summarize(measured.trace, measured.settings.k, **_intervals(measured))
        row |= diagnose(measured.trace, seed=measured.settings.seed)
        k = row.pop("k")
        # The teacher's own accuracy is not part of a trace: null here, see opd_probe.gap_recovery.
        recovery = {"gap_recovery": NAN, "gap_recovery_lo": NAN, "gap_recovery_hi": NAN, "gap_recovery_n": 0}
        rows.append({**measured.key, "k": k, "states": measured.states, **row, **recovery})
    return rows


def _curves(
    gathered: _Gathered, task: str, curve: Callable[[Measured], pd.DataFrame], *, k: bool = False
) -> pd.DataFrame:
    """The curve of every trace, one below the other, named by run, step and teacher."""
    parts = []
    gathered.progress.begin(task)
    for done, measured in enumerate(gathered.measured):
        gathered.progress.update(done, len(gathered.measured))
        names = {**measured.key, **({"k": measured.settings.k} if k else {}), "states": measured.states}
        part = curve(measured)
        for place, (name, value) in enumerate(names.items()):
            part.insert(place, name, value)
        parts.append(part)
    return as_table(pd.concat(parts, ignore_index=True))


def _by_k(rows: Sequence[dict[str, Any]], draw: Callable[[pd.DataFrame], Figure]) -> list[tuple[str, Figure]]:
    """One figure for each k, since curves of different k are different quantities."""
    table = as_table(rows)
    parts = [(k, part) for k, part in table.groupby("k", sort=True)]
    return [("" if len(parts) == 1 else f"-k{k}", draw(part)) for k, part in parts]


def _finish(
    gathered: _Gathered,
    name: str,
    rows: list[dict[str, Any]],
    columns: Sequence[str],
    figures: Sequence[tuple[str, Figure]],
) -> Result:
    files = _write(gathered, name, as_table(rows), figures)
    clean = [json_row(row) for row in rows]
    return Result(clean, present(columns, clean), gathered.format, files)


def _write(
    gathered: _Gathered, name: str, table: pd.DataFrame, figures: Sequence[tuple[str, Figure]]
) -> tuple[Path, ...]:
    files = [write_csv(table, gathered.out / f"{name}.csv")]
    for suffix, figure in figures:
        files += save_figure(figure, gathered.out / f"{name}{suffix}")
    return tuple(files)
