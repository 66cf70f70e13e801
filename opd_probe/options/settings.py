"""Options: as given (all optional), merged (the command line wins), and settled with their defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from opd_probe.engine.settings import TRACE_K, ReplaySettings
from opd_probe.errors import InputError
from opd_probe.options.precision import METRICS_K, Precision, parse_widths
from opd_probe.texts import parse_json
from opd_probe.types import LengthRule, StudentStates

Count = Annotated[int, Field(ge=1)]
Url = Annotated[str, Field(pattern=r"^https?://")]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _as_mode(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _as_object(value: Any) -> Any:
    """The command line has JSON in its place."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except (ValueError, RecursionError):
        return value


Widths = Annotated[dict[str, float], BeforeValidator(parse_widths)]
Mode = Annotated[Literal["on", "off"], BeforeValidator(_as_mode)]
Variables = Annotated[dict[str, Any], BeforeValidator(_as_object)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Options(_Strict):
    """The options of one run, each None when nobody gave it. One field per option of the command line."""

    k: Count | None = None
    trace_k: Count | None = None
    temperature: Temperature | None = None
    sampler: Literal["transformers", "vllm"] | Url | None = None
    sample_temperature: Temperature | None = None
    max_new_tokens: Count | None = None
    num_rollouts: Count | None = None
    max_states: Count | None = None
    precision: Widths | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    device: Annotated[str, Field(min_length=1)] | None = None
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    sequential: bool | None = None
    batch_tokens: Count | None = None
    average: Literal["token", "rollout"] | None = None
    jsd: bool | None = None
    length_factors: LengthRule | None = None
    student_states: StudentStates | None = None
    step_offset: int | None = None
    template: Annotated[str, Field(min_length=1)] | None = None
    allow_special_mismatch: bool | None = None
    thinking: Mode | None = None
    template_kwargs: Variables | None = None


class CommandOptions(_Strict):
    """Options of the whole command. Those in manifests hold when all manifests agree; ``step_pattern`` holds for the
    checkpoints beside its manifest."""

    out: Annotated[str, Field(min_length=1)] | None = None
    format: Literal["table", "json", "csv"] | None = None
    dry_run: bool | None = None
    step_pattern: Annotated[str, Field(min_length=1)] | None = None


class Settings(_Strict):
    """The options of one run with every default filled in."""

    k: int = METRICS_K
    trace_k: int = TRACE_K
    temperature: float = 1.0
    sampler: Literal["transformers", "vllm"] | Url = "transformers"
    sample_temperature: float = 1.0
    max_new_tokens: int = 1024
    num_rollouts: int = 4
    max_states: int | None = None
    precision: dict[str, float] | None = None
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    sequential: bool | None = None
    batch_tokens: int = 16384
    average: Literal["token", "rollout"] = "token"
    jsd: bool = False
    length_factors: LengthRule = "prefix"
    student_states: StudentStates | None = None
    step_offset: int = 0
    template: str | None = None
    allow_special_mismatch: bool = False
    thinking: Mode | None = None
    template_kwargs: Variables | None = None

    @property
    def wanted(self) -> Precision | None:
        """When a replay may stop; None: once it is through."""
        return None if self.precision is None else Precision(self.precision, self.k, self.average, self.seed)

    def for_replay(self, tokenizer: str | None = None) -> ReplaySettings:
        """What of them a trace is made with; ``k`` there is the K of the trace."""
        given = {field.name: getattr(self, field.name) for field in fields(ReplaySettings) if field.name in _REPLAYED}
        return ReplaySettings(**given | {"k": self.trace_k, "tokenizer": tokenizer})


_REPLAYED = frozenset(Settings.model_fields) - {"k"}
"""Options that go by one name from the command line to the engine."""


def settle(given: Options, manifest: Options | None, *, where: str) -> Settings:
    """The settings of one run: ``given`` (command line) over ``manifest`` over the defaults.

    Args:
        where: names the run in an error message.

    Raises:
        InputError: ``k`` is larger than a ``trace_k`` that was asked for, or states are asked of a sampler that tells
            none.
    """
    fields = set(Options.model_fields)
    chosen: dict[str, Any] = manifest.model_dump(include=fields, exclude_none=True) if manifest else {}
    chosen |= given.model_dump(include=fields, exclude_none=True)
    k = chosen.get("k", METRICS_K)
    if "trace_k" in chosen and chosen["trace_k"] < k:
        raise InputError(
            f"{where}: k = {k} is beyond the trace's K = {chosen['trace_k']}; raise --trace-k or lower --k"
        )
    if chosen.get("student_states") == "sampled" and chosen.get("sampler", "transformers") != "transformers":
        raise InputError(
            f"{where}: student_states = sampled, but {chosen['sampler']} tells no hidden states; expected the built-in "
            "sampler; drop --student-states or --sampler"
        )
    chosen.setdefault("trace_k", max(TRACE_K, k))
    return Settings(**chosen)


def parse_options(values: Mapping[str, Any]) -> Options:
    """Options from the command line; None means not given.

    Raises:
        InputError: a value that cannot be used, naming the option.
    """
    try:
        return Options(**values)
    except ValidationError as error:
        key, expected, got = first_problem(error)
        raise InputError(f"option --{key.replace('_', '-')}: {expected}, got {got}") from None


def agree(name: str, values: Iterable[tuple[Path, Any]]) -> Any:
    """The one value that all manifests which give ``name`` agree on, or None.

    Raises:
        InputError: two manifests differ.
    """
    found = [(path, value) for path, value in values if value is not None]
    for path, value in found[1:]:
        if value != found[0][1]:
            raise InputError(
                f"manifests {found[0][0]} and {path} differ in {name!r} ({found[0][1]} and {value}), "
                f"which holds for the whole command; give --{name.replace('_', '-')}"
            )
    return found[0][1] if found else None


def first_problem(error: ValidationError) -> tuple[str, str, str]:
    """The key, what was expected and what was given, of the first problem that pydantic found."""
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"] if not str(part).startswith(("constrained", "list["))]
    message = str(problem["msg"]).removeprefix("Value error, ")
    expected = message.replace("Input should be ", "expected ", 1)
    expected = expected.replace("greater than or equal to", "at least").replace("greater than", "more than")
    return location[0] if location else "", expected, repr(problem.get("input"))
