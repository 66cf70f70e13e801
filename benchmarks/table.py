"""The figures of all benchmarks as one table, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Row

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- measured by python -m benchmarks -->", "<!-- end -->"

HEADINGS = (
    "workload",
    "path",
    "CPU / floor",
    "wall / floor",
    "wall / naive",
    "wall / thunlp",
    "wall / verl",
    "states/s",
    "memory, GB",
    "bytes/state",
)


def cells(row: Row) -> list[str]:
    """One row as text; what was not measured is empty."""

    def ratio(name: str) -> str:
        if name not in row:
            return ""
        value, digits = row[name], 2 if row[name] >= 0.1 else 3
        low, high = row.get(f"{name}_range", (value, value))
        alike = high - low < 0.005 * value
        return f"{value:.{digits}f}" if alike else f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    def number(name: str, digits: int) -> str:
        return f"{row[name]:,.{digits}f}" if name in row else ""

    ratios = [ratio(f"{clock}_over_{base}") for clock, base in (("cpu", "floor"), ("wall", "floor"))]
    ratios += [ratio(f"wall_over_{base}") for base in ("naive", "thunlp", "verl")]
    rest = [number("states_per_second", 0), number("extra_memory_gb", 2), number("bytes_per_state", 0)]
    return [row["workload"], row["path"], *ratios, *rest]


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal: a heading per workload, then its paths."""
    lines = [list(HEADINGS[1:]), *(cells(row)[1:] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            f"{v:<{w}}" if i == 0 else f"{v:>{w}}" for i, (v, w) in enumerate(zip(values, widths, strict=True))
        )

    out, workload = [line(lines[0])], ""
    for row, values in zip(rows, lines[1:], strict=True):
        if row["workload"] != workload:
            workload = row["workload"]
            out.append(workload)
        out.append(line(values))
    return "\n".join(out)


def as_markdown(rows: Sequence[Row]) -> str:
    """For the documentation: one table, the toolkit's own rows in bold."""
    out = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    workload = ""
    for row in rows:
        values = cells(row)
        values[0], workload = ("" if row["workload"] == workload else row["workload"]), row["workload"]
        if row["path"].startswith("opd-probe"):
            values[1] = f"**{values[1]}**"
        out.append(f"| {' | '.join(values)} |")
    return "\n".join(out)


def show_in(page: Path, table: str) -> None:
    """Replace the table between the page's two marks."""
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: no line {BEGIN!r} with {END!r} behind it, where the table goes")
    page.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}")
