"""Products of bf16 matrices with float32 results on a CPU, by a small native operator that is built on first use."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from opd_probe.errors import OpdProbeWarning

SOURCE = Path(__file__).with_name("bf16_product.cpp")
BLOCK = 64
"""Rows of the weight in a block of its packed form."""

PAYS_FROM = 2e9
"""Logits per model in a job from which building the operator pays: 15 s against 1.3 ms per state of 150,000 ids on two
cores."""


def building_pays(states: int, width: int) -> bool:
    """Whether a job of ``states`` states over ``width`` ids is long enough to build the operator for."""
    return states * width >= PAYS_FROM


def packed_weight(weight: Tensor) -> Tensor | None:
    """A bf16 matrix [W, d] as :func:`bf16_product` reads it, [ceil(W / 64), d / 2, 64, 2].

    None where the product is not to be had: another type or device, an odd depth, a processor without bf16 units, or
    nothing that builds the operator (warned about once).
    """
    width, depth = weight.shape
    suits = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and depth % 2 == 0
    if not suits or not _operator_works():
        return None
    blocks = -(-width // BLOCK)
    whole = pad(weight, (0, 0, 0, blocks * BLOCK - width)).view(blocks, BLOCK, depth // 2, 2)
    return whole.transpose(1, 2).contiguous()


def bf16_product(hidden: Tensor, packed: Tensor, out: Tensor) -> None:
    """out = hidden · weightᵀ, accumulated and stored in float32.

    Args:
        hidden: bf16 [T, d].
        packed: what :func:`packed_weight` made of the weight [W, d].
        out: float32 [T, W], overwritten.
    """
    torch.ops.opd_probe.bf16_product(hidden.contiguous(), packed, out)


@functools.cache
def _operator_works() -> bool:
    """Build the operator (about 15 s the first time, kept by torch for later processes) and try it."""
    if not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return False
    try:
        _build()
        return _agrees_with_float32()
    except Exception as error:  # no compiler, no ninja, another torch inside: there is no narrower root
        line = (str(error).strip().splitlines() or [""])[0][:160]
        warnings.warn(
            f"the native bf16 product cannot be built here ({type(error).__name__}: {line}); going on without it",
            OpdProbeWarning,
            stacklevel=2,
        )
        return False


def _build() -> None:
    import ninja
    from torch.utils.cpp_extension import load

    path = os.environ.get("PATH", "")
    # torch looks for ninja on the path, where an environment that was never activated is not.
    os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{path}"
    try:
        load("opd_probe_bf16_product", [str(SOURCE)], extra_cflags=["-O2", "-fopenmp"], is_python_module=False)
    finally:
        os.environ["PATH"] = path


def _agrees_with_float32() -> bool:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 2 * BLOCK, generator=generator).bfloat16() for n in (3, BLOCK))
    out = torch.empty(3, BLOCK)
    bf16_product(hidden, weight.view(1, BLOCK, BLOCK, 2).transpose(1, 2).contiguous(), out)
    return torch.allclose(out, hidden.float() @ weight.float().t(), rtol=1e-4, atol=1e-4)
