"""The M2-BERT MLP: block-diagonal GLU, residual and LayerNorm in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import OPS, variant_index
from ._registration import Tensors, refusing, register_autocast, register_fake, require_tensors
from .blockdiag import bias_grad, block_weight_grad, empty_result


@refusing
def blockdiag_glu_mlp(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_out: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-12,
    variant: str | None = None,
) -> Tensor:
    """Gated MLP with block-diagonal weights (Monarch Mixer, arXiv 2310.12109, section 4).

    ``a = blockdiag(x, w_in)``, ``h = gelu_erf(a[..., :I]) * a[..., I:]``, ``y = blockdiag(h, w_out) + b_out``; then,
    where given, ``y + residual`` and LayerNorm with `norm_weight`, `norm_bias` over the last axis.

    Args:
        x: (..., G*p), float32, bfloat16, float16 or float64.
        w_in: (G, q, p) with G*q = 2*I hidden features.
        w_out: (G', q', p') with G'*p' = I.
        b_out: (G'*q',) or None.
        residual: (..., G'*q') or None.
        norm_weight, norm_bias: (G'*q',) or None, any floating dtype; without a weight there is no LayerNorm.
        eps: added to the variance.
        variant: name of a kernel of :func:`monarch_ops.variants` to force.

    Returns:
        (..., G'*q') in the dtype of `x` and, as for :func:`blockdiag_matmul`, in its layout. Differentiable twice in
        every tensor.

    Raises:
        TypeError: an argument is not a tensor.
        NotImplementedError: derivatives by torch.func or in forward mode; torch.autograd has those of both orders.
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    op = "blockdiag_glu_mlp"
    require_tensors(
        op,
        ("x", "w_in", "w_out"),
        x=x,
        w_in=w_in,
        w_out=w_out,
        b_out=b_out,
        residual=residual,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
    )
    index = variant_index("mlp", variant, x.dtype)
    return OPS.blockdiag_glu_mlp(x, w_in, w_out, b_out, residual, norm_weight, norm_bias, eps, index)


@register_fake("blockdiag_glu_mlp")
def _(x: Tensor, w_in: Tensor, w_out: Tensor, *_: Any) -> Tensor:
    return empty_result(x, w_out.shape[0] * w_out.shape[1])


# ---- autograd: everything inside is computed again, nothing is kept --------------------------------------------------


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def _norm_backward(
    grad: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, eps: float, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Through LayerNorm, from its input y; gradients of (y, weight, bias)."""
    shape = [y.shape[-1]]
    w = weight.to(y.dtype)
    b = None if bias is None else bias.to(y.dtype)
    _, mean, rstd = torch.ops.aten.native_layer_norm(y, shape, w, b, eps)
    mask = [True, needs[0], bias is not None and needs[1]]
    dy, dw, db = torch.ops.aten.native_layer_norm_backward(grad, y, shape, mean, rstd, w, b, mask)
    return dy, dw.to(weight.dtype) if mask[1] else None, db.to(bias.dtype) if bias is not None and needs[1] else None


def _backward(ctx: Any, grad: Tensor) -> Tensors:
    x, w_in, w_out, b_out, residual, norm_weight, norm_bias = ctx.saved_tensors
    need = ctx.needs_input_grad
    gate, value = OPS.blockdiag_matmul(x, w_in, None, -1).chunk(2, -1)
    act = torch.nn.functional.gelu(gate)
    hidden = act * value
    d_weight = d_bias = None
    if norm_weight is not None:
        y = OPS.blockdiag_matmul(hidden, w_out, b_out, -1)
        y = y if residual is None else y + residual
        grad, d_weight, d_bias = _norm_backward(grad, y, norm_weight, norm_bias, ctx.eps, need[5:7])
    d_out = block_weight_grad(grad, hidden, w_out.shape[0]) if need[2] else None
    db_out = bias_grad(grad) if need[3] else None
    d_residual = grad if need[4] else None
    dx = d_in = None
    if need[0] or need[1]:
        d_hidden = OPS.blockdiag_matmul(grad, w_out.transpose(1, 2), None, -1)
        d_gate = torch.ops.aten.gelu_backward(d_hidden * value, gate)
        da = torch.cat([d_gate, d_hidden * act], -1)
        dx = OPS.blockdiag_matmul(da, w_in.transpose(1, 2), None, -1) if need[0] else None
        d_in = block_weight_grad(da, x, w_in.shape[0]) if need[1] else None
    return dx, d_in, d_out, db_out, d_residual, d_weight, d_bias, None, None


torch.library.register_autograd("monarch_ops::blockdiag_glu_mlp", _backward, setup_context=_save)
register_autocast("blockdiag_glu_mlp", lowered=(0, 1, 2, 3, 4))
