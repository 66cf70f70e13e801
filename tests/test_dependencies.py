"""What the package imports is what it declares: the environment of the tests has every extra and would not notice."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import opd_probe

ROOT = Path(opd_probe.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROMISED = {"seaborn"}
"""What comes along for notebooks, though nothing below ``opd_probe/`` imports it."""
OURS = {"dev", "docs", "loggers"}
"""Extras of those who change the package; nothing that it imports may come from them alone."""


def distributions(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


BASE = distributions(PROJECT["dependencies"])
EXTRAS = {name: distributions(lines) for name, lines in PROJECT["optional-dependencies"].items() if name not in OURS}
OPTIONAL = {name for extra in EXTRAS.values() for name in extra}
INSTALLED = packages_distributions()


def candidates(package: str) -> set[str]:
    """The distributions that may bring an importable package; one that is not installed bears its name."""
    return {canonicalize_name(name) for name in INSTALLED.get(package, [package])}


def foreign_imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every third-party package that is imported, and whether inside a function; imports for types count as well."""
    for node in ast.iter_child_nodes(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            targets = [node.module]
        for target in targets:
            package = target.split(".")[0]
            if package != "opd_probe" and package not in sys.stdlib_module_names:
                yield package, inside
        yield from foreign_imports(
            node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        )


def uses() -> dict[str, dict[str, list[bool]]]:
    """Package -> file -> for each import whether it is inside a function."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(ROOT.rglob("*.py")):
        for package, inside in foreign_imports(ast.parse(path.read_text(encoding="utf-8"))):
            found[package][str(path.relative_to(ROOT))].append(inside)
    return found


USES = uses()


@pytest.mark.parametrize("package", USES)
def test_every_import_is_declared(package: str) -> None:
    files = ", ".join(USES[package])
    assert candidates(package) & (BASE | OPTIONAL), (
        f"{files} imports {package} ({', '.join(candidates(package))}), which [project] dependencies do not name"
    )


@pytest.mark.parametrize("package", USES)
def test_what_an_extra_brings_is_imported_where_it_is_used(package: str) -> None:
    if not candidates(package) & BASE:
        early = [file for file, places in USES[package].items() if not all(places)]
        assert not early, f"{', '.join(early)} cannot be imported without the extra that brings {package}"


def test_nothing_is_declared_that_is_not_used() -> None:
    used = {name for package in USES for name in candidates(package)}
    assert used | PROMISED >= BASE | OPTIONAL, f"never imported: {', '.join(sorted((BASE | OPTIONAL) - used))}"


def test_the_environment_of_the_tests_has_every_extra_but_vllm() -> None:
    dev = {Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]}
    (own,) = (requirement for requirement in dev if requirement.name == PROJECT["name"])
    assert own.extras == set(EXTRAS) - {"vllm"}


def test_the_walk_sees_imports_in_functions() -> None:
    tree = ast.parse("import os, numpy.linalg\nclass A:\n    def f(self):\n        from scipy.stats import rankdata\n")
    assert list(foreign_imports(tree)) == [("numpy", False), ("scipy", True)]
    assert list(foreign_imports(ast.parse("from . import numpy"))) == []
