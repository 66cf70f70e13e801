"""Imports point down only and never in a circle, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
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
    "texts": 0,
    "atomic": 0,
    "plain": 0,
    "progress": 0,
    "versions": 0,
    "digits": 0,
    "imports": 0,
}
"""The height of every package. A module imports from below, or from its own package."""

SIDEWAYS = {("models", "rollouts"), ("rollouts", "models"), ("errors", "plain"), ("trace", "output")}
"""Neighbours that may know each other: what goes into a replay, and what may stand in a message, and where a
file may go."""

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
    "digits": {"torch", "transformers", "numpy", "pandas", "pyarrow"},
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


def edges(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """For each module those that it names in an import. What is imported from a package names the package, and the
    module too where it is one; that a package runs before its modules makes no edge."""
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        named = set(imported(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = named & set(trees) - {name}
    return found


def reached(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    """What a walk along the edges from a module comes to, that module only if the walk comes back to it."""
    found: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += graph[module]
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, each in order of names."""
    ahead = {module: reached(module, graph) for module in graph}
    found = {tuple(sorted({module} | {other for other in ahead[module] if module in ahead[other]})) for module in graph}
    return sorted(list(component) for component in found if len(component) > 1)


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


def test_no_imports_in_a_circle() -> None:
    root = {"opd_probe": ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))}
    found = circles(edges({**root, **MODULES}))
    assert found == []


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


@pytest.mark.parametrize(
    "back",
    [
        "from opd_probe.low import deep\n",
        "import opd_probe.low.deep\n",
        "import opd_probe.low.deep as deep\n",
        "from opd_probe.low.deep import anything\n",
        "def f():\n    from opd_probe.low import deep\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from opd_probe.low.deep import Kind\n",
    ],
)
def test_the_walk_sees_a_circle(back: str) -> None:
    sources = {
        "opd_probe.low": "",
        "opd_probe.low.deep": "from opd_probe.low.middle import middle\n",
        "opd_probe.low.middle": "import opd_probe.low.top\n",
        "opd_probe.low.top": "from opd_probe.low import nothing\n",
        "opd_probe.high": "from opd_probe.low.deep import top\n",
    }
    graph = edges({name: ast.parse(text) for name, text in sources.items()})
    assert graph["opd_probe.low.top"] == {"opd_probe.low"}
    assert circles(graph) == []
    closed = edges({name: ast.parse(text + (back if name.endswith("top") else "")) for name, text in sources.items()})
    assert circles(closed) == [["opd_probe.low.deep", "opd_probe.low.middle", "opd_probe.low.top"]]


def test_what_a_module_takes_from_its_own_package_closes_a_circle() -> None:
    sources = {
        "opd_probe.low": "from opd_probe.low.deep import deep\n",
        "opd_probe.low.deep": "from opd_probe.low import style\n",
        "opd_probe.low.style": "import opd_probe.low.shade as shade\n",
        "opd_probe.low.shade": "",
    }
    graph = edges({name: ast.parse(text) for name, text in sources.items()})
    assert graph["opd_probe.low.deep"] == {"opd_probe.low", "opd_probe.low.style"}
    assert circles(graph) == [["opd_probe.low", "opd_probe.low.deep"]]
