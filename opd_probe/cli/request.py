"""The request that ``overlap``, ``mass`` and ``align`` share, and how a command takes its options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from opd_probe.cli.options import (
    AllowSpecialMismatch,
    AverageOption,
    Base,
    BatchTokens,
    By,
    Ckpts,
    Device,
    DeviceMapOption,
    DryRun,
    DtypeOption,
    FormatOption,
    Jsd,
    K,
    LengthFactorsOption,
    MaxNewTokens,
    MaxStates,
    NumRollouts,
    Out,
    PrecisionOption,
    Prompts,
    Rollouts,
    SamplerOption,
    SampleTemperature,
    Seed,
    Sequential,
    StepOffset,
    StepPattern,
    StudentStatesOption,
    Teacher,
    TeacherContext,
    TeacherSystem,
    TeacherTemplate,
    TeacherThinking,
    TeacherTokenizer,
    Temperature,
    Template,
    TemplateKwargs,
    Thinking,
    Tokenizer,
    TraceK,
    Traces,
)
from opd_probe.options.request import PromptOptions, Request


def build_request(
    ckpts: Ckpts = None,
    traces: Traces = None,
    teacher: Teacher = None,
    rollouts: Rollouts = None,
    prompts: Prompts = None,
    tokenizer: Tokenizer = None,
    template: Template = None,
    teacher_tokenizer: TeacherTokenizer = None,
    base: Base = None,
    step_pattern: StepPattern = None,
    step_offset: StepOffset = None,
    allow_special_mismatch: AllowSpecialMismatch = None,
    teacher_template: TeacherTemplate = None,
    teacher_system: TeacherSystem = None,
    teacher_thinking: TeacherThinking = None,
    teacher_context: TeacherContext = None,
    sampler: SamplerOption = None,
    sample_temperature: SampleTemperature = None,
    max_new_tokens: MaxNewTokens = None,
    num_rollouts: NumRollouts = None,
    seed: Seed = None,
    thinking: Thinking = None,
    template_kwargs: TemplateKwargs = None,
    trace_k: TraceK = None,
    temperature: Temperature = None,
    max_states: MaxStates = None,
    precision: PrecisionOption = None,
    jsd: Jsd = None,
    length_factors: LengthFactorsOption = None,
    student_states: StudentStatesOption = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMapOption = None,
    sequential: Sequential = None,
    batch_tokens: BatchTokens = None,
    k: K = None,
    average: AverageOption = None,
    by: By = None,
    out: Out = None,
    format: FormatOption = None,
    dry_run: DryRun = None,
) -> Request:
    """The request that the shared options describe. Its parameters *are* those options."""
    return Request(
        ckpts=tuple(ckpts or ()),
        traces=tuple(traces or ()),
        teachers=tuple(teacher or ()),
        teacher_prompt=PromptOptions(
            template=tuple(teacher_template or ()),
            system=tuple(teacher_system or ()),
            thinking=tuple(teacher_thinking or ()),
            context=tuple(teacher_context or ()),
        ),
        rollouts=rollouts,
        prompts=prompts,
        tokenizer=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        base=base,
        step_pattern=step_pattern,
        options={
            "k": k,
            "trace_k": trace_k,
            "template": template,
            "temperature": temperature,
            "sampler": sampler,
            "sample_temperature": sample_temperature,
            "max_new_tokens": max_new_tokens,
            "num_rollouts": num_rollouts,
            "max_states": max_states,
            "precision": precision or None,
            "seed": seed,
            "dtype": str(dtype) if dtype else None,
            "device": device,
            "device_map": str(device_map) if device_map else None,
            "sequential": sequential,
            "batch_tokens": batch_tokens,
            "average": str(average) if average else None,
            "jsd": jsd,
            "length_factors": str(length_factors) if length_factors else None,
            "student_states": str(student_states) if student_states else None,
            "step_offset": step_offset,
            "allow_special_mismatch": allow_special_mismatch,
            "thinking": thinking,
            "template_kwargs": template_kwargs,
        },
        by=by,
        out=out,
        format=str(format) if format else None,
        dry_run=dry_run,
    )


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(request, **own)`` the shared options, after its own keyword parameters."""
    shared = inspect.signature(build_request, eval_str=True).parameters
    own = {
        name: parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "request"
    }

    def wrapper(**values: Any) -> None:
        request = build_request(**{name: values.pop(name) for name in shared})
        command(request, **values)

    functools.update_wrapper(wrapper, command)
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own.values(), *shared.values())
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper
