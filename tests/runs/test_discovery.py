"""Discovery reads names, never weights, so a checkpoint is here whatever has the names of one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from opd_probe.errors import InputError, MissingError, OpdProbeWarning
from opd_probe.models.checkpoints import outermost
from opd_probe.models.loading import load_model
from opd_probe.runs.discovery import Run, discover, find_checkpoints
from opd_probe.runs.inventory import inventory
from tests.tiny import save_checkpoint, tiny_model


def checkpoint(path: Path, step: int | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    if step is not None:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def quietly(*arguments: Path | str, **options: str) -> list[Run]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return discover([str(argument) for argument in arguments], **options)


def steps(run: Run) -> list[int | None]:
    return [one.step for one in run.checkpoints]


@pytest.mark.parametrize("name", ["checkpoint-{}", "global_step_{}", "step_{}", "iter_{:07}"])
def test_a_run_directory_is_ordered_by_number(tmp_path: Path, name: str) -> None:
    for step in (100, 5, 20):
        checkpoint(tmp_path / "good" / name.format(step))
    (run,) = quietly(tmp_path / "good")
    assert (run.name, steps(run)) == ("good", [5, 20, 100])
    assert {one.run for one in run.checkpoints} == {"good"}


def test_the_trainers_state_knows_the_step_better_than_the_name(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a" / "checkpoint-5", step=7)
    assert steps(quietly(tmp_path / "a")[0]) == [7]


def test_a_single_checkpoint_is_of_its_parents_run(tmp_path: Path) -> None:
    (run,) = quietly(checkpoint(tmp_path / "good" / "checkpoint-5"))
    assert (run.name, steps(run)) == ("good", [5])
    (run,) = quietly(checkpoint(tmp_path / "other" / "final"))
    assert (run.name, steps(run)) == ("other", [None])


def test_names_are_lengthened_until_unique(tmp_path: Path) -> None:
    for place in ("x/a/seed0", "x/b/seed0", "x/a/seed1"):
        checkpoint(tmp_path / place / "checkpoint-1")
    assert [run.name for run in quietly(tmp_path / "x" / "*" / "*")] == ["a/seed0", "b/seed0", "seed1"]


def test_a_quoted_pattern_and_the_shells_words_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        checkpoint(tmp_path / "runs" / name / "checkpoint-1")
    assert quietly("runs/*") == quietly("runs/a", "runs/b")


def test_checkpoints_of_one_run_are_put_together(tmp_path: Path) -> None:
    for step in (10, 5):
        checkpoint(tmp_path / "a" / f"checkpoint-{step}")
    (run,) = quietly(tmp_path / "a" / "checkpoint-*")
    assert (run.name, steps(run)) == ("a", [5, 10])


def test_duplicates_count_once(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a" / "checkpoint-5")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "last").symlink_to(one)
    (run,) = quietly(one, tmp_path / "a", tmp_path / "a", one, tmp_path / "a" / "last", tmp_path / "link")
    assert (run.name, steps(run)) == ("a", [5])


def test_what_a_glob_happened_to_match_is_skipped_with_a_warning(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a" / "checkpoint-5")
    checkpoint(tmp_path / "a")
    checkpoint(tmp_path / "a" / "final", step=5)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "logs").mkdir()
    (tmp_path / "a" / "checkpoint-10").mkdir()
    with pytest.warns(OpdProbeWarning) as caught:
        (run,) = discover([str(path) for path in sorted(tmp_path.iterdir())])
    assert steps(run) == [5]
    text = "\n".join(str(one.message) for one in caught)
    for part in (
        "final weights in",
        "a/final: final weights",
        "notes.txt",
        "logs: no checkpoint",
        "checkpoint-10: no",
    ):
        assert part in text
    assert len(caught) == 5


def test_final_weights_among_a_runs_own_words_are_skipped(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a" / "checkpoint-5")
    checkpoint(tmp_path / "a" / "final")
    (tmp_path / "a" / "log.txt").write_text("")
    with pytest.warns(OpdProbeWarning) as caught:
        (run,) = discover([str(path) for path in sorted((tmp_path / "a").iterdir())])
    assert steps(run) == [5]
    assert len(caught) == 2


def test_models_side_by_side_are_runs_of_their_own(tmp_path: Path) -> None:
    checkpoint(tmp_path / "models" / "a")
    checkpoint(tmp_path / "models" / "b")
    assert [run.name for run in quietly(tmp_path / "models" / "*")] == ["models/a", "models/b"]


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (run,) = quietly("org/name@checkpoint-20", "org/name@step5")
    assert (run.name, steps(run)) == ("org/name", [5, 20])
    assert {one.format for one in run.checkpoints} == {"hub"}


def test_a_path_that_does_not_exist_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for missing in ("runs/typo", "./a", "nowhere", "runs/x*"):
        with pytest.raises(MissingError, match=r"^--ckpts"):
            discover([missing])


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (["a/notes.txt", "a/log/x"], "found log/, notes.txt"),
        (["a/"], "found nothing"),
        (
            ["a/global_step_5/actor/model_world_size_2_rank_1.pt"],
            "global_step_5/actor: verl's shards without model_world_size_2_rank_0.pt (1 of 2 ranks missing)",
        ),
        (["a/b/checkpoint-1/config.json", "a/b/checkpoint-1/model.safetensors"], "in b below it; give"),
    ],
)
def test_nothing_left_says_what_was_found(tmp_path: Path, made: list[str], found: str) -> None:
    for name in made:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("{}")
    with pytest.raises(InputError) as caught:
        discover([str(tmp_path / "a")])
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="not a directory; expected a checkpoint"):
        discover([str(tmp_path / "x")])
    with pytest.raises(InputError, match="no checkpoints"):
        discover([])


def test_two_checkpoints_of_one_step(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a" / "checkpoint-5")
    checkpoint(tmp_path / "a" / "step_5")
    with pytest.raises(InputError, match="both of step 5"):
        discover([str(tmp_path / "a")])


def test_the_manifests_student_is_step_0_of_a_whole_run(tmp_path: Path) -> None:
    checkpoint(tmp_path / "base")
    one = checkpoint(tmp_path / "runs" / "a" / "checkpoint-5")
    (tmp_path / "runs" / "a" / "opd-probe.yaml").write_text("student: ../../base\nteacher: org/t")
    (run,) = quietly(tmp_path / "runs" / "a")
    assert steps(run) == [0, 5]
    assert run.checkpoints[0].path == str(tmp_path / "base")
    (run,) = quietly(one)
    assert steps(run) == [5]
    assert run.manifest is not None
    assert run.manifest.teacher == ["org/t"]
    checkpoint(tmp_path / "runs" / "a" / "checkpoint-0")
    (run,) = quietly(tmp_path / "runs" / "a")
    assert run.checkpoints[0].path.endswith("checkpoint-0")


def test_a_model_that_stands_alone_may_carry_its_manifest(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "m")
    (one / "opd-probe.yaml").write_text("teacher: org/t")
    (run,) = quietly(one)
    assert run.manifest is not None


def test_the_base_of_an_adapter(tmp_path: Path) -> None:
    adapter = tmp_path / "a" / "checkpoint-5"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    assert quietly(tmp_path / "a")[0].checkpoints[0].base == "org/base"
    assert quietly(tmp_path / "a", base="org/other")[0].checkpoints[0].base == "org/other"


def verl(path: Path, world: int = 1) -> Path:
    """What verl's names make a checkpoint."""
    (path / "actor" / "huggingface").mkdir(parents=True)
    (path / "actor" / "huggingface" / "config.json").write_text("{}")
    for rank in range(world):
        (path / "actor" / f"model_world_size_{world}_rank_{rank}.pt").write_bytes(b"")
    return path


