"""``--variant``: rows, files and figures of a command in another trainer's definitions, named as such throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from opd_probe import plots
from opd_probe.curves import join_training_log, summarize_variant
from opd_probe.metrics.variants import Quantity, Variant
from opd_probe.results.measures import Gathered, interval_options
from opd_probe.runs.log_files import Names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = (
    "run",
    "step",
    "teacher",
    "group",
    "variant",
    "k",
    "states",
    "token_source",
    "sampling",
    "quantised",
    "stopped",
    "n_states",
)

_ABOUT: dict[str, tuple[str, Callable[[Quantity], bool]]] = {
    "overlap": ("Top-k overlap", lambda _: True),
    "mass": ("Mass", lambda one: one.unit == "probability"),
    "align": ("Alignment", lambda one: one.unit != "probability"),
}
"""What each command shows of a variant: the title of its figure, and which quantities."""


def variant_rows(gathered: Gathered, variant: Variant, command: str) -> list[dict[str, Any]]:
    """One row per trace: its names, the variant, and the quantities that the command is about."""
    wanted = _ABOUT[command][1]
    left_out = [one.name for one in variant.quantities if not wanted(one)]
    rows = []
    gathered.progress.begin(f"summarise as {variant.name}")
    for done, measured in enumerate(gathered.measured):
        gathered.progress.update(done, len(gathered.measured))
        row = summarize_variant(measured.trace, variant, measured.settings.k, **interval_options(measured))
        row = {name: value for name, value in row.items() if not any(_is_of(name, one) for one in left_out)}
        rows.append({**measured.key, **measured.labels, **row})
    return rows


def _is_of(column: str, quantity: str) -> bool:
    """Whether a column holds a quantity, an end of its interval, its count, or one of its chunks."""
    rest = column.removeprefix(quantity)
    return rest != column and (rest in ("", "_lo", "_hi", "_n") or rest.startswith("_chunk_"))


def shown(variant: Variant, command: str) -> tuple[str, ...]:
    """The quantities that a table on the screen and the figure have."""
    return tuple(one.name for one in variant.quantities if one.headline and _ABOUT[command][1](one))


def file_name(variant: Variant, command: str) -> str:
    """The name, without suffix, of the command's files."""
    return f"{command}-{variant.name.replace(':', '-')}"


def logged_names(variant: Variant) -> Names:
    """What a trainer's log may call the quantities: their own names, with ``train/`` before them or without."""
    return {one.name: (one.name, f"train/{one.name}") for one in variant.quantities}


def as_logged(name: str) -> str:
    """The column that holds what a trainer logged of a quantity, beside what was measured."""
    return name if name in ("run", "step") else f"{name}_logged"


def draw_variant(variant: Variant, command: str, log: pd.DataFrame | None = None) -> Callable[[pd.DataFrame], Figure]:
    """What draws a table of one k.

    Args:
        log: what trainers logged, drawn dashed in the panels of the same quantities, a step each.
    """
    peer, *options = variant.name.split(":")
    how = f" ({', '.join(options)})" if options else ""
    title = f"{_ABOUT[command][0]} as {peer}{how} logs it"
    metrics: Sequence[str] = shown(variant, command)
    if log is None or log.empty:
        return lambda table: plots.plot_alignment(table, metrics=metrics, title=title)
    beside = {name: as_logged(name) for name in metrics if name in log}

    def draw(table: pd.DataFrame) -> Figure:
        bare = table.drop(columns=[name for name in table.columns if str(name).endswith("_logged")])
        joined = join_training_log(bare, log.rename(columns=as_logged))
        return plots.plot_alignment(joined, metrics=metrics, beside=beside, title=title)

    return draw
