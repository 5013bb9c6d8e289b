"""Modules: shapes, parameter names, initial values, and agreement with the ops' references."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import assert_matches

from monarch_ops import nn, reference


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(12, 20, 4), (10, 7, 4), (5, 5, 8), (768, 6144, 4)])
def test_blockdiag_linear(inputs: int, outputs: int, blocks: int) -> None:
    layer = nn.BlockDiagLinear(inputs, outputs, nblocks=blocks)
    x = torch.randn(2, 3, inputs)
    G, q, p = layer.weight.shape
    dense = reference.blockdiag_dense(layer.weight)[:outputs, :inputs]
    assert (G, q, p) == (blocks, math.ceil(outputs / blocks), math.ceil(inputs / blocks))
    exact = torch.nn.functional.linear(x.double(), dense.double(), layer.bias.double())
    assert_matches(layer(x), exact, torch.nn.functional.linear(x, dense, layer.bias))
    assert [n for n, _ in layer.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(16, 16, 4), (12, 24, 3), (24, 12, 3), (10, 7, 4)])
def test_monarch_linear(inputs: int, outputs: int, blocks: int) -> None:
    layer = nn.MonarchLinear(inputs, outputs, nblocks=blocks)
    x = torch.randn(2, 3, inputs)
    dense = reference.monarch_dense(layer.blkdiag1, layer.blkdiag2)[:outputs, :inputs]
    exact = torch.nn.functional.linear(x.double(), dense.double(), layer.bias.double())
    assert_matches(layer(x), exact, torch.nn.functional.linear(x, dense, layer.bias))


def test_initial_weights_keep_the_variance() -> None:
    x = torch.randn(4000, 256)
    for layer in (nn.BlockDiagLinear(256, 512, bias=False), torch.nn.Linear(256, 512, bias=False)):
        assert layer(x).var().item() == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_long_conv(bidirectional: bool) -> None:
    layer = nn.LongConv(3, 60, bidirectional=bidirectional)
    u, lengths = torch.randn(2, 3, 40), torch.tensor([40, 7])
    parts = {"k": layer.k, "k_rev": layer.k_rev, "skip": layer.skip}

    def definition(dtype):
        taps = {n: t if t is None else t.to(dtype) for n, t in parts.items()}
        return reference.fft_conv(u.to(dtype), lengths=lengths, **taps)

    assert_matches(layer(u, lengths), definition(torch.float64), definition(torch.float32))


def test_hyena_filter_follows_its_formula() -> None:
    layer = nn.HyenaFilter(6, 50, order=16, emb_dim=5, w=10, w_mod=2).double()
    k, k_rev = layer(20)
    assert k.shape == k_rev.shape == (6, 20)
    n = 7
    omega = 2 * math.pi * n / 50
    z = torch.tensor([n / 49, math.cos(1e-4 * omega), math.cos(omega), -math.sin(1e-4 * omega), -math.sin(omega)])
    z = z.double()
    torch.testing.assert_close(layer.z[n], z, rtol=1e-6, atol=1e-6)
    s = layer.z[n]
    for linear in layer.mlp[:3]:
        s = torch.sin(2 * 10 * (linear.weight @ s + linear.bias))
    decay = torch.exp(-n / 49 * torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, 6).double())
    torch.testing.assert_close(k[:, n], layer.mlp[3].weight @ s * decay, rtol=1e-5, atol=1e-7)
    longer, _ = layer(50)
    torch.testing.assert_close(longer[:, :20], k)
    assert nn.HyenaFilter(6, 50, bidirectional=False)(10)[1] is None
    with pytest.raises(ValueError, match="max_len=50"):
        layer(51)
    with pytest.raises(ValueError, match="emb_dim"):
        nn.HyenaFilter(6, 50, emb_dim=4)


def test_hyena_filter_trains() -> None:
    layer = nn.HyenaFilter(4, 32, order=8)
    spectrum = layer.spectrum(32)
    spectrum.data.square().sum().backward()
    missing = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []
