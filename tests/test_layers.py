"""Imports point down only, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import opd_probe

ROOT = Path(opd_probe.__file__).parent

LAYERS = {
    "cli": 9,
    "commands": 8,
    "integrations": 8,
    "lab": 8,
    "jobs": 7,
    "results": 7,
    "runs": 6,
    "options": 5,
    "plots": 4,
    "pages": 4,
    "checks": 4,
    "curves": 3,
    "engine": 3,
    "metrics": 2,
    "models": 2,
    "rollouts": 2,
    "stats": 1,
    "trace": 1,
    "output": 1,
    "types": 0,
    "errors": 0,
    "atomic": 0,
    "progress": 0,
}
"""The height of every package. A module imports from below, or from its own package."""

SIDEWAYS = {("models", "rollouts"), ("rollouts", "models")}
"""Neighbours that may know each other: what goes into a replay."""

FORBIDDEN = {
    "cli": {"torch", "transformers"},
    "plots": {"torch", "transformers", "pyarrow"},
    "pages": {"torch", "transformers", "pyarrow", "numpy", "pandas", "matplotlib"},
    "checks": {"torch", "transformers", "pandas", "matplotlib"},
    "curves": {"torch", "transformers", "matplotlib"},
    "metrics": {"torch", "transformers", "matplotlib"},
    "engine": {"transformers", "pandas", "matplotlib"},
    "stats": {"transformers", "numpy", "pandas", "pyarrow"},
    "trace": {"torch", "transformers", "pandas", "matplotlib"},
    "types": {"torch", "transformers", "numpy", "pandas", "pyarrow"},
    "errors": {"torch", "transformers", "numpy", "pandas", "pyarrow"},
    "progress": {"torch", "transformers", "numpy", "pandas", "pyarrow"},
    "output": {"torch", "transformers", "numpy", "pandas", "pyarrow", "matplotlib"},
    "options": {"torch", "transformers", "pandas", "matplotlib"},
    "runs": {"torch", "transformers", "matplotlib"},
    "jobs": {"transformers", "pandas", "matplotlib"},
    "results": {"torch", "transformers", "matplotlib"},
    "commands": {"transformers", "matplotlib"},
}
NOT_BELOW = {
    ("curves", "models"),
    ("plots", "trace"),
    ("plots", "engine"),
    ("plots", "models"),
    ("pages", "trace"),
    ("pages", "engine"),
    ("pages", "models"),
    ("pages", "metrics"),
    ("metrics", "models"),
    ("results", "engine"),
    ("options", "plots"),
    ("runs", "plots"),
    ("jobs", "plots"),
}
"""Pairs that the order of layers would allow, but that must not know each other."""


def package_of(module: str) -> str:
    return module.split(".")[1]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "opd_probe":
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, inside functions too; what only type checkers read counts as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield node.module or ""
            if node.module == "opd_probe":
                yield from (f"opd_probe.{alias.name}" for alias in node.names)


def runtime_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if not is_type_checking(node):
            yield from imported(node)


MODULES = dict(modules())


def test_every_package_has_a_layer() -> None:
    assert {package_of(name) for name in MODULES} == set(LAYERS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    package = package_of(name)
    for target in imported(MODULES[name]):
        if not target.startswith("opd_probe.") or package_of(target) == package:
            continue
        other = package_of(target)
        if package == "lab" and other not in LAYERS:
            continue  # a public name, as any user would import it
        assert other in LAYERS, f"{name} imports {target}, which has no layer"
        assert (package, other) not in NOT_BELOW, f"{name} must not know {target}"
        below = LAYERS[other] < LAYERS[package] or (package, other) in SIDEWAYS
        assert below, f"{name} (layer {LAYERS[package]}) imports {target} (layer {LAYERS[other]})"


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_stay_where_they_belong(name: str) -> None:
    refused = FORBIDDEN.get(package_of(name), set())
    found = {target.split(".")[0] for target in runtime_imports(MODULES[name])} & refused
    assert not found, f"{name} imports {', '.join(sorted(found))}"


def test_only_these_know_transformers() -> None:
    users = {
        package_of(name) for name, tree in MODULES.items() for t in imported(tree) if t.split(".")[0] == "transformers"
    }
    assert users <= {"models", "rollouts", "lab", "integrations"}
    assert "models" in users


def test_only_served_models_know_httpx() -> None:
    users = {name for name, tree in MODULES.items() for t in imported(tree) if t.split(".")[0] == "httpx"}
    assert users == {"opd_probe.models.served.client"}


def test_the_walk_sees_an_upward_import() -> None:
    tree = ast.parse("def f():\n    from opd_probe.curves import summarize\n    import torch.nn\n")
    assert list(imported(tree)) == ["opd_probe.curves", "torch.nn"]


def test_no_module_of_the_package_takes_the_name_of_a_command() -> None:
    """``opd_probe.overlap`` is to be a function; a submodule of that name would take its place once it is imported."""
    from typer.main import get_command

    from opd_probe.cli.main import app

    commands = {name.replace("-", "_") for name in get_command(app).commands}  # type: ignore[attr-defined]
    assert "overlap" in commands
    assert commands & {path.stem for path in ROOT.iterdir()} == {"lab"}
