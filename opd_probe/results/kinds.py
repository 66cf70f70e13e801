"""The kinds of figures that traces can give: what each draws, and what it needs beyond the traces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from opd_probe import plots
from opd_probe.curves import join_training_log, rollout_table
from opd_probe.metrics.recovery import gap_recovery
from opd_probe.results.measures import Gathered, curves, mass_curves, position_curves, summaries
from opd_probe.results.tables import as_table, by_series
from opd_probe.runs.log_files import QUANTITIES
from opd_probe.runs.logs import training_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple["Figure | None", str]
"""The figure, if there is one, and what is missing for it or in it ("" for nothing)."""

_SCORES = "answers or scores in the rollouts"
_LOG = "a training log (trainer_state.json beside the checkpoints, or --training-log RUN=FILE)"
_TEACHER = "the teacher's own accuracy (--teacher-accuracy TEACHER=SHARE), scores, and step 0 of a run"
NEEDS = {"accuracy": _SCORES, "reward_auroc": _SCORES, "loss": _LOG, "grad_norm": _LOG, "gap_recovery": _TEACHER}
"""What a metric needs that traces need not hold."""

TRAINING_SHEET = (
    "overlap_ratio", "student_overlap_mass", "teacher_overlap_mass", "overlap_advantage", "accuracy", *QUANTITIES,
)  # fmt: skip
"""What a sheet with a training log shows, as far as it is known."""

_SEED = re.compile(r"[-_./ ]?(?:seed|s)[-_=]?(\d+)(?=$|[-_./ ])")


class Tables:
    """The tables of some traces, each made when the first figure asks for it."""

    def __init__(
        self,
        gathered: Gathered,
        logs: Mapping[str, str],
        teacher_accuracy: Mapping[str, float],
        group_seeds: bool,
    ) -> None:
        self._gathered = gathered
        self._group = group_seeds
        self._teacher_accuracy = teacher_accuracy
        # Read first: bad input is found before any work. A trainer logs whole batches, and no groups of them.
        grouped = any(one.by is not None for one in gathered.measured)
        self._log = pd.DataFrame() if grouped else training_log(gathered.measured, logs)

    def named(self, table: pd.DataFrame) -> pd.DataFrame:
        """With ``--group-seeds``, runs that differ only in their seed as one run with a column ``seed``."""
        if not self._group:
            return by_series(table)
        found = [_SEED.search(str(run)) for run in table["run"]]
        seeds = [int(match.group(1)) if match else 0 for match in found]
        runs = [_SEED.sub("", str(run), count=1) or str(run) for run in table["run"]]
        return by_series(table.assign(run=runs, seed=seeds))

    @cached_property
    def _summaries(self) -> pd.DataFrame:
        return as_table(summaries(self._gathered))

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per trace, and the logged steps between them."""
        log = self._log
        missing = dict.fromkeys(QUANTITIES, np.nan)
        table = join_training_log(self._summaries, log) if len(log) else self._summaries.assign(**missing)
        return self.named(table)

    @cached_property
    def traces(self) -> pd.DataFrame:
        """One row per trace."""
        return self.named(self._summaries)

    def ends(self, last: bool) -> pd.DataFrame:
        """The row of each run's last (or first) known step; the only one where no step is known."""
        ordered = self.traces.assign(_at=self.traces["step"].astype("float64").fillna(-1.0)).sort_values("_at")
        keys = [name for name in ("run", "teacher", "seed") if name in ordered]
        return ordered.groupby(keys, sort=False).tail(1) if last else ordered.groupby(keys, sort=False).head(1)

    @cached_property
    def recovery(self) -> pd.DataFrame:
        """One row per run whose teacher's accuracy is known and whose step 0 was measured."""
        keys = [name for name in ("run", "teacher", "seed") if name in self.traces]
        first, last = (self.ends(last)[[*keys, "step", "accuracy"]] for last in (False, True))
        table = last.merge(first, on=keys, suffixes=("", "_before"))
        table = table[((table["step_before"] == 0) & (table["step"] != 0)).fillna(False).to_numpy(dtype=bool)]
        shares = table["teacher"].map(self._teacher_accuracy).astype("float64")
        recovered = [
            gap_recovery(*values) for values in zip(table["accuracy_before"], table["accuracy"], shares, strict=True)
        ]
        return table.assign(gap_recovery=recovered, model=_models(table))

    @cached_property
    def positions(self) -> pd.DataFrame:
        """One row per trace and bin of positions."""
        return self.named(position_curves(self._gathered))

    @cached_property
    def mass(self) -> pd.DataFrame:
        """One row per trace and rank."""
        return self.named(mass_curves(self._gathered))

    @cached_property
    def rollouts(self) -> pd.DataFrame:
        """One row per rollout."""
        return self.named(curves(self._gathered, "rollouts", lambda m: rollout_table(m.trace)))


def _models(table: pd.DataFrame) -> list[str]:
    """Names of bars: the run, and its teacher where a run has several."""
    several = table.groupby("run")["teacher"].nunique() > 1
    pairs = zip(table["run"], table["teacher"], strict=True)
    return [f"{run} ← {teacher}" if several[run] else str(run) for run, teacher in pairs]


