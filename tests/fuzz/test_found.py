"""What ``make fuzz`` found, each kind of fault once, with input that hurts nobody."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor

from opd_probe.errors import InputError, OpdProbeError, ServerError, TraceError
from opd_probe.jobs.sampling import stored_samples
from opd_probe.models.adapters import adapter_ids
from opd_probe.models.checkpoints import headers_of, resolve_checkpoint
from opd_probe.models.loading import load_model
from opd_probe.models.merging import merge_ranks, read_tensors
from opd_probe.models.served.drafts import Drafts
from opd_probe.models.vocabulary import load_tokenizer, tokenizer_digest
from opd_probe.options.manifest import read_manifest
from opd_probe.rollouts.files import read_rollouts
from opd_probe.rollouts.prompts import ids_of, read_prompts
from opd_probe.runs.log_files import read_log
from opd_probe.runs.training_logs.sqlite import database
from opd_probe.trace import Trace, TraceSpool, read_trace
from opd_probe.trace.schema import STATE_COLUMN
from tests.fuzz.checkpoints import MAKERS
from tests.fuzz.logs import LOGS
from tests.fuzz.trees import Odd, Tree, lay
from tests.rollouts.left_behind import lighteval, lighteval_row, slime_sample
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer
from tests.trace.test_files import small_trace

DEEP = "[" * 5_000


def refused(read: Callable[[], object], match: str | None = None, kind: type[OpdProbeError] = OpdProbeError) -> str:
    with pytest.raises(kind, match=match) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_json_within_json_without_end(tmp_path: Path) -> None:
    (tree,) = MAKERS["megatron"](tmp_path / "made", None)[:1]
    for name in ("config.json", "ckpt_contents.json"):
        changed: Tree = {path: DEEP.encode() if path.endswith(name) else content for path, content in tree.items()}
        lay(changed, tmp_path / name)
        refused(
            lambda name=name: headers_of(resolve_checkpoint(tmp_path / name / "global_step_9")), "nested too deeply"
        )
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text(DEEP)
    refused(lambda: load_tokenizer(tmp_path / "t", required=True))
    (tmp_path / "opd-probe.yaml").write_text(f"teacher: {DEEP}")
    refused(lambda: read_manifest(tmp_path / "opd-probe.yaml"), "nested too deeply")
    (tmp_path / "d.partial").write_text(f"{DEEP}\n")
    assert Drafts(tmp_path / "d.partial", "key").known == {}


@pytest.mark.parametrize("format", ["verl-lora", "safetensors", "dcp", "hub-cache"])
def test_a_pipe_in_place_of_weights(tmp_path: Path, format: str) -> None:
    tree = MAKERS[format](tmp_path / "made", None)[0]
    ending = {"verl-lora": ".pt", "safetensors": ".safetensors", "dcp": ".distcp", "hub-cache": "refs/main"}[format]
    lay({name: Odd.PIPE if name.endswith(ending) else content for name, content in tree.items()}, tmp_path / "x")
    place = next(iter((tmp_path / "x").iterdir()))
    if format == "hub-cache":
        assert headers_of(resolve_checkpoint(place))
    else:
        refused(lambda: headers_of(resolve_checkpoint(place)))


def test_a_pipe_in_place_of_what_is_stored(tmp_path: Path) -> None:
    columns = [STATE_COLUMN["position"]]
    for name in ("key", "position.npy", "done.npy", "room"):
        TraceSpool([2], columns, 1, tmp_path / name, "key").put(0, {"position": np.zeros(2, np.int32)})
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        if name.endswith(".npy"):
            with pytest.warns(match="not an ordinary file"):
                TraceSpool([2], columns, 1, tmp_path / name, "key")
        else:
            TraceSpool([2], columns, 1, tmp_path / name, "key")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    os.mkfifo(tmp_path / "set" / "x.arrow")
    refused(lambda: read_prompts(tmp_path / "set"), "not an ordinary file")


def test_links_in_a_circle(tmp_path: Path) -> None:
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).write_text('{"input": "1", "output": "2", "score": 1, "step": 1}\n')
    (tmp_path / "3.jsonl").symlink_to("3.jsonl")
    refused(lambda: read_rollouts(tmp_path), "3.jsonl")


def _itself() -> dict[str, Any]:
    held: dict[str, Any] = {}
    held["again"] = [held]
    return held


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher_log_probs": torch.eye(3).to_sparse()}, "tensor of another kind"),
        ({"rollout_log_probs": torch.zeros(3, device="meta")}, "tensor of another kind"),
        ({"metadata": _itself()}, "holds itself"),
        ({"prompt": ["3", "4"]}, "messages must be"),
    ],
)
def test_samples_of_torch(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    torch.save({"rollout_id": 1, "samples": [slime_sample(**change)]}, tmp_path / "1.pt")
    refused(lambda: read_rollouts(tmp_path / "1.pt"), said)


def test_arrow_is_checked_before_it_is_read(tmp_path: Path) -> None:
    """Text that is none, in place of what is out of bounds: the check is one."""
    text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    table = pa.table({"prompt": text})
    with pa.OSFile(str(tmp_path / "p.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert "Invalid UTF8" in refused(lambda: read_prompts(tmp_path / "p.arrow"), "not a whole Arrow file")


def test_tokenizers_of_odd_lengths_and_ids(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": {"a": 1}}))
    found = load_tokenizer(tmp_path, required=True)
    refused(lambda: ids_of("3 4", found), "cannot encode '3 4'")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["60"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    large: Any = load_tokenizer(tmp_path, required=True)
    refused(lambda: tokenizer_digest(large), "has a token of id 2147483648")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("temperature", {"a": 1}, "temperature of its provenance is dict"),
        ("labels", [], "labels of its provenance is list"),
        ("labels.step", "5", "labels.step of its provenance is str"),
        ("vocabulary.special_ids", ["a"], "are no token ids"),
        ("warnings", "x", "warnings of its provenance is str"),
    ],
)
def test_provenance_of_other_types(tmp_path: Path, path: str, value: Any, said: str) -> None:
    trace = small_trace()
    outer, _, inner = path.partition(".")
    changed = {**trace.provenance, outer: {**trace.provenance.get(outer, {}), inner: value} if inner else value}
    with pytest.raises(TraceError, match=said):  # which opens what it wrote
        Trace(trace.rollouts, changed, arrays={n: trace.column(n) for n in trace.columns}).save(tmp_path / "t.parquet")
    refused(lambda: read_trace(tmp_path / "t.parquet"), said, TraceError)


def test_traces_without_a_column_or_with_another_type(tmp_path: Path) -> None:
    trace = small_trace()
    arrays = {name: trace.column(name) for name in trace.columns}
    rollouts = trace.rollouts
    without = {name: values for name, values in arrays.items() if name != "token_id"}
    with pytest.raises(TraceError, match="no column 'token_id'"):
        Trace(rollouts, trace.provenance, arrays=without).save(tmp_path / "a.parquet")
    place = rollouts.column_names.index("score")
    texts = rollouts.set_column(place, "score", pa.array([str(n) for n in range(rollouts.num_rows)]))
    with pytest.raises(TraceError, match="'score' of its rollout table is of the type string"):
        Trace(texts, trace.provenance, arrays=arrays).save(tmp_path / "b.parquet")


@pytest.mark.parametrize("record", ["[1]", '{"key": 3}', '"x"', DEEP])
def test_samples_with_another_record(tmp_path: Path, record: str) -> None:
    (tmp_path / "step-5.json").write_text(record)
    (tmp_path / "step-5.parquet").write_bytes(b"x")
    assert stored_samples(tmp_path / "step-5.parquet", {"sampler": "transformers"}) is None


def test_samples_that_cannot_be_read_are_drawn_anew(tmp_path: Path) -> None:
    (tmp_path / "step-5.json").write_text('{"key": {"sampler": "transformers"}, "rollouts_sha256": ""}')
    (tmp_path / "step-5.parquet").write_bytes(b"PAR1")
    with pytest.warns(match="sampled anew"):
        assert stored_samples(tmp_path / "step-5.parquet", {"sampler": "transformers"}) is None
    (tmp_path / "d.partial").write_text(
        '{"key": "key"}\n{"id": "a", "ids": [Infinity], "logprobs": [0], "reason": "x"}\n'
    )
    assert Drafts(tmp_path / "d.partial", "key").known == {}


def test_events_that_are_none(tmp_path: Path) -> None:
    from tests.fuzz.trees import framed

    (tmp_path / "events.out.tfevents.1").write_bytes(framed(b"\xff\xff\xff"))
    refused(lambda: read_log(tmp_path / "events.out.tfevents.1"), "cannot be read")


def test_models_of_a_server_under_odd_names() -> None:
    from opd_probe.models.served.endpoint import parse_endpoint
    from opd_probe.models.served.model import chosen

    entries = [{"id": "a", "root": ["x"]}, {"id": "b", "root": {"y": 1}}]
    refused(lambda: chosen(parse_endpoint("http://h:1"), entries), "has 2 models")
    assert issubclass(ServerError, OpdProbeError)


def test_ids_of_an_adapter_that_are_none() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model(layers=1), LoraConfig(trainable_token_indices=[1]))
    adapted.peft_config["default"].trainable_token_indices = ["a"]
    refused(lambda: adapter_ids(adapted), "expected whole numbers", InputError)


def test_a_header_with_text_for_a_place(tmp_path: Path) -> None:
    (tree,) = MAKERS["prime-rl"](tmp_path / "made", None)
    name = next(path for path in tree if path.endswith(".safetensors"))
    header = b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}'
    lay({**tree, name: len(header).to_bytes(8, "little") + header}, tmp_path / "x")
    refused(lambda: headers_of(resolve_checkpoint(tmp_path / "x" / "step_7")), "not a whole safetensors file")


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_size", None), ("vocab_size", 2**40), ("num_hidden_layers", 200_000)]
)
def test_a_configuration_of_a_far_larger_model(tmp_path: Path, name: str, value: int | None) -> None:
    """Refused before the memory of that model is taken."""
    path = save_checkpoint(tmp_path, tiny_model(16, hidden=8, layers=1))
    config = json.loads((path / "config.json").read_text())
    config = {key: one for key, one in config.items() if key != name} if value is None else {**config, name: value}
    config.pop("layer_types")
    (path / "config.json").write_text(json.dumps(config))
    refused(lambda: load_model(path), name)


def test_a_name_in_gguf_that_is_no_text(tmp_path: Path) -> None:
    (tree,) = MAKERS["gguf"](tmp_path / "made", None)
    content = tree["model-5.gguf"]
    assert isinstance(content, bytes)
    place = content.index(b"general.architecture") + len("general.architecture") + 4 + 8
    (tmp_path / "model-5.gguf").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    refused(lambda: load_model(tmp_path / "model-5.gguf"), "not a whole GGUF file")


@pytest.mark.parametrize("kind", ["dvclive", "tensorboard"])
def test_a_pipe_among_the_files_of_a_logger(tmp_path: Path, kind: str) -> None:
    tree = LOGS[kind](tmp_path / "made")
    name = next(path for path in tree if path.endswith(("loss.tsv", "host")))
    lay({**tree, f"x/{name}" if kind == "tensorboard" else name: Odd.PIPE}, tmp_path / "x")
    place = tmp_path / "x" / ("x" if kind == "tensorboard" else "dvclive")
    refused(lambda: read_log(place), "not an ordinary file")


def test_a_file_of_torch_that_goes_on_on_another_disk(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)  # of two disks
    file.write_bytes(bytes(64) + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
    refused(lambda: read_tensors(file), "not a whole file")


def test_shards_whose_parts_are_not_there(tmp_path: Path) -> None:
    """What is unpickled has the attributes that the file says, or none."""
    from torch.distributed.tensor import DeviceMesh, DTensor, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    def shard(local: object = None, spec: object = None) -> Tensor:
        made: Any = torch.Tensor._make_wrapper_subclass(DTensor, (4, 2))  # type: ignore[attr-defined]
        for name, part in (("_local_tensor", local), ("_spec", spec)):
            if part is not None:
                setattr(made, name, part)
        return made

    mesh = DeviceMesh("cpu", [0, 1], _init_backend=False, _rank=0)
    real, far = (DTensorSpec(mesh, (Shard(dim),)) for dim in (0, 7))
    values = torch.ones(2, 2)
    odd = [shard(), shard(values), shard(spec=real), shard(values, {"placements": ()}), shard([1.0], real)]
    odd += [shard(values, far), shard(values.to_sparse(), real), values.to_sparse(), values.to("meta")]
    for value in odd:
        torch.save({"weight": value}, tmp_path / "model.pt")
        refused(lambda: read_tensors(tmp_path / "model.pt"), "weight is a tensor of another kind", InputError)
    torch.save({"weight": shard(values, real)}, tmp_path / "model.pt")
    assert merge_ranks([tmp_path / "model.pt"] * 2)["weight"].shape == (4, 2)
    refused(lambda: merge_ranks([tmp_path / "model.pt"]), "not the ranks of the files", InputError)
    strange = DeviceMesh("cpu", [-7, 0], _init_backend=False, _rank=0)
    torch.save({"weight": shard(values, DTensorSpec(strange, (Shard(0),)))}, tmp_path / "model.pt")
    refused(lambda: merge_ranks([tmp_path / "model.pt"] * 2), "not the ranks of the files", InputError)


@pytest.mark.parametrize("named", [5, 1.5, True, "LlamaForCausalLM", [7], {"a": 1}])
def test_architectures_that_are_no_names(tmp_path: Path, named: object) -> None:
    path = save_checkpoint(tmp_path, tiny_model(16, hidden=8, layers=1))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": named}))
    refused(lambda: load_model(path), "architectures is .*expected a list of names", InputError)


def test_tensors_within_lists(tmp_path: Path) -> None:
    batch = {"input_ids": [torch.tensor([3, 4, 5])], "token_mask": [torch.tensor([0, 1, 1])], "input_length": [3]}
    torch.save(batch, tmp_path / "1.pt")
    (rollout,) = read_rollouts(tmp_path / "1.pt")
    assert (rollout.prompt_ids, rollout.response_ids) == ((3,), (4, 5))
    for name in batch:
        torch.save({**batch, name: [torch.empty(3, device="meta")]}, tmp_path / "2.pt")
        refused(lambda: read_rollouts(tmp_path / "2.pt"), f"{name} is a tensor of another kind")


def test_a_tokenizer_that_stops_its_library(tmp_path: Path) -> None:
    """A prefix longer than a piece is no exception to Python where the library is written in Rust."""
    model = BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    tokenizer = json.loads(Tokenizer(model).to_str())
    tokenizer["model"]["continuing_subword_prefix"] = "None"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    refused(lambda: load_tokenizer(tmp_path, required=True), "cannot be loaded .*out of range")


@pytest.mark.parametrize(
    "address", ["http:-/user:hunter2@host/v1", "http:x/user:hunter2@h", "htt;//user:hunter2@h", "http://u:hunter2@h"]
)
def test_a_login_in_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    (tmp_path / "opd-probe.yaml").write_text(f"teacher: {address}#m")
    if not address.startswith("http://"):
        said = refused(lambda: read_manifest(tmp_path / "opd-probe.yaml"))
        assert "hunter2" not in said
    assert "hunter2" not in str(InputError(f"teacher {address}: not there"))
    assert str(InputError("no file a/b@c/d:e")) == "no file a/b@c/d:e"


def test_ways_of_sampling_that_are_no_list(tmp_path: Path) -> None:
    row = lighteval_row()
    place = lighteval(tmp_path, [{**row, "doc": {**row["doc"], "sampling_methods": 5}}])
    refused(lambda: read_rollouts(place), "sampling_methods is int; expected a list", InputError)


@pytest.mark.parametrize("modes", [b"\2\2", b"\1\2", b"\2\1", b"\2\3"])
def test_a_database_that_logs_ahead_for_readers_alone(tmp_path: Path, modes: bytes) -> None:
    """Nothing is made beside it, whichever of its two words for how it is written and read says so."""
    path = tmp_path / "opd.db"
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("CREATE TABLE held (value INTEGER)")
        writer.commit()
    whole = path.read_bytes()
    for content in (whole[:18] + modes + whole[20:], whole[:18] + modes):
        path.write_bytes(content)
        with suppress(ValueError), database(path) as connection:
            connection.execute("SELECT name FROM sqlite_master").fetchall()
        assert [file.name for file in tmp_path.iterdir()] == ["opd.db"]
