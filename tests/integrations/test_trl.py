"""The callback in real trainings: it is seen by the logger, it agrees with a later look, and it leaves no mark."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.device_mesh import init_device_mesh
from trl import GRPOConfig, GRPOTrainer

import opd_probe
from opd_probe.errors import InputError, MissingError, OpdProbeWarning
from opd_probe.integrations.trl import OverlapCallback
from opd_probe.integrations.undisturbed import undisturbed
from opd_probe.options.settings import Options
from opd_probe.runs.log_files import read_log
from opd_probe.runs.logs import training_log
from opd_probe.runs.stored import find_traces
from tests.cli.workspace import Caller, files_below
from tests.integrations.conftest import OPTIONS, PROMPTS, Training, make_trainer
from tests.models.served import cases
from tests.models.served.recorded_server import Exchanges, serving
from tests.tiny import CHAT_TEMPLATE, save_checkpoint, tiny_model, tiny_tokenizer


def test_the_curves_are_in_tensorboards_event_file(watched: Training) -> None:
    events = EventAccumulator(str(watched.directory.parent / "events")).Reload()
    scalars = {event.step: event.value for event in events.Scalars("train/opd/overlap_ratio")}
    assert scalars == pytest.approx(watched.logged("opd/overlap_ratio"), rel=1e-6)
    assert sorted(scalars) == [0, 2, 4]
    assert len(set(scalars.values())) > 1
    assert {"train/opd/student_overlap_mass", "train/opd/entropy_gap", "train/opd/accuracy"} <= set(
        events.Tags()["scalars"]
    )


def test_a_later_look_at_the_checkpoints_finds_the_same_numbers(
    watched: Training, call: Caller, tmp_path: Path
) -> None:
    done = call("overlap", "--ckpts", watched.directory, "--out", tmp_path / "later", "--format", "json")
    assert done.code == 0, done.err
    assert [row["step"] for row in done.rows] == [0, 2, 4]
    names = ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "entropy_gap", "reverse_kl", "accuracy")
    for row in done.rows:
        for name in names:
            assert watched.logged(f"opd/{name}")[row["step"]] == pytest.approx(row[name], rel=2e-5), name
    assert (done.rows[0]["run"], done.rows[0]["teacher"], done.rows[0]["states"]) == ("watched", "teacher", "own")
    stored = call("overlap", "--traces", watched.directory / "opd-probe", "--k", "4", "--format", "json")
    assert stored.code == 0, stored.err
    for ours, theirs in zip(stored.rows, done.rows, strict=True):
        assert all(ours[name] == pytest.approx(theirs[name], rel=2e-5) for name in names)
        assert all(ours[name] == theirs[name] for name in ("run", "step", "teacher", "states", "n_states"))


def test_the_training_is_what_it_would_have_been_without(watched: Training, models: Path, tmp_path: Path) -> None:
    trainer = make_trainer(models, tmp_path / "alone")
    trainer.train()
    alone = Training(tmp_path / "alone", trainer)
    assert watched.losses == alone.losses
    for (name, ours), (_, theirs) in zip(
        watched.trainer.model.state_dict().items(), trainer.model.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert steady(watched) == steady(alone)


def steady(training: Training) -> list[dict[str, float]]:
    """What the trainer itself logged, without what the clock says."""
    timed = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    rows = [row for row in training.trainer.state.log_history if "opd/n_states" not in row]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_traces_samples_and_manifest_lie_where_the_commands_look(watched: Training) -> None:
    manifest = yaml.safe_load((watched.directory / "opd-probe.yaml").read_text())
    assert {name: manifest[name] for name in OPTIONS} == OPTIONS
    assert (manifest["temperature"], manifest["sample_temperature"], manifest["seed"]) == (1.0, 1.0, 0)
    for name in ("teacher", "student", "prompts"):
        assert (watched.directory / manifest[name]).exists(), name
    assert files_below(watched.directory / "opd-probe") == {
        "prompts.jsonl",
        *(f"traces/watched/teacher/step-{step}.parquet" for step in (0, 2, 4)),
        *(f"rollouts/watched/step-{step}.parquet" for step in (0, 2, 4)),
    }


def test_random_numbers_and_modes_are_put_back() -> None:
    model = tiny_model(16).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    seeds = (random.getrandbits(32), torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    with undisturbed(model):
        model.eval()
        random.random()
        torch.manual_seed(3)
        np.random.rand(4)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), seeds[1])
    assert np.random.get_state()[1].tolist() == seeds[2]
    assert random.getstate() == seeds[3]


def test_what_cannot_be_used_is_said_at_once(watched: Training, tmp_path: Path) -> None:
    trainer = watched.trainer
    with pytest.raises(InputError, match="prompts and rollouts: expected one of them"):
        OverlapCallback(trainer)
    with pytest.raises(InputError, match="teacher of type int: expected a path"):
        OverlapCallback(trainer, PROMPTS, teacher=3)
    with pytest.raises(InputError, match="every = 0"):
        OverlapCallback(trainer, PROMPTS, every=0, out=tmp_path)
    with pytest.raises(InputError, match="option 'top_k': unknown here; expected one of k, trace_k"):
        OverlapCallback(trainer, PROMPTS, out=tmp_path, top_k=3)
    with pytest.raises(InputError, match="--num-rollouts: expected"):
        OverlapCallback(trainer, PROMPTS, out=tmp_path, num_rollouts=0)
    with pytest.raises(InputError, match="prompts: empty; expected at least one"):
        OverlapCallback(trainer, [], out=tmp_path)
    for given, message in ((3, "of type int: expected a file"), ({"prompt": "3"}, "of type dict: expected a file"),
                           ([3], ": expected a file, or texts"), ([{"prompt": b"3"}], ": expected a file, or texts"),
                           ([b"34"], ": expected a file, or texts")):  # fmt: skip
        with pytest.raises(InputError, match=f"^prompts ?{message}"):
            OverlapCallback(trainer, given, out=tmp_path)
    with pytest.raises(InputError, match=r"^rollouts of type dict: expected a file, or rows with prompt_ids"):
        OverlapCallback(trainer, rollouts={"prompt_ids": [3], "response_ids": [4]}, out=tmp_path)


def test_fixed_rollouts_a_teacher_by_path_and_a_failure_later(models: Path, tmp_path: Path) -> None:
    rollouts = [{"id": f"r{i}", "prompt_ids": [3 + i, 4], "response_ids": [5, 6, 7 + i]} for i in range(4)]
    trainer = make_trainer(models, tmp_path / "fixed", max_steps=2, save_strategy="no")
    callback = OverlapCallback(
        trainer, rollouts=rollouts, every=1, teacher=str(models / "teacher"), keep_teacher=False, k=4, trace_k=8
    )
    trainer.add_callback(callback)
    trainer.train()
    curve = Training(tmp_path / "fixed", trainer).logged("opd/reverse_kl")
    assert sorted(curve) == [0, 1, 2]
    assert len(set(curve.values())) == 3
    trainer.state.global_step = 1  # as when it goes on from a checkpoint: step 2 will be measured again
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    (trace,) = (tmp_path / "fixed" / "opd-probe").rglob("step-2.parquet")
    shutil.copy(trace, trace.with_name("step-9.parquet"))
    with pytest.warns(OpdProbeWarning, match=r"left traces of steps that this one does not measure \(9\)"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    trainer.state.global_step = 2
    trainer.processing_class = None  # then the tokenizer beside the student's weights reads the prompts
    text = OverlapCallback(trainer, ["3 4"], out=tmp_path / "text", **OPTIONS)
    text.on_step_end(trainer.args, trainer.state, trainer.control)
    assert trainer.state.log_history[-1]["opd/n_states"] > 0
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.warns(OpdProbeWarning, match="step 2: not measured .*logits are NaN"):
        callback.on_step_end(trainer.args, trainer.state, trainer.control)


def test_tensorboards_event_files_are_a_training_log(watched: Training, tmp_path: Path) -> None:
    directory = watched.directory.parent / "events"
    rows = {row["step"]: row for row in read_log(directory)}
    assert {step: row["loss"] for step, row in rows.items()} == pytest.approx(watched.logged("loss"), rel=1e-6)
    (file,) = directory.glob("*tfevents*")
    assert read_log(file) == list(rows.values())
    broken = tmp_path / file.name
    broken.write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match="training log"):
        read_log(broken)


@pytest.mark.filterwarnings("ignore:at .* the overlap at k = .* is one token:opd_probe.OpdProbeWarning")
def test_a_served_teacher_and_what_it_does_not_tell(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "student", cases.student(), tiny_tokenizer(cases.WIDTH, chat_template=CHAT_TEMPLATE))
    save_checkpoint(tmp_path / "teacher", cases.teacher())
    trainer = make_trainer(tmp_path, tmp_path / "served", max_steps=1, save_strategy="no", words=cases.WIDTH)
    with serving(Exchanges.read("vllm_teacher.jsonl")) as server:
        options = {"k": 4, "trace_k": cases.K}
        trainer.add_callback(OverlapCallback(trainer, rollouts=cases.rollouts(), teacher=server.url, **options))
        trainer.train()
        later = opd_probe.replay(tmp_path / "student", server.url, cases.rollouts(), k=cases.K)
    training = Training(tmp_path / "served", trainer)
    wanted = opd_probe.summarize(later, 4, resamples=0)
    for name in ("overlap_ratio", "overlap_advantage", "teacher_overlap_mass", "sampled_reward"):
        assert training.logged(f"opd/{name}")[0] == pytest.approx(wanted[name], rel=2e-5), name
    assert not training.logged("opd/reverse_kl")  # unknown, and so not logged
    assert sorted(training.logged("opd/n_states")) == [0, 1]
    assert yaml.safe_load((tmp_path / "served" / "opd-probe.yaml").read_text())["teacher"] == server.url


@pytest.mark.filterwarnings("ignore:at .* the overlap at k = .* is one token:opd_probe.OpdProbeWarning")
def test_mixed_precision_and_an_adapter(models: Path, tmp_path: Path) -> None:
    """The forward is wrapped, and the base model's modules sit in an adapter's."""
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(
        models, tmp_path / "lora", max_steps=2, save_steps=2, bf16=True, peft_config=adapter, learning_rate=0.3
    )
    trainer.add_callback(OverlapCallback(trainer, PROMPTS, every=2, **OPTIONS))
    trainer.train()
    assert trainer.model.forward.__func__ is not type(trainer.model).forward  # still wrapped
    curve = Training(tmp_path / "lora", trainer).logged("opd/reverse_kl")
    assert sorted(curve) == [0, 2]
    saved = opd_probe.replay(
        tmp_path / "lora" / "checkpoint-2",
        models / "teacher",
        tmp_path / "lora" / "opd-probe" / "rollouts" / "lora" / "step-2.parquet",
        k=16,
    )
    assert opd_probe.summarize(saved, 4, resamples=0)["reverse_kl"] == pytest.approx(curve[2], rel=2e-5)


def test_reinforcement_learning_with_a_teacher_of_its_own(models: Path, tmp_path: Path) -> None:
    """GRPO has no teacher_model: the callback is given one, and says so when it is not."""
    trainer = GRPOTrainer(
        model=str(models / "student"),
        reward_funcs=lambda completions, **_: [float(len(one)) for one in completions],
        args=GRPOConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to=[],
                        disable_tqdm=True, save_strategy="no", logging_steps=1, max_completion_length=4,
                        per_device_train_batch_size=2,
                        num_generations=2),
        train_dataset=Dataset.from_list([{"prompt": f"{i} {i + 1}"} for i in range(4)]),
        processing_class=tiny_tokenizer(60, chat_template=CHAT_TEMPLATE),
    )  # fmt: skip
    with pytest.raises(InputError, match="GRPOTrainer has no teacher_model; give OverlapCallback a teacher"):
        OverlapCallback(trainer, PROMPTS)
    trainer.add_callback(OverlapCallback(trainer, PROMPTS, teacher=tiny_model(61, seed=1), run="grpo", **OPTIONS))
    with pytest.warns(OpdProbeWarning, match="the teacher is a model in memory, so that no line can name it"):
        trainer.train()
    training = Training(tmp_path, trainer)
    assert sorted(training.logged("opd/overlap_ratio")) == [0, 1]
    log = training_log(find_traces([str(tmp_path / "opd-probe")], Options(k=4)), {"": write_state(training)})
    assert log.set_index("step")["training_reward"].dropna().to_dict() == training.logged("reward")


def write_state(training: Training) -> str:
    """The state as a checkpoint would hold it."""
    path = training.directory / "trainer_state.json"
    training.trainer.state.save_to_json(str(path))
    return str(path)


def test_sharded_parameters_are_refused_when_training_starts(models: Path, tmp_path: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard

    trainer = make_trainer(models, tmp_path / "sharded")
    callback = OverlapCallback(trainer, PROMPTS)
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        trainer.model_wrapped = fully_shard(trainer.model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match=r"student: its parameters are sharded .* opd-probe overlap --ckpts"):
            callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    finally:
        destroy_process_group()


def test_the_trainers_own_log_is_found_from_the_traces(watched: Training) -> None:
    measured = find_traces([str(watched.directory / "opd-probe")], Options(k=4))
    log = training_log(measured, {}).set_index("step")
    assert log["loss"].dropna().to_dict() == watched.logged("loss")
    assert log["training_response_length"].dropna().to_dict() == watched.logged("completions/mean_length")


def test_a_manifest_that_is_there_is_kept(models: Path, tmp_path: Path) -> None:
    trainer = make_trainer(models, tmp_path / "kept", max_steps=1)
    callback = OverlapCallback(trainer, PROMPTS, at_start=False, dtype="float32", **OPTIONS)
    path = tmp_path / "kept" / "opd-probe.yaml"
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert "dtype" not in yaml.safe_load(path.read_text())  # of the teacher alone
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)  # the same again: nothing to say
    path.write_text("teacher: ../../nowhere\n")
    with pytest.raises(MissingError, match="key 'teacher'"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    path.write_text(f"teacher: {models}/teacher\n")
    with pytest.warns(OpdProbeWarning, match="is there already and says something else; kept as it is"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert path.read_text() == f"teacher: {models}/teacher\n"
