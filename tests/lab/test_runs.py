"""Jobs: each done once, in the order of its needs, and resumed where it was interrupted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from opd_probe.lab import recipes, runs
from opd_probe.lab.cache import place_of
from opd_probe.lab.experiments import EXPERIMENTS, SEEDS, jobs_of
from opd_probe.lab.runs import Job, do, done, needs, read_run
from opd_probe.lab.work import closure
from tests.lab.conftest import TinyLab


def test_what_a_job_needs_comes_before_it() -> None:
    jobs = closure(job for experiment in EXPERIMENTS.values() for job in jobs_of(experiment, SEEDS))
    for place, job in enumerate(jobs):
        assert all(need in jobs[:place] for need in needs(job)), str(job)
    assert len(set(jobs)) == len(jobs)
    assert Job("run", "good", 0) in needs(Job("run", "reverse-own", 0))
    assert Job("model", "incompatible-teacher", 0) in needs(Job("model", "cold-student", 0))


def test_every_label_names_a_run_and_every_model_a_recipe() -> None:
    for experiment in EXPERIMENTS.values():
        assert set(experiment.runs.values()) <= recipes.RUNS.keys()
        assert experiment.models.keys() <= recipes.MODELS.keys()
        assert len(set(experiment.runs.values())) == len(experiment.runs)
        for name in experiment.runs.values():
            assert set(experiment.ks) <= set(recipes.RUNS[name].measure.ks)


def test_a_finished_run_holds_log_measurements_and_model(tiny_lab: TinyLab) -> None:
    log, steps = read_run(tiny_lab.cache, "good", tiny_lab.seed)
    assert [row["step"] for row in log] == [1, 2]
    assert list(steps) == [0, 1, 2]
    assert [len(steps[step]["rollouts"]) for step in steps] == [48, 40, 48]
    assert steps[0]["summary"]["16"]["n_rollouts"] == 48
    assert len(steps[0]["held_out"]) == 24
    place = place_of(tiny_lab.cache, "good", tiny_lab.seed)
    assert sorted(path.name for path in place.iterdir()) == [
        "log.json", "model", "step-0.json", "step-1.json", "step-2.json",
    ]  # fmt: skip


def test_runs_on_a_pool_are_measured_on_it_and_graded_on_held_out_problems(tiny_lab: TinyLab) -> None:
    _, own = read_run(tiny_lab.cache, "template-own", tiny_lab.seed)
    _, other = read_run(tiny_lab.cache, "content-other", tiny_lab.seed)
    for row in (own[0], other[0]):
        shares = list(row["held_out"].values())
        assert row["summary"]["16"]["accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert own[0]["held_out"] == other[0]["held_out"]
    assert own[0]["summary"]["16"]["reverse_kl"] != other[0]["summary"]["16"]["reverse_kl"]


def test_two_teachers_are_compared_at_the_students_states(tiny_lab: TinyLab) -> None:
    _, steps = read_run(tiny_lab.cache, "reverse-own", tiny_lab.seed)
    for row in steps.values():
        assert row["pair"]["n_states"] == row["summary"]["16"]["n_states"]
        assert row["pair"]["reverse_kl"] > 0


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(
    tiny_lab: TinyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in tiny_lab.cache.iterdir():
        if path.is_dir() and path.name.startswith(("student", "compatible-teacher")):
            shutil.copytree(path, tmp_path / path.name)
    whole, _ = read_run(tiny_lab.cache, "good", 0)
    real = runs.measure_checkpoint
    measured: list[int] = []

    def interrupted(*args: object) -> object:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(1)
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(runs, "measure_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do(tmp_path, Job("run", "good", 0))
    assert not done(tmp_path, Job("run", "good", 0))
    left = next(tmp_path.glob(".good-*.partial"))
    assert json.loads((left / "step-1.json").read_text())["summary"]
    measured.clear()
    monkeypatch.setattr(runs, "measure_checkpoint", lambda *args: (measured.append(1), real(*args))[1])
    do(tmp_path, Job("run", "good", 0))
    assert len(measured) == 1
    assert read_run(tmp_path, "good", 0)[0] == whole


def test_runs_that_differ_in_their_loss_share_the_measurement_of_their_start() -> None:
    good, same, other = (recipes.RUNS[name] for name in ("top-1", "top-4", "failing"))
    assert runs.digest_of_start(good, 0) == runs.digest_of_start(same, 0)
    assert len({runs.digest_of_start(run, seed) for run in (good, other) for seed in (0, 1)}) == 4
    fewer = replace(same, measure=replace(same.measure, ends=8))
    assert runs.digest_of_start(fewer, 0) != runs.digest_of_start(same, 0)
