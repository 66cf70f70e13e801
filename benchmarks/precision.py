"""How right the numbers are: what ``make real`` measured on a language model, as tables for docs/metrics.md.

python -m benchmarks.precision             # print them
python -m benchmarks.precision --docs      # show them in the documentation again
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "precision.json"
DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- measured by make real -->", "<!-- end of what make real measured -->"

Report = dict[str, Any]
"""``pairs``: what states each pair has. ``rows``: per pair, what the reference was given, weights and path, the errors
of every metric. ``readings``: what a reader must not conclude. And the machine."""

Row = dict[str, Any]
Table = list[list[str]]

BY_HAND = "by hand: transformers, float64 statistics"
ROUNDED = "exact sums, weights rounded"
AS_IT_COMES = "prompts shared, in batches"
AGAINST = {"logits": "the same logits", "hidden": "the same hidden states", "model": "the whole model"}


def rounded(value: float, digits: int = 3) -> float:
    """A number with as many significant digits as are worth keeping."""
    return float(f"{float(value):.{digits}g}")


def size(value: float) -> str:
    """The size of an error: ``3e-7``, and 0 where there is none."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value < 0.01 else f"{value:.2g}"


def share(value: float) -> str:
    """A share of states in per cent."""
    return "0" if value == 0 else f"{100 * value:.2g} %"


def moved(error: Row) -> str:
    """By how much a mean moved, in per cent of it; its size where the mean is 0."""
    if error["off"] == 0:
        return "0"
    if error["mean"] == 0:
        return f"{error['off']:+.1g}"
    part = 100 * error["off"] / abs(error["mean"])
    return f"{part:+.2g} %" if abs(part) >= 0.01 else "< 0.01 %"


def points(error: Row) -> str:
    """By how many hundredths a share moved."""
    return "0" if error["off"] == 0 else f"{100 * error['off']:+.2g}"


def chosen(report: Report, **wanted: str) -> list[Row]:
    """The rows with these values."""
    return [row for row in report["rows"] if all(row[key] == value for key, value in wanted.items())]


def by_metric(report: Report) -> Table:
    """For each metric the worst error of a state on every path, and what bf16 weights do to its mean."""
    table = [
        [
            "metric",
            "same logits, worst state",
            "float32 weights, worst state",
            "float32 weights, mean",
            "bf16 weights, typical state",
            *(f"bf16 weights, mean, {pair}" for pair in report["pairs"]),
        ]
    ]
    logits = chosen(report, against="logits")
    replays = [row for row in chosen(report, against="model") if row["path"] not in (BY_HAND, ROUNDED)]
    single = [row for row in replays if row["weights"] == "float32"]
    narrow = [row for row in replays if row["weights"] == "bfloat16"]
    for name in dict.fromkeys(name for row in single for name in row["metrics"]):
        shown = share if is_count(name) else size
        cells = [
            f"`{name}`",
            shown(largest(logits, name, "worst")),
            shown(largest(single, name, "worst")),
            size(largest(single, name, "off")),
            "" if is_count(name) else size(largest(narrow, name, "typical")),
        ]
        for pair in report["pairs"]:
            usual = chosen(report, pair=pair, against="model", weights="bfloat16", path=AS_IT_COMES)
            cells.append(" ".join(moved(row["metrics"][name]) for row in usual))
        table.append(cells)
    return table


def is_count(name: str) -> bool:
    """Whether a metric is a count or a verdict, right or wrong, never nearly right: its error is a share of states."""
    return "_k_for_" in name or name in ("overlap_ratio", "sign_noise") or name.endswith("_share")


def largest(rows: Iterable[Row], metric: str, kind: str) -> float:
    """The largest error of one kind over rows that have the metric."""
    return max((abs(row["metrics"][metric][kind]) for row in rows if metric in row["metrics"]), default=0.0)


def by_path(report: Report) -> Table:
    """For each path, of each pair: what it does to top sets, log-probabilities, divergences and two means."""
    table = [["float64 from", "weights", "path"]]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("states with another top set", lambda row: share(row["other_sets"])),
        ("−log q(ŷ), worst", lambda row: size(row["metrics"]["teacher_nll"]["worst"])),
        ("H(p), worst", lambda row: size(row["metrics"]["student_entropy"]["worst"])),
        ("KL(p ‖ q), worst part of it", lambda row: _of(row, "reverse_kl", lambda error: size(error["relative"]))),
        ("overlap, mean, points", lambda row: _of(row, "overlap_ratio", points)),
        ("advantage, mean", lambda row: _of(row, "overlap_advantage", moved)),
    ]
    table[0] += [heading for heading, _ in columns]
    for against, weights, path in dict.fromkeys((r["against"], r["weights"], r["path"]) for r in _sorted(report)):
        rows = chosen(report, against=against, weights=weights, path=path)
        table.append([AGAINST[against], weights, path, *(" / ".join(cell(row) for row in rows) for _, cell in columns)])
    return table


