"""A command in another trainer's definitions."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from opd_probe.commands.gathering import by_k, finish, gather
from opd_probe.commands.result import Result
from opd_probe.metrics.variants import parse_variant
from opd_probe.options.naming import user_path
from opd_probe.options.request import Request
from opd_probe.progress import Progress
from opd_probe.results.peers import NAMES as VARIANT_NAMES
from opd_probe.results.peers import as_logged, draw_variant, file_name, logged_names, shown, variant_rows
from opd_probe.runs.log_files import read_log
from opd_probe.runs.logs import training_log, with_log


def as_variant(
    request: Request, progress: Progress, command: str, text: str, logs: Mapping[str, str] | None = None
) -> Result:
    """A command in another trainer's definitions, in files of their own: ``overlap-verl.csv``. What such a trainer's
    log says of them stands beside them, as ``<name>_logged``."""
    variant = parse_variant(text)
    for file in (logs or {}).values():
        read_log(user_path(file), logged_names(variant))
    with gather(request, progress) as gathered:
        if isinstance(gathered, Result):
            return gathered
        rows = variant_rows(gathered, variant, command)
        columns = (*VARIANT_NAMES, *shown(variant, command))
        log = pd.DataFrame()
        if logs:
            log = training_log(gathered.measured, logs, logged_names(variant)).dropna(axis="columns", how="all")
            rows = with_log(rows, log.rename(columns=as_logged))
        figures = by_k(rows, draw_variant(variant, command, log))
        return finish(gathered, file_name(variant, command), rows, columns, figures)
