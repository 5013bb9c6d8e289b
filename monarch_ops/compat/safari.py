"""The ``fftconv_func`` of safari, H3, Hyena and S4D: ``from monarch_ops.compat.safari import fftconv_func``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops

__all__ = ["fftconv_func"]


def fftconv_func(
    u: Tensor,
    k: Tensor,
    D: Tensor,
    dropout_mask: Tensor | None = None,
    gelu: bool = True,
    force_fp16_output: bool = False,
    output_hbl_layout: bool = False,
    v: Tensor | None = None,
    head_dim: int = 1,
    q: Tensor | None = None,
    fftfp16: bool = False,
    k_rev: Tensor | None = None,
) -> Tensor:
    """``gelu(conv(u, k) + D u) * dropout_mask``; with `v` and `q` the H3 form ``q * (conv(u v, k) + D u v)``.

    Here ``k_rev[0]`` is lag 0, as in that library. `fftfp16` asks for a faster FFT there and changes nothing here.

    Args:
        u, v, q: (B, H, L); with `head_dim` d, H is d times the number of rows of `k`.
        k, k_rev: (H / d, L). D: (H / d,). dropout_mask: (B, H).
    """
    if gelu and q is not None:
        raise ValueError("fftconv_func: argument 'gelu' must be False together with 'q' (H3), got True")
    if k_rev is not None and not k_rev.shape[-1]:
        raise ValueError(f"fftconv_func: argument 'k_rev' must have at least lag 0, got {tuple(k_rev.shape)}")
    skip, reverse = (D, None) if k_rev is None else (D + k_rev[:, 0], k_rev[:, 1:])
    if head_dim > 1:
        if v is None or q is None:
            raise ValueError("fftconv_func: arguments 'v' and 'q' must be given when head_dim > 1, got None")
        out = _outer(u, k, skip, reverse, v, q, head_dim)
    else:
        out = ops.fft_conv(u, k, k_rev=reverse, skip=skip, pre_gate=v, post_gate=q)
    if gelu:
        out = F.gelu(out)
    if dropout_mask is not None:
        out = out * dropout_mask[..., None].to(out.dtype)
    if force_fp16_output:
        out = out.to(torch.float16)
    return out.transpose(0, 1).contiguous().transpose(0, 1) if output_hbl_layout else out


def _outer(u: Tensor, k: Tensor, skip: Tensor, k_rev: Tensor | None, v: Tensor, q: Tensor, d: int) -> Tensor:
    """H3 with heads: convolve every product u_i v_j of a head's d channels and sum over i with q_i."""
    B, _, L = u.shape
    heads = k.shape[0]
    u, v, q = (x.reshape(B, heads, d, L) for x in (u, v, q))
    products = (u[:, :, :, None] * v[:, :, None]).permute(0, 2, 3, 1, 4).reshape(B * d * d, heads, L)
    y = ops.fft_conv(products, k, k_rev=k_rev, skip=skip).reshape(B, d, d, heads, L)
    return (y * q.permute(0, 2, 1, 3)[:, :, None]).sum(1).transpose(1, 2).reshape(B, heads * d, L)
