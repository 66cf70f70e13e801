"""The documentation says what the code does: every metric, column, rule and command."""

from __future__ import annotations

import ast
import json
import re
from inspect import signature
from pathlib import Path

import pytest

from opd_probe.checks import CHECKS
from opd_probe.integrations.probe import OPTIONS
from opd_probe.integrations.trl import OverlapCallback
from opd_probe.integrations.verl import overlap_metrics, topk_trace
from opd_probe.lab.experiments import EXPERIMENTS
from opd_probe.lab.signatures import PUBLISHED, RULES
from opd_probe.metrics import METRICS, TRACE_METRICS
from opd_probe.metrics.variants import VARIANTS
from opd_probe.models.formats import FORMATS
from opd_probe.results import verdict
from opd_probe.rollouts.sources import SOURCES
from opd_probe.runs.log_files import NAMES
from opd_probe.trace.schema import FORMAT_VERSION, ROLLOUT_COLUMNS, STATE_COLUMNS
from tests.lab_verdicts import confusion

ROOT = Path(__file__).parent.parent


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").replace("\\|", "|")


@pytest.mark.parametrize("metric", [*METRICS.values(), *TRACE_METRICS.values()], ids=lambda metric: metric.name)
def test_every_metric_has_its_row(metric) -> None:  # type: ignore[no-untyped-def]
    assert f"| `{metric.name}` | {metric.unit} | {metric.source} | {metric.definition} |" in page("docs/metrics.md")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_every_check_has_its_row(check) -> None:  # type: ignore[no-untyped-def]
    row = f"| `{check.name}` | {check.measures} | {check.rule} | {check.advice} | {check.known_from} |"
    assert row in page("docs/doctor.md")


@pytest.mark.parametrize("rule", verdict.RULES.values(), ids=verdict.RULES.keys())
def test_every_qualifier_has_its_row(rule) -> None:  # type: ignore[no-untyped-def]
    assert f"| `{rule.name}` | {rule.rule} | {rule.source or '–'} |" in page("docs/report.md")


def test_the_rules_of_verdicts_are_those_of_the_page() -> None:
    text = page("docs/report.md")
    assert {f"| `{name}` |" in text for name in verdict.SENTENCES} == {True}
    assert f"overlap ratio is at least {verdict.ALIGNED_OVERLAP}" in text
    assert f"reverse KL at most {verdict.ALIGNED_KL} nats" in text
    assert f"at least {verdict.CLOSED:.0%} of".replace("%", " %") in text
    assert f"leaves out {verdict.CLEARLY:.0%}".replace("%", " %") in text
    assert f"grew by {-verdict.APART:.0%} or more".replace("%", " %") in text


def test_the_verdicts_on_the_lab_are_those_of_its_curves() -> None:
    text = page("docs/report.md")
    assert all(f"| {' | '.join(map(str, row))} |" in text for row in confusion())


@pytest.mark.parametrize("column", [*STATE_COLUMNS, *ROLLOUT_COLUMNS], ids=lambda column: column.name)
def test_every_column_has_its_row(column) -> None:  # type: ignore[no-untyped-def]
    kind = f"{column.dtype}[K]" if column.shape == "top" else column.dtype
    row = f"| `{column.name}` | {kind} | {column.unit} | {column.range} | {column.meaning} |"
    assert row in page("docs/formats.md")


@pytest.mark.parametrize("name", [known.name for known in FORMATS])
def test_every_checkpoint_format_is_described(name: str) -> None:
    written_by = {"prime-rl": "| prime-rl |", "megatron": "| verl with Megatron |"}  # these lead to another format
    assert written_by.get(name, f"| `{name}` |") in page("docs/formats.md")


def test_the_format_version() -> None:
    assert f"writes and reads version {FORMAT_VERSION} " in page("docs/formats.md")


def test_the_table_of_signatures_is_the_published_one() -> None:
    seeds = json.loads(PUBLISHED.read_text())["seeds"]
    text = page("docs/lab.md").replace("−", "-")
    for rule in RULES:
        values = [rule.quantity(seed) for seed in seeds]
        cells = [f"{value:.3g} {'holds' if rule.holds(value) else '**fails**'}" for value in values]
        assert f"| {rule.statement} | {rule.comparison} {rule.bound:g} | {' | '.join(cells)} |" in text
    for seed in seeds:
        for name, run in seed["runs"].items():
            stages = [run[stage]["accuracy"] for stage in ("start", "middle", "end")]
            assert f"| {seed['seed']}, {name} | {' / '.join(f'{value:.3f}' for value in stages)} |" in text


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_kind_of_rollout_file_has_its_row(source) -> None:  # type: ignore[no-untyped-def]
    (row,) = re.findall(rf"^\| `{source.name}` \|.*$", page("docs/formats.md"), flags=re.MULTILINE)
    assert f"| {source.fields} |" in row


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())
def test_every_experiment_has_its_row(experiment) -> None:  # type: ignore[no-untyped-def]
    assert f"| `{experiment.name}` | {experiment.figures} | {experiment.question} |" in page("docs/lab.md")


def test_the_table_of_claims_is_the_published_one() -> None:
    claims = json.loads((ROOT / "figures" / "claims.json").read_text())["claims"]
    text = page("docs/lab.md").replace("−", "-")
    for name in ("README.md", "docs/lab.md"):
        count = f"{sum(claim['holds'] for claim in claims)} of {len(claims)} claims hold"
        assert count in " ".join(page(name).split())
    for claim in claims:
        values = " / ".join("?" if row["value"] is None else f"{row['value']:.3g}" for row in claim["seeds"])
        verdict = "holds" if claim["holds"] else "**does not hold**"
        row = (
            f"| {claim['figure']} | {claim['statement']} | {claim['measure']}: {claim['rule']} | {values} | {verdict} |"
        )
        assert row.replace("−", "-") in text


@pytest.mark.parametrize("name", ["README.md", "docs/lab.md", "docs/performance.md", "CONTRIBUTING.md"])
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page(name), flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("source", ["README.md", "docs/index.md", "docs/training.md"])
def test_links_lead_somewhere(source: str) -> None:
    base = (ROOT / source).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page(source)):
        assert (base / target).is_file(), target


def test_every_name_in_a_training_log_is_documented() -> None:
    for quantity, names in NAMES.items():
        assert f"| `{quantity}` | {', '.join(f'`{name}`' for name in names)} |" in page("docs/formats.md")


def test_every_variant_has_its_row() -> None:
    for name in VARIANTS:
        assert re.search(rf"^\| `{name}\b", page("docs/metrics.md"), flags=re.MULTILINE), name


def test_the_examples_of_training_loops_call_what_there_is() -> None:
    """Keywords of the callback, and the names of the functions' tensors."""
    blocks = re.findall(r"```python\n(.*?)```", page("docs/training.md"), flags=re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    used = {getattr(call.func, "id", ""): [word.arg for word in call.keywords] for call in calls}
    for function, more in ((OverlapCallback, OPTIONS), (overlap_metrics, ()), (topk_trace, ())):
        known = {*signature(function).parameters, *signature(topk_trace).parameters, *more}
        assert set(used[function.__name__]) <= known, function.__name__
