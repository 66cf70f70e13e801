"""How often 95 % intervals hold the truth, by simulation: what the package does, and what else there is.

    python -m benchmarks.coverage                            # simulate, keep as JSON, show in the documentation
    python -m benchmarks.coverage --demo opd-probe-out       # first take the prompts of the demo's traces anew
    python -m benchmarks.coverage --show                     # print what was found last

Every case draws prompts from a population whose mean is known, many times over, and asks each method for its interval.
Coverage is the share of intervals that hold that mean; where a method gives none, the draw counts as such and in no
coverage. The package's own intervals are made by its own functions, a column of an estimate for each draw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd_probe.curves.accumulate import RolloutSums, clusters_of
from opd_probe.curves.bootstrap import Resampling, quantile
from opd_probe.curves.clusters import Sums
from opd_probe.curves.intervals import Estimate, difference, interval
from opd_probe.curves.rollouts import Auroc
from opd_probe.metrics import METRICS
from opd_probe.metrics.registry import REAL, Range
from opd_probe.metrics.states import metric_blocks
from opd_probe.trace import read_trace

Floats = NDArray[np.float64]
Row = dict[str, Any]

RESULTS = Path(__file__).parent / "coverage.json"
DEMO = Path(__file__).parent / "demo_prompts.parquet"
DOCS = Path(__file__).parents[1] / "docs" / "intervals.md"
MARKS = {
    name: (f"<!-- {name} by python -m benchmarks.coverage -->", "<!-- end -->") for name in ("coverage", "methods")
}

PROMPTS = (3, 5, 10, 20, 64)
COMPARED = (10, 20)
ROLLOUTS = 4
SHARE: Range = (0.0, 1.0)
POSITIVE: Range = (0.0, np.inf)
RESAMPLES = 1_000
OURS, BEFORE = "opd-probe", "percentile"


@dataclass(frozen=True)
class Draws:
    """Prompts drawn again and again.

    Attributes:
        total, count: [c, d], the sum and the number of values of each prompt, a column for each draw.
        per_prompt: rollouts of a prompt.
        range: of the quantity.
    """

    total: Floats
    count: Floats
    per_prompt: float
    range: Range

    def estimate(self) -> Estimate:
        """As the package makes it of a trace."""
        none = np.zeros_like(self.total)
        units = self.count.sum(0) / self.per_prompt
        return Sums(self.total, self.count, none, none, units).estimate([self.range] * self.total.shape[1])


@dataclass(frozen=True)
class Case:
    """A population of prompts.

    Attributes:
        name: as the table says it. kind: ``"share"``, ``"non-negative"``, ``"unbounded"``, ``"difference"``.
        truth: its mean.
        draw: (generator, prompts, draws) in; one sample out, or two of the same prompts, whose difference is meant.
    """

    name: str
    kind: str
    truth: float
    draw: Callable[[np.random.Generator, int, int], tuple[Draws, ...]]


def of_difficulty(a: float, b: float) -> Case:
    """Four rollouts a prompt, success probabilities Beta(a, b)."""

    def draw(generator: np.random.Generator, prompts: int, draws: int) -> tuple[Draws, ...]:
        right = generator.binomial(ROLLOUTS, generator.beta(a, b, (prompts, draws))).astype(np.float64)
        return (Draws(right, np.full_like(right, ROLLOUTS), ROLLOUTS, SHARE),)

    mean = a / (a + b)
    return Case(f"accuracy, mean {mean:g}, success Beta({a:g}, {b:g})", "share", mean, draw)


def of_two_runs(a: float, b: float, better: float) -> Case:
    """The accuracy of two runs on the same prompts: the second's log-odds of success differ by N(better, ½²)."""

    def draw(generator: np.random.Generator, prompts: int, draws: int) -> tuple[Draws, ...]:
        first = generator.beta(a, b, (prompts, draws))
        second = _raised(first, generator.normal(better, 0.5, first.shape))
        sides = [generator.binomial(ROLLOUTS, p).astype(np.float64) for p in (first, second)]
        return tuple(Draws(side, np.full_like(side, ROLLOUTS), ROLLOUTS, SHARE) for side in sides)

    generator = np.random.default_rng(99)
    first = generator.beta(a, b, 4_000_000)
    truth = float((_raised(first, generator.normal(better, 0.5, first.shape)) - first).mean())
    return Case(f"two runs' accuracy, success Beta({a:g}, {b:g}) and log-odds + {better:g}", "difference", truth, draw)


