"""The sequence mixer of M2-BERT against the separate PyTorch ops of the published code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import separate_ops_mixer
from measure import DEVICES
from torch import Tensor

import monarch_ops as mo
from monarch_ops import _C

LENGTHS = {"cpu": [512, 2048, 8192], "cuda": [512, 2048, 8192, 32768]}
CASES = [
    pytest.param(device, length, id=f"{device}-{length}", marks=[pytest.mark.quick] * (length <= 2048))
    for device in DEVICES
    for length in LENGTHS[device]
]


def with_spectrum(taps: Tensor) -> Callable[[Tensor], Tensor]:
    """The two-sided convolution with these 2 L taps, whose real FFT is prepared."""
    n = taps.shape[-1]
    spectrum = torch.fft.rfft(taps)

    def conv(x: Tensor) -> Tensor:
        y = torch.fft.irfft(torch.fft.rfft(x.to(taps.dtype), n=n) * spectrum, n=n)
        return y[..., : n // 2].to(x.dtype)

    return conv


@pytest.mark.parametrize(("device", "length"), CASES, indirect=["device"])
def test_m2_mixer(compare, device, length):
    """Filters are prepared on both sides."""
    B, H, L = (1 if device.type == "cpu" else max(1, 32768 // length)), 768, length
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a, u = (torch.randn(B, n * H, L, device=device, dtype=dtype) for n in (3, 1))
    weight, bias = torch.randn(3 * H, 3, device=device, dtype=dtype) / 2, torch.randn(3 * H, device=device, dtype=dtype)
    k, residual = (torch.randn(H, 2 * L, device=device) / L**0.5 for _ in range(2))  # lags 0 .. L-1, then -L .. -1
    ours = [mo.fft_filter(t[:, :L], L, k_rev=t[:, L:].flip(1), dtype=dtype) for t in (k, residual)]
    theirs = [with_spectrum(t) for t in (k, residual)]
    name = str(dtype).removeprefix("torch.")
    conv = _C.explain_fft_conv(B, H, L, dtype=name, device=device.type)["prepared"]
    wide = [t.double() for t in (a[:1], u[:1], weight, bias)]
    exact = separate_ops_mixer(*wide, *(with_spectrum(t.double()) for t in (k, residual)))
    compare(
        f"m2_mixer ({B}, {H}, {L})",
        lambda: mo.m2_mixer(a, u, weight, bias, *ours),
        lambda: separate_ops_mixer(a, u, weight, bias, *theirs),
        "separate ops",
        exact,
        {
            "bytes": a.element_size() * 5 * u.numel() + sum(s.data.nbytes for s in ours),
            "flops": 2 * conv["flops"] + 6 * a.numel(),
            "dtype": "float32" if device.type == "cpu" else "float16",
        },
        dtype=dtype,
    )