def test_a_run_of_verl_a_step_of_it_and_what_is_in_a_step(tmp_path: Path) -> None:
    for step in (20, 5):
        verl(tmp_path / "runs" / "a" / f"global_step_{step}", world=2)
    (run,) = quietly(tmp_path / "runs" / "*")
    assert (run.name, steps(run)) == ("a", [5, 20])
    assert [one.path for one in run.checkpoints] == [
        str(tmp_path / "runs/a" / f"global_step_{step}/actor") for step in (5, 20)
    ]
    assert {one.format for one in run.checkpoints} == {"verl-fsdp"}
    step = tmp_path / "runs/a/global_step_5"
    for place in (step, step / "actor"):
        assert quietly(place)[0].checkpoints == run.checkpoints[:1]
    assert quietly(step, step / "actor", tmp_path / "runs/a") == [run]
    assert find_checkpoints(tmp_path / "runs/*") == list(run.checkpoints)
    assert find_checkpoints(step) == list(run.checkpoints[:1])


def test_a_step_that_was_not_saved_to_its_end(tmp_path: Path) -> None:
    for step in (5, 10):
        verl(tmp_path / "a" / f"global_step_{step}")
    last = tmp_path / "a" / "latest_checkpointed_iteration.txt"
    last.write_text("5")
    with pytest.warns(OpdProbeWarning, match="global_step_10: latest_checkpointed_iteration.txt has 5 as the last"):
        assert [one.step for one in find_checkpoints(tmp_path / "a")] == [5]
    assert steps(quietly(tmp_path / "a" / "global_step_10")[0]) == [10]
    for text in ("10", "2", "release", ""):  # 2: the record of another run
        last.write_text(text)
        assert steps(quietly(tmp_path / "a")[0]) == [5, 10]


