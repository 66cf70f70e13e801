"""``opd-probe doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.request import build_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected

FAILED = 1
"""The exit code when a check fails."""


def doctor(
    ckpts: Annotated[
        list[str] | None,
        typer.Option(
            "--ckpts",
            "--student",
            metavar="PATH...",
            help="The student: a checkpoint, a run directory (its last checkpoint that has rollouts is checked), or a "
            "hub id.",
            rich_help_panel="Input",
            show_default=False,
        ),
    ] = None,
    teacher: options.Teacher = None,
    rollouts: options.Rollouts = None,
    prompts: options.Prompts = None,
    tokenizer: options.Tokenizer = None,
    template: options.Template = None,
    teacher_tokenizer: options.TeacherTokenizer = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            "--teacher-weights",
            metavar="MODEL",
            help="The weights of a teacher behind HTTP: both score the same tokens, to see whether they agree.",
            rich_help_panel="Input",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="The model that a quantised teacher was made of: one more line says what quantising it cost, with a "
            "table and a figure in --out.",
            rich_help_panel="Input",
            show_default=False,
        ),
    ] = None,
    base: options.Base = None,
    step_pattern: options.StepPattern = None,
    step_offset: options.StepOffset = None,
    allow_special_mismatch: options.AllowSpecialMismatch = None,
    teacher_template: options.TeacherTemplate = None,
    teacher_system: options.TeacherSystem = None,
    teacher_thinking: options.TeacherThinking = None,
    teacher_context: options.TeacherContext = None,
    max_rollouts: Annotated[
        int, typer.Option("--max-rollouts", min=1, help="Rollouts to look at.", rich_help_panel="Input")
    ] = 16,
    sampler: options.SamplerOption = None,
    sample_temperature: options.SampleTemperature = None,
    max_new_tokens: options.MaxNewTokens = None,
    num_rollouts: options.NumRollouts = None,
    seed: options.Seed = None,
    thinking: options.Thinking = None,
    template_kwargs: options.TemplateKwargs = None,
    temperature: options.Temperature = None,
    dtype: options.DtypeOption = None,
    device: options.Device = None,
    device_map: options.DeviceMapOption = None,
    sequential: options.Sequential = None,
    batch_tokens: options.BatchTokens = None,
    k: options.K = None,
    repetition_length: Annotated[
        int,
        typer.Option(
            "--repetition-length",
            min=1,
            metavar="N",
            help="Characters of a response's tail that are checked for repetition.",
            rich_help_panel="Result",
        ),
    ] = 10_000,
    out: options.Out = None,
    format: options.FormatOption = None,
) -> None:
    """Check a pair and a handful of rollouts for the mistakes that ruin a distillation, before any long job.

    One line for each check: ok, warn, fail, or skip when it cannot be made; with the figure behind it and what to do.
    Exit code 1 when one fails. Writes nothing but what --reference asks for.

    Example: opd-probe doctor --student runs/a/checkpoint-100 --teacher big-model --rollouts rollouts.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.doctor import check_runs

    request = build_request(
        ckpts=ckpts,
        teacher=teacher,
        rollouts=rollouts,
        prompts=prompts,
        tokenizer=tokenizer,
        template=template,
        teacher_tokenizer=teacher_tokenizer,
        base=base,
        step_pattern=step_pattern,
        step_offset=step_offset,
        allow_special_mismatch=allow_special_mismatch,
        teacher_template=teacher_template,
        teacher_system=teacher_system,
        teacher_thinking=teacher_thinking,
        teacher_context=teacher_context,
        sampler=sampler,
        sample_temperature=sample_temperature,
        max_new_tokens=max_new_tokens,
        num_rollouts=num_rollouts,
        seed=seed,
        thinking=thinking,
        template_kwargs=template_kwargs,
        temperature=temperature,
        dtype=dtype,
        device=device,
        device_map=device_map,
        sequential=sequential,
        batch_tokens=batch_tokens,
        k=k,
        out=out,
        format=format,
    )
    result, failed = check_runs(
        request,
        progress,
        teacher_weights=teacher_weights,
        max_rollouts=max_rollouts,
        repetition_length=repetition_length,
        reference=reference,
    )
    finish(result)
    if failed:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)
