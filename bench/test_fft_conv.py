"""Causal long convolution with skip, forward, filters included, against real FFTs of twice the length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import synchronize
from torch import Tensor

import monarch_ops as mo
from monarch_ops.demo.speed import torch_fft_conv

CHANNELS = 768
IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "monarch_ops": lambda u, k, skip: mo.fft_conv(u, k, skip=skip),
    "torch.fft": torch_fft_conv,
}


@pytest.mark.parametrize("length", [512, 2048, 8192, 32768])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_fft_conv(benchmark, device, length, name):
    u, k = torch.randn(1, CHANNELS, length, device=device), torch.randn(CHANNELS, length, device=device)
    k, skip = k / length**0.5, torch.randn(CHANNELS, device=device)
    benchmark.group = f"fft_conv {device.type} float32 B=1 H={CHANNELS} L={length}"
    exact = torch_fft_conv(u.double(), k.double(), skip.double())

    def call() -> Tensor:
        y = IMPLEMENTATIONS[name](u, k, skip)
        synchronize(device)
        return y

    y = benchmark(call)
    benchmark.extra_info["relative error"] = ((y - exact).norm() / exact.norm()).item()
