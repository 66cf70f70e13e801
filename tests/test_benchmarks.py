"""The benchmarks run, on small models; what they measure is for people to read, not for tests to judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from scipy.special import ndtr

import opd_probe
from benchmarks import __main__ as suite
from benchmarks import after_trace, coverage, gpu, lengths, noise, replay, stopping
from benchmarks.measuring import FIGURES
from benchmarks.table import BEGIN, DOCS, END, as_markdown


@pytest.mark.filterwarnings("ignore::opd_probe.errors.OpdProbeWarning")
@pytest.mark.parametrize("name", suite.BENCHMARKS)
def test_every_benchmark_gives_rows(name: str) -> None:
    rows = suite.BENCHMARKS[name](True)
    for row in rows:
        assert row["workload"]
        assert row["path"]
        assert any(figure in row for figure in FIGURES)
        assert all(row[figure] >= 0 for figure in FIGURES if figure in row)
    if name.startswith("replay"):
        assert [row["path"] for row in rows] == list(replay.PATHS)
        assert rows[0]["cpu_over_floor"] == rows[0]["wall_over_floor"] == 1.0


def test_the_command_keeps_its_figures_and_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, page = tmp_path / "figures.json", tmp_path / "page.md"
    kept.write_text(
        json.dumps({"rows": {"prompts": [{"workload": "old", "path": "kept", "states_per_second": 12345}]}})
    )
    page.write_text(f"before\n{BEGIN}\nold table\n{END}\nafter\n")
    suite.main(["lengths", "--small", "--json", str(kept), "--docs", str(page)])
    report = json.loads(kept.read_text())
    assert "torch" in report["software"]
    printed, shown = capsys.readouterr().out, page.read_text()
    for text in ("12,345", "opd-probe"):
        assert text in printed
        assert text in shown
    assert "old table" not in shown
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")


def test_the_documentation_shows_what_was_measured_last() -> None:
    report = json.loads(suite.RESULTS.read_text())
    assert set(report["rows"]) == set(suite.BENCHMARKS)
    _, _, rest = DOCS.read_text().partition(BEGIN)
    assert rest.partition(END)[0].strip() == as_markdown(suite.in_order(report))


class TestCoverage:
    """The simulation of intervals; what they hold is tested beside them."""

    def test_the_documentation_shows_what_was_found_last(self) -> None:
        rows = json.loads(coverage.RESULTS.read_text())
        names = {case.name for case in coverage.cases()}
        assert names == {row["case"] for row in rows if row["kind"] != "AUROC"}
        assert {row["method"] for row in rows} == set(coverage.METHODS)
        text = coverage.DOCS.read_text()
        for name, table in coverage.as_markdown(rows).items():
            begin, end = coverage.MARKS[name]
            assert text.partition(begin)[2].partition(end)[0].strip() == table

    def test_what_was_found_last_is_what_is_found(self) -> None:
        """The same draws, method by method."""
        rows = json.loads(coverage.RESULTS.read_text())
        (case,) = [case for case in coverage.cases() if case.name.startswith("demo at step 100, student_overlap_mass")]
        kept = [row for row in rows if row["case"] == case.name and row["prompts"] == 10]
        assert [row["method"] for row in kept] == list(coverage.METHODS)
        assert coverage.measure(case, 10, 1_000, [coverage.OURS, "t"]) == [kept[0], kept[4]]

    def test_the_command_keeps_its_figures_and_shows_them(self, tmp_path: Path) -> None:
        kept, page = tmp_path / "figures.json", tmp_path / "page.md"
        marks = "\n".join(f"{begin}\nold\n{end}" for begin, end in coverage.MARKS.values())
        page.write_text(f"before\n{marks}\nafter\n")
        kept.write_text(json.dumps(coverage.measure(coverage.of_lognormal(1), 10, 20, list(coverage.METHODS))))
        coverage.main(["--show", "--json", str(kept), "--docs", str(page)])
        assert "old" in page.read_text()
        coverage.show_in(page, coverage.as_markdown(json.loads(kept.read_text())))
        text = page.read_text()
        assert "old" not in text
        assert text.count("log-normal") == 1
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        page.write_text("no marks")
        with pytest.raises(SystemExit, match="where the table goes"):
            coverage.show_in(page, {"coverage": ""})


class TestStopping:
    """The simulation of replays that stop."""

    def test_the_documentation_shows_what_was_found_last(self) -> None:
        found = json.loads(stopping.RESULTS.read_text())
        assert {row["case"] for row in found["stopping"]} == {case.name for case in stopping.cases()}
        text = stopping.DOCS.read_text()
        for name, table in stopping.as_markdown(found).items():
            begin, end = stopping.MARKS[name]
            assert text.partition(begin)[2].partition(end)[0].strip() == table

    def test_what_was_found_last_is_what_is_found_and_holds(self) -> None:
        found = json.loads(stopping.RESULTS.read_text())["stopping"]
        case = stopping.of_demo("overlap_ratio", 100)
        assert stopping.measure(case, 64, 1_000) == [
            row for row in found if (row["case"], row["prompts"]) == (case.name, 64)
        ]
        assert min(row["coverage"] for row in found if row["method"] == stopping.OURS) > 0.93
        assert stopping.pocock_level(range(1, 6)) == pytest.approx(2 * ndtr(2.413) - 1, abs=1e-4)  # his table


@pytest.mark.filterwarnings("ignore:.*outside the shared vocabulary")
def test_all_paths_see_the_same_divergence() -> None:
    work = replay.workload(replay.torch.float32, True, 8)
    expected = replay.naive(work)
    for compiled in (False, True):
        assert replay.ours(work, compiled=compiled) == pytest.approx(expected, rel=1e-4)
    assert replay.ours(work) == replay.first_call(work) == replay.engine(work)
    assert replay.thunlp(work) == pytest.approx(replay.verl(work) / (work.n_states * work.k), rel=1e-3)


def test_all_ways_with_real_lengths_see_the_same_divergence() -> None:
    shape = lengths.Shape(64, 128, 1, 1, 1, lengths.WIDTH)
    models = [replay.build(shape, replay.torch.float32, seed) for seed in (0, 1)]
    job = lengths.Job(models[0], models[1], lengths.sample(8, 30, longest=40))
    expected = lengths.by_hand(job)
    assert lengths.ours(job) == pytest.approx(expected, rel=1e-4)
    assert lengths.without_sharing(job) == pytest.approx(expected, rel=1e-4)


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


def test_noise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["noise", "--small"])
    noise.main()
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.filterwarnings("ignore:.*outside the shared vocabulary")
class TestGpu:
    """What is measured on a GPU runs on a CPU too."""

    def test_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = tmp_path / "gpu.json"
        monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--small", "--repeats", "1", "--json", str(kept)])
        gpu.main()
        report = json.loads(kept.read_text())
        assert all(check["worst"] <= 1 for check in report["checks"])
        names = " ".join(check["name"] for check in report["checks"])
        assert all(what in names for what in ("compiled against plain", "sampling with refilling", "the sampler"))
        assert {"opd-probe", "opd-probe, first call", "its engine alone"} <= {row["path"] for row in report["rows"]}
        assert report["throughput_share"] > 0

    def test_wrong_numbers_are_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--small"])
        monkeypatch.setattr(gpu, "TOLERANCE", 1e-12)  # float32 cannot
        with pytest.raises(SystemExit, match="nothing was timed"):
            gpu.main()
