"""What the commands of one process share: the reporter on stderr, and quiet libraries."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from opd_probe.cli.printing import print_rows
from opd_probe.cli.progress import StderrProgress

if TYPE_CHECKING:
    from opd_probe.commands.result import Result

progress = StderrProgress()


def quieten_libraries() -> None:
    """Keep the libraries' own bars and notices off both streams; call before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its cache
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for rows
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def finish(result: Result) -> None:
    """Print a command's rows on stdout and the files that it wrote on stderr."""
    progress.close()
    print_rows(result.rows, result.columns, result.format)
    if result.files:
        progress.say(f"wrote {', '.join(str(file) for file in result.files)}")
