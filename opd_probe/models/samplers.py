"""What may sample responses, by name and version, and what vLLM cannot do. Imports neither sampler."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from opd_probe.errors import InputError
from opd_probe.types import Checkpoint

COOLEST = 0.01
"""vLLM raises lower temperatures to this one."""


@cache
def sampler_version(name: str) -> str:
    """``transformers 5.23.0``: the name and the installed version, as a rollout records them.

    Raises:
        InputError: it is not installed.
    """
    # vLLM's builds for other hardware are distributions of other names that hold the same package.
    for distribution in (name, *packages_distributions().get(name, ())):
        with suppress(PackageNotFoundError):
            return f"{name} {version(distribution)}"
    raise InputError(f"sampler {name}: {name} is not installed; pip install {name}, or leave out --sampler {name}")


def check_vllm(source: Any, *, dtype: str | None, temperature: float) -> None:
    """Refuse what vLLM cannot sample from, or not as it is asked, before anything runs.

    Args:
        source: where the student comes from, a :class:`Checkpoint`.

    Raises:
        InputError: ``source`` is a model in memory, an adapter or not in Hugging Face's format, vLLM has no such dtype
            or would silently take another temperature, or it is not installed.
    """
    instead = "use --sampler transformers"
    if not isinstance(source, Checkpoint):
        raise InputError(
            f"sampler vllm: the student is a {type(source).__name__} in memory; expected a checkpoint on disk or on "
            f"the hub; save it, or {instead}"
        )
    if source.format == "peft":
        raise InputError(f"sampler vllm: {source.path} is an adapter; merge it into its base, or {instead}")
    if source.format not in ("hub", "huggingface"):
        raise InputError(
            f"sampler vllm: {source.path} is in format {source.format}, which vLLM does not read; save it as Hugging "
            f"Face weights, or {instead}"
        )
    if dtype == "float64":
        raise InputError(f"sampler vllm: dtype float64 is not among vLLM's; expected a smaller --dtype, or {instead}")
    if temperature < COOLEST:
        raise InputError(
            f"sampler vllm: sample temperature = {temperature!r}; expected at least {COOLEST}, or {instead}"
        )
    sampler_version("vllm")
