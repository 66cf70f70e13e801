"""The table of what was fuzzed, in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

BEGIN, END = "<!-- fuzzed: begin -->", "<!-- fuzzed: end -->"


def write_page(page: Path, folder: Path) -> None:
    """Put the table of all that a folder's records hold between two marks of a page."""
    totals: dict[str, list[float]] = {}
    for record in sorted(folder.glob("seed-*.json")):
        for name, tally in json.loads(record.read_text()).items():
            row = totals.setdefault(name, [0, 0, 0, 0])
            counts = [tally[key] for key in ("read", "refused", "faults", "seconds")]
            totals[name] = [one + other for one, other in zip(row, counts, strict=True)]
    lines = ["| reader | inputs | read | refused in a line | faults | seconds |", "|---|---:|---:|---:|---:|---:|"]
    everything = [sum(column) for column in zip(*totals.values(), strict=True)]
    for name, (read, refused, faults, seconds) in [*sorted(totals.items()), ("all", everything)]:
        count = read + refused + faults
        lines.append(f"| {name} | {count:,.0f} | {read:,.0f} | {refused:,.0f} | {faults:,.0f} | {seconds:,.0f} |")
    text = page.read_text(encoding="utf-8")
    table = "\n".join([BEGIN, *lines, END])
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
