"""Whole commands of the lab: what there is, what is done, and everything that is missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.lab.claims import write_claims
from opd_probe.lab.experiments import chosen, jobs_of
from opd_probe.lab.runs import done
from opd_probe.lab.tables import build_tables, write_tables
from opd_probe.lab.work import closure, work

__all__ = ["list_rows", "run_experiments", "status_rows", "write_results"]


def list_rows() -> list[dict[str, Any]]:
    """One row per experiment: name, the paper's figures, the labels of its runs, and the question."""
    return [
        {"experiment": e.name, "figures": e.figures, "runs": ", ".join(e.runs), "question": e.question}
        for e in chosen([])
    ]


def status_rows(names: Sequence[str], seeds: Sequence[int], cache: Path) -> list[dict[str, Any]]:
    """One row per experiment and seed: how many of its jobs are done, of how many, and the next one that is missing."""
    rows = []
    for experiment in chosen(names):
        for seed in seeds:
            jobs = closure(jobs_of(experiment, [seed]))
            missing = [job for job in jobs if not done(cache, job)]
            following = f"{missing[0].kind} {missing[0].name}" if missing else ""
            finished = len(jobs) - len(missing)
            rows.append(
                {"experiment": experiment.name, "seed": seed, "done": finished, "of": len(jobs), "missing": following}
            )
    return rows


def run_experiments(names: Sequence[str], seeds: Sequence[int], cache: Path, out: Path, processes: int) -> list[Path]:
    """Do what the cache lacks, then write tables and claims; returns the files.

    Raises:
        InputError: an unknown experiment, or a seed below 0.
    """
    if any(seed < 0 for seed in seeds):
        raise InputError(f"seeds {', '.join(map(str, seeds))}: expected whole numbers of at least 0")
    work(cache, [job for experiment in chosen(names) for job in jobs_of(experiment, seeds)], processes)
    return write_results(seeds, cache, out)


def write_results(seeds: Sequence[int], cache: Path, out: Path) -> list[Path]:
    """``out/data/*.parquet`` and ``out/claims.json`` from what is in the cache.

    Raises:
        InputError: the cache holds no finished run of an experiment.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpdProbeWarning)
        tables = build_tables(cache, seeds)
    if tables["curves"].empty:
        raise InputError(f"{cache}: no finished run of an experiment; start with `opd-probe lab run`")
    written = write_tables(tables, out / "data")
    write_claims(tables, out / "claims.json", seeds)
    return [*written, out / "claims.json"]
