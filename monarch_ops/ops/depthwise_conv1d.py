"""Short depthwise convolution, both layouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import OPS, variant_index
from ._registration import Tensors, compute_dtype, refusing, register_autocast, register_fake, require_tensors


@refusing
def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: str | int = "causal",
    layout: str = "bhl",
    activation: str | None = None,
    variant: str | None = None,
) -> Tensor:
    """``torch.nn.functional.conv1d(x, weight[:, None], bias, groups=H)`` with padding and activation built in.

    ``y[b, h, t] = act(bias[h] + sum_j weight[h, j] x[b, h, t - left + j])`` with x zero outside its range (the
    cross-correlation of deep-learning libraries: the last weight meets the current token of a causal convolution).
    Differentiable twice in `x`, `weight` and `bias`.

    Args:
        x: (B, H, L), or (B, L, H) with ``layout="blh"``; float32, bfloat16, float16 or (CPU) float64; any strides.
        weight: (H, K), any floating dtype.
        bias: (H,) or None.
        padding: "causal" (K - 1 zeros on the left, length kept), "same" (length kept, as in PyTorch) or the number of
            zeros on both sides.
        layout: "bhl" or "blh".
        activation: None or "silu".
        variant: name of a kernel of :func:`monarch_ops.variants` to force.

    Returns:
        Same layout and dtype as `x`, length L + padding - K + 1.

    Raises:
        TypeError: an argument is not a tensor.
        NotImplementedError: derivatives by torch.func or in forward mode; torch.autograd has those of both orders.
        ValueError: a shape, dtype, device or option does not fit; the message names the argument.
    """
    op = "depthwise_conv1d"
    require_tensors(op, ("x", "weight"), x=x, weight=weight, bias=bias)
    if layout not in ("bhl", "blh"):
        raise ValueError(f"{op}: argument 'layout' must be 'bhl' or 'blh', got {layout!r}")
    if activation not in (None, "silu"):
        raise ValueError(f"{op}: argument 'activation' must be None or 'silu', got {activation!r}")
    if weight.dim() != 2:
        raise ValueError(f"{op}: argument 'weight' must have shape (H, K), got {tuple(weight.shape)}")
    left, right = _pads(op, padding, weight.shape[1])
    index = variant_index(op, variant, x.dtype)
    return OPS.depthwise_conv1d(x, weight, bias, left, right, layout == "blh", activation == "silu", index)


def _pads(op: str, padding: str | int, taps: int) -> tuple[int, int]:
    if padding == "causal":
        return taps - 1, 0
    if padding == "same":
        return (taps - 1) // 2, taps - 1 - (taps - 1) // 2
    if isinstance(padding, int) and not isinstance(padding, bool) and padding >= 0:
        return padding, padding
    raise ValueError(f"{op}: argument 'padding' must be 'causal', 'same' or a number >= 0, got {padding!r}")


@register_fake("depthwise_conv1d")
def _(
    x: Tensor, weight: Tensor, bias: Any, pad_left: int, pad_right: int, channels_last: bool = False, *_: Any
) -> Tensor:
    shape = list(x.shape)
    shape[1 if channels_last else 2] += pad_left + pad_right - weight.shape[1] + 1
    return x.new_empty(shape)


@register_fake("depthwise_conv1d_weight_grad")
def _(grad: Tensor, x: Tensor, taps: int, pad_left: int, channels_last: bool = False, *_: Any) -> Tensor:
    return x.new_empty((x.shape[2 if channels_last else 1], taps), dtype=compute_dtype(x.dtype))


# ---- autograd -------------------------------------------------------------------------------------------------------
# The adjoint in x is the same op with the taps reversed and the padding mirrored; the gradient of the weight is the
# correlation depthwise_conv1d_weight_grad, whose own derivatives are depthwise convolutions again.


def _adjoint(
    grad: Tensor, weight: Tensor, taps: int, left: int, right: int, channels_last: bool, variant: int
) -> Tensor:
    return OPS.depthwise_conv1d(
        grad, weight.flip(1), None, taps - 1 - left, taps - 1 - right, channels_last, False, variant
    )


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> Tensors:
    x, weight, bias = ctx.saved_tensors
    left, right, channels_last, silu, variant = ctx.options
    taps = weight.shape[1]
    compute = compute_dtype(grad.dtype)
    wide = grad
    if silu:
        z = OPS.depthwise_conv1d(x, weight, bias, left, right, channels_last, False, variant).to(compute)
        s = torch.sigmoid(z)  # aten::silu_backward has no derivative of its own
        wide = grad.to(compute) * s * (1 + z * (1 - s))
        grad = wide.to(grad.dtype)
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx = _adjoint(grad, weight, taps, left, right, channels_last, variant) if need_x else None
    dw = db = None
    if need_weight:
        dw = OPS.depthwise_conv1d_weight_grad(grad, x, taps, left, channels_last, variant).to(weight.dtype)
    if need_bias:
        db = wide.sum((0, 1) if channels_last else (0, 2), dtype=compute).to(bias.dtype)
    return dx, dw, db, None, None, None, None, None


def _save_weight_grad(ctx: Any, inputs: tuple, output: Any) -> None:
    grad, x, *ctx.options = inputs
    ctx.save_for_backward(grad, x)


def _weight_grad_backward(ctx: Any, c: Tensor) -> Tensors:
    grad, x = ctx.saved_tensors
    taps, left, channels_last, variant = ctx.options
    axis = 1 if channels_last else 2
    right = grad.shape[axis] - x.shape[axis] - left + taps - 1
    d_grad = OPS.depthwise_conv1d(x, c, None, left, right, channels_last, False, variant)
    dx = _adjoint(grad, c, taps, left, right, channels_last, variant)
    return d_grad, dx, None, None, None, None


torch.library.register_autograd("monarch_ops::depthwise_conv1d", _backward, setup_context=_save)
torch.library.register_autograd(
    "monarch_ops::depthwise_conv1d_weight_grad", _weight_grad_backward, setup_context=_save_weight_grad
)
register_autocast("depthwise_conv1d", lowered=(0,))
