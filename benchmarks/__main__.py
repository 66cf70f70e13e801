"""Measure, print one table, keep it as JSON, and show it in the documentation.

python -m benchmarks                       # everything, each benchmark in a process of its own
python -m benchmarks lengths sampling      # these alone; the other figures in the JSON stay
python -m benchmarks --show                # print what was measured last
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, machine
from benchmarks.table import DOCS, as_markdown, as_text, show_in

RESULTS = Path(__file__).parent / "results.json"


def _replay(dtype: str, k: int) -> Callable[[bool], list[Row]]:
    def measure(small: bool) -> list[Row]:
        from benchmarks import replay

        return replay.measure(dtype, 8 if small else k, 1 if small else 3, small)

    return measure


def _lengths(small: bool) -> list[Row]:
    from benchmarks import lengths

    if small:
        return lengths.measure_lengths(8, 1, lengths.Shape(64, 128, 1, 1, 1), 64)
    return lengths.measure_lengths()


def _prompts(small: bool) -> list[Row]:
    from benchmarks import lengths

    return lengths.measure_prompts(8, 1, lengths.Shape(64, 128, 1, 1, 1)) if small else lengths.measure_prompts()


def _filling(small: bool) -> list[Row]:
    from benchmarks import sampling

    return sampling.measure_filling(2, 2, 2, longest=12) if small else sampling.measure_filling()


def _on_policy(small: bool) -> list[Row]:
    from benchmarks import on_policy

    if small:
        return on_policy.measure(2, 2, 1, 12, on_policy.Shape(64, 128, 1, 1, 1, 500))
    return on_policy.measure()


def _sampling(small: bool) -> list[Row]:
    from benchmarks import sampling

    return sampling.measure(4, 8, 1, sampling.Shape(64, 128, 1, 1, 1, 500)) if small else sampling.measure()


def _memory(small: bool) -> list[Row]:
    from benchmarks import memory

    shape = memory.Shape(64, 128, 1, 1, 1, 500)
    if small:
        return memory.measure_long((8, 16), shape, 8) + memory.measure_sequential(shape, 8)
    return memory.measure_long() + memory.measure_sequential()


def _checkpoints(small: bool) -> list[Row]:
    from benchmarks import checkpoints

    if small:
        return checkpoints.measure_one(checkpoints.Shape(64, 128, 1, 1, 1, 500), 16, "small", 2, 1)
    return checkpoints.measure()


def _after_trace(small: bool) -> list[Row]:
    from benchmarks import after_trace

    report = after_trace.measure(5_000, 6_000) if small else after_trace.measure()
    return after_trace.rows(report)


def _commands(small: bool) -> list[Row]:
    from benchmarks import commands

    return commands.measure_small() if small else commands.measure()


BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {
    "replay-float32": _replay("float32", 64),
    "replay-bfloat16": _replay("bfloat16", 16),
    "lengths": _lengths,
    "prompts": _prompts,
    "sampling": _sampling,
    "filling": _filling,
    "on-policy": _on_policy,
    "memory": _memory,
    "checkpoints": _checkpoints,
    "after-trace": _after_trace,
    "commands": _commands,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the page that shows them")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if given.worker:
        json.dump(BENCHMARKS[given.names[0]](given.small), sys.stdout)
        return
    report = json.loads(given.json.read_text()) if given.json.is_file() else {"rows": {}}
    for name in [] if given.show else given.names or list(BENCHMARKS):
        print(f"{name} …", file=sys.stderr, flush=True)
        started = time.perf_counter()
        rows = _in_own_process(name, given.small)
        report["rows"][name] = rows
        report |= machine()
        given.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows = in_order(report)
    print(as_text(rows))
    if not given.show:
        show_in(given.docs, as_markdown(rows))


def in_order(report: dict[str, Any]) -> list[Row]:
    """All rows, in the order of the benchmarks."""
    return [row for name in BENCHMARKS for row in report["rows"].get(name, [])]


def _in_own_process(name: str, small: bool) -> list[Row]:
    """A process of its own, so that neither memory nor compiled code of one benchmark is another's."""
    command = [sys.executable, "-m", "benchmarks", name, "--worker", *(["--small"] if small else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[Row] = json.loads(done.stdout)
    return rows


if __name__ == "__main__":
    main()
