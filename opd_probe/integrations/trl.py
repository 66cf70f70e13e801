"""Trainers of transformers and TRL: overlap, mass and alignment as curves of the trainer's own logger."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel

from opd_probe.errors import InputError, OpdProbeError, warn
from opd_probe.integrations.probe import Source, forget_teacher, make_probe, teacher_prompt_of, write_manifest
from opd_probe.integrations.teachers import Standing, fingerprint, is_path, missing_teacher, place_of, standing, twin
from opd_probe.integrations.undisturbed import refuse_sharded, undisturbed
from opd_probe.jobs.memory import memory_advice
from opd_probe.jobs.served import served_model
from opd_probe.models.adapters import check_adapters
from opd_probe.models.checkpoints import looks_like_hub_id
from opd_probe.models.loading import LoadedModel, load_model
from opd_probe.models.served.endpoint import is_url, shown
from opd_probe.models.served.model import ServedModel
from opd_probe.models.vocabulary import load_tokenizer

PREFIX = "opd/"
"""Before every name in the log, so that none of the trainer's own is taken: ``opd/overlap_ratio``."""


class OverlapCallback(TrainerCallback):
    """Measures the student against its teacher every few steps of a training, and logs what it finds.

    At the start, every ``every`` steps and at the last step the current student samples responses to a fixed set of
    prompts (or replays fixed rollouts), the teacher scores them, and the means go through the trainer's logger as
    ``opd/<name>``, the names and definitions being those of ``docs/metrics.md``: to wandb, trackio, tensorboard and
    ``trainer_state.json``. The trace of each measurement lies under ``<output_dir>/opd-probe``, where ``opd-probe
    overlap --traces`` and ``opd-probe figures --traces`` read it, and ``<output_dir>/opd-probe.yaml`` says what the
    checkpoints do not. Numbers are those of ``opd-probe overlap`` on a checkpoint of the same step.

    The training does not notice: modes of modules and random numbers are put back, and metrics that the trainer is
    collecting are left alone, so that losses are the same with and without the callback.

    On several processes the main one measures, with its own replica (DDP), and the others wait for it at their next
    exchange. Models sharded by FSDP or DeepSpeed ZeRO-3 are refused when training starts.

    Args:
        trainer: any ``transformers.Trainer``: TRL's ``DistillationTrainer``, ``GKDTrainer``, ``GRPOTrainer``, …
        prompts: a file as ``--prompts`` takes it, or its rows: texts, or mappings with ``prompt`` or ``messages``,
            such as a ``datasets.Dataset``. Rows are written to ``<output_dir>/opd-probe/prompts.jsonl``.
        rollouts: in place of prompts, one fixed set of responses: a file as ``--rollouts`` takes it, or its rows.
        every: steps between measurements.
        teacher: a loaded model, a path or hub id that is loaded when it is first needed, or the URL of a vLLM or SGLang
            server, as for :func:`opd_probe.replay`; None: the trainer's ``teacher_model``.
        teacher_tokenizer: of a teacher that is a loaded model or served; None: the one in the directory that it came
            from, else the trainer's.
        teacher_name, run: names in rows and figures; None: the last parts of the teacher's and the output's path.
        keep_teacher: False: a teacher given by path is loaded for each measurement and let go, for its memory's sake.
        at_start: also measure before the first step: step 0 of the curves.
        out: for traces and samples, in place of ``<output_dir>/opd-probe``.
        options: as in ``opd-probe.yaml``, with the same defaults: ``k``, ``trace_k``, ``num_rollouts``,
            ``max_new_tokens``, ``temperature``, ``sample_temperature``, ``seed``, ``max_states``, ``batch_tokens``,
            ``jsd``, ``average``, ``dtype`` (of a teacher given by path), ``allow_special_mismatch``,
            ``length_factors``, ``student_states``, ``thinking``, ``template_kwargs`` (None: the trainer's
            ``chat_template_kwargs``); and what the teacher reads, one value each: ``teacher_context``,
            ``teacher_template``, ``teacher_system``, ``teacher_thinking``.

    Raises:
        OpdProbeError: at once or when training starts, whatever cannot be used, in one line. A measurement that fails
            later, such as for want of memory, is warned about, and the training goes on.
    """

    def __init__(
        self,
        trainer: Trainer,
        prompts: Source | None = None,
        *,
        rollouts: Source | None = None,
        every: int = 50,
        teacher: Any = None,
        teacher_tokenizer: Any = None,
        teacher_name: str | None = None,
        run: str | None = None,
        keep_teacher: bool = True,
        at_start: bool = True,
        out: str | Path | None = None,
        **options: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every = {every!r}: expected a whole number of steps, at least 1")
        self._trainer, self._every, self._at_start, self._keep = trainer, every, at_start, keep_teacher
        self._given = getattr(trainer, "teacher_model", None) if teacher is None else teacher
        if self._given is None:
            raise InputError(missing_teacher(trainer))
        if not isinstance(self._given, (str, Path, nn.Module)):
            kind = type(self._given).__name__
            raise InputError(f"teacher of type {kind}: expected a path, a hub id, a URL or a loaded model")
        self._teacher_tokenizer = teacher_tokenizer
        if is_url(self._given):
            self._given = served_model(self._given, teacher_tokenizer)
        self._standing = Standing()
        if isinstance(self._given, nn.Module):
            self._standing = standing(trainer, self._student(), self._unwrapped(self._given), own=teacher is None)
        if self._standing.kind == "itself" and teacher_prompt_of(options) is None:
            raise InputError(
                "teacher: is the model in training itself, so that it would be compared with itself; give "
                "OverlapCallback what its teacher knows beyond the student (teacher_context='privileged_context', a "
                "field of the prompts), or another teacher"
            )
        self._loaded: LoadedModel | None = None
        self._seen: str | None = None
        if options.get("template_kwargs") is None:
            options = {**options, "template_kwargs": getattr(trainer.args, "chat_template_kwargs", None) or None}
        self._directory = Path(str(trainer.args.output_dir))
        self._probe = make_probe(
            self._directory,
            prompts=prompts,
            rollouts=rollouts,
            teacher=teacher_name or self._teacher_name(),
            run=run,
            out=out,
            options=options,
        )

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer passes all of them
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Refuse what cannot be measured, write the manifest, and measure the untrained student."""
        refuse_sharded(self._trainer.model_wrapped, "student")
        check_adapters(self._student(), type(self._student()).__name__)
        if isinstance(self._given, nn.Module):
            refuse_sharded(self._given, "teacher")
        if not state.is_world_process_zero:
            return
        self._seen = self._teachers_fingerprint()
        self._write_manifest()
        if hasattr(self._trainer, "teacher_context_builder") and self._probe.reads is None:
            warn(
                f"{type(self._trainer).__name__}: its teacher reads a privileged context, and here what the student "
                "reads; teacher_context='privileged_context' gives it that field of the prompts"
            )
        left = [step for step in self._probe.steps_after(state.global_step) if not self._is_due(step, state)]
        if left:
            some = ", ".join(map(str, left[:5])) + (", …" if len(left) > 5 else "")
            warn(
                f"{self._probe.trace_path(0).parent}: an earlier training left traces of steps that this one does not "
                f"measure ({some}); remove them if they are of another run"
            )
        # A training that goes on from a checkpoint has measured that step before.
        known = state.global_step > 0 and self._probe.trace_path(state.global_step).is_file()
        if self._at_start and not known:
            self._log(self._values(state.global_step))

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Measure, when it is time."""
        due = control.should_training_stop or self._is_due(state.global_step, state)
        if state.is_world_process_zero and due:
            try:
                self._log(self._values(state.global_step))
            except OpdProbeError as error:
                warn(f"step {state.global_step}: not measured ({error})")

    def _write_manifest(self) -> None:
        place = None if self._standing.moves else self._teacher_place()
        if self._standing.moves:
            warn(f"manifest of {self._directory}: the teacher moves with the training, so that no line can name it")
        elif place is None:
            warn(f"manifest of {self._directory}: the teacher is a model in memory, so that no line can name it")
        write_manifest(self._directory, self._probe, {"teacher": place, "student": place_of(self._student())})

    def _teachers_fingerprint(self) -> str | None:
        """Of a teacher in memory that is not known to move."""
        apart = isinstance(self._given, nn.Module) and self._standing == Standing()
        return fingerprint(self._unwrapped(self._given)) if apart else None

    def _look_whether_it_moves(self, step: int) -> None:
        """A teacher that something changes leaves no path, which would lead to another model."""
        if self._seen is None or self._teachers_fingerprint() == self._seen:
            return
        self._standing = Standing(moves=True)
        forgotten = forget_teacher(self._directory)
        warn(
            f"step {step}: the weights of the teacher have changed since the training began"
            + (", so that opd-probe.yaml names it no longer" if forgotten else "")
        )

    def _is_due(self, step: int, state: TrainerState) -> bool:
        return step == state.max_steps or (step % self._every == 0 and step < state.max_steps)

    def _log(self, values: dict[str, float]) -> None:
        """To everything that watches the trainer, and nothing else: TRL's own ``log`` would also hand over, and so
        empty, the metrics that are still being collected, and any log counts as the one that is due at this step."""
        due = self._trainer.control.should_log
        Trainer.log(self._trainer, {f"{PREFIX}{name}": value for name, value in values.items()})
        self._trainer.control.should_log = due

    def _values(self, step: int) -> dict[str, float]:
        student = self._student()
        in_memory = [student, self._unwrapped(self._given)] if isinstance(self._given, nn.Module) else [student]
        self._look_whether_it_moves(step)
        with undisturbed(*in_memory), memory_advice("measuring"), ExitStack() as stack:
            tokenizer = _tokenizer_of(self._trainer) or _tokenizer_in(place_of(student))
            loaded = load_model(student, tokenizer=tokenizer)
            loaded.identity |= {"step": step, "format": "training", "base": place_of(student)}
            teacher = self._teacher(loaded, stack)
            labels = {"directory": str(self._directory.absolute())}
            return self._probe.values(self._probe.measure(loaded, teacher, step, labels))

    def _teacher(self, student: LoadedModel, stack: ExitStack) -> LoadedModel | ServedModel:
        if isinstance(self._given, ServedModel):
            return self._given
        if self._standing.kind == "itself":
            return student
        if not is_path(self._given):
            place, model = self._teacher_place(), self._unwrapped(self._given)
            tokenizer = self._teacher_tokenizer or _tokenizer_in(place) or student.tokenizer
            if self._standing.kind != "apart":
                model = stack.enter_context(twin(model, self._standing))
            loaded = load_model(model, tokenizer=tokenizer)
            loaded.identity |= {"path": None if self._standing.moves else place}
            return loaded
        if self._loaded is not None:
            return self._loaded
        loaded = load_model(
            self._given,
            dtype=self._probe.settings.dtype,
            device=str(student.device),
            tokenizer=self._teacher_tokenizer,
        )
        self._loaded = loaded if self._keep else None
        return loaded

    def _student(self) -> PreTrainedModel:
        return self._unwrapped(self._trainer.model)

    def _unwrapped(self, model: Any) -> PreTrainedModel:
        found: PreTrainedModel = self._trainer.accelerator.unwrap_model(model)
        return found

    def _teacher_place(self) -> str | None:
        if isinstance(self._given, ServedModel):
            return shown(self._given.endpoint.url)
        return str(self._given) if is_path(self._given) else place_of(self._unwrapped(self._given))

    def _teacher_name(self) -> str:
        place = self._given.model if isinstance(self._given, ServedModel) else self._teacher_place()
        if place and not Path(place).exists() and looks_like_hub_id(place):
            name = place
        else:
            name = Path(place or "").name or type(self._given).__name__
        return f"{name} ({self._standing.mark})" if self._standing.mark else name


def _tokenizer_in(place: str | None) -> Any:
    """The tokenizer beside the weights that a model was loaded from, if there is one."""
    return load_tokenizer(place, required=False) if place and Path(place).is_dir() else None


def _tokenizer_of(trainer: Trainer) -> Any:
    """The trainer's tokenizer, which a processor of several kinds of input holds inside."""
    processing = trainer.processing_class
    return getattr(processing, "tokenizer", processing)
