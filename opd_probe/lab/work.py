"""Doing many jobs side by side: each as soon as what it needs is in the cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from opd_probe.lab.runs import Job, do, done, needs

__all__ = ["closure", "work"]


def closure(jobs: Iterable[Job]) -> list[Job]:
    """The jobs with everything that they need, each after its needs, otherwise in the order given."""
    ordered: dict[Job, None] = {}

    def add(job: Job) -> None:
        if job not in ordered:
            for need in needs(job):
                add(need)
            ordered[job] = None

    for job in jobs:
        add(job)
    return list(ordered)


def work(root: Path, jobs: Sequence[Job], processes: int = 2) -> None:
    """Do whatever of ``jobs`` and their needs the cache lacks, in processes of one thread each.

    Interrupted, it leaves what is finished in the cache, and unfinished runs at their last checkpoint.
    """
    waiting = [job for job in closure(jobs) if not done(root, job)]
    total, began = len(waiting), time.monotonic()
    running: dict[Future[None], Job] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            while waiting or running:
                for job in [job for job in waiting if all(done(root, need) for need in needs(job))]:
                    if len(running) < processes:
                        waiting.remove(job)
                        running[pool.submit(do, root, job)] = job
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    future.result()
                    _say(job, total - len(waiting) - len(running), total, time.monotonic() - began)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _say(job: Job, finished: int, total: int, seconds: float) -> None:
    left = seconds / finished * (total - finished)
    print(f"[{finished}/{total}] {job} done, about {left / 60:.0f} min left", file=sys.stderr, flush=True)
