"""What each command does, without a word about the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from opd_probe import plots
from opd_probe.curves import join_training_log, reward_by_depth, signal_by_depth, summarize
from opd_probe.errors import InputError
from opd_probe.metrics.variants import parse_variant
from opd_probe.run.kinds import TRAINING_SHEET
from opd_probe.run.log_files import QUANTITIES, read_log
from opd_probe.run.logs import log_files, training_log, with_log
from opd_probe.run.measures import Gathered, curves, in_order, mass_table, position_curves, summaries
from opd_probe.run.naming import user_path
from opd_probe.run.output import check_writable, save_figure
from opd_probe.run.peers import NAMES as VARIANT_NAMES
from opd_probe.run.peers import as_logged, draw_variant, file_name, logged_names, shown, variant_rows
from opd_probe.run.plan import make_plan
from opd_probe.run.progress import Progress
from opd_probe.run.request import DEFAULT_OUT, Request
from opd_probe.run.result import Result
from opd_probe.run.settings import parse_options, settle
from opd_probe.run.stored import find_traces, token_source_of, warn_of_mixture
from opd_probe.run.tables import as_table, json_row, present, records, write_csv
from opd_probe.trace import read_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("run", "step", "teacher", "k", "states", "token_source")
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
    "token_source",
    "position_lo",
    "position_hi",
    "n_states",
    *ALIGN_COLUMNS[len(NAMES) :],
)
DEPTH_COLUMNS = (
    "run", "step", "teacher", "token_source", "position_lo", "position_hi", "n_states", "sampled_reward",
    *(f"sampled_reward_q{end}" for end in ("05", "25", "50", "75", "95")),
)  # fmt: skip
DRY_RUN_COLUMNS = (
    "run", "step", "teacher", "states", "states_are", "tokens", "bytes", "seconds",
)  # fmt: skip


def overlap(
    request: Request, progress: Progress, *, training_logs: Sequence[str] = (), variant: str | None = None
) -> Result:
    """Overlap and everything beside it, by checkpoint: ``overlap.csv`` and a figure.

    With training logs (``RUN=FILE`` each, or ``FILE`` for the only run) rows also have what was logged at their step,
    and ``overlap-training`` shows the curves beside every logged step, as a table and as a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    logs = log_files(training_logs)
    if variant is not None:
        return _variant(request, progress, "overlap", variant, logs)
    for file in logs.values():
        read_log(user_path(file))  # a mistake shows before models run
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    log = training_log(gathered.measured, logs) if logs else pd.DataFrame()
    rows = summaries(gathered, whole=True)
    result = _finish(
        gathered, "overlap", with_log(rows, log), (*OVERLAP_COLUMNS, *QUANTITIES), _by_k(rows, plots.plot_overlap)
    )
    if not logs:
        return result
    logged = log.dropna(axis="columns", how="all")
    table = as_table(rows)
    known = [name for name in TRAINING_SHEET if name in logged or (name in table and table[name].notna().any())]

    def draw(part: pd.DataFrame) -> Figure:
        joined = join_training_log(part, logged)
        return plots.plot_alignment(joined, metrics=known, title="Overlap and the training log")

    joined = pd.concat([join_training_log(part, logged) for _, part in table.groupby("k", sort=True)])
    files = _write(gathered, "overlap-training", joined, _by_k(rows, draw))
    return replace(result, files=result.files + files)


def mass(request: Request, progress: Progress, *, variant: str | None = None) -> Result:
    """Mass concentration, by checkpoint and rank: ``mass.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    if variant is not None:
        return _variant(request, progress, "mass", variant)
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    totals = summaries(gathered)
    table = mass_table(gathered, totals)
    files = _write(gathered, "mass", table, [("", plots.plot_mass(table, as_table(totals)))])
    if gathered.format == "table":  # K rows for each checkpoint are for files, not for eyes
        rows = [json_row(row) for row in totals]
        return Result(rows, _shown(MASS_COLUMNS, rows), gathered.format, files)
    return Result([json_row(row) for row in records(table)], (), gathered.format, files)


def align(
    request: Request, progress: Progress, *, x: str = "step", bins: int = 20, variant: str | None = None
) -> Result:
    """Alignment curves over steps or over positions in the response: ``align.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    if variant is not None and x != "step":
        raise InputError(f"--variant and --x {x}: other trainers' quantities are curves over steps; leave --x out")
    if variant is not None:
        return _variant(request, progress, "align", variant)
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    if x == "step":
        rows = summaries(gathered, whole=True)
        return _finish(gathered, "align", rows, ALIGN_COLUMNS, _by_k(rows, plots.plot_alignment))
    if x == "depth":
        return _depth(gathered, bins)
    rows = records(position_curves(gathered, bins))
    draw = _by_k(rows, lambda part: plots.plot_alignment(part, x="position"))
    return _finish(gathered, "align", rows, POSITION_COLUMNS, draw)


