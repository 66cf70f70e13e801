"""``opd-probe compare``: two traces, or two runs' traces step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opd_probe import plots
from opd_probe.commands.result import Result
from opd_probe.curves.paired import compare as compare_traces
from opd_probe.curves.sampling import AS_SCORED, sampling_label
from opd_probe.errors import InputError, OpdProbeError, warn
from opd_probe.options.naming import user_path
from opd_probe.options.request import DEFAULT_OUT
from opd_probe.options.settings import Options, parse_options
from opd_probe.output import check_writable, output_path
from opd_probe.progress import Progress
from opd_probe.results.files import draw_figure, write_csv
from opd_probe.results.tables import as_table, json_row, present
from opd_probe.runs.stored import Measured, by_group, find_traces, stopped_columns

COLUMNS = ("step_a", "step_b", "group", "metric", "unit", "a", "b", "difference", "n_prompts")

Pair = tuple[Measured, Measured]


def compare(
    a: str,
    b: str,
    progress: Progress,
    *,
    options: Mapping[str, Any],
    by: str | None = None,
    out: str | None = None,
    format: str = "table",
) -> Result:
    """Differences B − A of every metric over the same prompts: ``compare.csv`` and a figure.

    Args:
        a, b: a trace each, or a directory each with the traces of one run, which are paired by step; of a run's own
            directory those that ``out`` holds.
        options: ``k``, ``average`` and ``seed`` as for the other commands.
        by: a field whose values are compared each by itself (:func:`opd_probe.groups`).

    Raises:
        OpdProbeError: bad input, in one line; among it two runs without a common step or prompt.
    """
    directory = output_path(out or DEFAULT_OUT)
    check_writable(directory)
    given = parse_options(options)
    sides = [_side(name, place, given, directory) for name, place in (("A", a), ("B", b))]
    pairs = [part for pair in pair_up(*sides) for part in parts_of(pair, by)]
    rows: list[dict[str, Any]] = []
    progress.begin("compare")
    for done, (first, second) in enumerate(pairs):
        progress.update(done, len(pairs))
        rows += _rows(first, second)
    table = as_table(rows)
    names = _names(pairs)
    files = [write_csv(table, directory / "compare.csv")]
    shown_pairs = table.assign(pair=[_pair(row) for row in rows])
    files += draw_figure(lambda: plots.plot_comparison(shown_pairs, a=names[0], b=names[1]), directory / "compare")
    clean = [json_row(row) for row in rows]
    shown = COLUMNS if len(pairs) > 1 else COLUMNS[3:]
    return Result(clean, present(shown, clean), format, tuple(files))


def _side(name: str, place: str, given: Options, out: Path) -> list[Measured]:
    """The traces that an argument names: its own, or of a run's directory those that the output holds of it."""
    what, path = f"compare {name}", user_path(place)
    if not path.is_dir() or not (out / "traces").is_dir():
        return find_traces([place], given, what=what)
    try:
        return find_traces([place], given, what=what)
    except InputError as error:
        run = path.resolve().name
        found = [one for one in find_traces([str(out)], given, what=what) if run in (one.run, one.run.split("/")[-1])]
        if not found:
            raise InputError(f"{error}; and {out} has none of a run {run}") from None
        return found


def pair_up(a: Sequence[Measured], b: Sequence[Measured]) -> list[Pair]:
    """Traces of A with those of B: the only one of each, or those of the same step and teacher.

    Teachers of different names are paired when each side has one alone. Steps on one side only are left out with a
    warning.

    Raises:
        InputError: a side with several runs, sides whose teachers differ, or no common step.
    """
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    for name, side in (("A", a), ("B", b)):
        runs = sorted({one.run for one in side})
        if len(runs) > 1:
            raise InputError(
                f"compare {name}: holds traces of the runs {', '.join(runs)}; give the directory of one run"
            )
    teachers = [sorted({one.teacher for one in side}) for side in (a, b)]
    if teachers[0] != teachers[1] and max(map(len, teachers)) > 1:
        raise InputError(
            f"compare: A has the teachers {', '.join(teachers[0])}, B has {', '.join(teachers[1])}; give the directory "
            "of one teacher each"
        )
    several = len(teachers[0]) > 1
    keyed = [{(one.teacher if several else "", one.step): one for one in side} for side in (a, b)]
    common = [key for key in keyed[0] if key in keyed[1]]
    if not common:
        steps = [", ".join(map(_step_name, sorted({one.step for one in side}, key=_step_order))) for side in (a, b)]
        raise InputError(
            f"compare: A and B have no step in common (A has {steps[0]}; B has {steps[1]}); give one trace each to "
            "compare different steps"
        )
    for name, found in zip("AB", keyed, strict=True):
        alone = [_step_name(key[1]) for key in found if key not in common]
        if alone:
            warn(f"compare: left out of {name}, for want of a counterpart: step {', '.join(alone)}")
    ordered = sorted(common, key=lambda key: (key[0], _step_order(key[1])))
    return [(keyed[0][key], keyed[1][key]) for key in ordered]


