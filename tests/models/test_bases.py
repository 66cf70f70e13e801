"""Adapters on one base that was read once are those on a base of their own, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import opd_probe.models.weights as reading
from opd_probe.errors import InputError
from opd_probe.models.bases import Bases
from opd_probe.models.checkpoints import resolve_checkpoint
from opd_probe.models.loading import load_model
from tests.models.test_adapters import HEAD, IDS, INNER, LORA, OTHERS, WIDENED, _config, _lora, _trained
from tests.tiny import save_checkpoint, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tied: bool) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("base") / "base", tiny_model(tied=tied), tiny_tokenizer())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path, tied: bool) -> dict[str, Path]:
    """Adapters of every kind: half of them on a base of tied weights, and half on the other."""
    root, made = tmp_path_factory.mktemp("adapters"), {}
    for name, options in [*LORA.items()][tied::2]:
        made[name] = root / name
        _trained(base, root / name, _lora(options), tied=tied)
    for name, (fitting, options) in WIDENED.items():
        if fitting == tied:
            wide = tiny_model(tied=tied)
            wide.resize_token_embeddings(70, mean_resizing=False)
            _trained(base, root / name, _lora(options), model=wide)
            made[name] = root / name
    for name in () if tied else ("IA3", "LN_TUNING", "SHIRA"):
        made[name] = root / name
        _trained(base, root / name, _config(name, OTHERS[name]), tied=tied)
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the directories of bases that are read."""
    seen: list[str] = []
    read = reading.read_model

    def counting(checkpoint: Any, *how: Any, **more: Any) -> Any:
        seen.append(Path(checkpoint.path).name)
        return read(checkpoint, *how, **more)

    monkeypatch.setattr(reading, "read_model", counting)
    return seen


def _state(model: Any) -> dict[str, tuple[Any, ...]]:
    return {
        name: (value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, value in model.state_dict().items()
    }


@torch.no_grad()
def _logits(model: Any) -> bytes:
    return bytes(model.eval()(input_ids=IDS).logits.float().numpy().tobytes())


def _expecting(paths: Mapping[str, Path], times: int = 1) -> Bases:
    bases = Bases()
    bases.expect(resolve_checkpoint(path).base for path in paths.values() for _ in range(times))
    return bases


def test_every_kind_of_adapter(adapters: dict[str, Path], reads: list[str], tied: bool) -> None:
    """In this order and backwards, with all models alive until the end: none writes into what is another's."""
    dtype = torch.bfloat16 if tied else None
    bases, alive, expected = _expecting(adapters, 2), [], {}
    for name, path in adapters.items():
        fresh = reading.read_model(resolve_checkpoint(path), dtype, CPU)
        expected[name] = _state(fresh), _logits(fresh), str(fresh.config), type(fresh.get_base_model())
    for name, path in [*adapters.items(), *reversed(adapters.items())]:
        reads.clear()
        shared = reading.read_model(resolve_checkpoint(path), dtype, CPU, bases=bases)
        assert reads.count("base") == (name in ("IA3", "LN_TUNING", "SHIRA") or not alive), name
        assert (_state(shared), _logits(shared), str(shared.config), type(shared.get_base_model())) == expected[name]
        alive.append((name, shared))
    for name, shared in alive:
        assert _state(shared) == expected[name][0], name


def test_what_is_kept_and_for_how_long(adapters: dict[str, Path], reads: list[str]) -> None:
    path = next(iter(adapters.values()))
    checkpoint = resolve_checkpoint(path)
    bases = _expecting({"": path}, 3)
    models = [load_model(path, bases=bases) for _ in range(2)]
    places = [
        {name: value.data_ptr() for name, value in model.model.named_parameters() if value.ndim > 1} for model in models
    ]
    assert sum(places[0][name] == places[1][name] for name in places[0]) == sum("lora" not in n for n in places[0])
    assert models[0].identity == models[1].identity == load_model(path).identity
    bases.passed(checkpoint.base)
    bases.passed(checkpoint.base)
    reads.clear()
    load_model(path, bases=bases)
    assert reads == []
    bases.passed(checkpoint.base)
    load_model(path, bases=bases)
    assert reads == ["base"]


def test_a_base_that_changes_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    """On the disk, or in memory; so is one that is asked for in another type."""
    base = save_checkpoint(tmp_path / "base", tiny_model(tied=False), tiny_tokenizer())
    _trained(base, tmp_path / "a", _lora(INNER))
    bases = _expecting({"": tmp_path / "a"}, 9)
    first = load_model(tmp_path / "a", bases=bases)
    with torch.no_grad():
        dict(first.model.named_parameters())["base_model.model.model.layers.0.mlp.down_proj.weight"][3, 4] += 1e-3
    reads.clear()
    second = load_model(tmp_path / "a", bases=bases)
    assert reads == ["base"]
    assert _state(second.model) == _state(load_model(tmp_path / "a").model) != _state(first.model)
    weights = load_file(base / "model.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    third = load_model(tmp_path / "a", bases=bases)
    assert _state(third.model) == _state(load_model(tmp_path / "a").model) != _state(second.model)
    coarse = load_model(tmp_path / "a", bases=bases, dtype="bfloat16")
    assert _state(coarse.model) == _state(load_model(tmp_path / "a", dtype="bfloat16").model)


def test_an_adapter_on_an_adapter_and_one_that_is_broken(tmp_path: Path) -> None:
    """What lies below is merged once; what cannot be used is one line, and spoils nothing for the next."""
    base = save_checkpoint(tmp_path / "base", tiny_model(tied=False), tiny_tokenizer())
    first = _trained(base, tmp_path / "first", _lora(INNER))
    merged = first.merge_and_unload()
    for name in ("second", "broken", "third"):
        _trained(tmp_path / "first", tmp_path / name, _lora(HEAD), model=merged)
    config = tmp_path / "broken" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    bases = _expecting({name: tmp_path / name for name in ("second", "broken", "third")})
    for name in ("second", "third"):
        fresh = load_model(tmp_path / name)
        assert _state(load_model(tmp_path / name, bases=bases).model) == _state(fresh.model)
        with pytest.raises(InputError, match=r"missing: .*lora_magnitude_vector"):
            load_model(tmp_path / "broken", bases=bases)
