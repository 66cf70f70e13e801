"""One command on a machine with a GPU: what is computed there is checked against float64 first, then timed.

    python -m benchmarks.gpu --json gpu.json           # shapes of Qwen2.5 1.5B and 7B in bf16: about 60 GB
    python -m benchmarks.gpu --device cpu --small      # everything runs, on any machine

Exit code 1, and no timing, when a check fails.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import opd_probe
from benchmarks.measuring import Row, machine, paired
from benchmarks.paths import Workload, batch_floor, engine, first_call, naive, ours, thunlp, verl
from benchmarks.replay import RELATIVE_TO, SMALL, Shape, build, random_rollouts
from benchmarks.table import as_text
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.stats.compiled import CompiledReduction
from opd_probe.stats.pair import PairStatistics, Reduction, pair_statistics
from opd_probe.stats.projection import OutputProjection
from opd_probe.stats.scratch import Scratch
from opd_probe.types import Prompt

STUDENT = Shape(1_536, 8_960, 28, 12, 2)
TEACHER = Shape(3_584, 18_944, 28, 28, 4, 152_064, tied=False)
TOLERANCE = 1e-5
"""Of products, over the largest value."""
RELATIVE_TOLERANCE = 1e-5
"""Of entropies, divergences and log-probabilities, however small they are."""


@dataclass(frozen=True)
class Check:
    """One comparison with float64: the worst error over what is allowed, which must not exceed 1."""

    name: str
    worst: float

    @property
    def holds(self) -> bool:
        """Whether the error stays within what is allowed (NaN does not)."""
        return self.worst <= 1.0


def check_statistics(device: str, width: int, states: int, k: int) -> Iterator[Check]:
    """Entropies, divergences, log-probabilities and top-k sets of pairs that differ much, little and hardly at all, and
    of such that leave little beside one token; plain and compiled."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(states, width, generator=generator) * 3
    reductions: dict[str, Reduction | None] = {
        "plain": None,
        "compiled": CompiledReduction(states, torch.device(device)),
    }
    pairs = {f"logits {d:g} apart": (d, None) for d in (1.0, 0.02, 1e-3)}
    pairs |= {f"1 - p = {rest:g}": (0.1, rest) for rest in (4e-5, 4e-6, 1e-7, 1e-8)}
    for name, (distance, rest) in pairs.items():
        teacher = student + distance * torch.randn(states, width, generator=generator)
        both = [student, teacher] if rest is None else [_sure(student, rest), _sure(teacher, 1.3 * rest)]
        tokens = torch.zeros(states, dtype=torch.int64, device=device)
        for way, reduction in reductions.items():
            found = pair_statistics(*(x.to(device) for x in both), tokens, k, jsd=True, reduction=reduction)
            yield Check(f"{way}, {name}", _worst(found, both[0].double(), both[1].double(), k))


