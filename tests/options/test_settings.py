from __future__ import annotations

from pathlib import Path

import pytest

from opd_probe.errors import InputError
from opd_probe.options.manifest import Manifest
from opd_probe.options.settings import Options, Settings, agree, parse_options, settle


def test_the_command_line_wins_over_the_manifest_and_that_over_the_defaults() -> None:
    manifest = Manifest(k=4, seed=7, jsd=True)
    settings = settle(Options(k=8, jsd=False), manifest, where="run a")
    assert (settings.k, settings.seed, settings.jsd, settings.num_rollouts) == (8, 7, False, 4)


def test_defaults() -> None:
    assert settle(Options(), None, where="run a") == Settings()
    assert Settings().sampler == "transformers"  # whatever is installed: draws must not depend on that


def test_a_larger_k_deepens_the_trace_unless_its_depth_was_asked_for() -> None:
    assert settle(Options(k=100), None, where="run a").trace_k == 100
    assert settle(Options(k=8), None, where="run a").trace_k == 64
    with pytest.raises(InputError, match="run a: k = 100 is beyond the trace's K = 64"):
        settle(Options(k=100), Manifest(trace_k=64), where="run a")


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"k": 0}, "--k"),
        ({"temperature": 0.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"batch_tokens": -1}, "--batch-tokens"),
        ({"num_rollouts": 0}, "--num-rollouts"),
        ({"sampler": "llama"}, "--sampler"),
    ],
)
def test_a_bad_option_is_named_as_it_is_typed(values: dict[str, object], option: str) -> None:
    with pytest.raises(InputError, match=f"^option {option}: expected"):
        parse_options(values)


def test_manifests_must_agree_on_what_holds_for_the_whole_command() -> None:
    one, two = Path("a"), Path("b")
    assert agree("out", [(one, None), (two, "x")]) == "x"
    assert agree("out", [(one, None)]) is None
    with pytest.raises(InputError, match=r"differ in 'dry_run'.*--dry-run"):
        agree("dry_run", [(one, True), (two, False)])
