"""Line charts as plain geometry for a template: numbers in, pixels and paths out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 360.0, 224.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 32.0

_TICKS = 5
_STEPS = 24


def chart(panel: Mapping[str, Any]) -> dict[str, Any]:
    """The geometry of one panel.

    Args:
        panel: ``xs``, the place of every step on the axis, as numbers, with ``labels``; ``series``, each with
            ``index``, ``places`` (indices into ``xs``), ``values``, ``low`` and ``high`` (None where unknown) and
            ``texts``; ``limits``, the range that the quantity can have (None: no end); ``band`` (low, high) or None;
            ``paths``, each with ``of`` and ``points`` (share of the x axis, value).

    Returns:
        ``width``, ``height``, ``frame``, ``x_ticks``, ``y_ticks`` (pixel and label), ``band`` (y and height),
        ``paths``, ``series`` (``line``, ``area``, ``dots``) and ``stops`` (pixel, label and texts of each step).
    """
    low, high = _range(panel)
    y_ticks = nice_ticks(low, high, _TICKS)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    first, last = min(panel["xs"], default=0.0), max(panel["xs"], default=1.0)
    spread = last - first or 1.0
    inset = 0.0 if last > first else 0.5

    def x(value: float) -> float:
        return LEFT + ((value - first) / spread + inset) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    band = panel["band"]
    return {
        "width": WIDTH, "height": HEIGHT,
        "frame": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "y_ticks": [(round(y(tick), 1), label) for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True)],
        "x_ticks": _x_ticks(panel, x),
        "band": None if band is None else (round(y(band[1]), 1), round(y(band[0]) - y(band[1]), 1)),
        "paths": [
            {"of": path["of"], "line": _line([(LEFT + s * (WIDTH - LEFT - RIGHT), y(v)) for s, v in path["points"]])}
            for path in panel["paths"]
        ],
        "series": [_series(one, panel["xs"], x, y) for one in panel["series"]],
        "stops": _stops(panel, x),
    }  # fmt: skip


def _range(panel: Mapping[str, Any]) -> tuple[float, float]:
    """From the smallest to the largest of what is drawn, with room, within what the quantity can be."""
    seen = [v for one in panel["series"] for name in ("values", "low", "high") for v in one[name] if v is not None]
    seen += panel["band"] or ()
    seen += [value for path in panel["paths"] for _, value in path["points"]]
    seen += panel.get("include", ())
    if not seen:
        return 0.0, 1.0
    low, high = min(seen), max(seen)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    floor, ceiling = panel["limits"]
    low = low - room if floor is None else max(floor, low - room)
    high = high + room if ceiling is None else min(ceiling, high + room)
    return low, high


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers from one at or above ``low`` to one at or below ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)] or [low]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, all with the decimals that tell them apart, and a true minus."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(ticks[0]) or 1.0)
    if max(abs(tick) for tick in ticks) >= 1e5 or step < 1e-5:
        return [f"{tick:.2g}".replace("-", "−") for tick in ticks]
    decimals = next((d for d in range(7) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)
    return [f"{tick:.{decimals}f}".replace("-", "−") for tick in ticks]


def _x_ticks(panel: Mapping[str, Any], x: Any) -> list[tuple[float, str]]:
    """The labels of steps, as many as fit beside each other; of many steps round numbers."""
    if len(panel["xs"]) > _STEPS:
        rounds = nice_ticks(min(panel["xs"]), max(panel["xs"]), _TICKS)
        return [(round(x(tick), 1), label) for tick, label in zip(rounds, tick_labels(rounds), strict=True)]
    ticks: list[tuple[float, str]] = []
    for place, label in sorted(zip(panel["xs"], panel["labels"], strict=True)):
        at = x(place)
        if not ticks or at - ticks[-1][0] >= 4.0 + 3.4 * (len(label) + len(ticks[-1][1])):
            ticks.append((round(at, 1), label))
    return ticks


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in points) if points else ""


def _series(one: Mapping[str, Any], xs: Sequence[float], x: Any, y: Any) -> dict[str, Any]:
    """Its line in the stretches where it is known, the area of its intervals, and its points."""
    lines: list[list[tuple[float, float]]] = [[]]
    edges: list[list[tuple[float, float, float]]] = [[]]
    for place, value, low, high in zip(one["places"], one["values"], one["low"], one["high"], strict=True):
        if value is None:
            lines.append([])
        else:
            lines[-1].append((x(xs[place]), y(value)))
        if low is None or high is None:
            edges.append([])
        else:
            edges[-1].append((x(xs[place]), y(low), y(high)))
    known = [line for line in lines if line]
    areas = [
        _line([(px, top) for px, _, top in part] + [(px, bottom) for px, bottom, _ in reversed(part)]) + "Z"
        for part in edges
        if len(part) > 1
    ]
    whiskers = [
        _line([(px, low), (px, high)]) for part in edges for px, low, high in part if len(part) == 1 and low != high
    ]
    points = [point for line in known for point in line]
    return {
        "index": one["index"],
        "line": "".join(_line(line) for line in known if len(line) > 1),
        "area": "".join(areas),
        "whiskers": "".join(whiskers),
        "dots": [(round(px, 1), round(py, 1)) for px, py in points] if one.get("dots", True) else [],
    }


def _stops(panel: Mapping[str, Any], x: Any) -> list[dict[str, Any]]:
    """For each step its pixel, and what every series says there."""
    texts: dict[int, list[list[Any]]] = {}
    for one in panel["series"]:
        for place, text in zip(one["places"], one["texts"], strict=True):
            if text is not None:
                texts.setdefault(place, []).append([one["index"], text])
    order = sorted(texts, key=lambda place: panel["xs"][place])
    return [
        {"x": round(x(panel["xs"][place]), 1), "label": panel["labels"][place], "texts": texts[place]}
        for place in order
    ]
