"""``opd-probe rollout``."""

from __future__ import annotations

from typing import Annotated

import typer

from opd_probe.cli import options
from opd_probe.cli.request import build_request
from opd_probe.cli.session import finish, progress, quieten_libraries
from opd_probe.imports import uncollected


def rollout(
    ckpts: options.Ckpts = None,
    prompts: options.Prompts = None,
    teacher: options.Teacher = None,
    tokenizer: options.Tokenizer = None,
    template: options.Template = None,
    base: options.Base = None,
    step_pattern: options.StepPattern = None,
    allow_special_mismatch: options.AllowSpecialMismatch = None,
    sampler: options.SamplerOption = None,
    sample_temperature: options.SampleTemperature = None,
    max_new_tokens: options.MaxNewTokens = None,
    num_rollouts: options.NumRollouts = None,
    seed: options.Seed = None,
    thinking: options.Thinking = None,
    template_kwargs: options.TemplateKwargs = None,
    length_factors: options.LengthFactorsOption = None,
    dtype: options.DtypeOption = None,
    device: options.Device = None,
    device_map: options.DeviceMapOption = None,
    batch_tokens: options.BatchTokens = None,
    format: options.FormatOption = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="The .jsonl or .parquet file to write.", rich_help_panel="Result"),
    ] = None,
) -> None:
    """Sample responses from the checkpoints of one run and store them with their token ids.

    Each rollout carries the step of its checkpoint. Ids that a teacher does not share are never sampled.

    Example: opd-probe rollout --ckpts runs/a/checkpoint-100 --prompts problems.jsonl --out rollouts.jsonl
    """
    quieten_libraries()
    with uncollected():
        from opd_probe.commands.rollout import rollout as run

    request = build_request(
        ckpts=ckpts,
        prompts=prompts,
        teacher=teacher,
        tokenizer=tokenizer,
        template=template,
        base=base,
        step_pattern=step_pattern,
        allow_special_mismatch=allow_special_mismatch,
        sampler=sampler,
        sample_temperature=sample_temperature,
        max_new_tokens=max_new_tokens,
        num_rollouts=num_rollouts,
        seed=seed,
        thinking=thinking,
        template_kwargs=template_kwargs,
        length_factors=length_factors,
        dtype=dtype,
        device=device,
        device_map=device_map,
        batch_tokens=batch_tokens,
        format=format,
        out=out,
    )
    finish(run(request, progress))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("rollout")(rollout)
