"""FlashFFTConv (arXiv 2311.05908): ``from monarch_ops.compat.flashfftconv import FlashFFTConv``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops

__all__ = ["FlashDepthWiseConv1d", "FlashFFTConv"]


class FlashFFTConv(nn.Module):
    """Convolution with period `seqlen`, the FFT size: circular for inputs of that length, causal for shorter filters
    and inputs that leave room (2L for a causal convolution of length L). Any `seqlen` is accepted, as is any dtype."""

    def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16, use_32_butterfly: bool = True) -> None:
        super().__init__()
        self.seqlen, self.dtype = seqlen, dtype

    def forward(self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None) -> Tensor:
        """u, gates (B, H, L), k (H, Lk), L and Lk at most `seqlen`; returns (B, H, L)."""
        L, N = u.shape[-1], self.seqlen
        if L > N or k.shape[-1] > N:
            raise ValueError(
                f"FlashFFTConv: argument 'u' and 'k' must be at most seqlen={N} long, got {L}, {k.shape[-1]}"
            )
        if L == N:
            return ops.fft_conv(u, k, pre_gate=pregate, post_gate=postgate, circular=True)
        # taps near the end of the period are those at negative lags: lag -d is k[N - d]
        wrapped = k[:, max(0, N - L + 1) :].flip(1)
        gap = N - k.shape[-1]
        k_rev = nn.functional.pad(wrapped, (gap, 0)) if wrapped.shape[1] else None
        return ops.fft_conv(u, k[:, :L], k_rev=k_rev, pre_gate=pregate, post_gate=postgate)


class FlashDepthWiseConv1d(nn.Module):
    """Short depthwise convolution, made from the weights of an ``nn.Conv1d``, with its bias or None."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        padding: int,
        weights: Tensor,
        bias: Tensor | None,
        is_bhl: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d, self.k, self.padding, self.is_bhl = channels, kernel_size, padding, is_bhl
        taps = weights.detach().reshape(channels, kernel_size).to(device=device, dtype=dtype)
        self.weights = nn.Parameter((taps if is_bhl else taps.T).clone().contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device=device, dtype=dtype).clone())

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, L), or (B, L, H) when made with ``is_bhl=False``."""
        weight = self.weights if self.is_bhl else self.weights.T
        layout = "bhl" if self.is_bhl else "blh"
        return ops.depthwise_conv1d(input, weight, self.bias, padding=self.padding, layout=layout)