def _raised(p: Floats, by: Floats) -> Floats:
    odds = p / np.maximum(1 - p, 1e-300) * np.exp(by)
    raised: Floats = odds / (1 + odds)
    return raised


def of_lognormal(rollouts: int) -> Case:
    """Token means: lengths and values log-normal, σ = 1, both of a rollout; one or several rollouts a prompt."""

    def draw(generator: np.random.Generator, prompts: int, draws: int) -> tuple[Draws, ...]:
        shape = (prompts, draws, rollouts)
        length = np.ceil(100 * np.exp(generator.normal(size=shape)))
        total = length * np.exp(generator.normal(size=shape))
        return (Draws(total.sum(2), length.sum(2), rollouts, POSITIVE),)

    name = f"token mean, log-normal lengths and values, {rollouts} rollout{'s' if rollouts > 1 else ''} a prompt"
    return Case(name, "non-negative", float(np.exp(0.5)), draw)


def of_demo(metric: str, *steps: int) -> Case:
    """A metric of the demo's compatible run, its 128 prompts drawn anew; with two steps the difference of the two."""
    held = [_demo()[metric, step] for step in steps]
    span = METRICS[metric].range

    def draw(generator: np.random.Generator, prompts: int, draws: int) -> tuple[Draws, ...]:
        chosen = generator.integers(0, len(held[0][0]), (prompts, draws))
        return tuple(Draws(total[chosen], count[chosen], ROLLOUTS, span) for total, count in held)

    means = [float(total.sum() / count.sum()) for total, count in held]
    if len(steps) > 1:
        return Case(f"demo, {metric}, step {steps[1]} − {steps[0]}", "difference", means[1] - means[0], draw)
    kind = "share" if span == SHARE else "unbounded" if span == REAL else "non-negative"
    return Case(f"demo at step {steps[0]}, {metric}", kind, means[0], draw)


DEMO_METRICS = (
    "overlap_ratio",
    "overlap_advantage",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "student_topk_mass",
    "student_entropy",
    "reverse_kl",
    "forward_kl",
    "sampled_reward",
    "reward_tail_share",
)
DEMO_STEPS = (0, 20, 100)

_held: dict[tuple[str, int], tuple[Floats, Floats]] = {}


def _demo() -> dict[tuple[str, int], tuple[Floats, Floats]]:
    if not _held:
        import pandas as pd

        for (metric, step), rows in pd.read_parquet(DEMO).groupby(["metric", "step"]):
            _held[str(metric), int(step)] = rows["total"].to_numpy(np.float64), rows["count"].to_numpy(np.float64)
    return _held


def take_demo(out: Path) -> None:
    """Keep the sums by prompt of the traces that ``make demo`` left in a directory."""
    import pandas as pd

    parts = []
    for step in DEMO_STEPS:
        trace = read_trace(out / "traces" / "compatible" / "compatible-teacher" / f"step-{step}.parquet")
        sums = RolloutSums.empty(trace.rollouts.num_rows, 1, len(DEMO_METRICS))
        for block, values in metric_blocks(trace, 16, DEMO_METRICS):
            sums.add_metrics(block["rollout"], block, values, DEMO_METRICS, 16)
        found = sums.clustered(*clusters_of(trace), "token")[0]
        for column, metric in enumerate(DEMO_METRICS):
            total, count = found.total[:, column], found.count[:, column].astype(np.int64)
            parts.append(pd.DataFrame({"metric": metric, "step": step, "total": total, "count": count}))
    pd.concat(parts, ignore_index=True).to_parquet(DEMO, index=False)


def cases() -> list[Case]:
    """Every population of means and of differences of means."""
    shares = [of_difficulty(*pair) for pair in ((0.5, 0.5), (0.5, 4.5), (0.1, 0.9), (4.5, 0.5), (0.9, 0.1))]
    demo = [of_demo(metric, 100) for metric in DEMO_METRICS] + [of_demo(metric, 20) for metric in ("reverse_kl",)]
    pairs = [of_two_runs(0.5, 0.5, 0.0), of_two_runs(0.5, 0.5, 1.0), of_two_runs(0.5, 4.5, 1.0)]
    changes = ("overlap_ratio", "student_overlap_mass", "overlap_advantage", "reverse_kl", "sampled_reward")
    changed = [of_demo(metric, 0, 100) for metric in changes]
    return [*shares, of_lognormal(1), of_lognormal(ROLLOUTS), *demo, *pairs, *changed]


