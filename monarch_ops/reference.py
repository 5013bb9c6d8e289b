"""Every op in plain PyTorch: the oracle of the tests (in float64) and a baseline of the benchmarks.

Written from the definitions, for reading rather than for speed; any dtype, any device, differentiable. Convolutions of
16-bit tensors are computed in float32 and rounded once, as in the compiled kernels; matrix products are PyTorch's own
in the tensors' dtype, as people write them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _wide_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype arithmetic is done in: float64 if any of the tensors is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in tensors]


def _mask(lengths: Tensor, seqlen: int) -> Tensor:
    """(B, 1, L) of 0 and 1: position t of row b is valid when t < lengths[b]."""
    return (torch.arange(seqlen, device=lengths.device) < lengths[:, None])[:, None]


def two_sided(
    k: Tensor, seqlen: int, k_rev: Tensor | None = None, skip: Tensor | None = None, circular: bool = False
) -> Tensor:
    """The filter over all lags: (H, 2L-1), entry d + L - 1 is the tap at lag d in -(L-1) .. L-1."""
    causal = F.pad(k[:, :seqlen], (0, max(0, seqlen - k.shape[1])))
    if skip is not None:
        causal = torch.cat([causal[:, :1] + skip[:, None], causal[:, 1:]], dim=1)
    if circular:
        plain = F.pad(k[:, :seqlen], (0, seqlen - k.shape[1]))
        reverse = plain[:, 1:]  # the tap at lag -d is k[L-d]: already in order of increasing lag
    elif k_rev is None:
        reverse = causal.new_zeros(causal.shape[0], seqlen - 1)
    else:
        cut = k_rev[:, : seqlen - 1]
        reverse = F.pad(cut, (0, seqlen - 1 - cut.shape[1])).flip(1)
    return torch.cat([reverse, causal], dim=1)


def _convolve(x: Tensor, taps: Tensor, method: str) -> Tensor:
    """Rows (B, H, L) with the taps (H, 2L-1) of :func:`two_sided`."""
    seqlen = x.shape[-1]
    if method == "direct":  # the Toeplitz matrix T[t, s] = tap at lag t - s
        lag = torch.arange(seqlen, device=x.device)[:, None] - torch.arange(seqlen, device=x.device) + seqlen - 1
        return torch.einsum("hts,bhs->bht", taps[:, lag], x)
    # a power of two: of lengths with large prime factors MKL's double transforms are off by 40 ulps on Intel processors
    n = 1 << (3 * seqlen - 3).bit_length()
    y = torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(taps, n=n), n=n)
    return y[..., seqlen - 1 : 2 * seqlen - 1]


def fft_conv(
    u: Tensor,
    k: Tensor,
    *,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    lengths: Tensor | None = None,
    circular: bool = False,
    method: str = "fft",
) -> Tensor:
    """:func:`monarch_ops.fft_conv`; `method` "direct" multiplies by the Toeplitz matrix, "fft" uses torch.fft."""
    dtype, wide = u.dtype, _wide_dtype(u, k, k_rev, skip, pre_gate, post_gate)
    u, k = u.to(wide), k.to(wide)
    k_rev, skip, pre_gate, post_gate = _cast(wide, k_rev, skip, pre_gate, post_gate)
    x = u if pre_gate is None else u * pre_gate
    if lengths is not None:
        valid = _mask(lengths, u.shape[-1])
        x = x.where(valid, x.new_zeros(()))
    y = _convolve(x, two_sided(k, u.shape[-1], k_rev, skip, circular), method)
    if post_gate is not None:
        y = y * post_gate
    if lengths is not None:
        y = y.where(valid, y.new_zeros(()))
    return y.to(dtype)


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: str | int = "causal",
    layout: str = "bhl",
    activation: str | None = None,
) -> Tensor:
    """:func:`monarch_ops.depthwise_conv1d`."""
    dtype, wide = x.dtype, _wide_dtype(x, weight, bias)
    x, weight = x.to(wide), weight.to(wide)
    bias = None if bias is None else bias.to(wide)
    taps = weight.shape[1]
    if isinstance(padding, int):
        left = right = padding
    else:
        left, right = {"causal": (taps - 1, 0), "same": ((taps - 1) // 2, taps // 2)}[padding]
    rows = F.pad(x if layout == "bhl" else x.transpose(1, 2), (left, right))
    y = F.conv1d(rows, weight[:, None], bias, groups=weight.shape[0])
    y = F.silu(y) if activation == "silu" else y
    return (y if layout == "bhl" else y.transpose(1, 2)).to(dtype)


def blockdiag_dense(weight: Tensor) -> Tensor:
    """The (G*q, G*p) matrix of the blocks (G, q, p)."""
    return torch.block_diag(*weight)


def blockdiag_matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`monarch_ops.blockdiag_matmul`."""
    y = torch.einsum("gqp,...gp->...gq", weight, x.unflatten(-1, (weight.shape[0], -1))).flatten(-2)
    return y if bias is None else y + bias


def monarch_dense(w1: Tensor, w2: Tensor) -> Tensor:
    """The (l*s, k*p) matrix of a Monarch product: P2 blockdiag(w2) P1 blockdiag(w1)."""
    (k, q, _), (l, s, r) = w1.shape, w2.shape
    first = blockdiag_dense(w1)[torch.arange(k * q).reshape(r, l).T.reshape(-1)]
    return (blockdiag_dense(w2) @ first)[torch.arange(l * s).reshape(l, s).T.reshape(-1)]


def monarch_matmul(x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`monarch_ops.monarch_matmul`."""
    middle = blockdiag_matmul(x, w1).unflatten(-1, (-1, w2.shape[0]))  # (..., r, l)
    y = torch.einsum("lsr,...rl->...sl", w2, middle).flatten(-2)
    return y if bias is None else y + bias


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
) -> Tensor:
    """:func:`monarch_ops.blockdiag_glu_mlp`."""
    gate, value = blockdiag_matmul(x, w_in).chunk(2, dim=-1)
    y = blockdiag_matmul(F.gelu(gate) * value, w_out, b_out)
    if residual is not None:
        y = y + residual
    if norm_weight is not None:
        y = F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)
    return y


def m2_mixer(
    a: Tensor,
    u: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor | None,
    taps: dict,
    residual_taps: dict | None = None,
    lengths: Tensor | None = None,
    method: str = "fft",
) -> Tensor:
    """:func:`monarch_ops.m2_mixer`; the filters are given as the keyword arguments of :func:`fft_conv` (k, ...)."""
    dtype, wide = a.dtype, _wide_dtype(a, u, short_weight, short_bias)
    a, short_weight = a.to(wide), short_weight.to(wide)
    u, short_bias = _cast(wide, u, short_bias)
    x1, x2, v = depthwise_conv1d(a, short_weight, short_bias).chunk(3, dim=1)
    y = fft_conv(v, pre_gate=x1, post_gate=x2, lengths=lengths, method=method, **taps)
    if residual_taps is not None:
        if u is None:
            raise ValueError("m2_mixer: argument 'u' must be given with 'residual_taps', got None")
        y = y + fft_conv(u, lengths=lengths, method=method, **residual_taps)
    return y.to(dtype)
