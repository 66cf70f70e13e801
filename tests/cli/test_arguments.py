from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from opd_probe.cli.arguments import spread
from opd_probe.cli.request import build_request
from opd_probe.errors import InputError
from opd_probe.options.manifest import Manifest
from opd_probe.options.request import PromptOptions
from opd_probe.options.settings import CommandOptions, Options


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("overlap --ckpts a b c --k 8", "overlap --ckpts a --ckpts b --ckpts c --k 8"),
        ("overlap --k 8 --ckpts a", "overlap --k 8 --ckpts a"),
        ("overlap --ckpts a --ckpts b c", "overlap --ckpts a --ckpts b --ckpts c"),
        ("overlap --ckpts=a b", "overlap --ckpts=a --ckpts b"),
        ("mass --traces d e --x step", "mass --traces d --traces e --x step"),
        ("overlap --ckpts a b -- c d", "overlap --ckpts a --ckpts b -- c d"),
        ("show trace.parquet --k 4", "show trace.parquet --k 4"),
        ("overlap --step-offset -1 --ckpts a - b", "overlap --step-offset -1 --ckpts a --ckpts - --ckpts b"),
    ],
)
def test_every_word_up_to_the_next_option_belongs_to_the_first(typed: str, meant: str) -> None:
    assert spread(typed.split()) == meant.split()


@pytest.mark.parametrize("typed", ["overlap --ckpts", "overlap --ckpts --k 8", "overlap --ckpts -- a"])
def test_an_option_without_a_value_is_an_error(typed: str) -> None:
    with pytest.raises(InputError, match="--ckpts: expected at least one path"):
        spread(typed.split())


def test_the_command_line_and_the_manifest_have_the_same_options() -> None:
    declared = set(Options.model_fields) | set(CommandOptions.model_fields)
    inputs = {"ckpts", "traces", "teacher", "teacher_tokenizer", "rollouts", "prompts", "tokenizer", "base", "by"}
    prompts = {f"teacher_{field.name}" for field in fields(PromptOptions)}
    assert set(inspect.signature(build_request).parameters) == declared | inputs | prompts
    assert prompts <= set(Manifest.model_fields)
    assert set(build_request().options) == set(Options.model_fields)
