"""Monarch layers of the fly library: ``from monarch_ops.compat.fly import MonarchLinear``."""

from __future__ import annotations

from torch import Tensor

from .. import nn, ops

__all__ = ["MonarchLinear", "blockdiag_butterfly_multiply", "blockdiag_multiply"]


def blockdiag_multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., G*p), weight (G, q, p) -> (..., G*q)."""
    return ops.blockdiag_matmul(x, weight)


def blockdiag_butterfly_multiply(x: Tensor, w1_bfly: Tensor, w2_bfly: Tensor) -> Tensor:
    """x (..., k*p), w1 (k, q, p), w2 (l, s, r) -> (..., l*s)."""
    return ops.monarch_matmul(x, w1_bfly, w2_bfly)


class MonarchLinear(nn.MonarchLinear):
    """fly's argument order: everything but the two sizes and `nblocks` by keyword."""

    def __init__(self, in_features: int, out_features: int, *, nblocks: int = 4, bias: bool = True) -> None:
        super().__init__(in_features, out_features, nblocks=nblocks, bias=bias)
