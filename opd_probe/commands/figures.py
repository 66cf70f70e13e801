"""Any kind of figure from stored traces: what they allow is drawn, and what is missing for the rest is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_probe.commands.result import Result
from opd_probe.errors import InputError
from opd_probe.metrics.variants import parse_variant
from opd_probe.options.request import DEFAULT_OUT, Request
from opd_probe.options.settings import parse_options
from opd_probe.output import check_writable, output_path
from opd_probe.progress import Progress
from opd_probe.results.files import draw_figure
from opd_probe.results.kinds import KINDS, Tables
from opd_probe.results.measures import Gathered, in_order
from opd_probe.results.peers import draw_variant, file_name, variant_rows
from opd_probe.results.tables import as_table
from opd_probe.runs.logs import log_files
from opd_probe.runs.stored import by_group, find_traces, warn_of_states

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("figure", "paper", "file", "missing")


def figures(
    request: Request,
    progress: Progress,
    *,
    only: Sequence[str] = (),
    training_logs: Sequence[str] = (),
    teacher_accuracies: Sequence[str] = (),
    group_seeds: bool = False,
    variants: Sequence[str] = (),
) -> Result:
    """Draw the figures of these names (none: every one) from the traces of a request into ``OUT/figures``.

    Args:
        training_logs: ``RUN=FILE`` each, or ``FILE`` for the only run. teacher_accuracies: ``TEACHER=SHARE`` each.
        variants: other trainers' definitions, of which a figure each is drawn too.
        group_seeds: runs whose names differ only in a seed are the seeds of one run.

    Returns:
        One row per figure: ``figure``, ``paper``, ``shows``, ``file`` (the PNG; None when it cannot be drawn) and
        ``missing`` (what it needs and does not have; None for nothing).

    Raises:
        OpdProbeError: bad input, or not one figure can be drawn; in one line.
    """
    names = _chosen(only)
    peers = [parse_variant(text) for text in variants]
    logs = log_files(training_logs)
    if logs and request.by is not None:
        raise InputError("--by and --training-log: a trainer logs whole batches and no groups; leave one of them out")
    shares = {teacher: _share(teacher, text) for teacher, text in map(_pair, teacher_accuracies)}
    out = output_path(request.out or DEFAULT_OUT)
    check_writable(out / "figures")
    measured = in_order(by_group(find_traces(request.traces, parse_options(request.options)), request.by))
    warn_of_states(measured)
    _refuse_unknown_teachers(shares, [one.teacher for one in measured])
    gathered = Gathered(measured, out, request.format or "table", progress)
    tables = Tables(gathered, logs, shares, group_seeds)
    rows: list[dict[str, Any]] = []
    files: list[Path] = []
    for name in names:
        progress.begin(name)
        written, missing = _drawn(name, tables, out / "figures" / name)
        files += written
        row = {"figure": name, "paper": KINDS[name].paper or None, "shows": KINDS[name].shows}
        rows.append(row | {"file": str(written[-1]) if written else None, "missing": missing or None})
    for peer in peers:
        name = file_name(peer, "overlap")
        table = tables.named(as_table(variant_rows(gathered, peer, "overlap")))
        written = draw_figure(partial(draw_variant(peer, "overlap"), table), out / "figures" / name)
        files += written
        shows = f"overlap, mass and alignment in the definitions of {peer.source}"
        rows.append(
            {
                "figure": name,
                "paper": None,
                "shows": shows,
                "file": str(written[-1]) if written else None,
                "missing": None,
            }
        )
    if not files:
        raise InputError("no figure can be drawn: " + "; ".join(f"{row['figure']}: {row['missing']}" for row in rows))
    return Result(rows, COLUMNS, gathered.format, tuple(files))


def _drawn(name: str, tables: Tables, stem: Path) -> tuple[list[Path], str]:
    """The files of one kind of figure, and what is missing for it or in it."""
    missing = ""

    def draw() -> Figure | None:
        nonlocal missing
        figure, missing = KINDS[name].draw(tables)
        return figure

    return draw_figure(draw, stem), missing


def _chosen(only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in KINDS:
            raise InputError(f"--only {name}: no such figure; expected {', '.join(KINDS)}")
    return [name for name in KINDS if name in only or not only]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"--teacher-accuracy {text}: expected TEACHER=SHARE, a share from 0 to 1")
    return name, value


def _share(teacher: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise InputError(f"--teacher-accuracy {teacher}={text}: expected a share from 0 to 1")
    return share


def _refuse_unknown_teachers(shares: Mapping[str, float], teachers: Sequence[str]) -> None:
    for teacher in shares:
        if teacher not in teachers:
            known = ", ".join(dict.fromkeys(teachers))
            raise InputError(f"--teacher-accuracy {teacher}=…: no trace of that teacher; the teachers are {known}")