Ends = tuple[Floats, Floats]


def ours(samples: Sequence[Draws]) -> Ends:
    """What the package gives."""
    made = [sample.estimate() for sample in samples]
    return interval(made[0] if len(made) == 1 else difference(*made))


def _values(samples: Sequence[Draws], weights: Floats) -> Floats:
    means = [(weights @ one.total) / (weights @ one.count) for one in samples]
    return means[0] if len(means) == 1 else means[1] - means[0]


def _influence(samples: Sequence[Draws], weights: Floats | None = None) -> tuple[Floats, Floats]:
    """The value and its linearised standard error (c / (c − 1) times squared influences), [b, d]; or [d] each."""
    c = len(samples[0].total)
    given = np.ones((1, c)) if weights is None else weights
    signs = (1.0,) if len(samples) == 1 else (-1.0, 1.0)
    parts = [(one.total, one.count, given @ one.count, (given @ one.total) / (given @ one.count)) for one in samples]
    square = np.zeros_like(parts[0][3])
    for (t, n, size, mean), sign in zip(parts, signs, strict=True):
        for (s, m, other, average), also in zip(parts, signs, strict=True):
            cross = given @ (t * s) - mean * (given @ (n * s)) - average * (given @ (t * m))
            square += sign * also * (cross + mean * average * (given @ (n * m))) / (size * other)
    error = np.sqrt(np.maximum(square, 0.0) * c / (c - 1))
    value = sum(sign * part[3] for sign, part in zip(signs, parts, strict=True))
    return (value, error) if weights is not None else (value[0], error[0])


def _weights(samples: Sequence[Draws]) -> Iterator[Floats]:
    return Resampling(RESAMPLES, 1).weights(len(samples[0].total))


def percentile(samples: Sequence[Draws]) -> Ends:
    """The percentile bootstrap over prompts, which the package had before."""
    drawn = np.concatenate([_values(samples, weights) for weights in _weights(samples)])
    return quantile(drawn, 0.025), quantile(drawn, 0.975)


def bootstrap_t(samples: Sequence[Draws]) -> Ends:
    """Studentised over resampled prompts; resamples without any variance are left out."""
    value, error = _influence(samples)
    found = []
    for weights in _weights(samples):
        drawn, errors = _influence(samples, weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(errors > 0, (drawn - value) / errors, np.nan))
    t = np.concatenate(found)
    return value - quantile(t, 0.975) * error, value - quantile(t, 0.025) * error


def bca(samples: Sequence[Draws]) -> Ends:
    """Bias-corrected and accelerated percentiles."""
    from scipy.special import ndtr, ndtri

    drawn = np.sort(np.concatenate([_values(samples, weights) for weights in _weights(samples)]), axis=0)
    c = len(samples[0].total)
    value = _values(samples, np.ones((1, c)))[0]
    left_out = _values(samples, 1.0 - np.eye(c))
    change = left_out.mean(0) - left_out
    with np.errstate(invalid="ignore", divide="ignore"):
        acceleration = np.nan_to_num((change**3).sum(0) / (6 * (change**2).sum(0) ** 1.5))
    bias = ndtri(np.clip(((drawn < value).mean(0) + (drawn <= value).mean(0)) / 2, 1e-3, 1 - 1e-3))
    ends = []
    for z in (-1.959964, 1.959964):
        level = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        place = np.clip(np.round(level * (len(drawn) - 1)), 0, len(drawn) - 1).astype(np.int64)
        ends.append(drawn[place, np.arange(drawn.shape[1])])
    return ends[0], ends[1]


def cluster_t(samples: Sequence[Draws]) -> Ends:
    """The linearised ratio with Student's t of one degree less than there are prompts."""
    from scipy.special import stdtrit

    value, error = _influence(samples)
    width = stdtrit(len(samples[0].total) - 1.0, 0.975) * error
    return value - width, value + width


