"""The page of ``opd-probe report``: verdicts, curves, findings, responses by step, and what enters the overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_probe.pages.charts import chart
from opd_probe.pages.rendering import render

SCRIPTS = ("page.js", "charts.js", "samples.js")


def render_report(page: Mapping[str, Any]) -> str:
    """The page as HTML text; everything that comes from ``page`` is escaped.

    Args:
        page: ``title``, ``facts``, ``missing``, ``verdicts``, ``series``, ``table``, ``findings``, ``timelines``,
            ``samples`` for the template; ``panels``, ``logged``, each panel as :func:`opd_probe.pages.charts.chart`
            takes it; and ``data`` (``samples``, or None) for the scripts, in JSON types. A timeline has a panel of its
            own, ``chart``.
    """
    groups = {name: [_drawn(panel) for panel in page[name]] for name in ("panels", "logged")}
    timelines = [{**one, "panel": _drawn(one["chart"])} for one in page["timelines"]]
    drawn = [*groups["panels"], *groups["logged"], *(one["panel"] for one in timelines)]
    charts = {panel["id"]: {"stops": panel["drawing"]["stops"], "names": panel["names"]} for panel in drawn}
    names = [one["name"] for one in page["series"]]
    return render(
        "report.html",
        {**page, **groups, "timelines": timelines, "data": {**page["data"], "charts": charts, "series": names}},
        ["page.css", "report.css"],
        SCRIPTS,
    )


def _drawn(panel: Mapping[str, Any]) -> dict[str, Any]:
    """A panel with its drawing; ``names`` are those of its series where it has its own."""
    kept = {name: panel[name] for name in ("title", "unit", "reading", "note")}
    return {**kept, "id": f"chart-{panel['name']}", "drawing": chart(panel), "names": panel.get("names")}
