from __future__ import annotations

import pytest

from opd_probe.models.checkpoints import looks_like_hub_id, step_of_name
from opd_probe.options.naming import (
    file_names,
    path_parts,
    step_of_revision,
    unique_names,
)


def test_names_are_lengthened_by_parents_only_where_two_are_equal() -> None:
    parts = {path: path_parts(path) for path in ("/x/a/seed0", "/x/b/seed0", "/x/a/other", "/y/a/seed0")}
    assert unique_names(parts) == {
        "/x/a/seed0": "x/a/seed0",
        "/x/b/seed0": "b/seed0",
        "/x/a/other": "other",
        "/y/a/seed0": "y/a/seed0",
    }


def test_a_name_that_cannot_grow_stays() -> None:
    assert unique_names({"1": ("a",), "2": ("b", "a")}) == {"1": "a", "2": "b/a"}


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint-5", 5), ("global_step_20", 20), ("step_100", 100), ("checkpoint-x", None), ("final", None)],
)
def test_step_of_name(name: str, step: int | None) -> None:
    assert step_of_name(name) == step


def test_step_of_revision() -> None:
    assert step_of_revision("checkpoint-500") == 500
    assert step_of_revision("step500") == 500
    assert step_of_revision("main") is None
    assert step_of_revision(None) is None


@pytest.mark.parametrize("value", ["org/name", "org/name@v1.0", "Qwen/Qwen2.5-7B"])
def test_hub_ids(value: str) -> None:
    assert looks_like_hub_id(value)


@pytest.mark.parametrize("value", ["name", "a/b/c", "./a/b", "../a", "/a/b", "a/", "~/a"])
def test_not_hub_ids(value: str) -> None:
    assert not looks_like_hub_id(value)


def test_file_names_are_one_component_and_differ() -> None:
    names = file_names(["a/b", "a--b", "A--b", "..", "org/name@main"])
    assert names["a/b"] == "a--b"
    assert names["org/name@main"] == "org--name@main"
    assert len({name.casefold() for name in names.values()}) == 5
    assert all("/" not in name and name not in ("", ".", "..") for name in names.values())


def test_long_names_make_file_names_that_file_systems_take() -> None:
    long = ["x" * 300, "x" * 299 + "y", "\u540d" * 90]
    names = file_names(long)
    assert len(set(names.values())) == 3
    assert all(len(name.encode()) < 200 for name in names.values())
