"""Replays that stop when they are precise enough: how often the interval there holds the truth, and what is saved.

    python -m benchmarks.stopping           # simulate, keep as JSON, show in the documentation
    python -m benchmarks.stopping --show    # print what was found last

Every case draws prompts from a population whose mean is known, many times over, and replays them in that order until
the interval is narrow enough. Widths are those at which a replay of a tenth, a quarter and half of the prompts would
do, were that number known beforehand. Coverage is the share of replays, stopped or not, whose interval holds the mean;
where all prompts are replayed it is the usual one. The intervals are the package's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import DEMO_STEPS, ROLLOUTS, SHARE, Case, Draws, _demo, of_demo, of_lognormal, show_in
from opd_probe.curves.intervals import LEVEL, interval
from opd_probe.curves.looks import look_level, look_sizes

Floats = NDArray[np.float64]
Row = dict[str, Any]

RESULTS = Path(__file__).parent / "stopping.json"
DOCS = Path(__file__).parents[1] / "docs" / "intervals.md"
MARKS = {name: (f"<!-- {name} by python -m benchmarks.stopping -->", "<!-- end -->") for name in ("stopping", "saved")}

PROMPTS = (64, 400, 1_000)
SHARES = (0.1, 0.25, 0.5)
"""What of the prompts would do, were it known."""

OURS, POCOCK, UNCORRECTED = "opd-probe", "Pocock's bound", "95 % at each look"
POPULATION = 2_000
WIDTHS = (0.02, 0.01, 0.007)


@lru_cache
def overlap_of_states() -> tuple[Floats, Floats]:
    """[p] each: of synthetic prompts the sum of the overlap ratio over their states, and the number of these.

    Four rollouts a prompt of log-normal length (median 40, σ = 0.8). The log-odds that a token of the student's 16 is
    in the overlap is a prompt's own, plus a rollout's, plus a chain along the states whose neighbours correlate by 0.7.
    """
    generator = np.random.default_rng(16)
    shape = (POPULATION, ROLLOUTS)
    length = np.ceil(40 * np.exp(0.8 * generator.normal(size=shape))).astype(np.int64)
    level = 1.3 + 0.1 * generator.normal(size=(POPULATION, 1)) + 0.1 * generator.normal(size=shape)
    chain, total = generator.normal(size=shape), np.zeros(shape)
    for state in range(int(length.max())):
        shared = generator.binomial(16, 1 / (1 + np.exp(-(level + chain)))) / 16
        total += np.where(state < length, shared, 0.0)
        chain = 0.7 * chain + np.sqrt(1 - 0.7**2) * generator.normal(size=shape)
    return total.sum(1), length.sum(1).astype(np.float64)


def of_overlap() -> Case:
    """An overlap ratio of correlated states in rollouts of heavy-tailed length."""
    total, count = overlap_of_states()

    def draw(generator: np.random.Generator, prompts: int, draws: int) -> tuple[Draws, ...]:
        chosen = generator.integers(0, POPULATION, (prompts, draws))
        return (Draws(total[chosen], count[chosen], ROLLOUTS, SHARE),)

    return Case("overlap ratio, correlated states, log-normal lengths", "share", float(total.sum() / count.sum()), draw)


def cases() -> list[Case]:
    """Every population."""
    metrics = ("overlap_ratio", "student_entropy", "overlap_advantage", "reverse_kl", "forward_kl", "sampled_reward")
    return [of_overlap(), of_lognormal(1), of_lognormal(ROLLOUTS), *(of_demo(metric, 100) for metric in metrics)]


def pocock_level(sizes: Sequence[int], level: float = LEVEL) -> float:
    """The level of each interval such that those of normal sums of so many terms hold all at once (Pocock, 1977).

    S_j/√n_j is a Markov chain: its density within the bounds is carried from look to look by quadrature.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    nodes, weights = np.polynomial.legendre.leggauss(96)

    def normal(x: Floats, deviation: float = 1.0) -> Floats:
        return np.exp(-0.5 * (x / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))

    def excess(bound: float) -> float:
        at, weight = bound * nodes, bound * weights
        density = normal(at)
        for before, after in pairwise(sizes):
            share = before / after
            density = normal(at[:, None] - np.sqrt(share) * at, np.sqrt(1 - share)) @ (weight * density)
        return float(weight @ density) - level

    return float(2 * ndtr(brentq(excess, 1.0, 8.0)) - 1)


METHODS: dict[str, Callable[[Sequence[int]], float]] = {
    OURS: lambda sizes: look_level(len(sizes)),
    POCOCK: pocock_level,
    UNCORRECTED: lambda _: LEVEL,
}


