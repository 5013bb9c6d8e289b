"""What a call costs beyond its work: problems of one value, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import monarch_ops as mo
from monarch_ops.demo.speed import torch_fft_conv


def calls(device: torch.device) -> dict[str, tuple[list[Tensor], Callable[..., Tensor], Callable[..., Tensor], str]]:
    """For each op: arguments, ours, PyTorch's nearest, and what that is called."""
    row, one, square = (torch.ones(s, device=device) for s in ((1, 1, 1), (1, 1), (1, 1, 1)))
    weight = torch.ones(1, device=device)
    return {
        "fft_conv": ([row, one, weight], lambda u, k, skip: mo.fft_conv(u, k, skip=skip), torch_fft_conv, "torch.fft"),
        "depthwise_conv1d": (
            [row, one, weight],
            lambda x, w, b: mo.depthwise_conv1d(x, w, b),
            lambda x, w, b: F.conv1d(x, w[:, None], b),
            "F.conv1d",
        ),
        "blockdiag_matmul": (
            [one, square],
            lambda x, w: mo.blockdiag_matmul(x, w),
            lambda x, w: torch.bmm(x[None], w)[0],
            "torch.bmm",
        ),
    }


@pytest.mark.quick
@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize("op", ["fft_conv", "depthwise_conv1d", "blockdiag_matmul"])
@torch.no_grad()
def test_overhead(compare, device, op, way):
    tensors, ours, theirs, baseline = calls(device)[op]
    if way == "compiled":
        torch._dynamo.reset()
        ours, theirs = torch.compile(ours, dynamic=False), torch.compile(theirs, dynamic=False)
    compare(f"one value: {op}, {way}", lambda: ours(*tensors), lambda: theirs(*tensors), f"{baseline}, {way}")