def _variant(
    request: Request, progress: Progress, command: str, text: str, logs: Mapping[str, str] | None = None
) -> Result:
    """A command in another trainer's definitions, in files of their own: ``overlap-verl.csv``. What such a trainer's
    log says of them stands beside them, as ``<name>_logged``."""
    variant = parse_variant(text)
    for file in (logs or {}).values():
        read_log(user_path(file), logged_names(variant))
    gathered = _gather(request, progress)
    if isinstance(gathered, Result):
        return gathered
    rows = variant_rows(gathered, variant, command)
    columns = (*VARIANT_NAMES, *shown(variant, command))
    log = pd.DataFrame()
    if logs:
        log = training_log(gathered.measured, logs, logged_names(variant)).dropna(axis="columns", how="all")
        rows = with_log(rows, log.rename(columns=as_logged))
    figures = _by_k(rows, draw_variant(variant, command, log))
    return _finish(gathered, file_name(variant, command), rows, columns, figures)


def _depth(gathered: Gathered, bins: int) -> Result:
    """Quantiles of the sampled reward by position, and where its signal lies."""
    reward = curves(gathered, "reward by depth", lambda m: reward_by_depth(m.trace, bins=bins))
    signal = curves(gathered, "signal by depth", lambda m: signal_by_depth(m.trace, bins=bins, seed=m.settings.seed))
    files = _write(gathered, "depth", reward, [("", plots.plot_depth(reward, signal))])
    files += (write_csv(signal, gathered.out / "depth-signal.csv"),)
    rows = [json_row(row) for row in records(reward)]
    return Result(rows, _shown(DEPTH_COLUMNS, rows), gathered.format, files)


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
    source = token_source_of(stored)
    return {"path": str(trace), "token_source": source, "provenance": stored.provenance, "summary": json_row(row)}


def _gather(request: Request, progress: Progress) -> Gathered | Result:
    """The traces of a request: found, re-used or made. For a dry run, what making them would take."""
    if request.traces:
        _refuse_inputs_beside_traces(request)
        out = Path(request.out or DEFAULT_OUT)
        check_writable(out)
        measured = find_traces(request.traces, parse_options(request.options))
        warn_of_mixture(measured)
        return Gathered(in_order(measured), out, request.format or "table", progress)
    plan = make_plan(request)
    # Imported here because both import torch, which nobody should wait for who only reads traces.
    if plan.dry_run:
        from opd_probe.run.estimate import estimate

        rows = [json_row(row) for row in estimate(plan)]
        return Result(rows, present(DRY_RUN_COLUMNS, rows), plan.format)
    from opd_probe.run.pipeline import measure

    measured = measure(plan, progress)
    warn_of_mixture(measured)
    return Gathered(in_order(measured), plan.out, plan.format, progress)


def _refuse_inputs_beside_traces(request: Request) -> None:
    given = {
        "--ckpts": request.ckpts,
        "--teacher": request.teachers,
        **{f"--teacher-{name}": value for name, value in asdict(request.teacher_prompt).items()},
        "--rollouts": request.rollouts,
        "--prompts": request.prompts,
    }
    for option, value in given.items():
        if value:
            raise InputError(f"{option} and --traces: both are given; stored traces need none, so keep one of them")


def _by_k(rows: Sequence[dict[str, Any]], draw: Callable[[pd.DataFrame], Figure]) -> list[tuple[str, Figure]]:
    """One figure for each k, since curves of different k are different quantities."""
    table = as_table(rows)
    parts = [(k, part) for k, part in table.groupby("k", sort=True)]
    return [("" if len(parts) == 1 else f"-k{k}", draw(part)) for k, part in parts]


def _finish(
    gathered: Gathered,
    name: str,
    rows: list[dict[str, Any]],
    columns: Sequence[str],
    figures: Sequence[tuple[str, Figure]],
) -> Result:
    files = _write(gathered, name, as_table(rows), figures)
    clean = [json_row(row) for row in rows]
    return Result(clean, _shown(columns, clean), gathered.format, files)


def _shown(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Columns for a table, that of the tokens' source only where it is not what one expects."""
    sampled = all(row.get("token_source") in (None, "sampled_ids") for row in rows)
    return tuple(name for name in present(columns, rows) if not (sampled and name == "token_source"))


def _write(
    gathered: Gathered, name: str, table: pd.DataFrame, figures: Sequence[tuple[str, Figure]]
) -> tuple[Path, ...]:
    files = [write_csv(table, gathered.out / f"{name}.csv")]
    for suffix, figure in figures:
        files += save_figure(figure, gathered.out / f"{name}{suffix}")
    return tuple(files)
