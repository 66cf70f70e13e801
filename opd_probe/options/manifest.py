"""``opd-probe.yaml``: the small file in a run directory that says what the checkpoints do not."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from opd_probe.errors import InputError, MissingError
from opd_probe.models.checkpoints import looks_like_hub_id
from opd_probe.models.served.endpoint import is_url, shown
from opd_probe.options.naming import exists, user_path
from opd_probe.options.request import PromptOptions
from opd_probe.options.settings import CommandOptions, Options, first_problem
from opd_probe.output import output_path
from opd_probe.rollouts.rows import is_dataset
from opd_probe.texts import read_text

MANIFEST_NAME = "opd-probe.yaml"

Text = Annotated[str, Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


def _as_modes(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    words = {True: "on", False: "off"}
    return _as_list(value) and [words[one] if isinstance(one, bool) else one for one in _as_list(value)]


Texts = Annotated[Annotated[list[Text], Field(min_length=1)] | None, BeforeValidator(_as_list)]


class Manifest(Options, CommandOptions):
    """What ``opd-probe.yaml`` may say; everything else in it is an error.

    Attributes:
        teacher: one or several models (path, hub id or URL of a server).
        teacher_tokenizer: the tokenizer of served teachers.
        student: the model before distillation: step 0 of the run.
        rollouts, prompts: a file; at most one of them.
        teacher_template, teacher_system, teacher_thinking, teacher_context: what the teachers read, see
            :class:`opd_probe.options.request.PromptOptions`; one or several of each.
        tokenizer: the tokenizer of checkpoints that were saved without one.
        base: the model under an adapter, when the adapter's own record of it is wrong.
    """

    teacher: Texts = None
    student: Text | None = None
    rollouts: Text | None = None
    prompts: Text | None = None
    teacher_template: Texts = None
    teacher_system: Annotated[Annotated[list[str], Field(min_length=1)] | None, BeforeValidator(_as_list)] = None
    teacher_thinking: Annotated[
        Annotated[list[Literal["on", "off", "student"]], Field(min_length=1)] | None, BeforeValidator(_as_modes)
    ] = None
    teacher_context: Texts = None
    teacher_tokenizer: Text | None = None
    tokenizer: Text | None = None
    base: Text | None = None

    @property
    def teacher_prompt(self) -> PromptOptions:
        """What the teachers read."""
        values = (self.teacher_template, self.teacher_system, self.teacher_thinking, self.teacher_context)
        return PromptOptions(*(tuple(value or ()) for value in values))


_MODELS = ("student", "teacher_tokenizer", "tokenizer", "template", "base")
_FILES = ("rollouts", "prompts")
_WORDS = ("student", "own")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Relative paths in it are resolved against its directory.

    Raises:
        InputError: not YAML, an unknown key, or a value of the wrong kind; names the file and the key.
        MissingError: a path in it that does not exist.
    """
    content = _load_yaml(path)
    try:
        manifest = Manifest(**content)
    except ValidationError as error:
        raise _explain(path, content, error) from None
    if manifest.rollouts and manifest.prompts:
        raise InputError(f"manifest {path}: both 'rollouts' and 'prompts' are given; keep one of them")
    resolved: dict[str, Any] = {}
    if manifest.teacher:
        resolved["teacher"] = [resolve_model(path, "teacher", value) for value in manifest.teacher]
    for key in _MODELS:
        if value := getattr(manifest, key):
            resolved[key] = resolve_model(path, key, value)
    if manifest.teacher_template:
        resolved["teacher_template"] = [
            value if value in _WORDS else resolve_model(path, "teacher_template", value)
            for value in manifest.teacher_template
        ]
    if manifest.teacher_system:
        resolved["teacher_system"] = [_file_or_text(path, value) for value in manifest.teacher_system]
    for key in _FILES:
        if value := getattr(manifest, key):
            resolved[key] = _resolve_file(path, key, value)
    if manifest.out:
        resolved["out"] = str(_against(path, str(output_path(manifest.out))))
    return manifest.model_copy(update=resolved)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except RecursionError:
        raise InputError(f"manifest {path}: not YAML (nested too deeply)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"manifest {path}{line}: not YAML ({getattr(error, 'problem', None) or 'cannot be parsed'})"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"manifest {path}: not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"manifest {path}: cannot be read ({error.strerror})") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"manifest {path}: expected lines of 'key: value', got {type(content).__name__}")
    return content


def _explain(path: Path, content: dict[str, Any], error: ValidationError) -> InputError:
    accepted = sorted(Manifest.model_fields)
    unknown = [key for key in content if key not in Manifest.model_fields]
    if unknown:
        close = difflib.get_close_matches(unknown[0], accepted, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return InputError(f"manifest {path}: unknown key {unknown[0]!r}{hint}; accepted keys: {', '.join(accepted)}")
    key, expected, got = first_problem(error)
    return InputError(f"manifest {path}: key {key!r}: {expected}, got {got}")


def _against(manifest: Path, value: str) -> Path:
    return Path(os.path.normpath(manifest.parent / user_path(value)))


def resolve_model(manifest: Path, key: str, value: str) -> str:
    """A model that a manifest names: a path relative to the manifest if there is one, a hub id, or a teacher's URL.

    Raises:
        MissingError: neither.
    """
    if is_url(value) and key == "teacher":
        return value
    local = _against(manifest, value)
    if exists(local):
        return str(local)
    is_path = value.startswith(("/", "./", "../", "~")) or value in (".", "..")
    if not is_path and looks_like_hub_id(value):
        return value
    where = "" if "//" in value else f" ({local})"  # as of an address, in which a password may stand
    kind = "" if is_path else ", and not a hub id (org/name)"
    raise MissingError(f"manifest {manifest}: key {key!r}: {shown(value)}: no such path{where}{kind}")


def _file_or_text(manifest: Path, value: str) -> str:
    """A text, or the file that holds it, which is then named by its whole path."""
    one_word = len(value.split()) == 1
    local = _against(manifest, value)
    return str(local) if one_word and exists(local) and local.is_file() else value


def _resolve_file(manifest: Path, key: str, value: str) -> str:
    local = _against(manifest, value)
    if not exists(local) or not (local.is_file() or is_dataset(local) or (key == "rollouts" and local.is_dir())):
        what = "is a directory" if exists(local) and local.is_dir() else "no such file"
        raise MissingError(f"manifest {manifest}: key {key!r}: {value}: {what} ({local})")
    return str(local)
