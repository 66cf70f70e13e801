"""Every command and every public name, once, where the base dependencies alone are installed.

The environment of the other tests has every extra, and pytest's own packages; there nobody would notice an import that
no base dependency brings, or a file that the built package lacks. ``make base`` runs this with the Python of an
environment that holds the built package alone, without pytest. It fails when a command, a public name or an extra is
added that it does not exercise: add a line here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import distributions, metadata, requires
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import save_file

import opd_probe
from opd_probe.cli.main import app, main
from opd_probe.lab.cache import cached_directory, cached_json
from opd_probe.lab.demo import SHIPPED
from opd_probe.lab.signatures import PUBLISHED

DEVELOPMENT = {"dev", "docs", "loggers"}
"""Extras that the package itself never imports."""

STUDENT, TEACHER = SHIPPED / "student", SHIPPED / "compatible-teacher"


class Recorded:
    """Stands before the package and notes which of its names were asked for."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(opd_probe, name)


class Commands:
    """Calls commands in this process, and notes which."""

    def __init__(self) -> None:
        self.used: set[tuple[str, ...]] = set()

    def __call__(self, *words: str | Path, code: int = 0) -> tuple[str, str]:
        """What the command wrote to stdout and stderr; it must end with ``code``."""
        line = [str(word) for word in words]
        self.used |= {path for path in registered() if tuple(line[: len(path)]) == path}
        out, err = io.StringIO(), io.StringIO()
        began = time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = main(line)
        said = f"opd-probe {' '.join(line)}: exit code {ended}, expected {code}\n{out.getvalue()}{err.getvalue()}"
        assert ended == code, said
        print(f"{time.monotonic() - began:6.1f} s  opd-probe {' '.join(line)}"[:120], flush=True)
        return out.getvalue(), err.getvalue()

    def refused(self, *words: str | Path, naming: str) -> None:
        """The command must end with exit code 2 and one line that names what is missing."""
        _, err = self(*words, code=2)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert naming in lines[0], lines[0]
        assert "Traceback" not in err, err


def registered() -> set[tuple[str, ...]]:
    """The words of every command: ``("overlap",)``, ``("lab", "run")``, …"""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield words
        for name, child in (children or {}).items():
            yield from below(child, (*words, name))

    return set(below(typer.main.get_command(app), ()))


