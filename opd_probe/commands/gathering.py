"""What the commands over traces share: the traces of a request, and what becomes of their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_probe.commands.result import Result
from opd_probe.curves.sampling import AS_SCORED
from opd_probe.errors import InputError
from opd_probe.options.request import DEFAULT_OUT, Request
from opd_probe.options.settings import parse_options
from opd_probe.output import check_writable, claimed, output_path
from opd_probe.progress import Progress
from opd_probe.results.files import draw_figure, write_csv
from opd_probe.results.measures import Gathered, in_order
from opd_probe.results.tables import as_table, by_series, json_row, present
from opd_probe.runs.stored import by_group, find_traces, warn_of_prompts, warn_of_states

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Drawing = tuple[str, Callable[[], "Figure"]]
"""What is added to a table's name for a figure of it, and what draws it, once the table is written."""

NAMES = ("run", "step", "teacher", "group", "k", "states", "token_source", "sampling", "quantised", "stopped")
DRY_RUN_COLUMNS = (
    "run", "step", "teacher", "states", "states_are", "tokens", "bytes", "seconds",
)  # fmt: skip


@contextmanager
def gather(request: Request, progress: Progress) -> Iterator[Gathered | Result]:
    """The traces of a request: found, re-used or made. For a dry run, what making them would take.

    Where they are made the output belongs to this process until the block ends.

    Raises:
        OpdProbeError: bad input, in one line; among it that another process makes traces there.
    """
    if request.traces:
        _refuse_inputs_beside_traces(request)
        out = output_path(request.out or DEFAULT_OUT)
        check_writable(out)
        measured = find_traces(request.traces, parse_options(request.options))
        warn_of_states(measured)
        warn_of_prompts(measured)
        yield Gathered(in_order(by_group(measured, request.by)), out, request.format or "table", progress)
        return
    # What looks at checkpoints is not waited for where traces are given, and torch not where they are there already.
    from opd_probe.jobs.finished import job_key, noted, stored_job
    from opd_probe.jobs.plan import make_plan
    from opd_probe.models.remembered import remembering

    plan = make_plan(request)
    if plan.dry_run:
        from opd_probe.jobs.estimate import estimate

        rows = [json_row(row) for row in estimate(plan)]
        yield Result(rows, present(DRY_RUN_COLUMNS, rows), plan.format)
        return
    with claimed(plan.out), remembering(plan.out):
        key = job_key(plan)
        found = stored_job(plan, key)
        if found is None:
            from opd_probe.jobs.pipeline import measure

            with noted(plan, key) as found:
                found += measure(plan, progress)
        warn_of_states(found)
        warn_of_prompts(found)
        yield Gathered(in_order(by_group(found, request.by)), plan.out, plan.format, progress)


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


def by_k(rows: Sequence[dict[str, Any]], draw: Callable[[pd.DataFrame], Figure]) -> list[Drawing]:
    """One figure for each k, since curves of different k are different quantities."""
    table = by_series(as_table(rows))
    parts = [(k, part) for k, part in table.groupby("k", sort=True)]
    return [("" if len(parts) == 1 else f"-k{k}", partial(draw, part)) for k, part in parts]


def finish(
    gathered: Gathered,
    name: str,
    rows: list[dict[str, Any]],
    columns: Sequence[str],
    figures: Iterable[Drawing],
) -> Result:
    """Write a command's table and figures, and hand back its rows."""
    files = write(gathered, name, as_table(rows), figures)
    clean = [json_row(row) for row in rows]
    return Result(clean, shown_columns(columns, clean), gathered.format, files)


def shown_columns(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Columns for a table, the tokens' source and sampling only where they are not what one expects."""
    expected = {"token_source": (None, "sampled_ids"), "sampling": (None, AS_SCORED)}
    usual = {name for name, values in expected.items() if all(row.get(name) in values for row in rows)}
    return tuple(name for name in present(columns, rows) if name not in usual)


def write(gathered: Gathered, name: str, table: pd.DataFrame, figures: Iterable[Drawing]) -> tuple[Path, ...]:
    """``OUT/<name>.csv``, and then its figures beside it: one that fails does not take the table along."""
    files = [write_csv(table, gathered.out / f"{name}.csv")]
    for suffix, draw in figures:
        files += draw_figure(draw, gathered.out / f"{name}{suffix}")
    return tuple(files)
