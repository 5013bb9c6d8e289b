"""Block-diagonal and Monarch products against batched products, and against the dense product that they stand for."""

from __future__ import annotations

import pytest
import torch
from baselines import blockdiag_bmm, blockdiag_einsum
from torch import Tensor
from torch.nn import functional as F

import monarch_ops as mo

POSITIONS = pytest.mark.parametrize("positions", [512, pytest.param(4096, marks=pytest.mark.quick)])


def monarch_bmm(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Two batched products, the fly permutation between and after them."""
    (k, q, _), (l, s, r) = w1.shape, w2.shape
    a = blockdiag_bmm(x, w1).view(-1, r, l).transpose(1, 2).reshape(-1, l * r)
    assert l * r == k * q
    return blockdiag_bmm(a, w2).view(-1, l, s).transpose(1, 2).reshape(*x.shape[:-1], l * s)


def random(device: torch.device, *shape: int) -> Tensor:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.randn(shape, device=device, dtype=dtype) / shape[-1] ** 0.5


def product_cost(x: Tensor, features: int, *weights: Tensor) -> dict:
    numbers = sum(w.numel() for w in weights)
    moved = x.numel() + numbers + x.shape[0] * features
    dtype = "float32" if x.dtype == torch.float32 else "float16"
    return {"bytes": x.element_size() * moved, "flops": 2 * x.shape[0] * numbers, "dtype": dtype}


@pytest.mark.parametrize("baseline", ["bmm", "einsum", "torch.compile", "dense product"])
@pytest.mark.parametrize("weights", [(4, 1536, 192), (4, 192, 768)], ids=["into", "out-of"])
@POSITIONS
def test_blockdiag_matmul(compare, device, positions, weights, baseline):
    """The two products of the M2-BERT MLP."""
    G, q, p = weights
    x, w = random(device, positions, G * p), random(device, *weights)
    dense = torch.block_diag(*w)
    torch._dynamo.reset()
    compiled = torch.compile(blockdiag_einsum, dynamic=False)
    theirs = {
        "bmm": lambda: blockdiag_bmm(x, w),
        "einsum": lambda: blockdiag_einsum(x, w),
        "torch.compile": lambda: compiled(x, w),
        "dense product": lambda: F.linear(x, dense),
    }[baseline]
    compare(
        f"blockdiag_matmul ({positions}, {G} x {p} -> {G} x {q})",
        lambda: mo.blockdiag_matmul(x, w),
        theirs,
        baseline,
        blockdiag_einsum(x.double(), w.double()),
        product_cost(x, G * q, w),
        dtype=x.dtype,
    )


@pytest.mark.parametrize("baseline", ["bmm", "torch.compile", "dense product"])
@pytest.mark.parametrize("blocks", [4, 32])
@POSITIONS
def test_monarch_matmul(compare, device, positions, blocks, baseline):
    n = 1024
    x, w1, w2 = random(device, positions, n), *(random(device, blocks, n // blocks, n // blocks) for _ in range(2))
    dense = monarch_bmm(torch.eye(n, device=device, dtype=x.dtype), w1, w2).T.contiguous()
    torch._dynamo.reset()
    compiled = torch.compile(monarch_bmm, dynamic=False)
    theirs = {
        "bmm": lambda: monarch_bmm(x, w1, w2),
        "torch.compile": lambda: compiled(x, w1, w2),
        "dense product": lambda: F.linear(x, dense),
    }[baseline]
    compare(
        f"monarch_matmul ({positions}, {n}, {blocks} blocks)",
        lambda: mo.monarch_matmul(x, w1, w2),
        theirs,
        baseline,
        monarch_bmm(x.double(), w1.double(), w2.double()),
        product_cost(x, n, w1, w2),
        dtype=x.dtype,
    )
