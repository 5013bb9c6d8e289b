"""What the benchmarks compare with: the same results in plain PyTorch, as people write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from monarch_ops.m2bert.model import M2BertLayer, M2BertModel
from monarch_ops.nn import HyenaFilter


def blockdiag_bmm(a: Tensor, w: Tensor) -> Tensor:
    """A block-diagonal product as one batched product and a transposition, as in the published code."""
    parts = a.reshape(-1, w.shape[0], w.shape[2]).transpose(0, 1)
    return torch.bmm(parts, w.transpose(1, 2)).transpose(0, 1).reshape(*a.shape[:-1], -1)


def blockdiag_einsum(a: Tensor, w: Tensor) -> Tensor:
    """... and as the formula says it."""
    return torch.einsum("...gp,gqp->...gq", a.unflatten(-1, (w.shape[0], w.shape[2])), w).flatten(-2)


def separate_ops_mlp(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    blocks: Callable[[Tensor, Tensor], Tensor] = blockdiag_bmm,
) -> Tensor:
    """The M2-BERT MLP as separate PyTorch ops."""
    gate, value = blocks(x, w_in).chunk(2, -1)
    y = blocks(F.gelu(gate) * value, w_out) + b_out
    return F.layer_norm(y + residual, (y.shape[-1],), weight, bias, eps)


def two_sided_conv(x: Tensor, filter: HyenaFilter) -> Tensor:
    """Bidirectional convolution of (B, H, L) by real FFTs of twice the length; the filter is computed in every call."""
    L = x.shape[-1]
    k, k_rev = filter(L)
    taps = F.pad(k, (0, L)) if k_rev is None else F.pad(k, (0, L)) + F.pad(k_rev.flip(-1), (L, 0))
    spectrum = torch.fft.rfft(taps, n=2 * L) / (2 * L)
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * L) * spectrum, n=2 * L, norm="forward")[..., :L]
    return y + x * filter.bias[:, None]


def separate_ops_mixer(
    a: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    conv: Callable[[Tensor], Tensor],
    residual_conv: Callable[[Tensor], Tensor],
) -> Tensor:
    """The M2-BERT mixer as separate PyTorch ops."""
    H, L = u.shape[1:]
    a = F.conv1d(a, weight[:, None], bias, padding=weight.shape[1] - 1, groups=3 * H)[..., :L]
    x1, x2, v = a.split(H, dim=1)
    return conv(v * x1) * x2 + residual_conv(u)


def _published_layer(layer: M2BertLayer, u: Tensor) -> Tensor:
    mixer, mlp = layer.attention, layer.mlp
    filters = [partial(two_sided_conv, filter=f) for f in (mixer.filter_fn, mixer.filter_fn2)]
    a = mixer.in_linear(u).transpose(1, 2)
    y = separate_ops_mixer(a, u.transpose(1, 2), mixer.short_weight, mixer.short_bias, *filters)
    x = mixer.out_linear(y.transpose(1, 2))
    norm = mlp.layernorm
    return separate_ops_mlp(x, mlp.gated_layers.weight, mlp.wo.weight, mlp.wo.bias, x, norm.weight, norm.bias, norm.eps)


def published_forward(model: M2BertModel, ids: Tensor) -> Tensor:
    """Hidden states of `model` by the arithmetic of the published code, filters computed in every call."""
    x = model.embeddings(ids, None)
    for layer in model.encoder.layer:
        x = _published_layer(layer, x)
    return x
