"""Progress as lines on stderr: several processes can write them side by side, and a log file keeps them."""

from __future__ import annotations

import sys
import time

import torch
from transformers.utils.logging import disable_progress_bar

from opd_probe.lab.pretrain import Report

__all__ = ["begin_worker", "lines"]


def begin_worker() -> None:
    """Settings of a process that trains: one thread, and no progress bars but our lines."""
    torch.set_num_threads(1)
    disable_progress_bar()


def lines(label: str, every: float = 5.0) -> Report:
    """A progress callback that prints a line every ``every`` seconds and at the end, with the time left."""
    began = last = time.monotonic()

    def report(step: int, steps: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every and step < steps:
            return
        last = now
        left = (now - began) / step * (steps - step)
        print(f"{label:<32} step {step:>4}/{steps}  {text}  {left:4.0f} s left", file=sys.stderr, flush=True)

    return report