def transformed_t(samples: Sequence[Draws]) -> Ends:
    """Student's t on the logit of a share, the logarithm of what has one sign; as it is for a difference."""
    from scipy.special import expit, logit, stdtrit

    low, high = samples[0].range
    if len(samples) > 1 or (low, high) == REAL:
        return cluster_t(samples)
    value, error = _influence(samples)
    t = stdtrit(len(samples[0].total) - 1.0, 0.975)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if np.isfinite(high - low):
            width = t * error / (value * (1 - value))
            return expit(logit(value) - width), expit(logit(value) + width)
        factor = np.exp(t * error / np.abs(value))
    ends = np.sort(np.stack([value / factor, value * factor]), axis=0)
    return ends[0], ends[1]


METHODS: dict[str, Callable[[Sequence[Draws]], Ends]] = {
    OURS: ours,
    BEFORE: percentile,
    "bootstrap-t": bootstrap_t,
    "BCa": bca,
    "t": cluster_t,
    "t, transformed": transformed_t,
}


def judge(lo: Floats, hi: Floats, truth: float, span: Range) -> Row:
    """What the table says of a method's intervals [d].

    ``none``: the share of draws without an interval; ``flat``: of those with one, the share without width; ``outside``:
    the share with an end outside the range. ``width`` is the median.
    """
    known = ~(np.isnan(lo) | np.isnan(hi))
    if not known.any():
        return {"coverage": None, "width": None, "none": 1.0, "flat": 0.0, "outside": 0.0}
    lo, hi = lo[known], hi[known]
    return {
        "coverage": round(float(((lo <= truth) & (truth <= hi)).mean()), 4),
        "width": float(f"{np.median(hi - lo):.3g}"),
        "none": round(1 - float(known.mean()), 4),
        "flat": round(float((hi <= lo).mean()), 4),
        "outside": round(float(((lo < span[0] - 1e-9) | (hi > span[1] + 1e-9)).mean()), 4),
    }


def measure(case: Case, prompts: int, draws: int, methods: Sequence[str]) -> list[Row]:
    """One row per method."""
    samples = case.draw(np.random.default_rng(prompts), prompts, draws)
    low, high = samples[0].range
    span = (low, high) if len(samples) == 1 else (low - high, high - low)
    rows = []
    for method in methods:
        lo, hi = METHODS[method](samples)
        found = judge(lo, hi, case.truth, span)
        rows.append({"case": case.name, "kind": case.kind, "prompts": prompts, "method": method, **found})
    return rows


def measure_auroc(positives: int, apart: float, prompts: int, draws: int, per_prompt: int = 1) -> list[Row]:
    """The AUROC of scores N(0, 1) of wrong and N(apart, 1) of right rollouts; ``positives`` prompts are right.

    Scores of one prompt share half of their variance.
    """
    from scipy.special import ndtr

    generator = np.random.default_rng(positives)
    right = np.repeat(np.arange(prompts) < positives, per_prompt)
    codes = np.repeat(np.arange(prompts), per_prompt)
    truth = float(ndtr(apart / np.sqrt(2)))
    found: dict[str, list[tuple[float, float]]] = {OURS: [], BEFORE: []}
    for _ in range(draws):
        shared, own = generator.normal(size=prompts)[codes], generator.normal(size=len(codes))
        scores = np.sqrt(0.5) * (shared + own) if per_prompt > 1 else own
        scores = scores + apart * right
        lo, hi = interval(Auroc.of(scores, right.astype(np.float64), codes, prompts).estimate)
        found[OURS].append((lo[0], hi[0]))
        found[BEFORE].append(_auroc_percentile(scores, right, codes, prompts))
    name = f"AUROC {truth:.2f}, {positives} of {prompts} prompts right"
    name += f", {per_prompt} rollouts each" if per_prompt > 1 else ""
    rows = []
    for method, ends in found.items():
        lo, hi = np.array(ends).T
        row = {"case": name, "kind": "AUROC", "prompts": prompts, "method": method}
        rows.append({**row, **judge(lo, hi, truth, SHARE)})
    return rows


