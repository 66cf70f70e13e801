"""Models that are spread over devices, or offloaded, give the numbers of models that are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import opd_probe
from opd_probe.errors import InputError
from opd_probe.models.generation import sample_rollouts
from opd_probe.models.loading import load_model
from opd_probe.types import Prompt
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

ROWS = [
    {"prompt_ids": [3, 4, 5], "response_ids": [7 + i, 8, 9, 10 + i, 1][: 2 + i % 4], "prompt_id": str(i // 2)}
    for i in range(7)
]
LAYERS = ("model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb")


def spread(*, embeddings: str, layers: str, output: str) -> dict[str, str]:
    """Of two layers the first on the CPU, so that there are always two places."""
    places = dict.fromkeys(LAYERS, layers) | {"model.layers.0": "cpu"}
    return {"model.embed_tokens": embeddings, **places, "lm_head": output}


MAPS: dict[str, Any] = {
    "by itself": "auto",
    "layers on disk": spread(embeddings="cpu", layers="disk", output="cpu"),
    "both ends on disk": spread(embeddings="disk", layers="cpu", output="disk"),
    "all but one layer on disk": spread(embeddings="disk", layers="disk", output="disk"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    for name, tied in (("tied", True), ("untied", False)):
        save_checkpoint(home / name, tiny_model(seed=1, tied=tied), tiny_tokenizer())
    save_checkpoint(home / "teacher", tiny_model(seed=2, hidden=48, dtype=torch.bfloat16), tiny_tokenizer())
    return home


@pytest.mark.parametrize("student", ["tied", "untied"])
@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS.keys())
def test_replay_gives_the_same_numbers(home: Path, student: str, device_map: Any) -> None:
    plain = opd_probe.replay(home / student, home / "teacher", ROWS, k=8)
    spread_out = opd_probe.replay(home / student, home / "teacher", ROWS, k=8, device_map=device_map)
    for name in plain.columns:
        assert (plain.column(name) == spread_out.column(name)).all() or name == "sampler_logprob", name


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS.keys())
def test_sampling_gives_the_same_draws(home: Path, device_map: Any) -> None:
    prompts = [Prompt(id=str(n), ids=tuple(range(3, 5 + n))) for n in range(3)]
    drawn = [
        sample_rollouts(model, prompts, num_rollouts=2, max_new_tokens=6)
        for model in (load_model(home / "untied"), load_model(home / "untied", device_map=device_map))
    ]
    assert drawn[0] == drawn[1]


def test_where_inputs_go_and_what_is_kept_in_memory(home: Path) -> None:
    loaded = load_model(home / "untied", device_map=MAPS["all but one layer on disk"])
    assert loaded.model.get_input_embeddings().weight.is_meta
    assert loaded.device == torch.device("cpu")
    assert not loaded.output_layer.weight.is_meta
    assert sum(p.is_meta for p in loaded.model.parameters()) > 10


def test_an_adapter_on_a_spread_base(home: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model(seed=1), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(home / "tied")
    adapted.save_pretrained(tmp_path)
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        hidden = [load_model(tmp_path, device_map=device_map).hidden(ids) for device_map in (None, "auto")]
    torch.testing.assert_close(*hidden, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"weights of its base .* would be offloaded"):
        load_model(tmp_path, device_map=MAPS["layers on disk"])


def test_what_cannot_be_followed(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device map 'cuda': expected one of auto, balanced, balanced_low_0"):
        load_model(home / "tied", device_map="cuda")
    with pytest.raises(InputError, match="both are given; keep one of them"):
        load_model(home / "tied", device="cpu", device_map="auto")
    offloaded = load_model(home / "untied", device_map=MAPS["layers on disk"]).model
    with pytest.raises(InputError, match=r"is offloaded, .* give the model's path"):
        opd_probe.replay(offloaded, home / "teacher", ROWS, k=8, out=tmp_path / "trace.parquet")
    assert list(tmp_path.iterdir()) == []


def test_without_accelerate_one_line_says_what_to_install(home: Path) -> None:
    """In an interpreter of its own that does not find it."""
    code = (
        "import importlib.machinery, sys\n"
        "class Without(importlib.machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        hidden = name.split('.')[0] in ('accelerate', 'peft')\n"
        "        return None if hidden else super().find_spec(name, path, target)\n"
        "sys.meta_path = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]\n"
        "sys.meta_path.sort(key=lambda finder: finder is not Without)\n"
        "from opd_probe.models.loading import load_model\n"
        "load_model(sys.argv[1])\n"
        "try:\n"
        "    load_model(sys.argv[1], device_map='auto')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, home / "tied"], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("InputError device map 'auto': needs accelerate")
    assert "pip install 'opd-probe[accelerate]'" in line
