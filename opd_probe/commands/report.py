"""``opd-probe report``: what the traces of runs say, in a word and its evidence, as one page."""

from __future__ import annotations

from typing import Any

from opd_probe.commands.gathering import gather
from opd_probe.commands.result import Result
from opd_probe.options.request import Request
from opd_probe.progress import Progress
from opd_probe.results.courses import Judged, judged
from opd_probe.results.tables import json_value

COLUMNS = ("run", "teacher", "verdict", "qualifiers", "says")


def report(request: Request, progress: Progress) -> Result:
    """A verdict for each run and teacher.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    with gather(request, progress) as gathered:
        if isinstance(gathered, Result):
            return gathered
        found = judged(gathered.measured)
        return Result([verdict_row(one) for one in found], COLUMNS, gathered.format)


def verdict_row(one: Judged) -> dict[str, Any]:
    """A verdict in JSON types."""
    said = one.judgement
    row: dict[str, Any] = {
        "run": one.run,
        "teacher": one.teacher,
        "verdict": said.verdict,
        "qualifiers": list(said.qualifiers),
        "says": said.sentence,
        "steps": list(one.course.steps),
        "k": one.traces[0].settings.k,
        "evidence": {name: {"text": found.text, **found.values} for name, found in said.evidence.items()},
        "next": list(said.next),
    }
    clean: dict[str, Any] = json_value(row)
    return clean