def _of(row: Row, metric: str, cell: Callable[[Row], str]) -> str:
    return cell(row["metrics"][metric]) if metric in row["metrics"] else "unknown"


def _sorted(report: Report) -> list[Row]:
    kinds, types, pairs = list(AGAINST), ["float32", "float64", "float16", "bfloat16"], list(report["pairs"])
    return sorted(
        report["rows"],
        key=lambda row: (kinds.index(row["against"]), types.index(row["weights"]), pairs.index(row["pair"])),
    )


def of_readings(report: Report) -> Iterator[Table]:
    """What was measured of three readings that mislead."""
    found = report["readings"]
    yield [
        ["teacher", "KL(p ‖ q)", "states with one shared token", "`overlap_advantage`", "without these states"],
        *(
            [
                name,
                f"{row['reverse_kl']:.2f}",
                share(row["single_share"]),
                f"{row['overlap_advantage']:.3f}",
                f"{row['without_single']:.3f}",
            ]
            for name, row in found["single_overlap"].items()
        ),
    ]
    yield [
        ["sampled at temperature", "`sampled_reward`", "−`reverse_kl`", "`overlap_ratio`", "`student_entropy`"],
        *(
            [
                name,
                f"{row['sampled_reward']:.3f}",
                f"{-row['reverse_kl']:.3f}",
                f"{row['overlap_ratio']:.3f}",
                f"{row['student_entropy']:.2f}",
            ]
            for name, row in found["temperature"].items()
        ),
    ]
    yield [
        ["pair", "of Σ KL in the top 1 %", "in the top 10 %", "of Σ \\|r\\| in the top 1 %", "median KL / mean KL"],
        *(
            [
                name,
                share(row["kl_top_1pct"]),
                share(row["kl_top_10pct"]),
                share(row["reward_top_1pct"]),
                f"{row['kl_median_over_mean']:.2g}",
            ]
            for name, row in found["led_by_few"].items()
        ),
    ]


def of_pairs(report: Report) -> Table:
    """What states each pair has."""
    table = [["pair", "states", "overlap", "KL(p ‖ q)", "1 − p(top) below 1e-3", "1e-5", "1e-7"]]
    for name, pair in report["pairs"].items():
        sure = pair["confident"]
        shares = [share(sure[bound]) for bound in ("1e-3", "1e-5", "1e-7")]
        table.append(
            [name, f"{pair['states']:,}", f"{pair['overlap_ratio']:.3f}", f"{pair['reverse_kl']:.2f}", *shares]
        )
    return table


def as_markdown(report: Report) -> str:
    """All tables, for the documentation."""
    led = of_readings(report)
    parts = [
        of_pairs(report),
        "Each metric, worst of both pairs and of all paths; a count's error is the share of states where it differs:",
        by_metric(report),
        "Each path, as it is / sharpened:",
        by_path(report),
        "A state with one shared token alone has the advantage 0, the best there is, whoever the teacher is:",
        next(led),
        "One student and one teacher, both scored at temperature 1; only the samples differ:",
        next(led),
        "A mean may be led by few states:",
        next(led),
    ]
    return "\n\n".join(part if isinstance(part, str) else _markdown(part) for part in parts)


def _markdown(table: Table) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def as_text(report: Report) -> str:
    """What there is so far, for a terminal."""
    tables = [of_pairs(report), by_metric(report), by_path(report)]
    return "\n\n".join(_aligned(table) for table in tables)


def _aligned(table: Table) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def write(report: Report, place: Path) -> None:
    """Keep a report as JSON, a row on a line."""
    head = json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in report["rows"])
    place.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def show_in(page: Path, report: Report) -> None:
    """Replace what stands between the page's two marks."""
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: no line {BEGIN!r} with {END!r} behind it, where the tables go")
    page.write_text(f"{head}{BEGIN}\n\n{as_markdown(report)}\n\n{END}{tail}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Show what was measured last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="show it in docs/metrics.md too")
    given = parser.parse_args(arguments)
    report = json.loads(RESULTS.read_text())
    print(as_text(report))
    if given.docs:
        show_in(DOCS, report)


if __name__ == "__main__":
    main()
