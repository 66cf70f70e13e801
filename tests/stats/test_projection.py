"""The output layer: float32 logits over the shared ids, and the mass that lies outside them."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from opd_probe.stats.projection import OutputProjection, as_float32, mass_outside
from opd_probe.stats.scratch import Scratch
from tests import reference

WIDTH, DEPTH, STATES = 70, 24, 5


def parts(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, DEPTH, generator=generator).to(dtype)
    bias = torch.randn(WIDTH, generator=generator).to(dtype)
    return weight, bias, torch.randn(STATES, DEPTH, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [list(range(WIDTH)), list(range(50)), [*range(3, 40), 44, 69]])
@pytest.mark.parametrize(("scale", "softcap", "with_bias"), [(1.0, None, False), (0.25, None, True), (2.0, 9.0, True)])
def test_logits(dtype: torch.dtype, shared: list[int], scale: float, softcap: float | None, with_bias: bool) -> None:
    weight, bias, hidden = parts(dtype)
    layer = OutputProjection(weight, bias if with_bias else None, shared, scale, softcap)
    inside, outside = layer.logits(hidden, Scratch(), "student")
    assert inside.dtype == outside.dtype == torch.float32
    expected = hidden.double() @ weight.double().t() * scale + (bias.double() if with_bias else 0.0)
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    rest = [token for token in range(WIDTH) if token not in shared]
    torch.testing.assert_close(inside.double(), expected[:, shared], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outside.double(), expected[:, rest], rtol=1e-5, atol=1e-5)


def test_bf16_weights_do_not_make_bf16_logits() -> None:
    """As bf16, the logits would be rounded to three digits and tie."""
    weight, _, hidden = parts(torch.bfloat16)
    logits, _ = OutputProjection(weight, None, range(WIDTH)).logits(hidden, Scratch(), "student")
    exact = hidden.double() @ weight.double().t()
    rounded = (logits.bfloat16().double() - exact).abs().max()
    assert float((logits.double() - exact).abs().max()) < 1e-3 * float(rounded)


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="this processor has no bf16 units")
@pytest.mark.parametrize("shared", [list(range(WIDTH)), [*range(3, 40), 44, 69]])
def test_native_product(shared: list[int]) -> None:
    """Other widths, depths and counts of states than the operator's own blocks of 64."""
    weight, bias, _ = parts(torch.bfloat16)
    hidden = torch.randn(131, DEPTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = OutputProjection(weight, bias, shared, native=True)
    assert layer.is_native
    inside, _ = layer.logits(hidden, Scratch(), "student")
    exact = hidden.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(inside.double(), exact[:, shared], rtol=1e-6, atol=1e-5)


def test_native_product_is_left_out_where_it_cannot_be() -> None:
    weight, _, hidden = parts(torch.bfloat16)
    odd = OutputProjection(weight[:, :23].contiguous(), None, range(WIDTH), native=True)
    assert not odd.is_native
    logits, _ = odd.logits(hidden[:, :23], Scratch(), "student")
    exact = hidden[:, :23].double() @ weight[:, :23].double().t()
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert not OutputProjection(weight.float(), None, range(WIDTH), native=True).is_native


def test_the_precision_setting_of_the_process_is_left_as_it_was() -> None:
    weight, _, hidden = parts(torch.bfloat16)
    before = torch.backends.mkldnn.matmul.fp32_precision
    OutputProjection(weight, None, range(WIDTH)).logits(hidden, Scratch(), "student")
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_mass_outside(temperature: float) -> None:
    weight, bias, hidden = parts()
    shared = [*range(2, 30), 35]
    inside, outside = OutputProjection(weight, bias, shared).logits(hidden, Scratch(), "student")
    mass = mass_outside(outside, torch.logsumexp(inside / temperature, -1), temperature)
    logits = (hidden @ weight.t() + bias).numpy()
    for row in range(STATES):
        p = np.exp(reference.log_softmax(logits[row], temperature))
        assert float(mass[row]) == pytest.approx(1 - p[shared].sum(), rel=1e-4)


def test_mass_outside_keeps_its_digits_when_small() -> None:
    rest, log_partition = torch.tensor([[-40.0], [-3.0]]), torch.tensor([0.0, 0.0])
    expected = 1 / (1 + np.exp([40.0, 3.0]))
    np.testing.assert_allclose(mass_outside(rest, log_partition).numpy(), expected, rtol=1e-5)


def test_nothing_outside() -> None:
    assert mass_outside(torch.empty(3, 0), torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_the_float32_copy_lives_as_long_as_the_weights() -> None:
    weight = torch.randn(20, 8).to(torch.bfloat16)
    first = as_float32(weight)
    assert as_float32(weight) is first
    assert first.dtype == torch.float32
    torch.testing.assert_close(first, weight.float(), rtol=0, atol=0)
    kept = weakref.ref(first)
    del first, weight
    gc.collect()
    assert kept() is None
