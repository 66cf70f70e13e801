"""What a user asked for, before anything is looked up. Light: the command line builds it without pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_OUT = "opd-probe-out"


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What teachers read before a response, by option; several values are compared. Empty: not given.

    Attributes:
        template, system, thinking, context: see :class:`opd_probe.rollouts.teacher_prompts.TeacherPrompt`;
            ``"student"`` leaves that part as the student read it.
    """

    template: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``overlap``, ``mass``, ``align`` and ``rollout``.

    Attributes:
        ckpts: checkpoints, run directories, patterns, hub ids.
        traces: trace files or directories of them; then no model is touched.
        teachers: paths, hub ids or URLs of servers; empty: the manifests name them.
        teacher_prompt: what they read; an option that is not given is the manifests'.
        teacher_tokenizer: of served teachers.
        rollouts, prompts: files; None: the manifests name them.
        step_pattern: how the step is read from a checkpoint's name; None: as it usually is.
        options: options by name (``Options`` in ``options/settings.py``); absent or None: not given.
        by: a field whose values are rows and curves of their own; None: none.
        out, format, dry_run: None: not given.
    """

    ckpts: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    teacher_prompt: PromptOptions = PromptOptions()
    rollouts: str | None = None
    prompts: str | None = None
    tokenizer: str | None = None
    teacher_tokenizer: str | None = None
    base: str | None = None
    step_pattern: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    by: str | None = None
    out: str | None = None
    format: str | None = None
    dry_run: bool | None = None