def parts_of(pair: Pair, by: str | None) -> list[Pair]:
    """The parts of a pair by a field, those of one value beside each other; values of one side alone are left out with
    a warning.

    Raises:
        InputError: no value is on both sides, or as :func:`opd_probe.groups`.
    """
    if by is None:
        return [pair]
    first, second = ({one.group: one for one in by_group([side], by)} for side in pair)
    common = [name for name in first if name in second]
    if not common:
        raise InputError(
            f"compare --by {by}: no value is in both traces (A has {', '.join(map(str, first))}; B has "
            f"{', '.join(map(str, second))})"
        )
    for side, found in (("A", first), ("B", second)):
        alone = [str(name) for name in found if name not in common]
        if alone:
            warn(f"compare: left out of {side}, for want of a counterpart: {by} {', '.join(alone)}")
    return [(first[name], second[name]) for name in common]


def _rows(a: Measured, b: Measured) -> list[dict[str, Any]]:
    settings = a.settings
    try:
        table = compare_traces(a.trace, b.trace, settings.k, average=settings.average, seed=settings.seed)
    except OpdProbeError as error:
        where = " and ".join(str(side.trace.path) for side in (a, b))
        raise InputError(f"{where}: {error}") from None
    whole = [replace(one, by=None, group=None) for one in (a, b)]
    keys = [{**one.key, "sampling": sampling_label(one.trace), **stopped_columns(one.trace)} for one in whole]
    names = {f"{name}_{side}": value for side, key in zip("ab", keys, strict=True) for name, value in key.items()}
    names |= {} if a.by is None else {"by": a.by, "group": a.group}
    return [{**names, **row} for row in table.to_dict("records")]  # type: ignore[dict-item]


def _step_name(step: int | None) -> str:
    return "unknown" if step is None else str(step)


def _step_order(step: int | None) -> tuple[bool, int]:
    return step is not None, step or 0


def _pair(row: Mapping[str, Any]) -> str:
    steps = ["?" if row[f"step_{side}"] is None else str(row[f"step_{side}"]) for side in "ab"]
    at = f"step {steps[0]}" if steps[0] == steps[1] else f"step {steps[0]} and {steps[1]}"
    return f"{at}, {row['by']} {row['group']}" if "by" in row else at


def _names(pairs: Sequence[Pair]) -> list[str]:
    """For each side the run, its step when there is one pair, and its teacher where the two differ in nothing else.

    Says of which side the ids are not what was sampled.
    """
    firsts = pairs[0]
    names = [one.run or side for one, side in zip(firsts, ("A", "B"), strict=True)]
    if len(pairs) == 1:
        names = [
            f"{name} at step {'?' if one.step is None else one.step}" for name, one in zip(names, firsts, strict=True)
        ]
    if names[0] == names[1] and firsts[0].teacher != firsts[1].teacher:
        names = [f"{name} against {one.teacher}" for name, one in zip(names, firsts, strict=True)]
    for side in range(2):
        if any(pair[side].token_source != "sampled_ids" for pair in pairs):
            names[side] += " (re-tokenised text)"
        labels = dict.fromkeys(sampling_label(pair[side].trace) for pair in pairs)
        off = [str(label) for label in labels if label not in (None, AS_SCORED)]
        names[side] += f" ({'; '.join(off)})" if off else ""
    return names
