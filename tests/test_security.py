"""What SECURITY.md says: files of every format run no code, name nothing out of their root, and no key is shown."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from opd_probe.errors import InputError, OpdProbeError
from opd_probe.models.checkpoints import headers_of, resolve_checkpoint
from opd_probe.models.loading import load_model
from opd_probe.models.vocabulary import load_tokenizer
from opd_probe.options.manifest import read_manifest
from opd_probe.rollouts.files import read_rollouts
from opd_probe.rollouts.prompts import read_prompts, render_messages
from opd_probe.trace.schema import STATE_COLUMN
from opd_probe.trace.spool import TraceSpool
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

PAGE = Path(__file__).parent.parent / "SECURITY.md"


class Touch:
    """A pickle that makes an empty file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def _safetensors(root: Path) -> Path:
    return save_checkpoint(root / "m", tiny_model(layers=1, hidden=8))


def pytorch_bin(root: Path, ran: Path) -> Callable[[], object]:
    path = _safetensors(root)
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(ran)))
    return lambda: load_model(path)


def beside_weights(root: Path, ran: Path) -> Callable[[], object]:
    path = _safetensors(root)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_bytes(pickle.dumps(Touch(ran)))
    return lambda: load_model(path)


def verl_shard(root: Path, ran: Path) -> Callable[[], object]:
    path = root / "global_step_5" / "actor"
    path.mkdir(parents=True)
    torch.save({"w": Touch(ran)}, path / "model_world_size_1_rank_0.pt")
    return lambda: headers_of(resolve_checkpoint(path))


def dcp_metadata(root: Path, ran: Path) -> Callable[[], object]:
    dcp.save({"w": torch.zeros(2)}, checkpoint_id=root, no_dist=True)
    (root / ".metadata").write_bytes(pickle.dumps(Touch(ran)))
    return lambda: headers_of(resolve_checkpoint(root))


def slime_samples(root: Path, ran: Path) -> Callable[[], object]:
    torch.save({"rollout_id": 1, "samples": [{"tokens": [1, 2], "response_length": 1, "x": Touch(ran)}]}, root / "1.pt")
    return lambda: read_rollouts(root / "1.pt")


def config_code(root: Path, ran: Path) -> Callable[[], object]:
    path = _safetensors(root)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    return lambda: load_model(path)


def tokenizer_code(root: Path, ran: Path) -> Callable[[], object]:
    tiny_tokenizer().save_pretrained(root)
    config = json.loads((root / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    return lambda: load_tokenizer(root, required=True)


def chat_template(root: Path, ran: Path) -> Callable[[], object]:
    del root
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    call = f"{{{{ cycler.__init__.__globals__.os.mknod({str(ran)!r}) }}}}"
    messages = [{"role": "user", "content": "x"}]

    def render() -> None:
        for template in (reach, call):
            text = render_messages("m", messages, tiny_tokenizer(), template=template)
            assert "class" not in text

    return render


def manifest_yaml(root: Path, ran: Path) -> Callable[[], object]:
    (root / "opd-probe.yaml").write_text(f"teacher: !!python/object/apply:os.mknod [{ran}]\n")
    return lambda: read_manifest(root / "opd-probe.yaml")


def spool_array(root: Path, ran: Path) -> Callable[[], object]:
    columns = [STATE_COLUMN["position"]]
    TraceSpool([2], columns, 1, root / "s", "key").put(0, {"position": np.zeros(2, np.int32)})
    np.save(root / "s" / "position.npy", np.array([Touch(ran)], dtype=object), allow_pickle=True)

    def resume() -> None:
        with pytest.warns(match="started afresh"):
            TraceSpool([2], columns, 1, root / "s", "key")
        raise InputError("it is done again")

    return resume


HARMLESS = (
    pytorch_bin, beside_weights, verl_shard, dcp_metadata, slime_samples, config_code, tokenizer_code, chat_template,
    manifest_yaml, spool_array,
)  # fmt: skip


@pytest.mark.parametrize("format", HARMLESS, ids=lambda make: make.__name__)
def test_no_file_runs_code(format: Callable[[Path, Path], Callable[[], object]], tmp_path: Path) -> None:
    ran, root = tmp_path / "ran", tmp_path / "root"
    root.mkdir()
    load = format(root, ran)
    if format is beside_weights:
        load()
    else:
        with pytest.raises(OpdProbeError) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not ran.exists()


def index_of_shards(root: Path) -> Callable[[], object]:
    path = _safetensors(root)
    shutil.move(path / "model.safetensors", root / "secret.safetensors")
    names = {"model.norm.weight": "../secret.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return lambda: headers_of(resolve_checkpoint(path))


def megatron_contents(root: Path) -> Callable[[], object]:
    _safetensors(root)
    (root / "actor").mkdir()
    contents = {"model": {"path": "../m", "format": "huggingface"}}
    (root / "actor" / "ckpt_contents.json").write_text(json.dumps({"contents": contents}))
    return lambda: resolve_checkpoint(root / "actor")


def data_set(root: Path) -> Callable[[], object]:
    (root / "set").mkdir()
    (root / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    return lambda: read_prompts(root / "set")


def chunks(root: Path) -> Callable[[], object]:
    dcp.save({"w": torch.zeros(2)}, checkpoint_id=root / "c", no_dist=True)
    with (root / "c" / ".metadata").open("rb") as handle:
        metadata = pickle.load(handle)
    for place in metadata.storage_data.values():
        place.relative_path = "../secret.distcp"
    (root / "c" / ".metadata").write_bytes(pickle.dumps(metadata))
    return lambda: headers_of(resolve_checkpoint(root / "c"))


@pytest.mark.parametrize("format", [index_of_shards, megatron_contents, data_set, chunks], ids=lambda f: f.__name__)
def test_no_name_leads_out_of_its_root(format: Callable[[Path], Callable[[], object]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leads out of its directory"):
        format(tmp_path)()


def test_no_login_and_no_control_character_is_in_a_message() -> None:
    said = str(InputError("model \x1b[31mhttps://joe:hunter2@host/v1 and http:/joe:hunter2@host\n\n  more\u202e"))
    assert said == "model \\x1b[31mhttps://host/v1 and http:/host more\\u202e"
    assert len(str(InputError("a" * 10**6))) < 2_100


def test_the_page_names_tests_that_there_are() -> None:
    import re

    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 8
    for file, test in named:
        assert f"def {test}(" in (PAGE.parent / file).read_text(encoding="utf-8"), f"{file}::{test}"
