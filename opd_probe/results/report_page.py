"""What the page of ``opd-probe report`` says, in plain values for its template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pandas as pd

from opd_probe.curves.timeline import OverlapTimeline
from opd_probe.digits import true_minus, with_interval
from opd_probe.models.decoding import Decoder
from opd_probe.pages import render_report
from opd_probe.plots.labels import METRICS as LABELS
from opd_probe.results import report_samples
from opd_probe.results.courses import Judged
from opd_probe.results.references import AT_K
from opd_probe.results.report_curves import log_panels, panels, series_of, value_table
from opd_probe.results.report_packing import Group
from opd_probe.results.report_timeline import timeline_section
from opd_probe.results.verdict import MEASURED, TREND

MOST_BYTES = 5_000_000
"""Size of a page, so that it can be sent along with a message."""


@dataclass(frozen=True)
class Material:
    """Everything that a page is made of, of each run and teacher in one order.

    Attributes:
        log: what the trainers logged; empty when nothing is known.
        timelines: None for a run of one checkpoint.
        decoders: of the tokens; without a tokenizer they show ids.
        specials: ids of special tokens.
        groups: shown responses.
        text: whether words of prompts and responses may be on the page.
        findings: the doctor's, None when it was not asked.
        missing: what cannot be shown.
    """

    found: Sequence[Judged]
    log: pd.DataFrame
    timelines: Sequence[OverlapTimeline | None]
    decoders: Sequence[Decoder]
    specials: Sequence[set[int]]
    groups: Sequence[Group]
    text: bool
    findings: Sequence[Mapping[str, Any]] | None = None
    missing: Sequence[str] = field(default_factory=list)


def build_report(material: Material) -> tuple[str, list[str]]:
    """The HTML text, of at most :data:`MOST_BYTES` unless verdicts and curves alone are more; and what is missing."""
    page = _page(material)
    bare = {**page, "missing": material.missing}
    room = MOST_BYTES - len(render_report(bare).encode())
    names = [one["name"] for one in page["series"]]
    while True:
        packed, left_out = report_samples.samples(material.groups, names, room)
        missing = [*material.missing, *left_out]
        if packed is None:
            return render_report({**page, "missing": missing}), missing
        shown = {
            "note": report_samples.note(packed, material.text),
            "groups": names,
            "quantities": packed["quantities"],
            "kinds": [{"name": name, "title": title} for name, title in report_samples.KINDS.items()],
        }
        html = render_report({**page, "missing": missing, "samples": shown, "data": {"samples": packed}})
        beyond = len(html.encode()) - MOST_BYTES
        if beyond <= 0:
            return html, missing
        room -= beyond + 1_000  # what stands around the packed numbers was not counted


def _page(material: Material) -> dict[str, Any]:
    """The page without its samples."""
    found = material.found
    series = series_of(found)
    return {
        "title": _title(found),
        "facts": _facts(found),
        "verdicts": [_verdict(index, one) for index, one in enumerate(found)],
        "curves_note": _curves_note(found),
        "series": [{"index": one.index, "name": one.name} for one in series],
        "panels": panels(found),
        "logged": log_panels(found, material.log),
        "table": value_table(found, series),
        "findings": None if material.findings is None else [_finding(row, material.text) for row in material.findings],
        "timelines": [
            timeline_section(one, index, series[index].name, timeline, decoder, specials, material.text)
            for index, (one, timeline, decoder, specials) in enumerate(
                zip(found, material.timelines, material.decoders, material.specials, strict=True)
            )
            if timeline is not None
        ],
        "samples": None,
        "data": {"samples": None},
        "version": version("opd-probe"),
    }


def _curves_note(found: Sequence[Judged]) -> str:
    if all(len(one.traces) == 1 for one in found):
        note = "One checkpoint of each run was measured: points with their 95 % intervals. "
    else:
        note = "Each point is a checkpoint, the band around a curve its 95 % interval over prompts. "
    note += "Point at a chart, or focus it and use the arrow keys, to read the values; a name above hides its curve."
    if {one.traces[0].settings.k for one in found} != {AT_K}:
        note += f" The paper's and the lab's values, which are of k = {AT_K}, are left out."
    return note


def _title(found: Sequence[Judged]) -> str:
    runs = list(dict.fromkeys(one.run for one in found))
    return f"Report on {', '.join(runs)}" if len(runs) <= 3 else f"Report on {len(runs)} runs"


def _facts(found: Sequence[Judged]) -> list[tuple[str, str]]:
    traces = [measured for one in found for measured in one.traces]
    prompts = sorted({n for one in found for n in one.course.n_prompts})
    states = [measured.trace.n_states for measured in traces]
    steps = sorted({step for one in found for step in one.course.steps if step is not None})
    return [
        ("Runs", str(len({one.run for one in found}))),
        ("Teachers", ", ".join(dict.fromkeys(one.teacher for one in found))),
        ("Steps", ", ".join(map(str, steps)) if steps else "unknown"),
        ("Prompts", _from_to(prompts)),
        ("States of a trace", _from_to(sorted(set(states)))),
        ("k", ", ".join(dict.fromkeys(str(measured.settings.k) for measured in traces))),
        ("Means over", ", ".join(dict.fromkeys(f"{measured.settings.average}s" for measured in traces))),
    ]


def _from_to(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _verdict(index: int, one: Judged) -> dict[str, Any]:
    said = one.judgement
    steps = ["?" if step is None else str(step) for step in one.course.steps]
    return {
        "index": index,
        "run": one.run,
        "teacher": one.teacher,
        "verdict": said.verdict,
        "says": said.sentence,
        "evidence": said.evidence[said.verdict].text,
        "qualifiers": [(name.replace("_", " "), said.evidence[name].text) for name in said.qualifiers],
        "next": [f"{text[:1].upper()}{text[1:]}." for text in said.next],
        "first": steps[0],
        "last": steps[-1],
        "figures": [_figures(name, one) for name in MEASURED],
        "trend": f"Trend: {TREND}.",
    }


def _figures(name: str, one: Judged) -> list[str]:
    last = len(one.course.steps) - 1
    found = [one.course.at(name, 0), one.course.at(name, last)] + ([one.course.trend(name)] if last else [])
    cells = ["–" if math.isnan(v.value) else true_minus(with_interval(v.value, v.lo, v.hi)) for v in found]
    title = LABELS[name].title.format(k=one.traces[0].settings.k)
    return [f"{title}, {LABELS[name].unit}", *cells, *([] if last else ["–"])]


def _finding(row: Mapping[str, Any], text: bool) -> dict[str, Any]:
    """A row of the doctor's checklist; its figure may quote a prompt or a response."""
    shown = {name: row.get(name) for name in ("run", "teacher", "check", "status", "figure", "advice")}
    return shown if text else {**shown, "figure": "left out (--no-text)"}
