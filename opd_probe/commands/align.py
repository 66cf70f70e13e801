"""``opd-probe align``: alignment curves over steps, positions or the depth of the reward."""

from __future__ import annotations

from opd_probe import plots
from opd_probe.commands.gathering import NAMES, by_k, finish, gather, shown_columns, write
from opd_probe.commands.result import Result
from opd_probe.commands.variant import as_variant
from opd_probe.curves import reward_by_depth, signal_by_depth
from opd_probe.errors import InputError
from opd_probe.options.request import Request
from opd_probe.progress import Progress
from opd_probe.results.files import write_csv
from opd_probe.results.measures import Gathered, curves, position_curves, summaries
from opd_probe.results.tables import by_series, json_row, records

ALIGN_COLUMNS = (
    *NAMES, "overlap_ratio", "overlap_advantage", "entropy_gap", "student_entropy", "teacher_entropy",
    "student_overlap_mass", "teacher_overlap_mass", "reverse_kl", "forward_kl",
)  # fmt: skip
POSITION_COLUMNS = (
    "run",
    "step",
    "teacher",
    "group",
    "k",
    "token_source",
    "sampling",
    "quantised",
    "stopped",
    "position_lo",
    "position_hi",
    "n_states",
    *ALIGN_COLUMNS[len(NAMES) :],
)
DEPTH_COLUMNS = (
    "run", "step", "teacher", "group", "token_source", "sampling", "quantised", "stopped", "position_lo",
    "position_hi",
    "n_states", "sampled_reward",
    *(f"sampled_reward_q{end}" for end in ("05", "25", "50", "75", "95")),
)  # fmt: skip


def align(
    request: Request, progress: Progress, *, x: str = "step", bins: int = 20, variant: str | None = None
) -> Result:
    """Alignment curves over steps or over positions in the response: ``align.csv`` and a figure.

    Raises:
        OpdProbeError: bad input, in one line.
    """
    if variant is not None and x != "step":
        raise InputError(f"--variant and --x {x}: other trainers' quantities are curves over steps; leave --x out")
    if variant is not None:
        return as_variant(request, progress, "align", variant)
    with gather(request, progress) as gathered:
        if isinstance(gathered, Result):
            return gathered
        if x == "step":
            rows = summaries(gathered, whole=True)
            return finish(gathered, "align", rows, ALIGN_COLUMNS, by_k(rows, plots.plot_alignment))
        if x == "depth":
            return _depth(gathered, bins)
        rows = records(position_curves(gathered, bins))
        draw = by_k(rows, lambda part: plots.plot_alignment(part, x="position"))
        return finish(gathered, "align", rows, POSITION_COLUMNS, draw)


def _depth(gathered: Gathered, bins: int) -> Result:
    """Quantiles of the sampled reward by position, and where its signal lies."""
    reward = curves(gathered, "reward by depth", lambda m: reward_by_depth(m.trace, bins=bins))
    signal = curves(gathered, "signal by depth", lambda m: signal_by_depth(m.trace, bins=bins, seed=m.settings.seed))
    files = write(gathered, "depth", reward, [("", lambda: plots.plot_depth(by_series(reward), by_series(signal)))])
    files += (write_csv(signal, gathered.out / "depth-signal.csv"),)
    rows = [json_row(row) for row in records(reward)]
    return Result(rows, shown_columns(DEPTH_COLUMNS, rows), gathered.format, files)
