"""Which prompts the options ask for, and what each teacher is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_probe.errors import MissingError, OpdProbeError
from opd_probe.options.request import PromptOptions
from opd_probe.options.variants import variant_names, variants
from opd_probe.rollouts.teacher_prompts import TeacherPrompt


def find(value: str) -> str:
    if not Path(value).exists() and "/" not in value:
        raise MissingError(f"--teacher-template {value}: no such path")
    return value


def test_nothing_asked_for_is_what_the_student_read() -> None:
    assert variants(PromptOptions(), find) == [None]
    everything = PromptOptions(("student",), ("student",), ("student",), ("student",))
    assert variants(everything, find) == [None]


def test_every_combination_once() -> None:
    options = PromptOptions(template=("student", "own", "own"), context=("student", "answer"))
    assert variants(options, find) == [
        None,
        TeacherPrompt(context="answer"),
        TeacherPrompt("own"),
        TeacherPrompt("own", context="answer"),
    ]
    modes = PromptOptions(system=("",), thinking=("on", "off", "student"))
    assert variants(modes, find) == [TeacherPrompt(system="", thinking=mode) for mode in (True, False, None)]


def test_a_system_message_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    options = PromptOptions(system=(str(tmp_path / "system.txt"), "Be brief.", "word"))
    assert variants(options, find) == [TeacherPrompt(system="Be brief."), TeacherPrompt(system="word")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PromptOptions(template=("",)), "--teacher-template: empty"),
        (PromptOptions(template=("none.jinja",)), "--teacher-template none.jinja: no such path"),
        (PromptOptions(system=("none.txt",)), "--teacher-system none.txt: no such file"),
        (PromptOptions(thinking=("yes",)), "--teacher-thinking yes: expected on, off, student"),
        (PromptOptions(context=(" ",)), "--teacher-context: empty"),
    ],
)
def test_values_that_cannot_be_used(options: PromptOptions, message: str) -> None:
    with pytest.raises(OpdProbeError, match=message):
        variants(options, find)


def test_names_say_what_is_not_the_students(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chat.jinja").write_text("")
    long = "You are a careful mathematician who checks every step."
    prompts = {
        None: "big",
        TeacherPrompt("own"): "big (own)",
        TeacherPrompt(str(tmp_path / "a" / "chat.jinja")): "big (a/chat)",
        TeacherPrompt(str(tmp_path / "b" / "chat.jinja")): "big (b/chat)",
        TeacherPrompt("Qwen/Qwen3-8B", thinking=False): "big (Qwen/Qwen3-8B, thinking off)",
        TeacherPrompt(system=""): "big (no system)",
        TeacherPrompt(system="Be\nbrief."): "big (system Be brief.)",
        TeacherPrompt(system=long): "big (system You are a careful mathe…)",
        TeacherPrompt("own", thinking=True, context="extra_info.solution"): "big (own, thinking on, context solution)",
        TeacherPrompt(context="See {answer} and {a.hint}."): "big (context answer + hint)",
        TeacherPrompt(context="{number} {reference_solution}"): "big (context number + reference_solu…)",
    }
    names = variant_names({"x": "big"}, [("x", prompt) for prompt in prompts])
    assert names == {("x", prompt): name for prompt, name in prompts.items()}


def test_names_that_would_be_equal_differ() -> None:
    pair = [TeacherPrompt(context="a.hint"), TeacherPrompt(context="b.hint")]
    names = variant_names({"x": "big", "y": "small"}, [(key, prompt) for key in "xy" for prompt in pair])
    assert len(set(names.values())) == 4
    assert all(name.startswith(("big (context hint)", "small (context hint)")) for name in names.values())