def test_a_step_that_lacks_a_rank_is_left_out_of_its_run(tmp_path: Path) -> None:
    for step in (5, 10):
        verl(tmp_path / "a" / f"global_step_{step}", world=2)
    (tmp_path / "a/global_step_10/actor/model_world_size_2_rank_1.pt").unlink()
    with pytest.warns(OpdProbeWarning, match=r"skipped .*global_step_10/actor: .*model_world_size_2_rank_1\.pt"):
        assert [one.step for one in find_checkpoints(tmp_path / "a")] == [5]
    with pytest.raises(InputError, match=r"model_world_size_2_rank_1\.pt"):
        find_checkpoints(tmp_path / "a" / "global_step_10")


def test_the_base_is_only_that_of_what_needs_one(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a" / "checkpoint-5")
    verl(tmp_path / "b" / "global_step_5")
    bare = tmp_path / "c" / "step_5" / "trainer"
    bare.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp"):
        (bare / name).write_bytes(b"")
    found = find_checkpoints(tmp_path / "*", base="org/base")
    assert [(one.format, one.base) for one in found] == [
        ("huggingface", None),
        ("verl-fsdp", None),
        ("dcp", "org/base"),
    ]
    (tmp_path / "c" / "opd-probe.yaml").write_text("student: org/student")
    assert [(one.step, one.base) for one in find_checkpoints(tmp_path / "c")] == [(0, None), (5, "org/student")]


NAMES_OF_STEPS = (
    "epoch_{}",
    "step-{}",
    "ckpt-{}",
    "checkpoint_{}",
    "hf_iter_{:07}",
    "iter_{:07}",
    "global_step{}",
    "{:06}",
    "step{}-unsharded",
    "epoch=1-step={}",
    "stage1-step{}-tokens4B",
    "qwen-distilled-{}",
    "mine.{}.hf",
)


@pytest.mark.parametrize("name", NAMES_OF_STEPS)
def test_names_that_differ_in_a_number_are_the_steps_of_one_run(tmp_path: Path, name: str) -> None:
    made = [checkpoint(tmp_path / "good" / name.format(step)) for step in (100, 5, 20)]
    (tmp_path / "good" / "optimizer_0").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [discover([str(tmp_path / "good")]), discover([str(path) for path in made]), discover([str(made[1])])]
    epochs = name == "epoch_{}"
    for (run,), expected in zip(found, ([5, 20, 100], [5, 20, 100], [5]), strict=True):
        assert (run.name, steps(run), run.unit) == ("good", expected, "epoch" if epochs else "step")
    assert all("named by epochs" in str(one.message) for one in caught)
    assert len(caught) == (3 if epochs else 0)
    listed = inventory([str(tmp_path / "good")])
    assert [(row["run"], row["step"]) for row in listed] == [("good", 5), ("good", 20), ("good", 100)]
    assert {row["unit"] for row in listed} == {found[0][0].unit}
    assert all(str(row["read"]).startswith(str(row["unit"])) for row in listed)


@pytest.mark.parametrize(
    "names",
    [
        ("Qwen3-0.6B", "Qwen3-1.7B"),
        ("seed1", "seed2"),
        ("small-v1", "small-v2"),
        ("2026-11-28", "2026-11-29"),
        ("good-20261128", "good-20261129"),
        ("lr_1e-5", "lr_1e-6"),
    ],
)
def test_numbers_that_are_none_of_a_step(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        checkpoint(tmp_path / "models" / name)
    found = quietly(tmp_path / "models" / "*")
    assert [(run.name, steps(run)) for run in found] == [(f"models/{name}", [None]) for name in names]


def test_models_of_other_sizes_and_runs_of_their_own_are_no_steps(tmp_path: Path) -> None:
    for step, width in ((1, 32), (2, 64)):
        place = checkpoint(tmp_path / "sizes" / f"model-{step}")
        (place / "config.json").write_text(json.dumps({"hidden_size": width}))
    assert [steps(run) for run in quietly(tmp_path / "sizes" / "*")] == [[None], [None]]
    for name in ("model-1", "model-2"):
        checkpoint(tmp_path / "ended" / name, step=500)
        checkpoint(tmp_path / "within" / name / "checkpoint-5")
        checkpoint(tmp_path / "within" / name)
    assert [steps(run) for run in quietly(tmp_path / "ended" / "*")] == [[500], [500]]
    with pytest.warns(OpdProbeWarning, match="final weights"):
        found = discover([str(tmp_path / "within" / "*")])
    assert [(run.name, steps(run)) for run in found] == [("model-1", [5]), ("model-2", [5])]


def test_other_names_are_read_by_a_pattern(tmp_path: Path) -> None:
    for name in ("a-after5updates-loss0.31", "a-after10updates-loss0.2", "b-after5updates-loss0.4"):
        checkpoint(tmp_path / "grid" / name)
    pattern = r"after(\d+)updates"
    found = quietly(tmp_path / "grid" / "*", step_pattern=pattern)
    assert [(run.name, steps(run)) for run in found] == [("grid", [5, 10]), ("grid/b-afterN", [5])]
    rows = inventory([str(tmp_path / "grid")], step_pattern=pattern)
    assert [(row["run"], row["step"]) for row in rows] == [("grid", 5), ("grid", 10), ("grid/b-afterN", 5)]
    assert {row["read"] for row in rows} == {"--step-pattern"}
    with pytest.warns(OpdProbeWarning, match="named by epochs"):
        (epochs,) = discover([str(tmp_path / "grid" / "b*")], step_pattern=r"after(?P<epoch>\d+)")
    assert (epochs.unit, steps(epochs)) == ("epoch", [5])
    for wrong, said in ((r"after\d+", "no group"), ("(", "not a regular expression"), ("(after)", "whole number")):
        with pytest.raises(InputError, match=said):
            discover([str(tmp_path / "grid" / "*")], step_pattern=wrong)
    (tmp_path / "grid" / "opd-probe.yaml").write_text(f"step_pattern: {pattern}\n")
    assert quietly(tmp_path / "grid" / "a*")[0].checkpoints == found[0].checkpoints


def test_two_series_in_one_directory_are_two_runs(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint(tmp_path / "a" / f"checkpoint-{step}")
    for step in (5, 10):
        checkpoint(tmp_path / "a" / f"checkpoint-{step}-merged")
    found = quietly(tmp_path / "a")
    assert [(run.name, steps(run)) for run in found] == [("a", [5, 10, 15]), ("a/step_N-merged", [5, 10])]


def cached(hub: Path, name: str, revisions: dict[str, str | None]) -> Path:
    """A model as the hub's client keeps it: files in blobs, links in a snapshot for each commit, refs by name."""
    place = hub / f"models--{name.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True)
    for number, (ref, commit) in enumerate(revisions.items()):
        commit = commit or ref
        (place / "snapshots" / commit).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            blob = place / "blobs" / f"{number}{file.partition('.')[0]}"
            blob.write_bytes(b"{}" if file == "config.json" else b"")
            (place / "snapshots" / commit / file).symlink_to(Path("../../blobs") / blob.name)
        if commit != ref:
            (place / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (place / "refs" / ref).write_text(commit)
    return place


def test_directories_of_the_hubs_cache(tmp_path: Path) -> None:
    hashes = [digit * 40 for digit in "1234567"]
    main = cached(tmp_path, "org/name", {"main": hashes[0]})
    bare = cached(tmp_path, "org/bare", {hashes[1]: None})
    steps_of = cached(tmp_path, "org/steps", {"step1000": hashes[2], "step2000": hashes[3], "main": hashes[4]})
    two = cached(tmp_path, "two-1", {"main": hashes[5], "refs/pr/1": hashes[6]})
    expected = {
        main: [("org/name@main", [None])],
        bare: [(f"org/bare@{hashes[1]}", [None])],
        steps_of: [("org/steps", [1000, 2000]), ("org/steps@main", [None])],
        two: [("two-1@main", [None]), ("two-1@refs/pr/1", [None])],
    }
    for place, runs in expected.items():
        assert [(run.name, steps(run)) for run in quietly(place)] == runs
        listed = [(row["run"], row["step"]) for row in inventory([str(place)])]
        assert listed == [(name, step) for name, known in runs for step in known]
    (whole,) = quietly(main / "snapshots" / hashes[0])
    assert whole == quietly(main)[0]
    everything = sorted(name for runs in expected.values() for name, _ in runs)
    assert sorted({str(row["run"]) for row in inventory([str(tmp_path)])}) == everything
    assert [run.name for run in quietly(tmp_path / "models--*")] == everything
    assert outermost(main / "snapshots" / hashes[0]) == main


def test_a_step_that_is_being_written_is_one_line(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path / "a" / f"checkpoint-{step}", tiny_model(layers=1))
    newest = tmp_path / "a" / "checkpoint-10" / "model.safetensors"
    whole = newest.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 0):
        newest.write_bytes(whole[:size])
        refused = {row["step"]: row["refused"] for row in inventory([str(tmp_path / "a")])}
        with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file") as caught:
            load_model(newest.parent)
        assert refused[5] is None
        for said in (refused[10], str(caught.value)):
            assert f"has {size} of " in said
            assert "if it is being written, wait for that" in said
            assert "\n" not in said
    newest.write_bytes(whole)
    assert all(row["refused"] is None for row in inventory([str(tmp_path / "a")]))


def test_a_file_that_is_a_whole_model(tmp_path: Path) -> None:
    (tmp_path / "packed.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("no model")
    (run,) = discover([str(tmp_path / "packed.gguf")])
    assert [checkpoint.path for checkpoint in run.checkpoints] == [str(tmp_path / "packed.gguf")]
    with pytest.raises(InputError, match=r"notes\.txt: not a directory"):
        discover([str(tmp_path / "notes.txt")])