def _absent(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    return [m for m in metrics if m not in table or not np.isfinite(table[m].astype("float64")).any()]


def _needs(metrics: Sequence[str]) -> str:
    """What the metrics need, named once each."""
    reasons: dict[str, list[str]] = {}
    for metric in metrics:
        reasons.setdefault(NEEDS.get(metric, "traces in which it is defined"), []).append(metric)
    return "; ".join(f"{', '.join(names)}: needs {need}" for need, names in reasons.items())


def _over_steps(tables: Tables, metrics: Sequence[str], title: str) -> Drawn:
    logged = any(metric in QUANTITIES for metric in metrics)
    table = tables.steps if logged else tables.traces
    absent = _absent(table, metrics)
    if len(absent) == len(metrics):
        return None, _needs(absent)
    missing = [_needs(absent)] if absent else []
    if table.groupby(["run", "teacher"])["step"].nunique().max() < 2:
        missing.append("curves: need traces of several steps")
    return plots.plot_alignment(table, metrics=metrics, title=title), "; ".join(missing)


def _log_sheet(tables: Tables) -> Drawn:
    if len(_absent(tables.steps, QUANTITIES)) == len(QUANTITIES):
        return None, f"needs {_LOG}"
    known = [name for name in TRAINING_SHEET if not _absent(tables.steps, [name])]
    return plots.plot_alignment(tables.steps, metrics=known, title="Overlap and the training log"), ""


def _accuracy(tables: Tables) -> Drawn:
    table = tables.ends(last=True)
    if _absent(table, ["accuracy"]):
        return None, _needs(["accuracy"])
    return plots.plot_bars(table.assign(model=_models(table)), title="Accuracy at the last step of each run"), ""


def _recovery(tables: Tables) -> Drawn:
    if _absent(tables.recovery, ["gap_recovery"]):
        return None, _needs(["gap_recovery"])
    return plots.plot_bars(tables.recovery, metrics=["gap_recovery"], title="Gap recovery of each run"), ""


def _overview(tables: Tables) -> Drawn:
    absent = [*_absent(tables.recovery, ["gap_recovery"]), *_absent(tables.traces, ["accuracy"])]
    if absent:
        return None, _needs(absent)
    return plots.plot_overview(tables.recovery, tables.traces, tables.traces), ""


def _entropy(tables: Tables) -> Drawn:
    table = tables.positions
    if table["step"].nunique() < 2:
        return None, "needs traces of several steps"
    return plots.plot_heatmap(table), ""


def _rewards(tables: Tables) -> Drawn:
    step = tables.traces["step"].max()
    chosen = tables.traces["step"].isna() if pd.isna(step) else tables.traces["step"] == step
    rows = tables.rollouts
    rows = rows[rows["step"].isna() if pd.isna(step) else rows["step"] == step]
    if _absent(rows, ["correct"]):
        return None, _needs(["accuracy"]).replace("accuracy: ", "")
    at = "" if pd.isna(step) else f" at step {step}"
    title = f"Sequence mean reward of correct and incorrect rollouts{at}"
    return plots.plot_rewards(rows, tables.traces[chosen], title=title), ""


def _continuation(_: Tables) -> Drawn:
    return (
        None,
        "needs the teacher's continuations of student prefixes, for which models run; see plot_continuation",
    )


@dataclass(frozen=True)
class Kind:
    """A kind of figure: the paper's figures of that kind, what it shows, and how it is drawn."""

    paper: str
    shows: str
    draw: Callable[[Tables], Drawn]


def _steps(paper: str, shows: str, title: str, *metrics: str) -> Kind:
    return Kind(paper, shows, partial(_over_steps, metrics=metrics, title=title))


_MASSES = ("student_overlap_mass", "teacher_overlap_mass")
KINDS: dict[str, Kind] = {
    "overview": Kind("1", "gap recovery, overlap ratio and accuracy in one row", _overview),
    "compatibility": _steps(
        "2, 4, 5, 9, 17", "accuracy and overlap ratio by step", "Compatibility", "accuracy", "overlap_ratio"
    ),
    "accuracy": Kind("3, 11a, 15", "accuracy at the last step, as bars", _accuracy),
    "recovery": Kind("1, 4", "gap recovery, as bars", _recovery),
    "dynamics": _steps(
        "6, 7, 8, 20", "accuracy, overlap ratio, overlap advantage and entropy gap by step", "Success or failure",
        "accuracy", "overlap_ratio", "overlap_advantage", "entropy_gap",
    ),
    "prompts": _steps(
        "10, 22", "accuracy, overlap ratio, student overlap mass and entropy by step", "Effect of the prompts",
        "accuracy", "overlap_ratio", "student_overlap_mass", "student_entropy",
    ),
    "continuation": Kind("11b", "what the teacher's continuation gains, by depth of the prefix", _continuation),
    "stability": _steps(
        "12, 16", "overlap ratio, student entropy and gradient norm by step", "Stability",
        "overlap_ratio", "student_entropy", "grad_norm",
    ),
    "entropy": Kind("13, 23", "student and teacher entropy by position and step, as heatmaps", _entropy),
    "rewards": Kind("14", "sequence mean reward of correct and incorrect rollouts, with AUROC", _rewards),
    "overlap-mass": _steps("18, 21", "overlap mass of both models by step", "Overlap mass", *_MASSES),
    "training": _steps(
        "19", "training loss, gradient norm and extreme advantage gap by step", "Training signal",
        "loss", "grad_norm", "extreme_advantage_gap",
    ),
    "training-log": Kind("", "overlap beside what the trainer logged: loss, gradient norm, reward, accuracy, length",
                         _log_sheet),
    "mass": Kind("", "cumulative mass by rank, and the k that 97 and 99 % need",
                 lambda t: (plots.plot_mass(t.mass, t.traces), "")),
    "positions": Kind("", "alignment metrics by position in the response",
                      lambda t: (plots.plot_alignment(t.positions, x="position"), "")),
}  # fmt: skip
"""Every kind of figure by name, in the order of the paper's figures."""
