"""A replay that stops: in which order prompts are replayed, where it looks at its intervals, and what it looks for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd_probe.curves.accumulate import prompts_with_states
from opd_probe.curves.looks import FIRST_LOOK, look_level, look_sizes
from opd_probe.curves.summary import summary_row
from opd_probe.engine.scoring import Columns
from opd_probe.engine.sequences import skip_reason
from opd_probe.engine.served import UNKNOWN
from opd_probe.errors import InputError, OpdProbeWarning, warn, warn_in_passing
from opd_probe.metrics import METRICS
from opd_probe.options.precision import Precision
from opd_probe.output import write_bytes
from opd_probe.rollouts.files import prompt_key
from opd_probe.texts import read_json
from opd_probe.trace import Trace, TraceSpool
from opd_probe.types import Rollout


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which prompts are replayed, and after how many of them a replay may stop.

    Rollouts of the prompts between two looks are a unit: they go through the models together and with no others, so
    that their bytes hang on neither where a replay stopped nor how often.

    Attributes:
        seed: of the order. looks: numbers of prompts with states, ascending; the last is all of them.
    """

    seed: int
    looks: tuple[int, ...]

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], seed: int) -> Order:
        """The order of a replay that has not begun."""
        return cls(seed, look_sizes(len(_with_states(rollouts))))

    @classmethod
    def stored(cls, said: Any, rollouts: Sequence[Rollout]) -> Order | None:
        """The order that work on these rollouts was begun in, as it says; None where it does not."""
        if not isinstance(said, Mapping) or not isinstance(said.get("seed"), int):
            return None
        looks = said.get("looks")
        if not isinstance(looks, list) or not looks or not all(type(one) is int for one in looks):
            return None
        sound = all(a < b for a, b in zip([0, *looks], looks, strict=False)) and said["seed"] >= 0
        return cls(said["seed"], tuple(looks)) if sound and looks[-1] == len(_with_states(rollouts)) else None

    @property
    def level(self) -> float:
        """Of the interval at each look."""
        return look_level(len(self.looks))

    def said(self) -> dict[str, Any]:
        """In JSON types, for :meth:`stored`."""
        return {"seed": self.seed, "looks": list(self.looks)}

    def units(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """The rollouts of each unit, ascending."""
        prompts = [prompt_key(rollout) for rollout in rollouts]
        names = list(dict.fromkeys(prompts))
        counted, place, rank = _with_states(rollouts), {}, 0
        for index in np.random.default_rng(self.seed).permutation(len(names)).tolist():
            place[names[index]] = min(rank, len(counted) - 1)  # one without states goes with the next that has some
            rank += names[index] in counted
        units: list[list[int]] = [[] for _ in self.looks]
        for index, unit in enumerate(np.searchsorted(self.looks, [place[name] for name in prompts], side="right")):
            units[unit].append(index)
        return units


def _with_states(rollouts: Sequence[Rollout]) -> set[str]:
    """The prompts that have a state."""
    return {prompt_key(rollout) for rollout in rollouts if skip_reason(rollout) is None}


def half_widths(trace: Trace, precision: Precision) -> dict[str, float]:
    """How far the farther end of each metric's interval lies from it; NaN where there is no interval."""
    states = [name for name in precision.widths if name in METRICS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpdProbeWarning)  # said of the trace that comes of it, and once
        row = summary_row(trace, min(precision.k, trace.K), average=precision.average, metrics=states)
    return {
        name: float(np.maximum(row[name] - row[f"{name}_lo"], row[f"{name}_hi"] - row[name]))
        for name in precision.widths
    }


def narrow(trace: Trace, precision: Precision) -> bool:
    """Whether a trace is as precise as asked."""
    found = half_widths(trace, precision)
    return all(found[name] <= width for name, width in precision.widths.items())


def warn_of_width(trace: Trace, precision: Precision) -> None:
    """Say when a trace that holds everything is less precise than asked."""
    found = half_widths(trace, precision)
    for name, width in precision.widths.items():
        if not found[name] <= width:
            prompts = prompts_with_states(trace)
            held = "has no interval" if np.isnan(found[name]) else f"is known within ± {found[name]:.3g}"
            labels = trace.provenance.get("labels", {})
            where = f"run {labels['run']}, step {labels.get('step')}: " if "run" in labels else ""
            warn(
                f"{where}precision {name}={width:g} is not reached with all {prompts} prompts: {name} {held}; give "
                "more prompts, or ask for less"
            )


def check_told(precision: Precision) -> None:
    """Refuse to wait for what a served teacher does not tell.

    Raises:
        InputError: names the metric.
    """
    for name in precision.widths:
        if name in METRICS and set(METRICS[name].needs) & set(UNKNOWN):
            raise InputError(
                f"--precision of {name}: a served teacher does not tell it; choose another metric, or load the teacher "
                "from its weights"
            )


def order_path(path: Path) -> Path:
    """Where the unfinished work on a trace keeps its order."""
    return path.with_name(f".{path.name}.partial") / "order.json"


def kept_order(path: Path, fingerprint: Mapping[str, Any], rollouts: Sequence[Rollout]) -> Order | None:
    """The order in which unfinished work on a trace was begun, of the same inputs; None: there is none."""
    try:
        said = read_json(order_path(path))
    except (OSError, ValueError):
        return None
    same = isinstance(said, dict) and said.get("fingerprint") == json.loads(json.dumps(fingerprint))
    return Order.stored(said, rollouts) if same else None


@dataclass(frozen=True, slots=True)
class Begun:
    """What a replay goes on from, and how it works.

    Attributes:
        order: None: everything at once.
        trace: that of a replay which stopped, in this order; None: there is none.
        precision: when to stop; None: at the end.
    """

    order: Order | None
    trace: Trace | None = None
    precision: Precision | None = None

    def units(self, rollouts: Sequence[Rollout]) -> list[list[int]] | None:
        """The rollouts of each unit; None: all are one."""
        return None if self.order is None else self.order.units(rollouts)

    def keep(self, path: Path | None, fingerprint: Mapping[str, Any]) -> None:
        """Write the order beside the unfinished work, for :func:`kept_order`."""
        if path is not None and self.order is not None:
            said = {**self.order.said(), "fingerprint": dict(fingerprint)}
            write_bytes(order_path(path), json.dumps(said).encode())

    def fill(self, spool: TraceSpool, ids: Sequence[str]) -> None:
        """Take over what the trace holds.

        Args:
            ids: of all rollouts.
        """
        if self.trace is None:
            return
        place = {name: index for index, name in enumerate(ids)}
        held = [place[name] for name in self.trace.rollouts.column("rollout_id").to_pylist()]
        spool.take(held, self.trace.blocks([column.name for column in spool.columns]))

    def replayed(
        self,
        states: Iterator[tuple[int, Columns]],
        spool: TraceSpool,
        units: Sequence[Sequence[int]] | None,
        table: pa.Table,
        provenance: Mapping[str, Any],
    ) -> list[int] | None:
        """Put states into the spool, to the end or to the first look at which they are as precise as asked.

        Args:
            table: the rollout table of all. provenance: of the trace.

        Returns:
            The rollouts up to that look, ascending; None: all of them.
        """
        precision, order = self.precision, self.order
        if precision is None or order is None or units is None:
            for index, values in states:
                spool.put(index, values)
            return None
        if len(units) == 1:
            warn_in_passing(
                f"precision: {order.looks[-1]} prompts are too few to stop before the last, the first look being after "
                f"{FIRST_LOOK}; all of them are replayed"
            )
        looking = {**provenance, "stopped": {"level": order.level}}
        ended = _ends(units, spool.done)

        def enough() -> list[int]:
            """The rollouts that say enough, at a look that was not taken yet."""
            taken = next(ended)
            return taken if taken and narrow(spool.part(taken, table, looking), precision) else []

        taken = enough()
        while not taken:
            if (state := next(states, None)) is None:
                return None
            spool.put(*state)
            taken = enough()
        return taken

    def said(self, taken: Sequence[int] | None, table: pa.Table, spool: TraceSpool) -> dict[str, Any]:
        """What the provenance of the trace holds: the order, and where its replay stopped."""
        order, precision = self.order, self.precision
        if order is None or len(order.looks) == 1:
            return {}
        if taken is None or precision is None:
            return {"order": order.said()}
        held = [index for index in taken if spool.offsets[index] < spool.offsets[index + 1]]
        prompts = table.column("prompt_id").take(held)
        stopped = {
            "asked": dict(precision.widths),
            "k": precision.k,
            "average": precision.average,
            "level": order.level,
            "prompts": len(prompts.unique()),
            "of_prompts": order.looks[-1],
            "states": len(spool.rows(taken)),
            "of_states": int(spool.offsets[-1]),
        }
        return {"order": order.said(), "stopped": stopped}


def _ends(units: Sequence[Sequence[int]], done: NDArray[np.bool_]) -> Iterator[list[int]]:
    """Each time the rollouts of all units that are through, ascending, when another one came to its end since the last
    time and more are to come; else none."""
    through, members = 0, [np.asarray(unit) for unit in units]
    while True:
        before = through
        while through < len(units) and bool(done[members[through]].all()):
            through += 1
        ended = before < through < len(units)
        yield sorted(index for unit in units[:through] for index in unit) if ended else []
