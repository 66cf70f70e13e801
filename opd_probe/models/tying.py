"""Configurations that tie the output layer to the embeddings, and files that have another one."""

from __future__ import annotations

from typing import Any

import torch

from opd_probe.errors import warn
from opd_probe.models.placement import input_embeddings
from opd_probe.models.readout import output_module


def states_tied(config: Any) -> bool:
    """Whether a configuration ties the output layer to the embeddings: that of the whole checkpoint decides, of whose
    text model it may say nothing."""
    return bool(getattr(config, "tie_word_embeddings", False))


def warn_of_untied(model: Any, name: str) -> None:
    """Say when a model whose configuration ties its output layer was stored with another one.

    transformers takes the stored one then, and so do all numbers here; servers may go by the configuration.
    """
    inputs, outputs = input_embeddings(model), output_module(model)
    tied = states_tied(model.config)
    first, second = getattr(inputs, "weight", None), getattr(outputs, "weight", None)
    if not tied or not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return
    if first is second or first.is_meta or second.is_meta:  # what is not in memory is not compared
        return
    if first.shape == second.shape and torch.equal(first, second.to(first.device)):
        return
    warn(
        f"model {name}: config.json says tie_word_embeddings: true, and an output layer is stored that is not the "
        "embeddings; it is used, as transformers does, but servers such as vLLM may skip it and would sample from "
        "another model: write tie_word_embeddings: false into config.json, or save the model again as it is meant"
    )
