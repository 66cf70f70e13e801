from __future__ import annotations

from pathlib import Path

import pytest

from opd_probe.errors import InputError, MissingError, OpdProbeError
from opd_probe.options.manifest import MANIFEST_NAME, Manifest, read_manifest
from opd_probe.options.request import PromptOptions


def write(directory: Path, text: str) -> Path:
    path = directory / MANIFEST_NAME
    path.write_text(text)
    return path


def test_paths_resolve_against_the_file_and_hub_ids_stay(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (tmp_path / "models" / "big").mkdir(parents=True)
    (run / "org" / "name").mkdir(parents=True)
    (run / "prompts.jsonl").write_text("{}")
    manifest = read_manifest(
        write(
            run,
            "teacher: [../../models/big, Qwen/Qwen2.5-7B]\nstudent: org/name\nprompts: prompts.jsonl\nout: results\n",
        )
    )
    assert manifest.teacher == [str(tmp_path / "models" / "big"), "Qwen/Qwen2.5-7B"]
    assert manifest.student == str(run / "org" / "name")  # an existing path wins over a hub id
    assert manifest.prompts == str(run / "prompts.jsonl")
    assert manifest.out == str(run / "results")


def test_options_and_one_teacher(tmp_path: Path) -> None:
    manifest = read_manifest(
        write(
            tmp_path,
            "teacher: org/t\nk: 4\ntemperature: 1\nmax_states: 100\njsd: true\naverage: rollout\nformat: json\n"
            "sampler: vllm",
        )
    )
    assert manifest.teacher == ["org/t"]
    assert (manifest.k, manifest.temperature, manifest.max_states, manifest.jsd) == (4, 1.0, 100, True)
    assert (manifest.average, manifest.format, manifest.seed) == ("rollout", "json", None)
    assert manifest.sampler == "vllm"


def test_what_the_teachers_read(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("x")
    (tmp_path / "system.txt").write_text("Be brief.")
    text = (
        "teacher_template: [student, own, chat.jinja]\nteacher_system: ['', system.txt, Be brief.]\n"
        "teacher_thinking: [off, on, student]\nteacher_context: extra_info.solution\n"
    )
    assert read_manifest(write(tmp_path, text)).teacher_prompt == PromptOptions(
        template=("student", "own", str(tmp_path / "chat.jinja")),
        system=("", str(tmp_path / "system.txt"), "Be brief."),
        thinking=("off", "on", "student"),
        context=("extra_info.solution",),
    )
    assert read_manifest(write(tmp_path, "teacher_thinking: off")).teacher_prompt == PromptOptions(thinking=("off",))
    assert read_manifest(write(tmp_path, "teacher_thinking:")).teacher_prompt == PromptOptions()


def test_an_empty_manifest_says_nothing(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, "# later\n")) == Manifest()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("techer: a/b", ["'techer'", "did you mean 'teacher'", "accepted keys:", "max_new_tokens"]),
        ("k: 0", ["'k'", "expected at least 1", "got 0"]),
        ("k: '16'", ["'k'", "integer", "got '16'"]),
        ("jsd: 1", ["'jsd'", "boolean"]),
        ("average: mean", ["'average'", "token", "rollout"]),
        ("sampler: llama", ["'sampler'", "transformers", "vllm"]),
        ("teacher: 3", ["'teacher'", "got 3"]),
        ("teacher: []", ["'teacher'"]),
        ("teacher: ./nowhere", ["'teacher'", "./nowhere", "no such path"]),
        ("teacher: nowhere", ["'teacher'", "not a hub id"]),
        ("student: ../a/b", ["'student'", "no such path"]),
        ("rollouts: r.jsonl", ["'rollouts'", "no such file"]),
        ("prompts: .", ["'prompts'", "is a directory"]),
        ("teacher_template: t.jinja", ["'teacher_template'", "t.jinja", "no such path"]),
        ("teacher_template: []", ["'teacher_template'"]),
        ("teacher_thinking: maybe", ["'teacher_thinking'", "'on', 'off' or 'student'", "got 'maybe'"]),
        ("teacher_context: 3", ["'teacher_context'", "got 3"]),
        ("teacher_system: [3]", ["'teacher_system'", "got 3"]),
        ("k: [", ["line", "not YAML"]),
        ("- a", ["expected lines of 'key: value'", "list"]),
    ],
)
def test_each_mistake_is_one_line_that_names_the_file_and_the_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(OpdProbeError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in [str(path), *parts]:
        assert part in message


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00k")
    with pytest.raises(InputError, match="UTF-8"):
        read_manifest(tmp_path / MANIFEST_NAME)


def test_rollouts_and_prompts_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("{}")
    with pytest.raises(InputError, match="both 'rollouts' and 'prompts'"):
        read_manifest(write(tmp_path, "rollouts: f.jsonl\nprompts: f.jsonl"))


def test_a_missing_path_is_a_missing_error(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_manifest(write(tmp_path, "teacher: ./nowhere"))
