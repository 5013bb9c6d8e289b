"""Devices of the benchmarks."""

from __future__ import annotations

import pytest
import torch

from monarch_ops import _C

DEVICES = ["cpu", "cuda"] if _C.cuda_devices() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.manual_seed(0)
    return torch.device(request.param)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
