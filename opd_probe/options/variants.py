"""From the options on a teacher's prompt to its variants: every combination of their values, each with a name."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from opd_probe.errors import InputError, MissingError
from opd_probe.options.naming import exists, path_parts, unique_names, user_path
from opd_probe.options.request import PromptOptions
from opd_probe.rollouts.teacher_prompts import OWN, STUDENT, TeacherPrompt, context_fields
from opd_probe.texts import read_text, real_path

_THINKING = {"on": True, "off": False, STUDENT: None}
_SHOWN = 24
_TEXT_FILES = (".txt", ".md", ".jinja", ".j2")


def variants(options: PromptOptions, find: Callable[[str], str]) -> list[TeacherPrompt | None]:
    """Every combination of the options' values, in their order; None where the teacher reads what the student read.

    Args:
        find: turns a template that is no word into the path of a file or a model, or a hub id, or refuses it.

    Raises:
        MissingError, InputError: a value that cannot be used, naming the option.
    """
    templates = [_template(value, find) for value in options.template or (STUDENT,)]
    systems = [None if value == STUDENT else _system(value) for value in options.system or (STUDENT,)]
    modes = [_thinking(value) for value in options.thinking or (STUDENT,)]
    contexts = [None if value == STUDENT else _context(value) for value in options.context or (STUDENT,)]
    combined = itertools.product(templates, systems, modes, contexts)
    prompts = [TeacherPrompt(*values) for values in combined]
    return [None if prompt == TeacherPrompt() else prompt for prompt in dict.fromkeys(prompts)]


def _template(value: str, find: Callable[[str], str]) -> str:
    if not value:
        raise InputError(
            f"--teacher-template: empty; expected {STUDENT}, {OWN}, a Jinja file, or a model's path or hub id"
        )
    return value if value in (STUDENT, OWN) else find(value)


def _system(value: str) -> str:
    """The text, from the file where one is named."""
    if len(value.split()) != 1:
        return value
    file = user_path(value)
    try:
        if exists(file) and file.is_file():
            return read_text(file).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--teacher-system {value}: cannot be read as UTF-8 text") from None
    if file.suffix in _TEXT_FILES or "/" in value:
        raise MissingError(f"--teacher-system {value}: no such file; give one that is there, or the text itself")
    return value


def _thinking(value: str) -> bool | None:
    if value not in _THINKING:
        raise InputError(f"--teacher-thinking {value}: expected {', '.join(_THINKING)}")
    return _THINKING[value]


def _context(value: str) -> str:
    if not value.strip():
        raise InputError("--teacher-context: empty; expected a field of the rollouts or prompts, such as answer")
    return value


def variant_names(
    teachers: Mapping[str, str], wanted: Sequence[tuple[str, TeacherPrompt | None]]
) -> dict[tuple[str, TeacherPrompt | None], str]:
    """A name for each teacher with each of its prompts: the teacher's, and in brackets what is not the student's.

    Args:
        teachers: names of teachers by what identifies them.
        wanted: teachers and prompts.
    """
    distinct = dict.fromkeys(wanted)
    places = {prompt.template for _, prompt in distinct if prompt is not None and prompt.template != STUDENT}
    templates = unique_names({place: _parts(place) for place in sorted(places)})
    names = {(key, prompt): _name(teachers[key], prompt, templates) for key, prompt in distinct}
    counts = Counter(names.values())
    return {
        pair: name if counts[name] == 1 else f"{name} #{hashlib.sha256(repr(pair).encode()).hexdigest()[:6]}"
        for pair, name in names.items()
    }


def _parts(place: str) -> tuple[str, ...]:
    if place == OWN or not exists(Path(place)):
        return (place,)
    parts = path_parts(real_path(place))
    return (*parts[:-1], Path(place).stem if Path(place).is_file() else parts[-1])


def _name(teacher: str, prompt: TeacherPrompt | None, templates: Mapping[str, str]) -> str:
    if prompt is None:
        return teacher
    parts = [] if prompt.template == STUDENT else [templates[prompt.template]]
    if prompt.system is not None:
        words = _cut(" ".join(prompt.system.split()))
        parts.append(f"system {words}" if words else "no system")
    if prompt.thinking is not None:
        parts.append(f"thinking {'on' if prompt.thinking else 'off'}")
    if prompt.context is not None:
        fields = dict.fromkeys(field.rsplit(".", 1)[-1] for field in context_fields(prompt.context))
        parts.append(f"context {_cut(' + '.join(fields))}")
    return f"{teacher} ({', '.join(parts)})"


def _cut(words: str) -> str:
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"
