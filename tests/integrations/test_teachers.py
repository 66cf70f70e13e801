"""Every trainer of TRL that has a teacher: what the callback measures is what a later look at the same states finds."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from peft import CPTConfig, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from trl.experimental.server_distillation import ServerDistillationConfig

import opd_probe
from opd_probe.errors import InputError, OpdProbeWarning
from opd_probe.integrations.teachers import Standing, twin
from opd_probe.integrations.trl import OverlapCallback
from opd_probe.rollouts.files import read_rollouts
from tests.cli.workspace import Caller
from tests.integrations.conftest import OPTIONS
from tests.tiny import CHAT_TEMPLATE, QUESTION_TEMPLATE, tiny_model, tiny_tokenizer

QUESTIONS = [[{"role": "user", "content": f"{i} {i + 1}"}] for i in range(4)]
ROWS = [{"prompt": one, "privileged_context": f"{i + 2} {i + 3}"} for i, one in enumerate(QUESTIONS)]
CHATS = [{"messages": [*one, {"role": "assistant", "content": "5 6"}]} for one in QUESTIONS]
PROMPTS = [{"messages": one, "privileged_context": "7 8"} for one in QUESTIONS[:2]]
COMMON: dict[str, Any] = {
    "max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2, "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True,
}  # fmt: skip
KINDS: dict[str, tuple[type[Trainer], Callable[..., Any], dict[str, Any], list[dict[str, Any]]]] = {
    "distillation": (DistillationTrainer, DistillationConfig, {"max_completion_length": 4}, ROWS),
    "gkd": (GKDTrainer, GKDConfig, {"max_new_tokens": 4}, CHATS),
    "gold": (GOLDTrainer, GOLDConfig, {"max_completion_length": 4, "use_uld_loss": False}, CHATS),
    "iw_opd": (IWOPDTrainer, IWOPDConfig, {"max_completion_length": 4}, CHATS),
    "sdft": (SDFTTrainer, SDFTConfig, {"max_completion_length": 4, "num_generations": 2, "distillation_topk": 8,
                                       "teacher_update_rate": 0.5}, ROWS),
    "sdpo": (SDPOTrainer, SDPOConfig, {"max_completion_length": 4, "num_generations": 2, "distillation_topk": 8,
                                       "teacher_update_rate": 0.5}, ROWS),
}  # fmt: skip
SERVED = {"ServerDistillationTrainer", "AsyncDistillationTrainer"}
KNOWN = ("overlap_ratio", "overlap_advantage", "student_overlap_mass", "entropy_gap", "reverse_kl", "sampled_reward")


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def make(kind: str, models: Path, out: Path, *, adapter: bool, **more: Any) -> Any:
    """A trainer of the kind on the tiny models, with an adapter or of all weights."""
    trainer, config, settings, rows = KINDS[kind]
    given: dict[str, Any] = {"model": str(models / "student")}
    if adapter and kind == "iw_opd":  # it takes no peft_config
        given["model"] = get_peft_model(AutoModelForCausalLM.from_pretrained(given["model"]), lora())
    elif adapter:
        given["peft_config"] = lora()
    if kind in ("sdft", "sdpo"):
        given |= {"reward_funcs": lambda completions, **_: [1.0] * len(completions)} if kind == "sdpo" else {}
    else:
        given["teacher_model"] = str(models / "teacher")
    return trainer(
        args=config(output_dir=str(out), **(COMMON | settings | more)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(models / "student"),
        **given,
    )


def bytewise(models: Path, root: Path) -> Path:
    """The models with a tokenizer of bytes, the only kind that GOLD takes."""
    seen = f"Ġ{CHAT_TEMPLATE}0123456789{string.printable}".replace(" ", "")
    letters = ["<pad>", "<eos>", "<unk>", *dict.fromkeys(seen)][:60]
    inner = Tokenizer(BPE({letter: index for index, letter in enumerate(letters)}, [], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    for name in ("student", "teacher"):
        shutil.copytree(models / name, root / name)
        tokenizer.save_pretrained(root / name)
    return root


def curve(trainer: Any, name: str) -> dict[int, float]:
    return {row["step"]: row[f"opd/{name}"] for row in trainer.state.log_history if f"opd/{name}" in row}


def test_these_are_all_trainers_with_a_teacher() -> None:
    """Looked up in the installed package: one that a new version adds is to be tried."""
    found = set()
    for base in ("trl.trainer", "trl.experimental"):
        for module in pkgutil.walk_packages(importlib.import_module(base).__path__, f"{base}."):
            if not module.name.endswith("_trainer"):
                continue
            for name, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if issubclass(one, Trainer) and one.__module__ == module.name and "teacher" in inspect.getsource(one):
                    found.add(name)
    assert found == {kind[0].__name__ for kind in KINDS.values()} | SERVED


@pytest.mark.parametrize(
    ("kind", "adapter", "teacher"),
    [
        ("distillation", True, "apart"), ("gkd", False, "apart"), ("gkd", True, "apart"), ("gold", False, "apart"),
        ("gold", True, "apart"), ("iw_opd", False, "apart"), ("iw_opd", True, "apart"), ("sdft", False, "base"),
        ("sdft", True, "base"), ("sdft", False, "ema"), ("sdft", True, "ema"), ("sdpo", True, "base"),
        ("sdpo", True, "ema"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.* its teacher reads a privileged context:opd_probe.OpdProbeWarning")
@pytest.mark.filterwarnings("ignore:.* the teacher moves with the training:opd_probe.OpdProbeWarning")
@pytest.mark.filterwarnings("ignore:at .* the overlap at k = .* is one token:opd_probe.OpdProbeWarning")
def test_a_later_look(kind: str, adapter: bool, teacher: str, models: Path, tmp_path: Path) -> None:
    models = bytewise(models, tmp_path) if kind == "gold" else models
    own = {"teacher_model_kind": teacher} if teacher != "apart" else {}
    trainer = make(kind, models, tmp_path / "run", adapter=adapter, **own)
    trainer.add_callback(OverlapCallback(trainer, PROMPTS, every=2, at_start=False, **OPTIONS))
    trains = {name: one.requires_grad for name, one in trainer.model.named_parameters()}
    trainer.train()
    assert {name: one.requires_grad for name, one in trainer.model.named_parameters() if name in trains} == trains
    last = tmp_path / "run" / "checkpoint-2"
    place: Any = {"apart": models / "teacher", "base": models / "student"}.get(teacher, last / "teacher")
    if teacher == "ema" and not adapter:
        place = tmp_path / "moved"
        trainer.teacher_model.save_pretrained(place)
        trainer.processing_class.save_pretrained(place)
    (samples,) = (tmp_path / "run").rglob("rollouts/run/step-2.parquet")
    later = opd_probe.summarize(opd_probe.replay(last, place, samples, k=16), OPTIONS["k"], resamples=0)
    for name in KNOWN:
        assert curve(trainer, name)[2] == pytest.approx(later[name], rel=2e-5, abs=2e-7), name
    assert later["reverse_kl"] > 1e-4  # it is no model against itself
    manifest = yaml.safe_load((tmp_path / "run" / "opd-probe.yaml").read_text())
    assert ("teacher" in manifest) == (teacher != "ema")
    (trace,) = (tmp_path / "run").rglob("traces/**/step-2.parquet")
    name = "teacher" if teacher == "apart" else "student" if teacher == "base" else "student (ema)"
    assert opd_probe.read_trace(trace).provenance["labels"]["teacher"] == name


def test_privileged_context_and_template_variables_as_the_command_reads_them(
    models: Path, tmp_path: Path, call: Caller
) -> None:
    """All that decides the numbers stands in the manifest that the callback writes."""
    trainer = make("sdft", models, tmp_path / "run", adapter=True, teacher_model_kind="base", max_steps=1, save_steps=1,
                   chat_template_kwargs={"name": "9"})  # fmt: skip
    trainer.processing_class.chat_template = QUESTION_TEMPLATE + "{{ name }}"
    callback = OverlapCallback(
        trainer, PROMPTS, teacher_context="{privileged_context} 9", thinking=False, at_start=False, **OPTIONS
    )
    trainer.add_callback(callback)
    trainer.train()
    manifest = yaml.safe_load((tmp_path / "run" / "opd-probe.yaml").read_text())
    assert (manifest["thinking"], manifest["template_kwargs"]) == ("off", {"name": "9"})
    assert manifest["teacher_context"] == "{privileged_context} 9"
    (samples,) = (tmp_path / "run").rglob("rollouts/run/step-1.parquet")
    wanted = trainer.processing_class("Q: 0 1 A: <think> </think> 9", add_special_tokens=False)["input_ids"]
    assert list(read_rollouts(samples)[0].prompt_ids) == wanted
    done = call(
        "overlap", "--ckpts", tmp_path / "run" / "checkpoint-1", "--out", tmp_path / "later", "--format", "json"
    )
    assert done.code == 0, done.err
    (row,) = done.rows
    assert row["teacher"] == "student (context privileged_context)"
    for name in KNOWN:
        assert curve(trainer, name)[1] == pytest.approx(row[name], rel=2e-5), name


def test_a_teacher_that_is_the_student_needs_a_context_of_its_own(models: Path, tmp_path: Path) -> None:
    trainer = make("sdft", models, tmp_path / "run", adapter=True, teacher_model_kind="live", save_strategy="no")
    with pytest.raises(InputError, match=r"is the model in training itself, .*teacher_context='privileged_context'"):
        OverlapCallback(trainer, PROMPTS)
    with pytest.raises(InputError, match="holds weights of the student that train"):
        OverlapCallback(trainer, PROMPTS, teacher=trainer.model.get_base_model())
    with pytest.raises(InputError, match="option 'teacher_context': list; expected one text"):
        OverlapCallback(trainer, PROMPTS, teacher_context=["answer"])
    assert not (tmp_path / "run" / "opd-probe").exists()
    callback = OverlapCallback(trainer, PROMPTS, teacher_context="privileged_context", at_start=False, **OPTIONS)
    trainer.add_callback(callback)
    with pytest.warns(OpdProbeWarning, match="the teacher moves with the training, so that no line can name it"):
        trainer.train()
    assert curve(trainer, "reverse_kl")[2] > 1e-4
    assert "teacher" not in yaml.safe_load((tmp_path / "run" / "opd-probe.yaml").read_text())


class Drift(TrainerCallback):
    """Moves a teacher in a way that nothing declares."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            self.teacher.get_input_embeddings().weight.data.mul_(1.01)

    def __init__(self, teacher: Any) -> None:
        self.teacher = teacher


