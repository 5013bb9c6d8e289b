"""The M2-BERT MLP against separate PyTorch ops."""

from __future__ import annotations

import pytest
import torch
from baselines import blockdiag_bmm, blockdiag_einsum, separate_ops_mlp

import monarch_ops as mo


@pytest.mark.parametrize("blocks", [blockdiag_bmm, blockdiag_einsum], ids=["bmm", "einsum"])
@pytest.mark.parametrize("positions", [pytest.param(128, marks=pytest.mark.quick), 512, 4096])
def test_mlp(compare, device, positions, blocks):
    x, w_in, w_out = (torch.randn(*s, device=device) for s in ((positions, 768), (4, 1536, 192), (4, 192, 768)))
    b_out, weight, bias = (torch.randn(768, device=device) for _ in range(3))
    arguments = [x, w_in / 192**0.5, w_out / 768**0.5, b_out]
    norm = [x, weight, bias]
    weights = w_in.numel() + w_out.numel()
    cost = {"bytes": 4 * (3 * x.numel() + weights), "flops": 2 * positions * weights}
    exact = separate_ops_mlp(*(t.double() for t in (*arguments, *norm)), 1e-12)
    compare(
        f"blockdiag_glu_mlp ({positions}, 768 -> 2 x 3072)",
        lambda: mo.blockdiag_glu_mlp(*arguments, residual=x, norm_weight=weight, norm_bias=bias),
        lambda: separate_ops_mlp(*arguments, *norm, 1e-12, blocks),
        "separate ops, " + blocks.__name__.removeprefix("blockdiag_"),
        exact,
        cost,
    )
