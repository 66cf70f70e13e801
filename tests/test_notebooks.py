"""The notebooks run from the first cell to the last on small data, and what is stored of them is small and portable."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

import opd_probe
from notebooks.execute import execute, notebooks
from opd_probe.lab.demo import SHIPPED, run_demo, write_prompts
from opd_probe.lab.models import load_model, save_model
from tests.cli.workspace import run_command

ROOT = Path(__file__).parent.parent
NOTEBOOKS = notebooks()
BYTES = 300_000
READERS = {"opd_probe", "pandas", "numpy", "duckdb", "json", "pathlib", "os"}
TRAINERS = {"datasets", "transformers", "trl"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """All text of a cell's outputs."""
    parts = [output.get("text", "") for output in cell.outputs]
    parts += [
        data for output in cell.outputs for kind, data in output.get("data", {}).items() if kind.startswith("text/")
    ]
    return "\n".join(parts)


def trees(path: Path) -> list[ast.Module]:
    """The Python of a notebook; a cell for the shell calls the command alone."""
    sources = [cell.source for cell in code_cells(path)]
    for source in sources:
        if source.startswith("%%sh"):
            assert all(line.startswith(("opd-probe ", "cd ")) for line in source.splitlines()[1:]), source
    return [ast.parse(source.removeprefix("%%capture\n")) for source in sources if not source.startswith("%%sh")]


def test_there_are_five() -> None:
    assert [path.stem.split("_")[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@every_notebook
def test_what_is_stored_was_executed_in_order_and_is_small(path: Path) -> None:
    assert path.stat().st_size < BYTES
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert 1 <= len(figures) <= 2
    shown_tables = tables(read(path))
    assert shown_tables
    assert all(table.count("<tr") <= 20 for table in shown_tables)


@every_notebook
def test_what_is_stored_names_no_machine(path: Path) -> None:
    for cell in read(path).cells:
        text = cell.source + (shown(cell) if cell.cell_type == "code" else "")
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|mnt|Users|opt|var)\b|\\\\Users", text), text
    assert set(read(path).metadata) == {"kernelspec", "language_info"}


@every_notebook
def test_only_public_names_are_used(path: Path) -> None:
    allowed = READERS | (TRAINERS if path.stem.startswith("5") else set())
    for tree in trees(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert node.module in allowed - {"opd_probe"}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "opd_probe":
                assert node.attr in opd_probe.__all__
            # What needs a function or a loop belongs into the library.
            assert not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.For, ast.While, ast.ClassDef))


@every_notebook
def test_links_lead_somewhere(path: Path) -> None:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
        assert (path.parent / target).is_file(), target


def check_shown(path: Path, done: Any) -> None:
    """The execution shows what the stored notebook shows: a figure where a figure was, a table where a table was."""
    stored = [kinds(cell) for cell in code_cells(path)]
    assert [kinds(cell) for cell in done.cells if cell.cell_type == "code"] == stored


def tables(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]


def kinds(cell: Any) -> list[list[str]]:
    """What a cell shows; stderr, where warnings and progress go, left out."""
    return [sorted(output.get("data", {})) for output in cell.outputs if output.get("name") != "stderr"]


def test_the_notebooks_on_the_demo_s_runs(tmp_path: Path) -> None:
    run_demo(tmp_path / "runs", steps=2, prompts=20)
    place = tmp_path / "notebooks"
    place.mkdir()
    shutil.copytree(ROOT / "figures" / "data", tmp_path / "figures" / "data")
    shutil.copy(ROOT / "figures" / "claims.json", tmp_path / "figures")
    for command in ("mass", "align"):  # what else `make demo` runs
        made = run_command([command, "--ckpts", *(tmp_path / "runs").glob("[!.]*"), "--out", "opd-probe-out"], tmp_path)
        assert made.code == 0, made.err
    for path in NOTEBOOKS[:4]:
        given = {"LAST": 2} if any("LAST =" in cell.source for cell in code_cells(path)) else {}
        done = execute(path, place, given)
        check_shown(path, done)
        if path.stem == "4_success_and_failure":  # its data are committed: the stored tables are theirs
            assert tables(done) == tables(read(path))


def test_the_notebook_on_a_run_of_one_s_own(tmp_path: Path) -> None:
    for name in ("student", "compatible-teacher"):
        save_model(load_model(SHIPPED / name), tmp_path / "runs" / ".models" / name)
    (tmp_path / "runs" / "compatible").mkdir()
    write_prompts(tmp_path / "runs" / "compatible" / "prompts.jsonl", 40, seed=0)
    place = tmp_path / "notebooks"
    place.mkdir()
    done = execute(NOTEBOOKS[4], place, {"STEPS": 2, "EVERY": 1, "BATCH": 4})
    check_shown(NOTEBOOKS[4], done)
    assert (tmp_path / "opd-probe-out" / "trl" / "figures" / "training.png").is_file()
