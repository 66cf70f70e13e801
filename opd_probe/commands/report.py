"""``opd-probe report``: what the traces of runs say, in a word and its evidence, and as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from opd_probe.commands.gathering import gather
from opd_probe.commands.result import Result
from opd_probe.curves.timeline import overlap_timeline
from opd_probe.curves.tokens import response_tokens
from opd_probe.errors import InputError, OpdProbeError, warn
from opd_probe.jobs.plan import model_path
from opd_probe.metrics.context import special_ids
from opd_probe.models.decoding import Decoder
from opd_probe.options.naming import user_path
from opd_probe.options.request import Request
from opd_probe.output import write_bytes
from opd_probe.progress import Progress
from opd_probe.results.courses import Judged, judged
from opd_probe.results.decoders import decoder_of
from opd_probe.results.measures import Gathered
from opd_probe.results.report_packing import Group
from opd_probe.results.report_page import Material, build_report
from opd_probe.results.report_samples import shown_of
from opd_probe.results.report_states import Shown
from opd_probe.results.responses import Responses, read_responses
from opd_probe.results.tables import json_value
from opd_probe.runs.log_files import read_log
from opd_probe.runs.logs import log_files, training_log

_ADVICE = "make the report of --ckpts, with their --prompts or --rollouts"

COLUMNS = ("run", "teacher", "verdict", "qualifiers", "says")


def report(
    request: Request,
    progress: Progress,
    *,
    training_logs: Sequence[str] = (),
    doctor: bool = False,
    text: bool = True,
) -> Result:
    """A verdict for each run and teacher, and ``report.html``.

    Args:
        training_logs: as for :func:`opd_probe.commands.overlap.overlap`; a trainer's state beside the checkpoints is
            read without being named.
        doctor: run the doctor on the last checkpoint of each run, for which models are loaded.
        text: whether words of prompts and responses may stand on the page.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    if request.by is not None:
        raise InputError(
            "report --by: a verdict is of a whole run; see groups with opd-probe align --by, or leave it out"
        )
    logs = log_files(training_logs)
    if doctor and request.traces:
        raise InputError("--doctor and --traces: the doctor runs the models; give --ckpts, or leave --doctor out")
    for file in logs.values():
        read_log(user_path(file))  # a mistake shows before models run
    with gather(request, progress) as gathered:
        if isinstance(gathered, Result):
            return gathered
        log = training_log(gathered.measured, logs)
        found = judged(gathered.measured)
        findings = _findings(request, progress) if doctor else None
        html, missing = build_report(_material(request, gathered, found, log, findings, text))
        for line in missing:
            progress.say(f"missing: {line}")
        page = write_bytes(gathered.out / "report.html", html.encode())
        return Result([verdict_row(one) for one in found], COLUMNS, gathered.format, (page,))


def _findings(request: Request, progress: Progress) -> list[dict[str, Any]]:
    from opd_probe.commands.doctor import check_runs  # imports torch

    return check_runs(request, progress)[0].rows


def _material(
    request: Request,
    gathered: Gathered,
    found: Sequence[Judged],
    log: pd.DataFrame,
    findings: Sequence[Mapping[str, Any]] | None,
    text: bool,
) -> Material:
    """What the page is made of."""
    gathered.progress.begin("read states")
    missing: list[str] = []
    given = model_path("--tokenizer", request.tokenizer)
    decoders: list[Decoder] = []
    for one in found:
        decoders.append(decoder_of(one.traces[-1].trace, given, missing, decoders[-1] if decoders else None))
    groups = []
    for place, (one, (units, shown)) in enumerate(zip(found, shown_of(found), strict=True)):
        responses = _responses(request, one, shown, decoders[place], missing) if text else None
        groups.append(Group(one, units, shown, responses, decoders[place] if text else None))
        gathered.progress.update(place + 1, len(found))
    if not text:
        missing.append("Words of prompts and responses, and all tokens: left out, as --no-text asks.")
    return Material(
        found=found,
        log=log,
        timelines=[
            overlap_timeline([m.trace for m in one.traces], one.traces[0].settings.k) if len(one.traces) > 1 else None
            for one in found
        ],
        decoders=decoders,
        specials=[set(special_ids(one.traces[-1].trace) or ()) for one in found],
        groups=groups,
        text=text,
        findings=findings,
        missing=list(dict.fromkeys(missing)),
    )


def _responses(
    request: Request, one: Judged, shown: Sequence[Shown], decoder: Decoder, missing: list[str]
) -> list[Responses]:
    """The shown responses of each trace, with the rollouts of the request, or those that lie beside the trace."""
    found = []
    for measured, states in zip(one.traces, shown, strict=True):
        tokens = response_tokens(measured.trace, [index for index, _ in states.rollouts])
        try:
            responses = read_responses(measured.trace, tokens, request.rollouts, decoder, missing, _ADVICE)
        except OpdProbeError as error:  # those that were replayed may have been changed since
            warn(f"{error}; the page is made without prompts")
            responses = Responses(measured.trace.rollouts.to_pylist(), tokens, {}, decoder)
        found.append(responses)
    return found


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
