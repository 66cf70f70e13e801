"""The options that several commands share, declared once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from opd_probe.options.request import DEFAULT_OUT


class Format(StrEnum):
    """What is printed on stdout."""

    table = "table"
    json = "json"
    csv = "csv"


class Average(StrEnum):
    """How states are averaged."""

    token = "token"
    rollout = "rollout"


class Dtype(StrEnum):
    """In what precision weights are held."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


class LengthFactors(StrEnum):
    """Whose length decides the rotary factors of a model that has several."""

    prefix = "prefix"
    whole = "whole"
    server = "server"


class StudentStates(StrEnum):
    """Where the student's hidden states of its own responses come from."""

    sampled = "sampled"
    replayed = "replayed"


class DeviceMap(StrEnum):
    """How models are spread over devices, as transformers names it."""

    auto = "auto"
    balanced = "balanced"
    balanced_low_0 = "balanced_low_0"
    sequential = "sequential"


_INPUT, _TEACHER, _SAMPLING, _REPLAY, _RESULT = "Input", "What the teacher reads", "Sampling", "Replay", "Result"


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


Ckpts = Annotated[
    list[str] | None,
    _option(
        "--ckpts",
        panel=_INPUT,
        metavar="PATH...",
        help="Checkpoints or run directories (checkpoint-N, global_step_N, epoch_N, …), as many as follow: "
        "--ckpts runs/*, also a quoted pattern, or hub ids; opd-probe ckpts lists what is there. A run directory may "
        "hold opd-probe.yaml.",
    ),
]
Traces = Annotated[
    list[str] | None,
    _option(
        "--traces",
        panel=_INPUT,
        metavar="PATH...",
        help="Instead of --ckpts: stored traces, or directories that hold them. No model is run.",
    ),
]
Teacher = Annotated[
    list[str] | None,
    _option(
        "--teacher",
        panel=_INPUT,
        metavar="MODEL",
        help="Path, hub id, or http://host:port[#model] of a vLLM or SGLang server; repeat it for several teachers.",
    ),
]
Thinking = Annotated[
    str | None,
    _option(
        "--thinking",
        panel=_SAMPLING,
        metavar="on|off",
        help="The thinking mode of the student's chat template, for prompts that are chat messages.",
    ),
]
TemplateKwargs = Annotated[
    str | None,
    _option(
        "--template-kwargs",
        panel=_SAMPLING,
        metavar="JSON",
        help="Variables of the student's chat template, as a JSON object; those of a prompt's own row "
        "(chat_template_kwargs) count where they are not named here.",
    ),
]
TeacherTemplate = Annotated[
    list[str] | None,
    _option(
        "--teacher-template",
        panel=_TEACHER,
        metavar="TEMPLATE",
        help="The chat template of the teacher's prompt: own (its tokenizer's), a Jinja file, or a model's; student is "
        "the default. Repeat these four to compare: every combination is a teacher of its own.",
    ),
]
TeacherSystem = Annotated[
    list[str] | None,
    _option(
        "--teacher-system",
        panel=_TEACHER,
        metavar="TEXT|FILE",
        help="The teacher's system message, in place of the prompt's; empty: none.",
    ),
]
TeacherThinking = Annotated[
    list[str] | None,
    _option(
        "--teacher-thinking", panel=_TEACHER, metavar="on|off", help="The thinking mode of the teacher's template."
    ),
]
TeacherContext = Annotated[
    list[str] | None,
    _option(
        "--teacher-context",
        panel=_TEACHER,
        metavar="FIELD",
        help="What the teacher knows beyond the student: a field of prompts or rollouts, such as answer or "
        "extra_info.solution, or a text with such fields in braces.",
    ),
]
Rollouts = Annotated[
    str | None,
    _option(
        "--rollouts",
        panel=_INPUT,
        metavar="PATH",
        help="Responses to replay: a rollout file, or what a trainer left, file or directory (see opd-probe ingest). "
        "When they carry a step, each checkpoint gets those of its own.",
    ),
]
Prompts = Annotated[
    str | None,
    _option(
        "--prompts",
        panel=_INPUT,
        metavar="FILE",
        help="Prompts (.jsonl with prompt or messages, or verl's .parquet): each checkpoint samples its own responses.",
    ),
]
Tokenizer = Annotated[
    str | None,
    _option("--tokenizer", panel=_INPUT, metavar="PATH", help="The tokenizer, for checkpoints saved without one."),
]
Template = Annotated[
    str | None,
    _option(
        "--template",
        panel=_INPUT,
        metavar="PATH",
        help="The chat template that makes the prompts of all checkpoints, in place of each one's own: a Jinja file, "
        "or a model's.",
    ),
]
TeacherTokenizer = Annotated[
    str | None,
    _option(
        "--teacher-tokenizer",
        panel=_INPUT,
        metavar="PATH",
        help="The tokenizer of served teachers (default: the one beside their weights when these are on this machine, "
        "else assumed to be the student's).",
    ),
]
Base = Annotated[
    str | None,
    _option(
        "--base",
        panel=_INPUT,
        metavar="MODEL",
        help="The model under adapters, or the one with the configuration and tokenizer of weights that were saved "
        "without (default: as the adapter or the manifest says).",
    ),
]
StepPattern = Annotated[
    str | None,
    _option(
        "--step-pattern",
        panel=_INPUT,
        metavar="REGEX",
        help="Where names of checkpoints do not say their step in a way that is known: a regular expression whose "
        "group is the step (or, named epoch, the epoch).",
    ),
]
K = Annotated[int | None, _option("--k", panel=_RESULT, metavar="N", help="Size of the top-k sets (default: 16).")]
TraceK = Annotated[
    int | None,
    _option(
        "--trace-k",
        panel=_REPLAY,
        metavar="N",
        help="Depth of the stored lists; every k up to it needs no new replay (default: 64, capped at the vocabulary).",
    ),
]
Temperature = Annotated[
    float | None,
    _option("--temperature", panel=_REPLAY, metavar="T", help="Of both scored distributions (default: 1)."),
]
SamplerOption = Annotated[
    str | None,
    _option(
        "--sampler",
        panel=_SAMPLING,
        metavar="NAME",
        help="What samples, with --prompts: transformers, the built-in loop; vllm, where it is installed; or "
        "http://host:port[#model], a vLLM or SGLang server that has the checkpoint. Their draws differ (default: "
        "transformers).",
    ),
]
SampleTemperature = Annotated[
    float | None,
    _option("--sample-temperature", panel=_SAMPLING, metavar="T", help="Of sampling, with --prompts (default: 1)."),
]
MaxNewTokens = Annotated[
    int | None,
    _option("--max-new-tokens", panel=_SAMPLING, metavar="N", help="Longest sampled response (default: 1024)."),
]
NumRollouts = Annotated[
    int | None,
    _option("--num-rollouts", panel=_SAMPLING, metavar="N", help="Sampled responses per prompt (default: 4)."),
]
MaxStates = Annotated[
    int | None,
    _option(
        "--max-states",
        panel=_REPLAY,
        metavar="N",
        help="Replay a seeded sample of whole rollouts, drawn until they hold so many states (default: all).",
    ),
]
PrecisionOption = Annotated[
    list[str] | None,
    _option(
        "--precision",
        panel=_REPLAY,
        metavar="[METRIC=]WIDTH",
        help="Replay prompts in a seeded random order, and stop once no end of the metric's interval lies farther from "
        "it than WIDTH (METRIC: overlap_ratio unless named); the interval is wide enough for stopping so to be right. "
        "Repeat it for several metrics. Without it, or with a smaller WIDTH, the same command goes on from there.",
    ),
]
WidthOption = Annotated[
    list[str] | None,
    _option(
        "--precision",
        panel=_RESULT,
        metavar="[METRIC=]WIDTH",
        help="Half-widths of intervals for which the prompts are told that they take (default: some of the main "
        "metrics); repeat it for several.",
    ),
]
Seed = Annotated[
    int | None,
    _option("--seed", panel=_SAMPLING, metavar="N", help="Of sampling and intervals (default: 0)."),
]
DtypeOption = Annotated[
    Dtype | None, _option("--dtype", panel=_REPLAY, help="Precision of the weights (default: as stored).")
]
Device = Annotated[
    str | None,
    _option(
        "--device",
        panel=_REPLAY,
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (default: cuda if there is one).",
    ),
]
DeviceMapOption = Annotated[
    DeviceMap | None,
    _option(
        "--device-map",
        panel=_REPLAY,
        help="For models that outgrow one GPU: spread each over all GPUs and main memory, in place of --device.",
    ),
]
Sequential = Annotated[
    bool | None,
    _option(
        "--sequential/--no-sequential",
        panel=_REPLAY,
        help="One model in memory at a time; the student's hidden states wait on disk (default: when the models do "
        "not fit together).",
    ),
]
BatchTokens = Annotated[
    int | None,
    _option(
        "--batch-tokens",
        panel=_REPLAY,
        metavar="N",
        help="Tokens per batch; lower it when memory is short (default: 16384).",
    ),
]
AverageOption = Annotated[
    Average | None,
    _option("--average", panel=_RESULT, help="Mean over all states, or over rollouts' means (default: token)."),
]
By = Annotated[
    str | None,
    _option(
        "--by",
        panel=_RESULT,
        metavar="FIELD",
        help="A row and a curve for each value of a field: turn, tool_call, correct, finish_reason, or what the "
        "rollouts carry, such as data_source.",
    ),
]
Jsd = Annotated[
    bool | None,
    _option("--jsd/--no-jsd", panel=_REPLAY, help="Measure the Jensen-Shannon divergence too (one more pass)."),
]
StepOffset = Annotated[
    int | None,
    _option(
        "--step-offset",
        panel=_INPUT,
        metavar="N",
        help="The checkpoint of step S gets the rollouts of step S + N: 1 for training rollouts of verl, TRL and "
        "ms-swift (default: 0).",
    ),
]
LengthFactorsOption = Annotated[
    LengthFactors | None,
    _option(
        "--length-factors",
        panel=_REPLAY,
        help="Whose length decides the rotary factors of a model that has several, as longrope and dynamic scaling: "
        "the prefix's that a token is predicted from, the whole rollout's, or a server's longest (default: prefix).",
    ),
]
StudentStatesOption = Annotated[
    StudentStates | None,
    _option(
        "--student-states",
        panel=_REPLAY,
        help="Where the student's hidden states come from, with --prompts: sampled, what was read while the responses "
        "were sampled, which saves a pass of the student; replayed, it runs over them again (default: sampled where "
        "that is exact, as in float32).",
    ),
]
AllowSpecialMismatch = Annotated[
    bool | None,
    _option(
        "--allow-special-mismatch/--no-allow-special-mismatch",
        panel=_INPUT,
        help="Leave out ids that are special tokens of different names in the two tokenizers; do not refuse.",
    ),
]
Out = Annotated[
    str | None,
    _option("--out", panel=_RESULT, metavar="DIR", help=f"Traces, tables and figures (default: {DEFAULT_OUT})."),
]
FormatOption = Annotated[
    Format | None,
    _option(
        "--format",
        panel=_RESULT,
        help="Of stdout (default: table). JSON has no infinity: an infinite value is null, and the row's "
        "'infinite' names it with its sign; an undefined value is null.",
    ),
]
DryRun = Annotated[
    bool | None,
    _option(
        "--dry-run",
        panel=_RESULT,
        help="Say how many states, bytes and how much time it would take; run no model.",
    ),
]
VariantOption = Annotated[
    str | None,
    _option(
        "--variant",
        panel=_RESULT,
        metavar="NAME",
        help="In another trainer's definitions, under its names and in files of their own: verl (verl:-10:10 with "
        "its clamps), fireworks, nemo-rl, or "
        "thunlp[:SUPPORT[:WEIGHTS]] (only_stu, only_tch, intersection, union, union-intersection; student_p, "
        "teacher_p, none).",
    ),
]
TrainingLog = Annotated[
    list[str] | None,
    _option(
        "--training-log",
        panel=_RESULT,
        metavar="[RUN=]FILE",
        help="A run's training log, or a directory with one: trainer_state.json, .jsonl, .csv, tensorboard's event "
        "files, what wandb, trackio, mlflow, swanlab or dvclive keep (FILE#NAME of several runs in a file), or verl's "
        "console log; RUN= when there are several runs, each with its own.",
    ),
]