def _sure(logits: Tensor, rest: float) -> Tensor:
    """The same logits with the first one so large that ``rest`` is left beside it."""
    others = torch.logsumexp(logits[:, 1:].double(), -1, keepdim=True)
    return torch.cat([(others + math.log((1 - rest) / rest)).float(), logits[:, 1:]], dim=1)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float64, with what lies beside each row's first maximum summed by itself."""
    top = logits.argmax(-1, keepdim=True)
    a = logits - logits.gather(-1, top)
    return a - torch.log1p(a.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) in float64 without cancellation."""
    x = log_p - log_q
    near = x.abs() < 1
    small = log_p.exp() * (torch.expm1(-torch.where(near, x, 0.0)) + x)
    return torch.where(near, small, log_q.exp() - log_p.exp() + log_p.exp() * x).sum(-1)


def _worst(found: PairStatistics, s: Tensor, t: Tensor, k: int) -> float:
    """The largest error of any statistic over what it is allowed, against the definitions in float64."""
    log_p, log_q = _log_softmax(s), _log_softmax(t)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    expected = {
        "student_entropy": -(log_p.exp() * log_p).sum(-1),
        "teacher_entropy": -(log_q.exp() * log_q).sum(-1),
        "reverse_kl": _divergence(log_p, log_q),
        "forward_kl": _divergence(log_q, log_p),
        "jsd": 0.5 * (_divergence(log_p, log_m) + _divergence(log_q, log_m)),
        "student_logprob": log_p[:, 0],
        "teacher_logprob": log_q[:, 0],
    }
    worst = 0.0
    for name, exact in expected.items():
        error = (getattr(found, name).double().cpu() - exact).abs() / (RELATIVE_TOLERANCE * exact.abs())
        worst = max(worst, float(error.nan_to_num(nan=torch.inf).max()))  # max() would pass a NaN over
    for logits, ids in ((s, found.student_top_ids), (t, found.teacher_top_ids)):
        exact_ids = torch.sort(logits.float(), dim=-1, descending=True, stable=True).indices[:, :k]
        worst = worst if torch.equal(ids.cpu(), exact_ids) else float("inf")
    return worst


@torch.inference_mode()
def check_product(model: LoadedModel, device: str) -> Check:
    """float32 logits of bf16 hidden states and weights, against the product in float64."""
    weight = model.output_layer.weight[:4_096]
    hidden = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(device, weight.dtype)
    layer = OutputProjection(weight, None, range(len(weight)))
    found, _ = layer.logits(hidden, Scratch(), "check")
    exact = hidden.double().cpu() @ weight.double().cpu().t()
    error = float((found.double().cpu() - exact).abs().max() / exact.abs().max())
    return Check(f"output layer, {str(weight.dtype).removeprefix('torch.')} factors", error / TOLERANCE)


def check_replay(device: str) -> Check:
    """A replay of small models on the device against the same on the CPU."""
    shape = replace(SMALL, width=4_000)
    results = []
    for place in ("cpu", device):
        # Built on the CPU and moved: random weights differ from device to device.
        student, teacher = (load_model(build(shape, torch.float32, seed).model.to(place)) for seed in (0, 1))  # type: ignore[arg-type]
        results.append(ours(Workload(student, teacher, random_rollouts(4, 16, 48, shape.width), 16)))
    return Check("replay on the device and on the CPU", abs(results[1] / results[0] - 1) / 1e-4)


def check_ways(device: str) -> Iterator[Check]:
    """One model after the other, several teachers and, with several GPUs, spread models give the plain numbers."""
    rollouts = random_rollouts(4, 16, 48, SMALL.width)
    with tempfile.TemporaryDirectory() as directory:
        places = [Path(directory) / name for name in ("student", "teacher")]
        for seed, place in enumerate(places):
            build(SMALL, torch.float32, seed).model.save_pretrained(place)
        plain = opd_probe.replay(*places, rollouts, k=16, device=device)
        ways = {"one model after the other": opd_probe.replay(*places, rollouts, k=16, device=device, sequential=True)}
        teachers = {"first": places[1], "second": places[1]}
        shared = opd_probe.replay_teachers(
            places[0], teachers, rollouts, Path(directory) / "traces", k=16, device=device
        )
        ways["one of two teachers"] = shared["second"]
        if torch.cuda.device_count() > 1:
            ways["spread over all GPUs"] = opd_probe.replay(*places, rollouts, k=16, device_map="balanced")
        for name, trace in ways.items():
            apart = [
                np.abs(trace.column(column) - plain.column(column)).max()
                for column in ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy")
            ]
            yield Check(f"{name}, against the plain way", float(np.max(apart)) / 1e-5)


def check_decision(device: str) -> Iterator[Check]:
    """A trace of a long job is made in the compiled way, says so, and holds the plain numbers; one call alone does as
    it is told."""
    student, teacher = (build(SMALL, torch.float32, seed, device).model for seed in (0, 1))
    rollouts = random_rollouts(4, 16, 48, SMALL.width)
    traces = [opd_probe.replay(student, teacher, rollouts, k=16, compiled=compiled) for compiled in (False, True)]
    said = [trace.provenance["ways"]["compiled"] for trace in traces]
    yield Check("how a trace was made is written in it", 0.0 if said == [False, True] else float("inf"))
    for column in ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy"):
        plain, compiled = (trace.column(column).astype(np.float64) for trace in traces)
        yield Check(f"compiled against plain, {column}", float(np.abs(compiled / plain - 1).max()) / 1e-5)


def check_sampling(device: str) -> Iterator[Check]:
    """Responses that are drawn side by side, where one that ends makes room for the next, are those drawn in batches
    that wait; and what the sampler says of its tokens is what a replay says of them."""
    model = build(SMALL, torch.float32, 0, device)
    prompts = [Prompt(str(n), ids=tuple(range(3 + n, 9 + n))) for n in range(4)]
    model = replace(model, eos_ids=tuple(range(0, SMALL.width, 16)))  # so that lengths differ
    together = sample_rollouts(model, prompts, num_rollouts=4, max_new_tokens=48, batch_tokens=400)
    known = model.paths.verdicts.get("joined", None)
    model.paths.verdicts["joined"] = None
    waiting = sample_rollouts(model, prompts, num_rollouts=4, max_new_tokens=48, batch_tokens=400)
    model.paths.verdicts["joined"] = known
    alike = sum(one.response_ids == other.response_ids for one, other in zip(together, waiting, strict=True))
    allowed = 0 if device == "cpu" else 1  # kernels of other batches round otherwise, and a draw may lie on the edge
    yield Check("sampling with refilling, against batches that wait", 0.0 if len(waiting) - alike <= allowed else 2.0)
    trace = opd_probe.replay(model.model, model.model, together, k=16)
    apart = np.abs(trace.column("student_logprob") - trace.column("sampler_logprob")).max()
    yield Check("log-probabilities of the sampler, against a replay", float(apart) / 1e-3)


def operations(work: Workload) -> float:
    """Floating-point operations of the floor's matrix products: two per weight and token, attention left out."""
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) - 1 for r in work.rollouts)
    total = 0.0
    for model in (work.student, work.teacher):
        backbone = sum(p.numel() for n, p in model.model.named_parameters() if "embed" not in n and "lm_head" not in n)
        total += 2.0 * (backbone * tokens + model.output_layer.weight.numel() * work.n_states)
    return total


