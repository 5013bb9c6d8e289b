"""Long convolution, forward, against real FFTs of twice the length."""

from __future__ import annotations

import pytest
import torch

import monarch_ops as mo
from monarch_ops.demo.speed import torch_fft_conv

SHAPES = [
    (8, 768, 128),
    (4, 768, 1024),
    (1, 768, 4096),
    (1, 768, 8192),
    (1, 768, 32768),
    (1, 64, 262144),
    (1, 8, 1048576),
]


def problem(shape: tuple[int, int, int], device: torch.device, count: int) -> list[torch.Tensor]:
    """`count` rows tensors, then taps and skip weight."""
    _, H, L = shape
    rows = [torch.randn(shape, device=device) for _ in range(count)]
    return [*rows, torch.randn(H, L, device=device) / L**0.5, torch.randn(H, device=device)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filter_in_every_call(compare, device, shape):
    u, k, skip = problem(shape, device, 1)
    exact = torch_fft_conv(u.double(), k.double(), skip.double())
    compare(
        f"fft_conv {shape}",
        lambda: mo.fft_conv(u, k, skip=skip),
        lambda: torch_fft_conv(u, k, skip),
        "torch.fft",
        exact,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepared_filter_and_gates(compare, device, shape):
    u, pre, post, k, skip = problem(shape, device, 3)
    n = 2 * shape[2]
    spectrum, ready = torch.fft.rfft(k, n=n), mo.fft_filter(k, shape[2], skip=skip)

    def theirs() -> torch.Tensor:
        x = u * pre
        y = torch.fft.irfft(torch.fft.rfft(x, n=n) * spectrum, n=n)[..., : shape[2]]
        return (y + x * skip[:, None]) * post

    exact = torch_fft_conv((u * pre).double(), k.double(), skip.double()) * post
    name = f"fft_conv {shape} prepared, gated"
    compare(name, lambda: mo.fft_conv(u, ready, pre_gate=pre, post_gate=post), theirs, "torch.fft, prepared", exact)
