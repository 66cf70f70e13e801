"""What each teacher of a plan reads, where that is not what the student read. Made with tokenizers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opd_probe.errors import InputError, warn
from opd_probe.jobs.files import Files, tokenizer_of
from opd_probe.jobs.plan import RunPlan, Teacher
from opd_probe.jobs.rendering import student_tokenizer, template_source
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import chat_template_of, load_tokenizer
from opd_probe.rollouts.chat import chat_variables
from opd_probe.rollouts.prompts import encode_messages
from opd_probe.rollouts.teacher_prompts import OWN, STUDENT, PromptMaker, TeacherPrompts, messages_of
from opd_probe.types import Checkpoint, Prompt, Rollout

_HELD = 4
"""Tokenizers of large vocabularies are large, and a run may have many checkpoints."""


class Prompter:
    """Makes the prompts of teachers, and holds on to what it made them with."""

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[str | None, ...], Any] = {}
        self._makers: dict[tuple[Any, ...], PromptMaker] = {}
        self._told: set[tuple[str, str]] = set()

    def check(self, plans: Sequence[RunPlan], files: Files) -> None:
        """Make the prompts of all teachers, so that a mistake shows before any model is loaded.

        Raises:
            OpdProbeError: see :meth:`read`.
        """
        for run in plans:
            for checkpoint in run.run.checkpoints:
                for teacher in run.teachers:
                    if teacher.prompt is None:
                        continue
                    if run.source.kind == "prompts":
                        self.lengths(run, checkpoint, teacher, files.prompts(run))
                    else:
                        self.read(run, checkpoint, teacher, files.replayed(run, checkpoint)[0])

    def read(
        self, run: RunPlan, checkpoint: Checkpoint, teacher: Teacher, rollouts: Sequence[Rollout]
    ) -> TeacherPrompts | None:
        """The prompts that a teacher reads before a checkpoint's responses; None: those that the student read.

        Raises:
            OpdProbeError: a template or tokenizer that is not there, or a rollout of which no prompt can be made.
        """
        if teacher.prompt is None:
            return None
        maker = self._maker(run, checkpoint, teacher)
        read = maker.prompts(rollouts)
        if teacher.prompt.template == STUDENT:
            self._tell_what_differs(run, checkpoint, teacher, rollouts)
        return read

    def lengths(
        self, run: RunPlan, checkpoint: Checkpoint, teacher: Teacher, prompts: Sequence[Prompt]
    ) -> list[int] | None:
        """Tokens that a teacher reads before responses to prompts, sampled or not; None as for :meth:`read`."""
        if teacher.prompt is None:
            return None
        stand_ins = [
            Rollout(
                prompt.id,
                prompt.ids or (),
                (),
                prompt=prompt.text,
                response="",
                answer=prompt.answer,
                extra=prompt.carried,
            )
            for prompt in prompts
        ]
        return [len(ids) for ids in self._maker(run, checkpoint, teacher).ids(stand_ins, "prompt")]

    def _maker(self, run: RunPlan, checkpoint: Checkpoint, teacher: Teacher) -> PromptMaker:
        assert teacher.prompt is not None
        template, name = self._template(run, checkpoint, teacher)
        key = (teacher.name, template, run.tokenizer)
        if key not in self._makers:
            tokenizer = self._tokenizer(teacher.checkpoint, run.tokenizer)
            if tokenizer is None:  # the vocabulary is taken to be one then
                tokenizer = self._tokenizer(checkpoint, run.tokenizer)
            if tokenizer is None:
                raise InputError(f"teacher {teacher.name}: no tokenizer to make its prompts with; give --tokenizer")
            self._makers[key] = PromptMaker(teacher.prompt, template, name, tokenizer)
        return self._makers[key]

    def _template(self, run: RunPlan, checkpoint: Checkpoint, teacher: Teacher) -> tuple[str, str]:
        """The source of a teacher's template, and what to call it in messages."""
        assert teacher.prompt is not None
        place = teacher.prompt.template
        if place not in (STUDENT, OWN) and Path(place).is_file():
            return template_source(place, "--teacher-template"), place
        if place == STUDENT:
            name, found = checkpoint.path, self._student(run, checkpoint)
        elif place == OWN:
            name, found = teacher.name, self._tokenizer(teacher.checkpoint, None)
            found = found or self._tokenizer(teacher.checkpoint, run.tokenizer)
        else:
            name, found = place, self._held((place,), lambda: load_tokenizer(place, required=True))
        template = chat_template_of(found)
        if template is None:
            raise InputError(
                f"--teacher-template {place}: the tokenizer of {name} has no chat template; name a file with one, or a "
                "model that has one"
            )
        return template, name

    def _tokenizer(self, checkpoint: Checkpoint | ServedModel, given: str | None) -> Any:
        if isinstance(checkpoint, ServedModel):  # what it is known to use goes before what the student is given
            return checkpoint.tokenizer
        place = (given,) if given is not None else (checkpoint.path, checkpoint.revision, checkpoint.base)
        return self._held(place, lambda: tokenizer_of(checkpoint, given))

    def _student(self, run: RunPlan, checkpoint: Checkpoint) -> Any:
        return student_tokenizer(self._tokenizer(checkpoint, run.tokenizer), run.settings)

    def _held(self, place: tuple[str | None, ...], load: Callable[[], Any]) -> Any:
        tokenizer = self._tokenizers.pop(place) if place in self._tokenizers else load()
        self._tokenizers[place] = tokenizer
        for old in list(self._tokenizers)[:-_HELD]:
            del self._tokenizers[old]
        return tokenizer

    def _tell_what_differs(
        self, run: RunPlan, checkpoint: Checkpoint, teacher: Teacher, rollouts: Sequence[Rollout]
    ) -> None:
        """Warn, once, where the student's template does not make of the messages what the student read: then the
        teacher's prompt differs from it by more than was asked for."""
        tokenizer = self._student(run, checkpoint)
        first: dict[str, Rollout] = {}
        for rollout in rollouts:
            first.setdefault(rollout.prompt_id or rollout.id, rollout)
        others = [rollout.id for rollout in first.values() if not _read_this(rollout, tokenizer)]
        if others and (run.run.name, teacher.name) not in self._told:
            self._told.add((run.run.name, teacher.name))
            warn(
                f"run {run.run.name}, teacher {teacher.name}: the student's chat template does not make of the "
                f"messages the prompt that the student read ({len(others)} of {len(first)} prompts, the first that of "
                f"rollout {others[0]!r}); the teacher's prompt differs by that too"
            )


def _read_this(rollout: Rollout, tokenizer: Any) -> bool:
    """Whether the student's template makes its prompt of the rollout's messages."""
    try:
        variables = chat_variables(rollout.id, rollout.extra)
        ids = encode_messages(rollout.id, messages_of(rollout.id, rollout), tokenizer, variables=variables)
    except InputError:  # it refuses them, though not with what the teacher is given in their place
        return False
    return ids == list(rollout.prompt_ids)