def brought(requirement: str, extras: frozenset[str] = frozenset()) -> Iterator[str]:
    """The distributions that come with one, itself included, on this machine."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(requirement), extras)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        yield name
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in requires(name) or []:
                one = Requirement(line)
                if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                    waiting.append((canonicalize_name(one.name), frozenset(one.extras)))


def check_environment() -> None:
    """Only what the package brings is here, and the package is the built one."""
    place = Path(opd_probe.__file__)
    assert place.is_relative_to(sys.prefix), f"{place} is not the installed package; run this with python -I"
    here = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    more = here - set(brought("opd-probe")) - {"pip", "setuptools"}  # venv brings these two
    assert not more, f"not among the base dependencies, nor brought by them: {', '.join(sorted(more))}"


def check_modules() -> None:
    """Every module of the package can be imported."""
    for module in pkgutil.walk_packages(opd_probe.__path__, "opd_probe."):
        importlib.import_module(module.name)


def check_program() -> None:
    """The command that users type is there and starts."""
    program = Path(sys.executable).with_name("opd-probe")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == opd_probe.__version__


def run_lab(call: Commands) -> None:
    """The lab; where it would train for minutes, on a cache that holds the shipped models and measurements."""
    call("lab", "list")
    call("lab", "demo", "--steps", "1", "--prompts", "3")
    cache = Path("lab-cache")
    for model in SHIPPED.iterdir():
        cached_directory(cache, model.name, 0, lambda place, model=model: _copy(model, place))  # type: ignore[misc]
    runs = next(row for row in json.loads(PUBLISHED.read_text())["seeds"] if row["seed"] == 0)["runs"]
    for name, stages in runs.items():
        cached_json(cache, name, 0, lambda stages=stages: stages, tag="rollouts8")  # type: ignore[misc]
    weights = {path: path.read_bytes() for path in SHIPPED.rglob("*.safetensors")}
    call("lab", "bases", "--cache", cache)
    assert all(path.read_bytes() == content for path, content in weights.items()), "bases of another content"
    call("lab", "signatures", "--cache", cache, "--seeds", "0", "--rollouts", "8", "--out", "signatures.json")
    call("lab", "status", "success_failure", "--cache", cache, "--seeds", "0")
    # A run of an experiment takes minutes, and without one there are no tables: these two go as far as their refusal.
    call.refused("lab", "run", "continuation", "--cache", cache, "--seeds", "-1", naming="seeds -1")
    call.refused("lab", "tables", "--cache", cache, "--seeds", "0", naming="no finished run")


def _copy(model: Path, place: Path) -> None:
    shutil.copytree(model, place, dirs_exist_ok=True)


def run_commands(call: Commands) -> None:
    """What a user does with two runs; the demo made them in ``runs``."""
    call("ckpts", "runs/compatible", "runs/incompatible")
    short = ("--k", "4", "--trace-k", "16", "--max-new-tokens", "12", "--num-rollouts", "2")
    call("overlap", "--ckpts", "runs/*", *short, "--jsd", "--training-log", "compatible=runs/compatible")
    traces = sorted(Path("opd-probe-out/traces").rglob("*.parquet"))
    traces = [path for path in traces if "samples" not in path.parts and "rollouts" not in path.name]
    call("overlap", "--traces", "opd-probe-out", "--k", "4", "--variant", "verl")
    call("mass", "--traces", "opd-probe-out")
    for x in ("step", "position", "depth"):
        call("align", "--traces", "opd-probe-out", "--k", "4", "--x", x)
    call("figures", "--traces", "opd-probe-out", "--k", "4", "--teacher-accuracy", "compatible-teacher=0.9")
    call("report", "--traces", "opd-probe-out", "--k", "4", "--format", "json")
    call("compare", traces[0], traces[1], "--k", "4")
    call("tokens", traces[1], "--against", traces[0], "--k", "4")
    call("losses", traces[1], "--k", "4")
    call("show", traces[0], "--k", "4")
    call("verify", traces[0], "--states", "8")
    run = Path("runs/compatible")
    prompts = ("--prompts", run / "prompts.jsonl")
    call("rollout", "--ckpts", run / "checkpoint-1", *prompts, "--max-new-tokens", "12", "--out", "rollouts.jsonl")
    call("ingest", "rollouts.jsonl", "--out", "rollouts.parquet", "--grade")
    Path("teacher.jsonl").write_text('{"prompt": "1 + 1 = ?", "response": "2", "finish_reason": "stop"}\n')
    call("coldstart", "teacher.jsonl", "--out", "coldstart.jsonl")
    call("prompts", traces[0], *prompts, "--out", "best.jsonl", "--count", "1", "--k", "4")
    pair = ("--student", STUDENT, "--teacher", TEACHER)
    said, _ = call("doctor", *pair, *prompts, "--max-new-tokens", "12")
    assert "shift_replayed" in said


def run_extras(call: Commands) -> set[str]:
    """What needs an extra says so in one line; returns the extras that were asked for."""
    adapter = Path("adapter")
    adapter.mkdir()
    config = {"base_model_name_or_path": str(STUDENT), "peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1, 1)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    Path("events.out.tfevents.1").write_bytes(b"")
    rest = ("--teacher", TEACHER, "--prompts", "runs/compatible/prompts.jsonl", "--out", "refused")
    call.refused("mass", "--ckpts", adapter, *rest, naming="opd-probe[peft]")
    call.refused("mass", "--ckpts", STUDENT, *rest, "--device-map", "auto", naming="opd-probe[accelerate]")
    call.refused("mass", "--ckpts", STUDENT, *rest, "--sampler", "vllm", naming="vllm is not installed")
    log = "compatible=events.out.tfevents.1"
    call.refused("overlap", "--traces", "opd-probe-out", "--training-log", log, naming="event files need tensorboard")
    Path("packed.gguf").write_bytes(b"GGUF")
    call.refused("mass", "--ckpts", "packed.gguf", *rest, naming="opd-probe[gguf]")
    return {"peft", "accelerate", "tensorboard", "vllm", "gguf"}


def run_names(api: Recorded) -> None:
    """Every public name, each on what the one before gave."""
    rows = [json.loads(line) for line in Path("rollouts.jsonl").read_text().splitlines()]
    (found,) = api.find_checkpoints(STUDENT)
    student = api.Checkpoint(found.path, run="mine", step=0)
    rollouts = [
        api.Rollout(row["id"], row["prompt_ids"], row["response_ids"], prompt_id=row["prompt_id"], score=float(i % 2))
        for i, row in enumerate(rows)
    ]
    assert "messages" not in api.Prompt("p", text="1 + 1", extra={"solution": "2"}).carried
    trace = api.replay(student, TEACHER, rollouts, k=8, out="named.parquet")
    later = api.replay_teachers(student, {"other": SHIPPED / "incompatible-teacher"}, rollouts, k=8)["other"]
    assert isinstance(api.read_trace("named.parquet"), api.Trace)
    assert all(isinstance(finding, api.Finding) for finding in api.doctor(student, TEACHER, rollouts))
    logits = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    assert api.trace_logits(logits[0], logits[1], torch.arange(5), k=4).n_states == 5
    with contextlib.suppress(api.OpdProbeError):
        api.read_trace("nowhere.parquet")
        raise AssertionError("a file that does not exist was read")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert api.gap_recovery(0.5, 0.25, 1.0) == -0.5
    assert any(issubclass(one.category, api.OpdProbeWarning) for one in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", opd_probe.OpdProbeWarning)  # that three prompts are few
        draw_figures(api, trace, later)


def draw_figures(api: Recorded, trace: Any, later: Any) -> None:
    """The tables of two traces, and every kind of figure of them."""
    shared = {"run": "mine", "teacher": "t", "states": "own"}

    def tabled(make: Callable[[Any], pd.DataFrame]) -> pd.DataFrame:
        both = [make(one).assign(step=step, **shared) for step, one in enumerate((trace, later))]
        return pd.concat(both, ignore_index=True)

    steps = tabled(lambda one: pd.DataFrame([api.summarize(one, k=4)]))
    rewards = tabled(api.rollout_table)
    first = rewards[rewards["step"] == 0]
    accuracy = steps.assign(accuracy=[0.2, 0.4], accuracy_lo=[0.1, 0.3], accuracy_hi=[0.3, 0.5])
    recovery = accuracy.assign(model=["a", "b"], gap_recovery=[0.1, 0.2])
    gains = {"gain": [0.2, 0.1], "student_accuracy": [0.3, 0.3], "teacher_accuracy": [0.5, 0.4], "depth": [0, 4]}
    row = steps.iloc[0]
    cost = [
        {
            "quantity": name,
            "unit": unit,
            "value": row[name],
            "value_lo": row[f"{name}_lo"],
            "value_hi": row[f"{name}_hi"],
        }
        for name, unit in (("reverse_kl", "nats"), ("overlap_ratio", "share"))
    ]
    log = pd.DataFrame({"run": "mine", "step": [0, 1], "loss": [2.0, 1.0]})
    assert len(api.state_metrics(trace, k=4)) == trace.n_states
    assert np.isfinite(list(api.diagnose(trace, resamples=20).values())).any()
    assert sum(part.n_states for part in api.groups(trace, "correct").values()) == trace.n_states
    assert api.correlations(trace)["n"].max() == len(rewards) // 2
    assert api.summarize_variant(trace, "verl", k=4, resamples=20)["n_states"] == trace.n_states
    figures = [
        api.plot_overlap(steps),
        api.plot_alignment(api.join_training_log(steps, log), metrics=["overlap_ratio", "loss"]),
        api.plot_mass(tabled(lambda one: api.mass_curve(one, resamples=20)).assign(n_prompts=3), steps),
        api.plot_heatmap(tabled(lambda one: api.position_curve(one, k=4, resamples=20)).assign(k=4)),
        api.plot_depth(tabled(api.reward_by_depth), tabled(lambda one: api.signal_by_depth(one, resamples=20))),
        api.plot_losses(api.losses(trace, [4])),
        api.plot_comparison(api.compare(trace, later, k=4, resamples=20)),
        api.plot_rewards(first, steps[steps["step"] == 0]),
        api.plot_bars(recovery),
        api.plot_overview(recovery, steps, accuracy),
        api.plot_continuation(pd.DataFrame(gains).assign(**shared)),
        api.plot_reference(pd.DataFrame(cost)),
    ]
    for figure in figures:
        assert figure.axes
        figure.savefig(io.BytesIO(), format="png")


def check_complete(call: Commands, api: Recorded, extras: set[str]) -> None:
    """Nothing that there is was left out."""
    declared = set(metadata("opd-probe").get_all("Provides-Extra") or ()) - DEVELOPMENT
    for what, there, seen in (
        ("commands", registered(), call.used),
        ("public names", set(opd_probe.__all__), api.used),
        ("extras", declared, extras),
    ):
        assert there <= seen, f"{what} that {__file__} does not exercise: {sorted(there - seen)}; add them there"


def run_all() -> None:
    """The whole check, in a directory of its own."""
    check_environment()
    check_program()
    call, api = Commands(), Recorded()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        run_lab(call)
        run_commands(call)
        extras = run_extras(call)
        run_names(api)
    check_modules()
    check_complete(call, api, extras)
    print(f"base dependencies alone: {len(call.used)} commands and {len(opd_probe.__all__)} public names run")


if __name__ == "__main__":
    torch.set_num_threads(2)
    os.environ.setdefault("MPLBACKEND", "agg")
    run_all()
