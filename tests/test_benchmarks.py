"""The benchmarks run, on small models; what they measure is for people to read, not for tests to judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import opd_probe
from benchmarks import after_trace, lengths, noise, replay


def run(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    module.main()  # type: ignore[attr-defined]


def test_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(replay, monkeypatch, "--small", "--repeats", "1", "--k", "8", "--json", str(tmp_path / "b.json"))
    report = json.loads((tmp_path / "b.json").read_text())
    assert [row["path"] for row in report["rows"]] == list(replay.PATHS)
    assert report["rows"][0]["cpu_over_floor"] == 1.0
    assert "torch" in report["software"]


def test_all_paths_see_the_same_divergence() -> None:
    work = replay.workload(replay.torch.float32, True, 8)
    expected = replay.naive(work)
    for compiled in (False, True):
        assert replay.ours(work, compiled=compiled) == pytest.approx(expected, rel=1e-4)
    assert replay.thunlp(work) == pytest.approx(replay.verl(work) / (work.n_states * work.k), rel=1e-3)


@pytest.mark.filterwarnings("ignore::opd_probe.errors.OpdProbeWarning")
def test_after_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ("--states", "5000", "--stream", "6000", "--repeats", "2")
    run(after_trace, monkeypatch, *sizes, "--json", str(tmp_path / "a.json"))
    report = json.loads((tmp_path / "a.json").read_text())
    assert 0 < report["bytes_per_state"] < 400
    assert report["every_k_speedup_lowest"] <= report["every_k_speedup"] <= report["every_k_speedup_highest"]
    assert (report["states"], report["streamed_states"]) == (5000, 6000)
    assert 0 < report["stream_peak_memory_gb"] < 2


def test_both_ways_after_a_trace_agree() -> None:
    """What is timed against each other computes the same four numbers."""
    trace = after_trace.sample_trace(500, width=300)
    curve = opd_probe.mass_curve(trace, resamples=0)
    for k in (1, 4, after_trace.K):
        row = curve.iloc[k - 1]
        ratio, advantage, student, teacher = after_trace.pure_python(trace, 500, k)[1]
        assert ratio / 500 == pytest.approx(row["overlap_ratio"])
        assert advantage == pytest.approx(row["overlap_advantage"] * row["overlap_advantage_n"])
        assert student / 500 == pytest.approx(row["student_overlap_mass"])
        assert teacher / 500 == pytest.approx(row["teacher_overlap_mass"])


def test_lengths(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lengths, "LONGEST", 64)
    run(lengths, monkeypatch, "--rollouts", "8", "--hidden", "64", "--layers", "1")
    assert "by hand / opd-probe" in capsys.readouterr().out


def test_noise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(noise, monkeypatch, "--small")
    assert len(capsys.readouterr().out.splitlines()) == 3