def _auroc_percentile(
    scores: Floats, right: NDArray[np.bool_], codes: NDArray[np.int64], n: int
) -> tuple[float, float]:
    order = np.argsort(scores, kind="stable")
    weights = np.concatenate(list(Resampling(300, 1).weights(n)))[:, codes[order]]
    won, lost = weights * right[order], weights * ~right[order]
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (won * (np.cumsum(lost, axis=1) - 0.5 * lost)).sum(1) / (won.sum(1) * lost.sum(1))
    lo, hi = (float(quantile(area[:, None], q)[0]) for q in (0.025, 0.975))
    return lo, hi


AUROCS = [(p, 0.8, 64, 1) for p in (1, 2, 3, 5, 10, 32)] + [(p, 1.8, 64, 1) for p in (2, 5, 10)]
AUROCS += [(5, 0.8, 20, 4), (10, 0.8, 20, 4)]


def everything(draws: int = 1_000, prompts: Sequence[int] = PROMPTS) -> list[Row]:
    """All rows: every case and number of prompts by the package and as before, by other methods at :data:`COMPARED`."""
    rows = []
    for case in cases():
        for number in prompts:
            rows += measure(case, number, draws, list(METHODS) if number in COMPARED else [OURS, BEFORE])
    for positives, apart, number, per_prompt in AUROCS:
        rows += measure_auroc(positives, apart, number, max(draws // 2, 10), per_prompt)
    return rows


def as_markdown(rows: Sequence[Row]) -> dict[str, str]:
    """The two tables of the documentation, by the name of their mark."""
    return {"coverage": _coverage_table(rows), "methods": _methods_table(rows)}


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["coverage"] is None:
        return "none"
    return f"{100 * row['coverage']:.0f} % · {row['width']:.2g}"


def _coverage_table(rows: Sequence[Row]) -> str:
    """A line per case and method, a column per number of prompts; an AUROC has one number of prompts alone."""
    found = {(row["case"], row["method"], row["prompts"]): row for row in rows}
    numbers = sorted({row["prompts"] for row in rows})
    out = [f"| case | | {' | '.join(f'{number} prompts' for number in numbers)} |", "|---|---|" + "---|" * len(numbers)]
    for case in dict.fromkeys(row["case"] for row in rows):
        for method in (OURS, BEFORE):
            cells = [_cell(found.get((case, method, number))) for number in numbers]
            label = (case, f"**{method}**") if method == OURS else ("", method)
            out.append(f"| {' | '.join([*label, *cells])} |")
    return "\n".join(out)


def _methods_table(rows: Sequence[Row]) -> str:
    """A line per method: over the cases of each kind the lowest coverage and the median one, and what else there is."""
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "AUROC"]
    numbers = sorted({row["prompts"] for row in rows if row["method"] not in (OURS, BEFORE)})
    heads = [f"{kind}, {number}" for kind in kinds for number in numbers]
    out = [f"| method | {' | '.join(heads)} | without width | outside the range |", "|---|" + "---|" * (len(heads) + 2)]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method and row["prompts"] in numbers and row["kind"] in kinds]
        cells = []
        for kind in kinds:
            for number in numbers:
                held = [row["coverage"] for row in own if row["kind"] == kind and row["prompts"] == number]
                cells.append(f"{100 * min(held):.0f} / {100 * float(np.median(held)):.0f} %" if held else "")
        cells += [f"{100 * max((row[name] for row in own), default=0.0):.0f} %" for name in ("flat", "outside")]
        out.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(out)


def show_in(page: Path, tables: dict[str, str], marks: Mapping[str, tuple[str, str]] = MARKS) -> None:
    """Replace the tables between the page's marks."""
    text = page.read_text()
    for name, table in tables.items():
        begin, end = marks[name]
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{page}: no line {begin!r} with {end!r} behind it, where the table goes")
        text = f"{head}{begin}\n\n{table}\n\n{end}{tail}"
    page.write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, metavar="DIR", help="take the prompts of the traces in DIR, of make demo")
    parser.add_argument("--draws", type=int, default=1_000, help="of each case (default: 1000)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the page that shows them")
    parser.add_argument("--show", action="store_true", help="simulate nothing")
    given = parser.parse_args(arguments)
    if given.demo:
        take_demo(given.demo)
    if not given.show:
        rows = everything(given.draws)
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        given.json.write_text(f"[\n{lines}\n]\n")
    tables = as_markdown(json.loads(given.json.read_text()))
    print("\n\n".join(tables.values()))
    if not given.show:
        show_in(given.docs, tables)


if __name__ == "__main__":
    main()