def matrix_throughput(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of one large matrix product."""
    one = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        float((one @ one)[0, 0])  # reading a value waits for the device
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best


def measure(device: str, small: bool, k: int, repeats: int) -> tuple[list[Row], float]:
    """Rows of every path, and the share of the device's matrix throughput that a replay reaches end to end."""
    dtype = torch.float32 if small else torch.bfloat16
    shapes = (SMALL, replace(SMALL, width=SMALL.width + 128)) if small else (STUDENT, TEACHER)
    models = [build(shape, dtype, seed, device) for seed, shape in enumerate(shapes)]
    rollouts = random_rollouts(*((4, 8, 24) if small else (8, 256, 1_024)), shapes[0].width)
    work = Workload(models[0], models[1], rollouts, k)
    paths: dict[str, Callable[[], object]] = {
        "floor": lambda: batch_floor(work, 128 if small else 2_048),
        "opd-probe, first call": lambda: first_call(work),
        "opd-probe": lambda: ours(work),
        "its engine alone": lambda: engine(work),
        "opd-probe, compiled": lambda: ours(work, compiled=True),
        "opd-probe with JSD": lambda: ours(work, jsd=True),
        "naive": lambda: naive(work),
        "thunlp/OPD's operations": lambda: thunlp(work),
        "verl's operations": lambda: verl(work),
    }
    rows = paired(
        f"{str(dtype).removeprefix('torch.')} weights, K = {k}", paths, repeats, work.n_states, RELATIVE_TO, device
    )
    states_per_second = {row["path"]: row["states_per_second"] for row in rows}
    reached = operations(work) * states_per_second["opd-probe, compiled"] / work.n_states
    return rows, reached / matrix_throughput(device, dtype, 512 if small else 8_192)


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    width, states = (3_000, 8) if given.small else (151_936, 64)
    checks = [
        *check_statistics(given.device, width, states, given.k),
        check_replay(given.device),
        *check_ways(given.device),
        *check_decision(given.device),
        *check_sampling(given.device),
    ]
    checks.append(check_product(build(SMALL, torch.bfloat16, 0, given.device), given.device))
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.worst:.3f} of the allowed error")
    if not all(check.holds for check in checks):
        sys.exit("numbers are wrong on this device; nothing was timed")
    rows, share = measure(given.device, given.small, given.k, given.repeats)
    print(as_text(rows))
    print(f"{share:.0%} of the matrix throughput of this device, end to end (compiled)")
    if given.json is not None:
        report = {**machine(), "checks": [vars(check) for check in checks], "rows": rows, "throughput_share": share}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
