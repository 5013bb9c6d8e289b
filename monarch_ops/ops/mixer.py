"""The M2-BERT sequence mixer as one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import OPS
from ._registration import Tensors, compute_dtype, refusing, register_autocast, register_fake, require_tensors
from .fft_filter import FilterSpectrum, require_prepared


@refusing
def m2_mixer(
    a: Tensor,
    u: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor | None,
    spectrum: FilterSpectrum,
    residual_spectrum: FilterSpectrum | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Short convolution, gate, long convolution, gate, plus a residual long convolution (arXiv 2310.12109, 2402.07440).

    ``c = depthwise_conv1d(a, short_weight, short_bias)`` (causal) is split into thirds ``x1, x2, v``;
    ``y = conv(v * x1; spectrum) * x2 + conv(u; residual_spectrum)``.

    Args:
        a: (B, 3H, L) float32, bfloat16, float16 or (CPU) float64; any strides.
        u: (B, H, L) input of the residual convolution; None without one.
        short_weight: (3H, K) taps of the short convolution, the last one for the current token.
        short_bias: (3H,) or None.
        spectrum, residual_spectrum: filters from :func:`fft_filter`, not circular, for a length of at least L.
        lengths: (B,) int32 or int64: positions >= lengths[b] count as zero and come out zero.

    Returns:
        (B, H, L) in the dtype of `a`. Differentiable twice in every tensor and in the taps behind the spectra.

    Raises:
        TypeError: an argument has the wrong type.
        NotImplementedError: derivatives by torch.func or in forward mode; torch.autograd has those of both orders.
        ValueError: a shape, dtype, device or length does not fit; the message names the argument.
    """
    for name, s in (("spectrum", spectrum), ("residual_spectrum", residual_spectrum)):
        if not isinstance(s, FilterSpectrum) and (s is not None or name == "spectrum"):
            raise TypeError(f"m2_mixer: argument {name!r} must be a FilterSpectrum, got {type(s).__name__}")
        if s is not None and s.circular:
            raise ValueError(f"m2_mixer: argument {name!r} must not be circular, got {s}")
    residual = None if residual_spectrum is None else residual_spectrum.data
    require_tensors(
        "m2_mixer",
        ("a", "short_weight"),
        a=a,
        u=u,
        short_weight=short_weight,
        short_bias=short_bias,
        lengths=lengths,
        spectrum=spectrum.data,
        residual_spectrum=residual,
    )
    require_prepared("m2_mixer", "spectrum", spectrum, "a", a)
    if residual_spectrum is not None:
        prepared = [(s.data.dtype, s.seqlen, s.precise, s.variant_index) for s in (spectrum, residual_spectrum)]
        if prepared[0] != prepared[1]:
            raise ValueError(
                f"m2_mixer: argument 'residual_spectrum' must be prepared like 'spectrum', {spectrum}, "
                f"got {residual_spectrum}"
            )
    return OPS.m2_mixer(
        a,
        u,
        short_weight,
        short_bias,
        spectrum.data,
        residual,
        lengths,
        spectrum.seqlen,
        spectrum.precise,
        spectrum.variant_index,
    )


@register_fake("m2_mixer")
def _(a: Tensor, *_: Any) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1] // 3, a.shape[2]))


# ---- autograd: the parts again, each by its own backward op ----------------------------------------------------------


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _short_backward(grad: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]) -> Tensors:
    """Gradients of the causal short convolution: (a, weight, bias)."""
    taps = weight.shape[1]
    da = OPS.depthwise_conv1d(grad, weight.flip(1), None, 0, taps - 1) if needs[0] else None
    dw = OPS.depthwise_conv1d_weight_grad(grad, a, taps, taps - 1).to(weight.dtype) if needs[1] else None
    db = grad.sum((0, 2)).to(bias.dtype) if bias is not None and needs[2] else None
    return da, dw, db


def _backward(ctx: Any, grad: Tensor) -> Tensors:
    a, u, weight, bias, spectrum, residual, lengths = ctx.saved_tensors
    rows, wide = a.dtype, compute_dtype(a.dtype)
    # the forward op keeps the short convolution in the compute dtype; what is computed again here must not be rounded
    grad, a, u = grad.to(wide), a.to(wide), None if u is None else u.to(wide)
    need_a, need_u, need_weight, need_bias, need_spectrum, need_residual = ctx.needs_input_grad[:6]
    if lengths is not None and need_weight:  # whose gradient multiplies all of `a`: zero times a NaN would be one
        padding = torch.arange(a.shape[2], device=a.device) >= lengths[:, None]
        a = a.masked_fill(padding[:, None], 0)

    def conv_backward(
        x: Tensor, filter: Tensor, pre: Tensor | None, post: Tensor | None, wanted: tuple[bool, ...]
    ) -> list[Any]:
        mask = sum(1 << i for i, want in enumerate(wanted) if want)
        results = OPS.fft_conv_spectrum_backward(grad, x, filter, pre, post, lengths, *ctx.options, mask)
        return [r if want else None for r, want in zip(results, wanted, strict=True)]

    du = d_residual = da = dw = db = d_spectrum = None
    if u is not None and (need_u or need_residual):
        du, d_residual, _, _ = conv_backward(u, residual, None, None, (need_u, need_residual, False, False))
    inner = need_a or need_weight or need_bias
    if inner or need_spectrum:
        c = OPS.depthwise_conv1d(a, weight, bias, weight.shape[1] - 1, 0)
        x1, x2, v = c.chunk(3, 1)
        dv, d_spectrum, dx1, dx2 = conv_backward(v, spectrum, x1, x2, (inner, need_spectrum, inner, inner))
        if inner:
            needs = (need_a, need_weight, need_bias)
            da, dw, db = _short_backward(torch.cat([dx1, dx2, dv], 1), a, weight, bias, needs)
    da, du = (t if t is None else t.to(rows) for t in (da, du))
    return da, du, dw, db, d_spectrum, d_residual, None, None, None, None


torch.library.register_autograd("monarch_ops::m2_mixer", _backward, setup_context=_save)
register_autocast("m2_mixer", lowered=(0, 1))