def test_a_teacher_that_moves_unsaid_leaves_no_path(models: Path, tmp_path: Path) -> None:
    trainer = make("gkd", models, tmp_path / "run", adapter=False, max_steps=1, save_strategy="no")
    trainer.add_callback(Drift(trainer.teacher_model))
    trainer.add_callback(OverlapCallback(trainer, PROMPTS, at_start=False, **OPTIONS))
    with pytest.warns(OpdProbeWarning, match="step 1: the weights of the teacher have changed .* names it no longer"):
        trainer.train()
    manifest = yaml.safe_load((tmp_path / "run" / "opd-probe.yaml").read_text())
    assert "teacher" not in manifest
    assert manifest["k"] == OPTIONS["k"]


def test_the_twin_of_an_adapted_model_takes_no_memory_and_turns_no_switch() -> None:
    model = get_peft_model(tiny_model(16), lora())
    for name, one in model.named_parameters():
        one.data.normal_(generator=torch.Generator().manual_seed(1)) if "lora_B" in name else None
    ids = torch.tensor([[3, 4, 5]])
    with_adapter = model(ids).logits
    with twin(model, Standing("base")) as base:
        assert {one.data_ptr() for one in base.parameters()} == {one.data_ptr() for one in model.parameters()}
        with model.disable_adapter():
            without = model(ids).logits
        assert torch.equal(base(ids).logits, without)
        assert torch.equal(model(ids).logits, with_adapter)
        assert not torch.allclose(without, with_adapter)
    assert all(one.requires_grad == ("lora_" in name) for name, one in model.named_parameters())
    with pytest.raises(InputError, match=r"has no adapter 'teacher' \(default\)"), twin(model, Standing("adapter")):
        pass


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[3, 4], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]),
    ],
    ids=["prompt-tuning", "p-tuning", "prefix-tuning", "cpt"],
)
def test_a_student_with_virtual_tokens_is_refused_before_it_trains(config: Any, models: Path, tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[])
    trainer = Trainer(get_peft_model(tiny_model(60), config), arguments)
    trainer.processing_class = tiny_tokenizer(60)
    callback = OverlapCallback(trainer, ["3 4"], teacher=models / "teacher", at_start=False, **OPTIONS)
    with pytest.raises(InputError, match=f"{config.peft_type.value} adds virtual tokens, which a replay of real"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_a_served_teacher_is_named(models: Path, tmp_path: Path) -> None:
    """The trainer of such a teacher begins with a connection; what it says of it stands in its arguments."""
    arguments = ServerDistillationConfig(
        output_dir=str(tmp_path), teacher_model_server_url="http://node:8001", **COMMON
    )
    trainer = DistillationTrainer(
        model=str(models / "student"), args=arguments, train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(60, chat_template=CHAT_TEMPLATE),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"its teacher is served \(http://node:8001\); give OverlapCallback teacher="):
        OverlapCallback(trainer, PROMPTS)