def replayed(sample: Draws, width: float, level: float) -> tuple[NDArray[np.int64], Floats, Floats]:
    """For each draw at how many prompts its replay ends, and the ends of the interval there, [d] each."""
    prompts, draws = sample.total.shape
    stop, lo, hi = np.full(draws, prompts), np.full(draws, np.nan), np.full(draws, np.nan)
    going = np.arange(draws)
    for size in look_sizes(prompts):
        part = Draws(sample.total[:size, going], sample.count[:size, going], sample.per_prompt, sample.range)
        estimate = part.estimate()
        low, high = interval(estimate, level=level if size < prompts else LEVEL)
        half = np.maximum(estimate.value - low, high - estimate.value)
        ended = (half <= width) | (size == prompts)
        at = going[ended]
        stop[at], lo[at], hi[at] = size, low[ended], high[ended]
        going = going[~ended]
        if not len(going):
            break
    return stop, lo, hi


def needed_width(case: Case, prompts: float) -> float:
    """The half-width of a 95 % interval over so many prompts, by the variance of the population."""
    (many,) = case.draw(np.random.default_rng(7), 20_000, 1)
    total, count = many.total[:, 0], many.count[:, 0]
    return float(1.959964 * np.std((total - case.truth * count) / count.mean()) / np.sqrt(prompts))


def measure(case: Case, prompts: int, draws: int) -> list[Row]:
    """A row per width and method."""
    (sample,) = case.draw(np.random.default_rng(prompts), prompts, draws)
    sizes, rows = look_sizes(prompts), []
    for share in SHARES:
        width = needed_width(case, share * prompts)
        for method, level in METHODS.items():
            stop, lo, hi = replayed(sample, width, level(sizes))
            held = (lo <= case.truth) & (case.truth <= hi)
            found = {"coverage": round(float(held.mean()), 4), "taken": round(float(stop.mean() / prompts), 3)}
            found["stopped"] = round(float((stop < prompts).mean()), 3)
            rows.append({"case": case.name, "prompts": prompts, "share": share, "method": method, **found})
    return rows


def measure_saved(draws: int) -> list[Row]:
    """What part of the states is not replayed: of 10⁵ synthetic ones, and of those of the demo's compatible run."""
    total, count = overlap_of_states()
    prompts = int(np.searchsorted(np.cumsum(count), 100_000))
    found = {"10⁵ synthetic states": (total[:prompts], count[:prompts])}
    found |= {f"demo, step {step}": _demo()["overlap_ratio", step] for step in DEMO_STEPS}
    rows = []
    for name, (total, count) in found.items():
        generator = np.random.default_rng(5)
        order = np.stack([generator.permutation(len(total)) for _ in range(draws)], axis=1)
        sample = Draws(total[order], count[order], ROLLOUTS, SHARE)
        states = np.cumsum(sample.count, axis=0)
        for width in WIDTHS:
            stop, _, _ = replayed(sample, width, look_level(len(look_sizes(len(total)))))
            taken = states[stop - 1, np.arange(draws)] / states[-1]
            about = {"data": name, "prompts": len(total), "states": int(states[-1, 0]), "width": width}
            rows.append({**about, "stops_at": int(np.median(stop)), "saved": round(float(1 - taken.mean()), 3)})
    return rows


def everything(draws: int = 1_000) -> dict[str, list[Row]]:
    """All rows of both tables."""
    stopping = [row for case in cases() for prompts in PROMPTS for row in measure(case, prompts, draws)]
    return {"stopping": stopping, "saved": measure_saved(draws)}


def as_markdown(found: dict[str, list[Row]]) -> dict[str, str]:
    """The tables of the documentation, by the name of their mark."""
    rows = {(row["case"], row["prompts"], row["share"], row["method"]): row for row in found["stopping"]}
    named = {key: list(dict.fromkeys(row[key] for row in found["stopping"])) for key in ("case", "prompts", "share")}
    heads = [f"{prompts} prompts, {100 * share:.0f} %" for prompts in named["prompts"] for share in named["share"]]
    out = [f"| case | | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for case in named["case"]:
        for method in METHODS:
            held = [rows[case, prompts, share, method] for prompts in named["prompts"] for share in named["share"]]
            cells = [f"{100 * row['coverage']:.0f} % · {100 * row['taken']:.0f} %" for row in held]
            label = (case, f"**{method}**") if method == OURS else ("", method)
            out.append(f"| {' | '.join([*label, *cells])} |")
    saved = ["| data | prompts | states | ± | stops at (median) | states saved |", "|---|---|---|---|---|---|"]
    for row in found["saved"]:
        cells = [row["data"], f"{row['prompts']:,}", f"{row['states']:,}", f"{row['width']:g}", f"{row['stops_at']:,}"]
        saved.append(f"| {' | '.join(cells)} | {100 * row['saved']:.0f} % |")
    return {"stopping": "\n".join(out), "saved": "\n".join(saved)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=1_000, help="of each case (default: 1000)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the page that shows them")
    parser.add_argument("--show", action="store_true", help="simulate nothing")
    given = parser.parse_args(arguments)
    if not given.show:
        parts = [
            f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
            for name, rows in everything(given.draws).items()
        ]
        given.json.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    tables = as_markdown(json.loads(given.json.read_text()))
    print("\n\n".join(tables.values()))
    if not given.show:
        show_in(given.docs, tables, MARKS)


if __name__ == "__main__":
    main()
