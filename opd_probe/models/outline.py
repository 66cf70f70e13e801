"""What a checkpoint's files say of its model, without its weights being read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from opd_probe.models.adapters import check_safetensors, stored_width
from opd_probe.models.checkpoints import headers_of, resolve_checkpoint
from opd_probe.models.hub import home_of, localized
from opd_probe.models.loading import eos_ids_of, tokenizer_for
from opd_probe.models.placeholders import placeholder_ids
from opd_probe.models.positions import max_positions
from opd_probe.models.tying import states_tied
from opd_probe.models.weights import read_config, read_generation_config
from opd_probe.types import Checkpoint


@dataclass(frozen=True, slots=True)
class Outline:
    """What sampling, and the check whether two models fit each other, need to know of a model that is not loaded.

    The attributes mean what they mean of a :class:`LoadedModel`.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase | None
    width: int
    max_positions: int | None
    eos_ids: tuple[int, ...]
    placeholder_ids: tuple[int, ...] = ()

    @property
    def readable(self) -> int:
        """Every id of the output layer, as far as is known of a model that is not loaded."""
        return self.width


def read_outline(checkpoint: Checkpoint, *, tokenizer: Any = None) -> Outline:
    """The outline of a checkpoint; of its weights only the files' headers are read.

    Args:
        tokenizer: as for :func:`load_model`.

    Raises:
        MissingError, InputError: files that are not there or cannot be used.
    """
    local = localized(checkpoint)
    base, adapters = local, []
    while base.format == "peft" and base.base is not None:
        adapters.append(Path(base.path) / "adapter_model.safetensors")
        base = localized(resolve_checkpoint(base.base))
    for file in adapters:
        check_safetensors(file)
    headers_of(base)
    home = home_of(base)
    config = read_config(home)
    text = config.get_text_config()
    tied = states_tied(config)
    widths = (stored_width(adapter, tied=tied) for adapter in adapters)
    width = next((found for found in widths if found is not None), int(text.vocab_size))
    own = tokenizer_for(local, tokenizer)
    eos_ids = eos_ids_of(read_generation_config(home, config), own)
    return Outline(checkpoint.path, own, width, max_positions(config), eos_ids, placeholder_ids(config))
