"""What lies around weights that were saved by themselves: a configuration, a tokenizer, the model they began as."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from opd_probe.models.steps import step_name
from opd_probe.texts import read_json, read_text, real_path

_BESIDE = (".", "huggingface", "weights", "weight", ".hf_metadata", "tokenizer")
_LEVELS = 4
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")


def config_home(path: Path) -> Path | None:
    """The nearest directory with the config.json of a model: beside the weights, above them up to their step, or in the
    run's directory."""
    return next((place for place in _places(path) if _is_model(place / "config.json")), None)


def tokenizer_home(path: Path) -> Path | None:
    """Likewise with a tokenizer's files."""
    return next((place for place in _places(path) if any((place / name).is_file() for name in _TOKENIZERS)), None)


def trained_from(path: Path) -> str | None:
    """The model that NeMo-RL trained, by the config.yaml that it leaves in a step: a path or a hub id."""
    for place in (path, *path.parents[:_LEVELS]):
        file = place / "config.yaml"
        if not file.is_file():
            continue
        try:
            policy = yaml.safe_load(read_text(file)).get("policy")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, AttributeError):
            return None
        name = policy.get("model_name") if isinstance(policy, dict) else None
        return name if isinstance(name, str) and name else None
    return None


def _places(path: Path) -> Iterator[Path]:
    path = real_path(path)
    for above in (path, *path.parents[:_LEVELS]):
        yield from (above / name for name in _BESIDE)
        if step_name(above.name) is not None:
            yield above.parent
            return
        if above == path.parent and not _may_be_below_a_step(path):
            return


def _may_be_below_a_step(path: Path) -> bool:
    return any(step_name(above.name) is not None for above in path.parents[:_LEVELS])


def _is_model(file: Path) -> bool:
    """Trainers have a config.json of their own now and then."""
    try:
        content = read_json(file)
    except OSError:
        return False
    except ValueError:
        return True  # who reads it says what is wrong
    return isinstance(content, dict) and ("model_type" in content or "architectures" in content)
