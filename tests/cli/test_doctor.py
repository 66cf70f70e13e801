"""``opd-probe doctor``: the checklist on stdout, and an exit code that a script can go by."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from opd_probe.checks import CHECKS
from opd_probe.cli.main import main
from opd_probe.commands.doctor import handful
from opd_probe.lab.demo import write_prompts
from opd_probe.rollouts.files import write_rollouts
from opd_probe.types import Rollout
from tests.checks.clinic import Clinic, edit_json, template
from tests.checks.conftest import clinic as clinic  # the same fixture
from tests.checks.test_tokenizers import swap
from tests.cli.workspace import Caller, Outcome, files_below, write_lines
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, serving
from tests.rollouts.left_behind import slime, slime_sample
from tests.tiny import save_checkpoint

SHORT = ("--k", "32", "--repetition-length", "100")


@pytest.fixture
def examine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    """Calls the command from an empty directory."""
    (tmp_path / "here").mkdir()
    return Caller(capsys, tmp_path / "here", monkeypatch)


def pair(clinic: Clinic, *, teacher: Path | None = None, rollouts: Path | None = None) -> list[str | Path]:
    return ["doctor", "--student", clinic.root / "student", "--teacher", teacher or clinic.root / "teacher",
            "--rollouts", rollouts or clinic.root / "rollouts.jsonl"]  # fmt: skip


def lines(done: Outcome) -> dict[str, dict[str, object]]:
    return {str(row["check"]): row for row in done.rows}


def test_a_healthy_pair(clinic: Clinic, examine: Caller) -> None:
    done = examine(*pair(clinic), *SHORT)
    assert done.code == 0, done.err
    header, *rows = done.out.splitlines()
    assert header.split() == ["status", "check", "figure"]  # no line has advice
    assert [row.split()[:2] for row in rows] == [["ok", name] for name in CHECKS]
    assert files_below(examine.directory) == set()


def test_json_is_what_python_gets(clinic: Clinic, examine: Caller) -> None:
    found = lines(examine(*pair(clinic), *SHORT, "--format", "json"))
    same = clinic.findings(clinic.root / "rollouts.jsonl")  # type: ignore[arg-type]
    for name, finding in same.items():
        assert (found[name]["status"], found[name]["figure"]) == (finding.status, finding.figure)
        assert found[name]["advice"] is None
    assert found["lengths"]["values"] == dict(same["lengths"].values)
    assert {(row["run"], row["step"], row["teacher"]) for row in found.values()} == {
        (clinic.root.name, None, "teacher")
    }


def test_csv_has_a_row_for_each_check(clinic: Clinic, examine: Caller) -> None:
    table = list(csv.DictReader(io.StringIO(examine(*pair(clinic), *SHORT, "--format", "csv").out)))
    assert [row["check"] for row in table] == list(CHECKS)
    assert "values" not in table[0]


def test_a_pair_that_a_replay_refuses_is_a_failed_line(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    edit_json(teacher / "tokenizer.json", swap("7", "8"))
    done = examine(*pair(clinic, teacher=teacher), *SHORT, "--format", "json")
    assert done.code == 1
    assert done.errors == []
    found = lines(done)
    assert found["tokenizers"]["status"] == "fail"
    assert found["tokenizers"]["advice"] == CHECKS["tokenizers"].advice
    assert found["shift_replayed"]["status"] == "skip"


def test_a_warning_is_no_failure(clinic: Clinic, examine: Caller) -> None:
    done = examine(*pair(clinic), "--k", "1", "--format", "json")
    assert done.code == 0
    found = lines(done)
    assert found["top_k"]["status"] == "warn"
    assert found["repetition"]["status"] == "skip"
    assert found["repetition"]["advice"] is None


def test_prompts_are_sampled(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    talks = [{"id": str(rollout.prompt_id), "messages": rollout.extra["messages"]} for rollout in clinic.rollouts[::2]]
    prompts = write_lines(tmp_path / "prompts.jsonl", talks)
    done = examine("doctor", "--student", clinic.root / "student", "--teacher", clinic.root / "teacher", "--prompts",
                   prompts, "--max-new-tokens", "40", "--num-rollouts", "2", "--max-rollouts", "12", *SHORT,
                   "--format", "json")  # fmt: skip
    assert done.code == 0, done.err
    found = lines(done)
    skipped = {name for name, row in found.items() if row["status"] == "skip"}
    assert skipped == {"shift_stored", "self_score_stored"}  # a sampler knows nothing of the teacher
    assert all(row["status"] in ("ok", "skip") for row in found.values())
    assert found["token_source"]["values"] == {"share_retokenized": 0.0, "n": 12}
    assert files_below(examine.directory) == set()


def test_prompts_are_sampled_for_a_teacher_that_does_not_fit(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    teacher = clinic.copy("teacher", tmp_path)
    edit_json(teacher / "tokenizer.json", swap("7", "8"))
    write_prompts(tmp_path / "prompts.jsonl", 3, 0)
    done = examine("doctor", "--student", clinic.root / "student", "--teacher", teacher, "--prompts",
                   tmp_path / "prompts.jsonl", "--max-new-tokens", "30", "--format", "json")  # fmt: skip
    assert done.code == 1, done.err
    found = lines(done)
    assert found["tokenizers"]["status"] == "fail"
    assert found["truncation"]["status"] == "ok"


def test_a_run_with_a_manifest_and_two_teachers(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    clinic.copy("student", run)
    (run / "student").rename(run / "checkpoint-20")
    manifest = {
        "teacher": [str(clinic.root / "teacher"), str(clinic.root / "stranger")],
        "rollouts": str(clinic.root / "rollouts.jsonl"),
        "k": 32,
    }
    (run / "opd-probe.yaml").write_text(yaml.safe_dump(manifest))
    done = examine("doctor", "--ckpts", run, "--repetition-length", "100", "--max-rollouts", "8", "--format", "json")
    assert done.code == 1  # the stored scores are not the stranger's
    rows = {(row["teacher"], row["check"]): row for row in done.rows}
    assert {(row["run"], row["step"]) for row in done.rows} == {("mine", 20)}
    assert len(rows) == 2 * len(CHECKS)
    assert rows["teacher", "self_score_stored"]["status"] == "ok"
    assert rows["stranger", "self_score_stored"]["status"] == "fail"
    assert rows["teacher", "replay"]["values"]["n_rollouts"] == 8
    table = examine("doctor", "--ckpts", run, "--max-rollouts", "2").out
    assert table.splitlines()[0].split()[:3] == ["run", "step", "teacher"]


def test_a_teacher_that_reads_another_prompt(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    (tmp_path / "answer.jinja").write_text(template("answer"))
    done = examine(*pair(clinic), *SHORT, "--teacher-template", tmp_path / "answer.jinja", "--teacher-template",
                   "student", "--format", "json")  # fmt: skip
    names = sorted({str(row["teacher"]) for row in done.rows})
    assert len(names) == 2
    changes = {
        str(row["teacher"]): row["values"]["mean_absolute_change"]
        for row in done.rows
        if row["check"] == "teacher_prompt"
    }
    assert min(changes.values()) == 0.0
    assert max(changes.values()) > 0.01


def test_what_slime_left_with_the_teacher_a_token_late(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    """The file of a trainer as it writes it, with the log-probs of both models."""

    def sample(number: int, rollout: Rollout, late: int) -> dict[str, object]:
        scores = torch.tensor(rollout.extra["teacher_logprobs"])
        return slime_sample(
            index=number,
            tokens=[*rollout.prompt_ids, *rollout.response_ids],
            response_length=len(rollout.response_ids),
            loss_mask=[1] * len(rollout.response_ids),
            rollout_log_probs=list(rollout.logprobs or ()),
            teacher_log_probs=torch.roll(scores, late),
        )

    student = clinic.copy("student", tmp_path).rename(tmp_path / "checkpoint-9")
    found = {}
    for late in (0, 1):
        place = slime(tmp_path / str(late), [sample(n, rollout, late) for n, rollout in enumerate(clinic.rollouts)])
        done = examine("doctor", "--student", student, "--teacher", clinic.root / "teacher", "--rollouts",
                       place / "9.pt", *SHORT, "--format", "json")  # fmt: skip
        assert done.code == late, done.err
        found[late] = lines(done)
    assert found[0]["shift_stored"]["status"] == found[0]["self_score_stored"]["status"] == "ok"
    assert found[0]["sampler_logprobs"]["status"] == "ok"
    assert found[1]["shift_stored"]["status"] == found[1]["self_score_stored"]["status"] == "fail"
    assert "most by δ = +1" in str(found[1]["shift_stored"]["figure"])


def test_the_last_checkpoint_that_has_rollouts(clinic: Clinic, examine: Caller, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    for step in (5, 20, 100):
        clinic.copy("student", run).rename(run / f"checkpoint-{step}")
    stepped = tmp_path / "rollouts.jsonl"
    write_rollouts(stepped, [replace(rollout, step=20) for rollout in clinic.rollouts])
    words = ["doctor", "--ckpts", run, "--teacher", clinic.root / "teacher", "--rollouts", stepped, *SHORT]
    done = examine(*words, "--format", "json")
    assert (done.code, {row["step"] for row in done.rows}) == (0, {20})
    refused = examine(*words, "--step-offset", "1")
    assert refused.code == 2
    assert "the checkpoints are of steps 5, 20, 100, the rollouts of steps 20" in refused.errors[0]


def test_progress_is_said_on_stderr(clinic: Clinic, examine: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd_probe.cli.progress.INTERVAL", 0.0)
    done = examine(*pair(clinic), *SHORT)
    said = {line.split(":")[1].strip() for line in done.err.splitlines() if line.startswith("check ")}
    assert said == {"student, in batches", "student, one rollout at a time", "teacher, in batches",
                    "teacher, one rollout at a time"}  # fmt: skip


def test_a_served_teacher_beside_its_weights(examine: Caller, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "student", cases.student())
    save_checkpoint(tmp_path / "teacher", cases.teacher())
    rollouts = write_lines(tmp_path / "rollouts.jsonl", cases.rollouts())
    words = [
        "doctor",
        "--student",
        tmp_path / "student",
        "--rollouts",
        rollouts,
        "--k",
        str(cases.K),
        "--format",
        "json",
    ]
    weights = ("--teacher-weights", tmp_path / "teacher")
    with serving(Exchanges.read("vllm_teacher.jsonl")) as server:
        found = lines(examine(*words, "--teacher", server.url, *weights))
    assert found["self_score"]["status"] == "ok"
    assert "served against in-process" in str(found["self_score"]["figure"])
    assert found["vocabulary"]["values"]["teacher_mass_outside"] is None  # type: ignore[index]
    done = examine(*words, "--teacher", tmp_path / "teacher", *weights)
    assert done.code == 2
    assert done.errors == ["error: --teacher-weights: no teacher is served; leave it out"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--student", "nowhere", "--teacher", "x"], "--ckpts nowhere: no such path"),
        (["--teacher", "x"], "no checkpoints; give --ckpts"),
        (["--student", "{root}/student", "--rollouts", "{root}/rollouts.jsonl"], "no teacher"),
        (["--student", "{root}/student", "--teacher", "{root}/teacher"], "neither rollouts nor prompts"),
        (["--student", "{root}/student", "--max-rollouts", "0"], "--max-rollouts"),
        (["--student", "{root}/student", "--teacher", "{root}/teacher", "--rollouts", "{root}/student/config.json"],
         "config.json"),
        (["--student", "{root}/student", "--teacher", "{root}/teacher", "--rollouts", "{root}/rollouts.jsonl", "--k",
          "0"], "option --k"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(clinic: Clinic, examine: Caller, words: list[str], part: str) -> None:
    done = examine("doctor", *(word.format(root=clinic.root) for word in words))
    assert (done.code, done.out) == (2, "")
    (line,) = done.errors
    assert line.startswith("error: ")
    assert part in line


def test_exit_code_of_the_process(clinic: Clinic, tmp_path: Path) -> None:
    longer = [Rollout("r", clinic.rollouts[0].prompt_ids, (12,) * 200)]
    write_rollouts(tmp_path / "long.jsonl", longer)
    assert main([str(word) for word in pair(clinic, rollouts=tmp_path / "long.jsonl")]) == 1


def test_a_handful_is_a_seeded_sample_in_order(clinic: Clinic) -> None:
    chosen = handful(clinic.rollouts, 5, 3)
    places = [clinic.rollouts.index(rollout) for rollout in chosen]
    assert len(set(places)) == 5
    assert places == sorted(places)
    assert chosen == handful(clinic.rollouts, 5, 3)
    assert chosen != handful(clinic.rollouts, 5, 4)
    assert handful(clinic.rollouts, 99, 0) == list(clinic.rollouts)
