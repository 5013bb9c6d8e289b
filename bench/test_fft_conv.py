"""Long convolution against real FFTs of twice the length, and against our own plain form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import dense_product
from torch import Tensor

import monarch_ops as mo
from monarch_ops import _C
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
WIDEST = next(v["name"] for v in mo.variants() if v["available"] and v["device"] == "cpu")
OWN_SHAPES = [(8, 768, 128), (1, 768, 4096), (1, 64, 262144)]


def problem(shape: tuple[int, int, int], device: torch.device, count: int) -> list[Tensor]:
    """`count` rows tensors, then taps and skip weight."""
    _, H, L = shape
    rows = [torch.randn(shape, device=device) for _ in range(count)]
    return [*rows, torch.randn(H, L, device=device) / L**0.5, torch.randn(H, device=device)]


def gated_torch_conv(u: Tensor, pre: Tensor, post: Tensor, spectrum: Tensor, skip: Tensor) -> Tensor:
    """With the filter's real FFT of twice the length."""
    L, n = u.shape[-1], 2 * u.shape[-1]
    x = u * pre
    y = torch.fft.irfft(torch.fft.rfft(x, n=n) * spectrum, n=n)[..., :L]
    return (y + x * skip[:, None]) * post


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepared_filter_and_gates(compare, device, shape, dtype):
    u, pre, post, k, skip = problem(shape, device, 3)
    u, pre, post = (x.to(dtype) for x in (u, pre, post))
    spectrum, ready = torch.fft.rfft(k, n=2 * shape[2]), mo.fft_filter(k, shape[2], skip=skip, dtype=dtype)
    exact = torch_fft_conv(u.double() * pre.double(), k.double(), skip.double()) * post
    compare(
        f"fft_conv {shape} prepared, gated" + (" bf16" if dtype == torch.bfloat16 else ""),
        lambda: mo.fft_conv(u, ready, pre_gate=pre, post_gate=post),
        lambda: gated_torch_conv(u.float(), pre.float(), post.float(), spectrum, skip).to(dtype),
        "torch.fft, prepared",
        exact,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepared_filter_against_its_arithmetic(compare, device, shape):
    """How near the convolution is to the time of as many multiplications and additions in a dense product."""
    u, pre, post, k, skip = problem(shape, device, 3)
    ready = mo.fft_filter(k, shape[2], skip=skip)
    flops = _C.explain_fft_conv(*shape, gates=2, device=device.type)["flops"]
    compare(
        f"fft_conv {shape} prepared, gated",
        lambda: mo.fft_conv(u, ready, pre_gate=pre, post_gate=post),
        dense_product(768, int(flops / 2), device),
        "x @ w, same FLOPs",
    )


@pytest.mark.parametrize("gates", [0, 2])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_backward(compare, device, shape, gates):
    u, pre, post, k, skip = problem(shape, device, 3)
    inputs = [x.requires_grad_() for x in ((u, pre, post, k, skip) if gates else (u, k, skip))]

    def backward(forward: Callable[[], Tensor]) -> Callable[[], object]:
        y = forward()
        grad = torch.ones_like(y)
        return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)

    def theirs() -> Tensor:
        if not gates:
            return torch_fft_conv(u, k, skip)
        return gated_torch_conv(u, pre, post, torch.fft.rfft(k, n=2 * shape[2]), skip)

    rows = {"pre_gate": pre, "post_gate": post} if gates else {}
    compare(
        f"fft_conv {shape} backward" + (", gated" if gates else ""),
        backward(lambda: mo.fft_conv(u, k, skip=skip, **rows)),
        backward(theirs),
        "torch.fft and autograd",
    )


@pytest.mark.parametrize("shape", OWN_SHAPES, ids=str)
@pytest.mark.parametrize("form", ["two-sided", "ragged", "avx2"])
def test_against_the_plain_form(compare, device, shape, form):
    """What other forms cost against the causal convolution of a power of two by the widest instruction set."""
    if form == "avx2" and not (device.type == "cpu" and WIDEST == "avx512"):
        pytest.skip("compares two instruction sets of the CPU")
    u, k, skip = problem(shape, device, 1)
    L = shape[2]
    short = 3 * L // 4 + 1  # needs the transform of L
    v = torch.randn(*shape[:2], short, device=device)
    ours = {
        "two-sided": lambda: mo.fft_conv(u, k, k_rev=k, skip=skip),
        "ragged": lambda: mo.fft_conv(v, k, skip=skip),
        "avx2": lambda: mo.fft_conv(u, k, skip=skip, variant="avx2"),
    }[form]
    name = f"L={short}" if form == "ragged" else form
    compare(f"fft_conv {shape} {name}", ours, lambda: mo.fft_conv(u, k, skip=skip), "our plain form")
