"""Block-diagonal and Monarch matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import _C, OPS, constant, variant_index
from ._registration import Tensors, refusing, register_autocast, register_fake, require_tensors


@refusing
def blockdiag_matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, variant: str | None = None) -> Tensor:
    """Product with a block-diagonal matrix: ``out_g = x_g @ weight_g^T + bias_g`` for every block g.

    Args:
        x: (..., G*p), float32, bfloat16, float16 or float64; any strides.
        weight: (G, q, p), dtype of `x`.
        bias: (G*q,) or None.
        variant: name of a kernel of :func:`monarch_ops.variants` to force.

    Returns:
        (..., G*q) in the dtype of `x`. Differentiable twice in every argument. Where `x` is a transposed (..., G*p, L),
        so is the result: the layout of the rows of a long convolution is kept, and nothing is copied.

    Raises:
        TypeError: an argument is not a tensor.
        NotImplementedError: derivatives by torch.func or in forward mode; torch.autograd has those of both orders.
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    require_tensors("blockdiag_matmul", ("x", "weight"), x=x, weight=weight, bias=bias)
    return OPS.blockdiag_matmul(x, weight, bias, variant_index("mlp", variant, x.dtype))


@refusing
def monarch_matmul(
    x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None = None, *, variant: str | None = None
) -> Tensor:
    """Product with a Monarch matrix: two block-diagonal factors, the fly permutation between and after them.

    The semantics of ``blockdiag_butterfly_multiply`` (Dao et al., arXiv 2204.00595): with ``a = blockdiag(x, w1)`` of
    k*q features, block j of the second factor takes features j, j + l, j + 2l, ... of a, and its output i becomes
    feature i*l + j of the result.

    Args:
        x: (..., n), n = k*p.
        w1: (k, q, p).
        w2: (l, s, r) with l*r = k*q.
        bias: (l*s,) or None.
        variant: name of a kernel of :func:`monarch_ops.variants` to force.

    Returns:
        (..., l*s) in the dtype of `x`. Differentiable twice in every argument.

    Raises:
        TypeError: an argument is not a tensor.
        NotImplementedError: derivatives by torch.func or in forward mode; torch.autograd has those of both orders.
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    require_tensors("monarch_matmul", ("x", "w1", "w2"), x=x, w1=w1, w2=w2, bias=bias)
    return OPS.monarch_matmul(x, w1, w2, bias, variant_index("mlp", variant, x.dtype))


def empty_result(x: Tensor, features: int) -> Tensor:
    """(..., features) uninitialised, in the layout that csrc/ops/blockdiag.cpp gives the result for `x`."""
    if x.dim() >= 3 and x.shape[-2] > 1 and x.shape[-1] > 1 and x.stride(-2) == 1 and x.stride(-1) >= x.shape[-2]:
        return x.new_empty((*x.shape[:-2], features, x.shape[-2])).transpose(-2, -1)
    return x.new_empty((*x.shape[:-1], features))


@register_fake("blockdiag_matmul")
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return empty_result(x, weight.shape[0] * weight.shape[1])


@register_fake("monarch_matmul")
def _(x: Tensor, w1: Tensor, w2: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], w2.shape[0] * w2.shape[1]))


# ---- autograd: gradients are the same products with transposed blocks, and batched products of the operands ----------


@constant
def products_widen() -> bool:
    """Whether PyTorch multiplies 16-bit numbers on this CPU one at a time, as it does without AVX-512."""
    return _C.build_info()["cpu_isa"] == "avx2"  # as products_widen in csrc/ops/blockdiag.h


def block_weight_grad(grad: Tensor, x: Tensor, blocks: int) -> Tensor:
    """Gradient of the blocks: grad (..., G*q) and x (..., G*p) give (G, q, p)."""
    if x.is_cpu and x.dtype in (torch.bfloat16, torch.float16) and products_widen():
        return block_weight_grad(grad.float(), x.float(), blocks).to(x.dtype)
    g = grad.reshape(-1, blocks, grad.shape[-1] // blocks)
    return torch.bmm(g.permute(1, 2, 0), x.reshape(g.shape[0], blocks, x.shape[-1] // blocks).transpose(0, 1))


def bias_grad(grad: Tensor) -> Tensor:
    """Sum over every axis but the last."""
    return grad.reshape(-1, grad.shape[-1]).sum(0)


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    x, weight, *_ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> Tensors:
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, _ = ctx.needs_input_grad
    dx = OPS.blockdiag_matmul(grad, weight.transpose(1, 2), None, -1) if need_x else None
    dw = block_weight_grad(grad, x, weight.shape[0]) if need_weight else None
    return dx, dw, bias_grad(grad) if need_bias else None, None


def _save_monarch(ctx: Any, inputs: tuple, output: Any) -> None:
    x, w1, w2, *_ = inputs
    ctx.save_for_backward(x, w1, w2)


def _monarch_backward(ctx: Any, grad: Tensor) -> Tensors:
    x, w1, w2 = ctx.saved_tensors
    need_x, need_w1, need_w2, need_bias, _ = ctx.needs_input_grad
    blocks, rows, _ = w2.shape
    # undo the last permutation: feature i*l + j of the result is output i of block j
    by_block = grad.unflatten(-1, (rows, blocks)).transpose(-1, -2).flatten(-2)
    dw2 = dw1 = dx = None
    if need_w2:
        middle = (
            OPS.blockdiag_matmul(x, w1, None, -1).unflatten(-1, (w2.shape[2], blocks)).transpose(-1, -2).flatten(-2)
        )
        dw2 = block_weight_grad(by_block, middle, blocks)
    if need_x or need_w1:
        d_middle = OPS.blockdiag_matmul(by_block, w2.transpose(1, 2), None, -1)
        d_first = d_middle.unflatten(-1, (blocks, w2.shape[2])).transpose(-1, -2).flatten(-2)
        dx = OPS.blockdiag_matmul(d_first, w1.transpose(1, 2), None, -1) if need_x else None
        dw1 = block_weight_grad(d_first, x, w1.shape[0]) if need_w1 else None
    return dx, dw1, dw2, bias_grad(grad) if need_bias else None, None


torch.library.register_autograd("monarch_ops::blockdiag_matmul", _backward, setup_context=_save)
torch.library.register_autograd("monarch_ops::monarch_matmul", _monarch_backward, setup_context=_save_monarch)
register_autocast("blockdiag_matmul", lowered=(0, 1, 2))
register_autocast("monarch_matmul", lowered=(0, 1, 2, 3))
