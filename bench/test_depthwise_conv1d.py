"""The short convolution against PyTorch's grouped one, and on a GPU against causal-conv1d."""

from __future__ import annotations

import pytest
import torch
from measure import DEVICES
from torch import Tensor
from torch.nn import functional as F

import monarch_ops as mo

# (B, H, L), taps: the mixers of M2-BERT and of Mamba
PROBLEMS = {
    "cpu": [((1, 2304, 2048), 3), ((4, 1536, 1024), 4)],
    "cuda": [((16, 2304, 2048), 3), ((1, 2304, 32768), 3), ((64, 1536, 2048), 4)],
}
CASES = [
    pytest.param(device, *problem, id=f"{device}-{problem}", marks=pytest.mark.quick)
    for device in DEVICES
    for problem in PROBLEMS[device]
]


def torch_conv1d(x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """Causal, as models write it: padded on both sides and cut."""
    H, K = weight.shape
    y = F.conv1d(x, weight[:, None], bias, padding=K - 1, groups=H)[..., : x.shape[-1]]
    return F.silu(y) if silu else y


def inputs(shape: tuple[int, int, int], taps: int, device: torch.device) -> tuple[list[Tensor], dict]:
    """Rows, weight and bias, and what the convolution costs."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    x = torch.randn(shape, device=device, dtype=dtype)
    weight, bias = (torch.randn(*s, device=device, dtype=dtype) / 2 for s in ((shape[1], taps), (shape[1],)))
    return [x, weight, bias], {"bytes": 2 * x.nbytes, "flops": 2 * taps * x.numel(), "dtype": "float32"}


@pytest.mark.parametrize("layout", ["bhl", "blh"])
@pytest.mark.parametrize(("device", "shape", "taps"), CASES, indirect=["device"])
def test_depthwise_conv1d(compare, device, shape, taps, layout):
    (x, weight, bias), cost = inputs(shape, taps, device)
    silu = taps == 4  # Mamba has it behind its convolution
    rows = x if layout == "bhl" else x.transpose(1, 2).contiguous()

    def theirs() -> Tensor:
        y = torch_conv1d(rows if layout == "bhl" else rows.transpose(1, 2), weight, bias, silu)
        return y if layout == "bhl" else y.transpose(1, 2).contiguous()

    exact = torch_conv1d(x[:1].double(), weight.double(), bias.double(), silu)
    compare(
        f"depthwise_conv1d {layout} {(*shape[:2], taps, shape[2])}" + (" SiLU" if silu else ""),
        lambda: mo.depthwise_conv1d(rows, weight, bias, layout=layout, activation="silu" if silu else None),
        theirs,
        "F.conv1d",
        exact if layout == "bhl" else exact.transpose(1, 2),
        cost,
        dtype=x.dtype,
    )


@pytest.mark.parametrize(("device", "shape", "taps"), CASES, indirect=["device"])
def test_against_causal_conv1d(compare, device, shape, taps):
    if device.type == "cpu":
        pytest.skip("causal-conv1d does not run on cpu")
    peer = pytest.importorskip("causal_conv1d", reason="causal-conv1d is not installed")
    (x, weight, bias), cost = inputs(shape, taps, device)
    compare(
        f"depthwise_conv1d bhl {(*shape[:2], taps, shape[2])} SiLU",
        lambda: mo.depthwise_conv1d(x, weight, bias, activation="silu"),
        lambda: peer.causal_conv1d_fn(x, weight, bias, activation="silu"),
        "causal-conv1d",
        torch_conv1d(x[:1].double(), weight.double(), bias.double(), True),
        cost,
        dtype=x.dtype,
    )


@pytest.mark.parametrize(("device", "shape", "taps"), CASES, indirect=["device"])
def test_depthwise_conv1d_backward(compare, device, shape, taps):
    tensors, cost = inputs(shape, taps, device)
    tensors = [t.requires_grad_() for t in tensors]
    x, weight, bias = tensors
    ours, theirs = mo.depthwise_conv1d(x, weight, bias), torch_conv1d(x, weight, bias, False)
    grad = torch.randn_like(ours)
    compare(
        f"depthwise_conv1d backward {(*shape[:2], taps, shape[2])}",
        lambda: torch.autograd.grad(ours, tensors, grad, retain_graph=True),
        lambda: torch.autograd.grad(theirs, tensors, grad, retain_graph=True),
        "F.conv1d and autograd",
        cost={name: 3 * cost[name] // 2 if name == "bytes" else 2 * cost[name] for name in ("bytes", "flops")},
        dtype=x.dtype,
    )
